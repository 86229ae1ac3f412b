"""Flow maps that are known exactly: of Gaussians, and of mixtures in one dimension, where the ODE keeps quantiles."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.row import double

ROUNDS = 200
"""Halvings and Newton steps, at most."""
NEAR = 1e-14
"""A Newton step below so many of |y| and the smallest standard deviation is rounding."""


class GaussianMap:
    """x̄_0 of N(μ, Σ) as a network `net(x, t, r)`.

    `Φ_{t→r}(x) = α_r μ + √(P_r/P_t) (x − α_t μ)`, P = α² v + σ², along a direction of variance v; so
    `x̄_0 = μ + v (α_r σ_t + α_t σ_r)/(P_t (σ_t √(P_r/P_t) + σ_r)) (x − α_t μ)`, with no difference of what is near.
    """

    def __init__(self, mean: Tensor, var: Tensor, eigenvectors: Tensor | None, path: GaussianPath) -> None:
        self.mean, self.var, self.eigenvectors, self.path = mean, var, eigenvectors, path

    def __call__(self, x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        (a, b), (c, d) = (_levels(self.path, u, x) for u in (t, r))
        state = double(x).flatten(1)
        mean, var = self.mean.to(state), self.var.to(state)
        P, Q = a**2 * var + b**2, c**2 * var + d**2
        below = P * (b * (Q / P).sqrt() + d)
        gain = torch.where(below > 0, var * (c * b + a * d) / below, a * var / P)
        off = state - a * mean
        if self.eigenvectors is None:
            x_0 = mean + gain * off
        else:
            basis = self.eigenvectors.to(state)
            x_0 = mean + (gain * (off @ basis)) @ basis.mT
        return x_0.reshape(x.shape).to(x.dtype)


class QuantileMap:
    """x̄_0 of independent mixtures in one dimension each, of states `x = z Rᵀ`, as a network `net(x, t, r)`.

    In one dimension the ODE keeps the order of states, and so their quantiles: `Φ_{t→r} = F_r⁻¹ ∘ F_t`, F the distribution
    function of p_t, taken in its smaller tail. Derivatives in x, t and r are exact to first order.
    """

    def __init__(self, parts: list[tuple[Tensor, Tensor, Tensor]], rotation: Tensor | None, path: GaussianPath) -> None:
        self.parts, self.rotation, self.path = parts, rotation, path

    def __call__(self, x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        (a, b), (c, d) = (_levels(self.path, u, x) for u in (t, r))
        state = double(x).flatten(1)
        z = state if self.rotation is None else state @ self.rotation.to(state)
        found = []
        for i, part in enumerate(self.parts):
            log_w, mean, var = (one.to(z) for one in part)
            found.append(_average(z[:, i : i + 1], log_w, mean, var, a, b, c, d))
        x_0 = torch.cat(found, 1)
        return (x_0 if self.rotation is None else x_0 @ self.rotation.to(x_0).mT).reshape(x.shape).to(x.dtype)


def _levels(path: GaussianPath, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """α and σ, (B, 1)."""
    at = double(t).expand(len(x))
    return path.alpha(at)[:, None], path.sigma(at)[:, None]


def _average(x: Tensor, log_w: Tensor, mean: Tensor, var: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """x̄_0 of x (B, 1) at (α, σ) = (a, b), for a jump to (c, d)."""
    span = c * b - a * d
    short = span.abs() <= 1e-9 * (c * b + a * d)  # x̂_0 itself; where α = 0 at both ends, 0 on both sides
    y = quantile_map(x, log_w, (a * mean, (a**2 * var + b**2).sqrt()), (c * mean, (c**2 * var + d**2).sqrt()))
    far = (b * y - d * x) / torch.where(short, 1.0, span)
    P = a**2 * var + b**2
    joint = log_w - (x - a * mean) ** 2 / (2 * P) - P.log() / 2
    here = (joint.softmax(1) * (mean + a * var / P * (x - a * mean))).sum(1, keepdim=True)
    return torch.where(short, here, far)


def quantile_map(x: Tensor, log_w: Tensor, of: tuple[Tensor, Tensor], to: tuple[Tensor, Tensor]) -> Tensor:
    """y (B, 1) with the quantile, among mixtures of means and standard deviations `to`, that x has among those `of`: (B, K)."""
    goal, lower = _tail(x, log_w, *of, None)
    with torch.no_grad():
        still = [tuple(one.detach() for one in pair) for pair in (of, to)]
        at = _solve(x.detach(), log_w, still[0], still[1], goal.detach(), lower)
    value, _ = _tail(at, log_w, *to, lower)
    slope = torch.where(lower, 1.0, -1.0) * (_log_density(at, log_w, *to) - value).exp()
    return at + (goal - value) / slope.detach()


def _tail(x: Tensor, log_w: Tensor, mean: Tensor, std: Tensor, lower: Tensor | None) -> tuple[Tensor, Tensor]:
    """The log of the smaller tail beyond x, or of that which is said, (B, 1); and whether it is the lower one."""
    z = (x - mean) / std
    below, above = ((log_w + torch.special.log_ndtr(s * z)).logsumexp(1, keepdim=True) for s in (1, -1))
    lower = below < above if lower is None else lower
    return torch.where(lower, below, above), lower


def _log_density(x: Tensor, log_w: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Of the mixture at x, (B, 1)."""
    z = (x - mean) / std
    return (log_w - z**2 / 2 - std.log()).logsumexp(1, keepdim=True) - math.log(2 * math.pi) / 2


def _solve(x: Tensor, log_w: Tensor, of: Any, to: Any, goal: Tensor, lower: Tensor) -> Tensor:
    """By Newton's method in the log of the tail, held to the images of x under each component's own map."""
    (mean_t, std_t), (mean, std) = of, to
    each = mean + std * (x - mean_t) / std_t
    lo, hi = each.amin(1, keepdim=True), each.amax(1, keepdim=True)
    y, sign, spread = (lo + hi) / 2, torch.where(lower, 1.0, -1.0), std.amin(1, keepdim=True)
    for _ in range(ROUNDS):
        value, _ = _tail(y, log_w, mean, std, lower)
        over = (value - goal) * sign > 0
        lo, hi = torch.where(over, lo, y), torch.where(over, y, hi)
        step = y - sign * (value - goal) * (value - _log_density(y, log_w, mean, std)).exp()
        new = torch.where((step > lo) & (step < hi), step, (lo + hi) / 2)
        new = torch.where((step - y).abs() <= NEAR * (y.abs() + spread), y, new)  # y itself bounds what is left
        if bool((new == y).all()):
            break
        y = new
    return y
