"""What a path of one's own is made of: `GaussianPath`, and `curve` for its methods.

class Exponential(sf.GaussianPath):
    @curve
    def log_alpha(self, t):
        return -3 * t

    @curve
    def log_sigma(self, t):
        return torch.log(-torch.expm1(-6 * t)) / 2
"""

from scoreflow._core.gaussian import GaussianPath, curve

__all__ = ["GaussianPath", "curve"]
