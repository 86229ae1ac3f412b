"""The length of the next step, from the error of this one."""

from __future__ import annotations

import math
from typing import NamedTuple


class Control(NamedTuple):
    """PI control. A step with error E, 1 the most allowed, is followed by one `0.9 E^{−integral} E_before^{proportional}` times
    as long, held to 0.2 … 5 and to no longer after a refusal; a step refused is taken again at `0.9 E^{−integral−proportional}`
    of its length, held to 0.2 … 0.9.

    Reference:
        Solving Ordinary Differential Equations II (Hairer & Wanner, 1996), Sec. IV.2, Eq. 2.43c.
    """

    integral: float
    proportional: float

    def factor(self, error: float, before: float, refused: bool) -> float:
        """How many times as long the next step is; `before` is the last error that was taken, `refused` whether a refusal came
        before this step."""
        if error <= 1:
            longer: float = 0.9 * max(error, 1e-10) ** -self.integral * before**self.proportional
            return min(max(longer, 0.2), 1.0 if refused else 5.0)
        # What is not finite is refused like any other, and as short as may be.
        shorter: float = 0.9 * error ** -(self.integral + self.proportional) if error < math.inf else 0.0
        return min(max(shorter, 0.2), 0.9)
