"""What can be said of a sampler without a network: its exact law on Gaussian data."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scoreflow.noise import Draws, White
from scoreflow.oracle import Gaussian
from scoreflow.path import GaussianPath, Prediction
from scoreflow.plan import Plan, advance


class Law(NamedTuple):
    """What a linear sampler puts out on Gaussian data, from the prior N(0, prior_std² I): a Gaussian.

    Attributes:
        mean: (d,). cov: (d, d). Both float64.
        target: the data.
    """

    mean: Tensor
    cov: Tensor
    target: Gaussian

    @property
    def w2(self) -> float:
        """The Wasserstein-2 distance to the data; the covariances commute, so it is that of their square roots."""
        roots = [_root(cov) for cov in (self.cov, self.target.cov)]
        return float(((self.mean - self.target.mean).square().sum() + (roots[0] - roots[1]).square().sum()).sqrt())


def law(plan: Plan, path: GaussianPath, gaussian: Gaussian) -> Law:
    """The exact output law of a planned run on N(μ, Σ): each eigendirection of Σ is run on symbols.

    On Gaussian data a linear sampler is affine in x_T and its draws. The state of a direction is the vector of its
    weights on (1, x_T, draw 1, …, draw n), the k-th draw the k-th unit vector: no Monte Carlo.

    Raises:
        ValueError: the plan was made for another path.
    """
    if plan.path != repr(path):
        raise ValueError(f"the plan was made for {plan.path}, not for {path}")
    var, turn = torch.linalg.eigh(gaussian.cov)
    mean = turn.mT @ gaussian.mean
    size = plan.noise_count + 2
    model = Symbolic(path, mean, var, size, plan.analytic)
    x = torch.zeros(len(var), size, dtype=torch.float64)
    x[:, 1] = path.prior_std(plan.times[0])
    draws, memory = UnitVectors(), ()
    for step in plan.steps:
        x, memory, _ = advance(step, plan, model, x, memory, draws)  # type: ignore[assignment]
    spread = x[:, 1:].square().sum(1)
    return Law(turn @ x[:, 0], (turn * spread) @ turn.mT, gaussian)


class Symbolic:
    """E[x_0 | x_t] of N(μ, v) by direction, affine in x_t, acting on vectors of weights (d, size)."""

    prediction: Prediction = "x0"

    def __init__(self, path: GaussianPath, mean: Tensor, var: Tensor, size: int, analytic: float | None = None) -> None:
        self.path, self.var, self.analytic = path, var[:, None], analytic
        self.mean = torch.zeros(len(mean), size, dtype=torch.float64)
        self.mean[:, 0] = mean

    def __call__(self, x: Tensor, t: float, want: Prediction = "eps") -> Tensor:
        if self.analytic is not None:
            v, self.analytic = self.analytic, None
            return x * self.path.gaussian(t, want, v)
        a, s = self.path.alpha(t), self.path.sigma(t)
        x_0 = self.mean + a * self.var / (a**2 * self.var + s**2) * (x - a * self.mean)
        weight, m = self.path.convert("x0", want, t)
        wanted: Tensor = weight * x + m * x_0
        return wanted


class UnitVectors(Draws):
    """A noise whose k-th draw is the k-th unit vector, past the constant and x_T."""

    def __init__(self) -> None:
        super().__init__(White(0), "step")

    def _next(self, like: Tensor, t: float, s: float, area: bool) -> Tensor:
        draw = torch.zeros_like(like)
        draw[:, self.count + 1] = 1.0
        return draw


def _root(cov: Tensor) -> Tensor:
    var, turn = torch.linalg.eigh(cov)
    root: Tensor = (turn * var.clamp(min=0).sqrt()) @ turn.mT
    return root
