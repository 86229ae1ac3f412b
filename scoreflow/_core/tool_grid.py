"""Grids by the names that tools of image generation give them: ComfyUI's, RES4LYF's, diffusers', and those of flow models."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoreflow._core import check
from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.grid import _begins, _even, _low, _through, beta, grid_rule, rectified

SEQ_LEN, MU = (256, 4096), (0.5, 1.15)
"""The tokens of an image between which published flow models interpolate μ, and its values there."""


@grid_rule("normal")
def normal(path: GaussianPath, steps: int, start: float, stop: float, t_min: float | None = None) -> Tensor:
    """Equal steps in t down to `t_min`, the chain's first node by default, then 0 (k-diffusion's `get_sigmas`; ComfyUI)."""
    return _through(path, steps, start, stop, t_min, lambda t: t, lambda t: t)


@grid_rule("sgm-uniform")
def sgm_uniform(path: GaussianPath, steps: int, start: float, stop: float, t_min: float | None = None) -> Tensor:
    """Equal steps in t toward `t_min`, the chain's first node by default, with 0 in its place (generative-models; ComfyUI)."""
    times = _even(start, stop if path.sigma(stop) > 0 else _low(path, start, t_min), steps)
    times[-1] = stop
    return times


@grid_rule("beta57")
def beta57(path: GaussianPath, steps: int, start: float, stop: float) -> Tensor:
    """`beta` with a = 0.5, b = 0.7 (RES4LYF): denser toward the data than toward the prior."""
    return beta(path, steps, start, stop, 0.5, 0.7)


@grid_rule("laplace")
def laplace(
    path: GaussianPath,
    steps: int,
    start: float,
    stop: float,
    t_min: float | None = None,
    mu: float = 0.0,
    b: float = 0.5,
) -> Tensor:
    """Quantiles at equal steps of a Laplace(`mu`, `b`) law of log κ, cut off at both ends (Hang et al., 2024).

    Published code takes the quantiles of the whole law and clamps those beyond the ends, where nodes can fall together.
    """
    check.number("mu", mu)
    check.number("b", b, above=0)

    def share(t: float) -> float:
        z = (-path.lam(t) - mu) / b
        return math.exp(z) / 2 if z < 0 else 1 - math.exp(-z) / 2

    def inverse(p: Tensor) -> Tensor:
        z = torch.where(p < 0.5, torch.log(2 * p), -torch.log(2 * (1 - p)))
        return path.time(-(mu + b * z))

    return _through(path, steps, _begins("laplace", path, start), stop, t_min, share, inverse)


@grid_rule("linear-quadratic")
def linear_quadratic(
    path: GaussianPath, steps: int, start: float, stop: float, threshold: float = 0.025, linear_steps: int | None = None
) -> Tensor:
    """Of the way from start to stop, `threshold` in `linear_steps` even steps, half of all by default; then quadratic.

    The quadratic part begins with the slope of the linear one (Movie Gen, Polyak et al., 2024; Mochi, LTX-Video).
    """
    check.number("threshold", threshold, above=0, most=1)
    n = steps // 2 if linear_steps is None else check.whole("linear_steps", linear_steps, 0, max(steps - 1, 0))
    if n == 0:
        return _even(start, stop, steps)
    i, slope = torch.arange(steps + 1, dtype=torch.float64), threshold / n
    if 2 * (slope * steps - 1) >= slope * (steps - n):
        raise ValueError(f"threshold={threshold} in linear_steps={n} of steps={steps} leaves too little for the others")
    return start + (stop - start) * (slope * i + (1 - slope * steps) * ((i - n).clamp(min=0) / (steps - n)) ** 2)


@grid_rule("flow-shift")
def flow_shift(
    path: GaussianPath, steps: int, start: float, stop: float, shift: float | None = None, seq_len: int | None = None
) -> Tensor:
    """`u ↦ c u/(1 + (c − 1) u)` of even steps u in rectified flow's time, c = `shift`, 3 by default (Esser et al., 2024).

    It is `rectified` with power 1. With `seq_len`, the tokens of an image, c = e^μ instead: μ goes along a line from 0.5 at 256
    tokens to 1.15 at 4096, as in Flux.
    """
    if seq_len is not None:
        if shift is not None:
            raise ValueError(f"shift={shift} and seq_len={seq_len} exclude each other: give one")
        (a, b), (low, high) = SEQ_LEN, MU
        shift = math.exp(low + (high - low) * (check.whole("seq_len", seq_len) - a) / (b - a))
    return rectified(path, steps, start, stop, 1.0, 3.0 if shift is None else shift)
