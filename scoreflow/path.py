"""What a path of one's own is made of: `GaussianPath`, and `curve`, the decorator of its methods.

A path defines `log_alpha(self, t)` and `log_sigma(self, t)` on float64 tensors, each under `@curve`, which lets it take
numbers and tensors of any dtype. All else follows.
"""

from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.known import curve

__all__ = ["GaussianPath", "curve"]
