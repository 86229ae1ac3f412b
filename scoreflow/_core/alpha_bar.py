"""Noise schedules of variance preserving paths: log ᾱ of t, its rate and its inverse."""

from __future__ import annotations

import hashlib
import math
import operator
from bisect import bisect_left
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoreflow._core.chain import DDPMChain
from scoreflow._core.check import number
from scoreflow._core.elementary import constant, cos, exp, log, log1p, sin, sqrt, tan, where
from scoreflow._core.gaussian import bisect
from scoreflow._core.known import Parameters


class AlphaBar(Parameters):
    """A noise schedule: log ᾱ, falling from 0, its rate and its inverse; on float64 tensors. As text it is how the path of
    this schedule is made."""

    def log_alpha_bar(self, t: Any) -> Any:
        """log ᾱ."""
        raise NotImplementedError

    def beta(self, t: Any) -> Any:
        """`β = −d log ᾱ/dt`."""
        raise NotImplementedError

    def time(self, log_alpha_bar: Any) -> Any:
        """The t with this log ᾱ."""
        raise NotImplementedError

    def alpha_slope(self, t: Any) -> Any:
        """`dα/dt = −½ β α`."""
        return -self.beta(t) / 2 * exp(self.log_alpha_bar(t) / 2)


class LinearBeta(AlphaBar):
    """`β(t) = β_min + t (β_max − β_min)`."""

    def __str__(self) -> str:
        return f"(beta_min={self.beta_min}, beta_max={self.beta_max})"

    def __init__(self, beta_min: float, beta_max: float) -> None:
        self.beta_min, self.beta_max = number("beta_min", beta_min, above=0), number("beta_max", beta_max, above=0)
        if self.beta_min > self.beta_max:
            raise ValueError(f"need 0 < beta_min ≤ beta_max, got beta_min={beta_min}, beta_max={beta_max}")

    def log_alpha_bar(self, t: Any) -> Any:
        return -t * (self.beta_min + t / 2 * (self.beta_max - self.beta_min))

    def beta(self, t: Any) -> Any:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def time(self, log_alpha_bar: Any) -> Any:
        root = sqrt(self.beta_min**2 - 2 * (self.beta_max - self.beta_min) * log_alpha_bar)
        return -2 * log_alpha_bar / (self.beta_min + root)


class Cosine(AlphaBar):
    """`ᾱ = cos²((t + s)/(1 + s) · π/2)`, normalised to 1 at t = 0; exactly 0 at t = 1."""

    def __init__(self, s: float) -> None:
        self.s = number("s", s, least=0)

    @property
    def rate(self) -> float:
        """π/2 over 1 + s."""
        return math.pi / 2 / (1 + self.s)

    def __str__(self) -> str:
        return f".cosine(s={self.s})"

    def log_alpha_bar(self, t: Any) -> Any:
        # cos a / cos b = 1 − (sin² ((a−b)/2) · 2 cos b + sin(a−b) sin b)/cos b keeps the digits near t = 0.
        start = self.s * self.rate
        near = log1p(-2 * sin(self.rate * t / 2) ** 2 - sin(self.rate * t) * math.tan(start))
        far = log(sin(self.rate * (1 - t)) / math.cos(start))
        return 2 * where(t < 0.5, near, far)

    def beta(self, t: Any) -> Any:
        return 2 * self.rate / tan(self.rate * (1 - t))

    def alpha_slope(self, t: Any) -> Any:
        return -self.rate * cos(self.rate * (1 - t)) / math.cos(self.s * self.rate)  # finite where β is not

    def time(self, log_alpha_bar: Any) -> Any:
        zero, one = constant(0.0, log_alpha_bar), constant(1.0, log_alpha_bar)
        return bisect(self.log_alpha_bar, log_alpha_bar, zero, one, self.beta)


class Nodes(AlphaBar):
    """log ᾱ through the nodes of a DDPM chain at t = i/T by monotone cubics: exact at the nodes, β continuous.

    Where the last β is 1, `log ᾱ = y + (d + 2) u + 2 log(1 − u)` in the last cell, u the place in it, y and d value and slope
    at its start: α falls to 0 at t = 1 as a straight line does, and log ᾱ is finite before.

    Reference:
        A Method for Constructing Local Monotone Piecewise Cubic Interpolants (Fritsch & Butland, 1984).
    """

    fixed = True

    def __init__(self, chain: DDPMChain) -> None:
        y = np.concatenate(([0.0], chain.log_alpha_bar.numpy()))
        self.to_zero = bool(y[-1] == -math.inf)
        rise = np.diff(y)  # by node, negative throughout; the last may be −∞
        inner = 2 / (1 / rise[1:] + 1 / rise[:-1])
        if len(rise) > 1:
            # Three-point ends, held to the range in which the cubic stays monotone and β > 0.
            ends = [np.clip((3 * a - b) / 2, 3 * a, a / 3) for a, b in (rise[:2], rise[:-3:-1])]
        else:
            ends = [rise[0], rise[0]]
        d = np.concatenate(([ends[0]], inner, [ends[1]]))
        if self.to_zero:
            last = (d[-2] + 2 if len(rise) > 1 else 0.0, 0.0, 0.0)
            d[-1] = rise[-1] = 0.0
        cubic = (y[:-1], d[:-1], 3 * rise - 2 * d[:-1] - d[1:], d[:-1] + d[1:] - 2 * rise)
        if self.to_zero:
            for c, value in zip(cubic[1:], last, strict=True):
                c[-1] = value
        self.T, self.y, self.betas = chain.T, torch.from_numpy(y), chain.beta
        self.nodes = torch.arange(self.T + 1, dtype=torch.float64) / self.T
        # At the last node a cell of its own, with its value to the last digit and the slope there.
        _, rate, bend, turn = (float(part[-1]) for part in cubic)
        end = (float(y[-2]) + rate if self.to_zero else y[-1], rate + 2 * bend + 3 * turn, 0.0, 0.0)
        self.cubic = torch.from_numpy(np.concatenate([np.stack(cubic), np.array(end)[:, None]], 1))

    def __str__(self) -> str:
        digest = hashlib.blake2b(self.betas.numpy().tobytes(), digest_size=4).hexdigest()
        return f".from_betas({self.T} betas from {self.betas[0]:.4g} to {self.betas[-1]:.4g}, {digest})"

    def _cell(self, t: Any) -> tuple[Any, ...]:
        """The start of the cell that t is in, and the cell's cubic."""
        if isinstance(t, Tensor):  # t·T may miss a node by a rounding; i/T does not
            found = torch.searchsorted(self.nodes.to(t), t.detach().contiguous(), right=True) - 1
            return self._at(found.clamp(0, self.T), t)
        i = int(t * self.T)
        return self._at(min(i + ((i + 1) / self.T <= t) - (i / self.T > t), self.T), t)

    def _at(self, i: Any, like: Any) -> tuple[Any, ...]:
        if isinstance(like, Tensor):
            return self.nodes.to(like)[i], *self.cubic.to(like)[:, i]
        return i / self.T, *self.cubic.numpy()[:, i].tolist()

    def log_alpha_bar(self, t: Any) -> Any:
        return self._value(t, *self._cell(t))

    def _value(self, t: Any, start: Any, y: Any, b: Any, c: Any, d: Any) -> Any:
        u = (t - start) * self.T
        cubic = y + u * (b + u * (c + u * d))
        return cubic + 2 * log(self._line(t)[0]) if self.to_zero else cubic

    def beta(self, t: Any) -> Any:
        return self._rate(t, *self._cell(t))

    def _rate(self, t: Any, start: Any, _: Any, b: Any, c: Any, d: Any) -> Any:
        u = (t - start) * self.T
        rate = -self.T * (b + u * (2 * c + 3 * u * d))
        if not self.to_zero:
            return rate
        line, slope = self._line(t)
        return rate - 2 * slope / line

    def alpha_slope(self, t: Any) -> Any:
        if not self.to_zero:
            return super().alpha_slope(t)
        start, y, b, c, d = self._cell(t)
        u, (line, slope) = (t - start) * self.T, self._line(t)
        rate = self.T * (b + u * (2 * c + 3 * u * d))
        return (rate / 2 * line + slope) * exp((y + u * (b + u * (c + u * d))) / 2)

    def _line(self, t: Any) -> tuple[Any, Any]:
        """The factor of α that falls from 1 to 0 in the last cell, and its slope; 1 and 0 before."""
        start = (self.T - 1) / self.T
        u, left = (t - start) * self.T, (1 - t) * self.T
        line = where(t > start, where(u < 0.5, 1 - u, left), 1.0)
        return line, where(t >= start, constant(-self.T, t), 0.0)

    def time(self, log_alpha_bar: Any) -> Any:
        right: Any
        if isinstance(log_alpha_bar, Tensor):
            right = torch.searchsorted(-self.y.to(log_alpha_bar), -log_alpha_bar.contiguous()).clamp(1, self.T)
        else:
            right = min(max(bisect_left(self.y.numpy(), -log_alpha_bar, key=operator.neg), 1), self.T)
        cell, (end, *_) = self._at(right - 1, log_alpha_bar), self._at(right, log_alpha_bar)
        return bisect(
            self.log_alpha_bar, log_alpha_bar, cell[0], end, lambda t: self._rate(t, *cell), lambda t: self._value(t, *cell)
        )
