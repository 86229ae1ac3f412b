"""What rows do to Gaussian data and to an error of the network: a run on weights in the place of states."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scoreflow._core.gaussian import GaussianPath, Prediction
from scoreflow._core.noise import Draws, White

VARIANCES = (1.0, 0.01)
"""Of the Gaussian data on which plans are checked: that to which data are scaled, and a tight one."""
WIDE = 3.0
"""By what factor outputs may be too wide, or at variance 1 too narrow."""
AMPLIFIED = 10.0
"""How many times as large an error in one output of the network may come out."""


class Health(NamedTuple):
    """What a plan does to N(0, v I) data, and to an error of the network. It prints as one line.

    Attributes:
        std, std_tight: of an entry of the outputs, for v = 1 and for v = 0.01.
        data, data_tight: what they are of the data's own law at the last time, `√(α² v + σ²)`.
        amplification: `max_k |∂x_end/∂e_k|` over both v: how far the output moves for an error e_k in the x̂_0 of evaluation k,
            both in the data's unit, when later outputs answer to the states that they see. A step to x̂_0 has 1.
        at: the time of that evaluation.
        last_row: `Σ|m|` of the last row, m the weights of the outputs in the prediction that the plan takes.
    """

    std: float
    std_tight: float
    data: float
    data_tight: float
    amplification: float
    at: float
    last_row: float

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is not sensible; empty if all is.

        Outputs more than `WIDE` times too wide, or at v = 1 too narrow, where a run has come no further than the mean of the
        data; an error that comes out more than `AMPLIFIED` times as large. At v = 0.01 coarse runs are too narrow, and so
        blurred, which is no fault of their rows.
        """
        found = []
        if not self.data / WIDE <= self.std <= self.data * WIDE:
            found.append(f"outputs of std {self.std:.3g} for {self.data:.3g}")
        if self.std_tight > self.data_tight * WIDE:
            found.append(f"outputs of std {self.std_tight:.3g} for {self.data_tight:.3g}")
        if self.amplification > AMPLIFIED:
            found.append(f"an error at t={self.at:.3g} comes out {self.amplification:.3g} times as large")
        return tuple(found)

    def __str__(self) -> str:
        wrong = f"; not sensible: {', '.join(self.warnings)}" if self.warnings else ""
        return (
            f"on N(0, v I) data std {self.std:.3g} for {self.data:.3g} (v = 1), {self.std_tight:.3g} for {self.data_tight:.3g} "
            f"(v = 0.01); an error in x̂_0 comes out {self.amplification:.3g} times as large at most; "
            f"Σ|m| of the last row {self.last_row:.3g}{wrong}"
        )


class Symbolic:
    """E[x_0 | x_t] of N(μ, v) by direction, affine in x_t, acting on vectors of weights (d, size + errors).

    The weights are on (1, x_T, the draws), `size` of them, then on an error in each x̂_0 that is asked for, if `errors`.
    """

    prediction: Prediction = "x0"

    def __init__(
        self, path: GaussianPath, mean: Tensor, var: Tensor, size: int, analytic: float | None = None, errors: int = 0
    ) -> None:
        self.path, self.var, self.analytic = path, var[:, None], analytic
        self.mean = torch.zeros(len(mean), size + errors, dtype=torch.float64)
        self.mean[:, 0] = mean
        self.errors = iter(range(size, size + errors))

    def __call__(self, x: Tensor, t: float, prediction: Prediction = "eps") -> Tensor:
        if self.analytic is not None:
            v, self.analytic = self.analytic, None
            return x * self.path.gaussian(t, prediction, v)
        a, s = self.path.alpha(t), self.path.sigma(t)
        x_0 = self.mean + a * self.var / (a**2 * self.var + s**2) * (x - a * self.mean)
        if (k := next(self.errors, None)) is not None:
            x_0[:, k] += 1.0
        weight, m = self.path.convert("x0", prediction, t)
        return weight * x + m * x_0


class UnitVectors(Draws):
    """A noise whose k-th draw is the k-th unit vector, past the constant and x_T."""

    def __init__(self) -> None:
        super().__init__(White(0), "step")

    def _next(self, like: Tensor, t: float, s: float, area: bool) -> Tensor:
        draw = torch.zeros_like(like)
        draw[:, self.count + 1] = 1.0
        return draw
