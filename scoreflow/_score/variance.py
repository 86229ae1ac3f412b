"""What a network leaves unknown: the variance of x_0 given x_t, estimated level by level from data."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scoreflow._core.check import check_state, is_whole, one_of, whole
from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.grid import check_times, grid, inner_ends
from scoreflow._core.noise import White, check_seed
from scoreflow._core.row import double, flat, wide
from scoreflow._score.conditions import rows
from scoreflow._score.model import ScoreModel, check_model, check_settled


@dataclass(frozen=True)
class Levels:
    """`E tr Cov[x_0 | x_t]/d` at some times, and between them by straight lines in λ.

    Attributes:
        path: what it was estimated for, as text.
        times: falling. values: the variances. errors: their standard errors.
    """

    path: str
    times: tuple[float, ...]
    values: tuple[float, ...]
    errors: tuple[float, ...]

    def __call__(self, path: GaussianPath, t: float) -> float:
        """The variance at t; beyond the ends it is that of the end.

        Raises:
            ValueError: the path is another.
        """
        if repr(path) != self.path:
            raise ValueError(f"the variance was estimated for {self.path}, not for {path}")
        lam = [path.lam(u) for u in self.times]
        return float(np.interp(path.lam(t), lam, self.values))


def estimate_variance(
    model: ScoreModel,
    data: Tensor,
    times: int | tuple[float, ...] = 50,
    *,
    by: str = "eps",
    batch: int = 256,
    seed: int = 0,
    **conditions: object,
) -> Levels:
    """The variance of x_0 given x_t, on average over an entry, from one pass over the data at every level.

    By "eps" it is `κ_t² (1 − E‖ε̂‖²/d)`, right for a network that is; by "error" it is `E‖x_0 − x̂_0‖²/d`, the mean squared
    error, which is what the best step variance needs for any network, and has less noise where κ is large. Both are held to
    between 0 and the mean square of the data.

    Args:
        model, conditions: the score model, and conditions of its network; tensors of N rows, and lists of N texts, go with the
            data, unless `sf.shared` holds them.
        data: (N, ...), all of which are used.
        times: so many levels, even in λ; or the levels themselves, falling.
        by: "eps" or "error".
        batch: how many at once.
        seed: of the noise.

    Raises:
        ValueError, TypeError: for values that are not allowed.

    Reference:
        Analytic-DPM (Bao et al., 2022), Theorem 1 and Eq. 8.
    """
    check_model(model)
    if not isinstance(data, Tensor) or not data.is_floating_point() or data.ndim < 1 or not len(data):
        raise TypeError("data must be a floating-point tensor of shape (N, ...), N ≥ 1")
    check_state("data", data)
    check_settled(model)
    one_of("by", by, ("eps", "error"))
    path, size = model.path, whole("batch", batch)
    conditions = model.check_conditions(conditions, tuple(inspect.signature(estimate_variance).parameters))
    if isinstance(times, int) or is_whole(times):
        stop, start = inner_ends(path)
        levels = grid(path, whole("times", times, 2) - 1, "logsnr", start=start, stop=stop)
    else:
        levels = check_times(times)
    if by == "eps" and path.alpha(levels[0]) == 0:
        raise ValueError(f"times: alpha=0 at t={levels[0]}, where ε says nothing of x_0; begin below it, or use by='error'")
    noise, most = White(check_seed(seed)).draws("probe"), float(double(data).square().mean())
    values, errors = [], []
    with torch.no_grad():
        for t in levels:
            k = path.kappa(t)
            seen = []
            for begin in range(0, len(data), size):
                part = torch.arange(begin, min(begin + size, len(data)))
                x_0, given = wide(data[begin : begin + size]), rows(conditions, part, len(data), conditions)
                x_t = path.q_sample(x_0, t, noise(x_0))
                if by == "eps":
                    eps = k * model.eps(x_t, t, **given)
                    seen.append(k**2 - flat(double(eps)).square().mean(1))
                else:
                    seen.append(flat(double(x_0 - model.x0(x_t, t, **given))).square().mean(1))
            each = torch.cat(seen)
            values.append(min(max(float(each.mean()), 0.0), most))
            errors.append(float(each.std(correction=0)) / len(each) ** 0.5)
    return Levels(repr(path), levels, tuple(values), tuple(errors))
