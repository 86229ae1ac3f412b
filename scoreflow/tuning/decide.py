"""Whether a plan is surely better: ratios of quantiles of paired errors, and their intervals by the bootstrap."""

from __future__ import annotations

import torch
from torch import Tensor

DRAWS, LEVEL = 2000, 0.95
LEAST = 1e-300


def quotient(ours: Tensor, theirs: Tensor, q: float) -> float:
    """Of the quantiles of two lists of errors."""
    return float(ours.quantile(q) / theirs.quantile(q).clamp(min=LEAST))


def bootstrap(ours: Tensor, theirs: Tensor, q: float) -> Tensor:
    """Ratios of quantiles of paired resamples, (`DRAWS`,)."""
    n = len(ours)
    draws = torch.randint(n, (DRAWS, n), generator=torch.Generator().manual_seed(0)).to(ours.device)
    return ours[draws].quantile(q, dim=1) / theirs[draws].quantile(q, dim=1).clamp(min=LEAST)


def upper(ours: Tensor, theirs: Tensor, q: float) -> tuple[float, float]:
    """The ratio of two quantiles, and the upper end of its one-sided interval."""
    return quotient(ours, theirs, q), float(bootstrap(ours, theirs, q).quantile(LEVEL))


def interval(ours: Tensor, theirs: Tensor, q: float) -> tuple[float, float, float]:
    """The ratio of two quantiles, and both ends of its interval."""
    ratios = bootstrap(ours, theirs, q)
    return quotient(ours, theirs, q), float(ratios.quantile((1 - LEVEL) / 2)), float(ratios.quantile((1 + LEVEL) / 2))
