"""What figures of paired blocks say: intervals, differences, where two cannot be told apart, the observed order.

A block of a cell gives one value; all statistics are over blocks. The blocks of all samplers come from the same seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.95


class Interval(NamedTuple):
    """A mean with its confidence interval; the ends are NaN for a single value."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g}" + (f" ({self.low:.3g} to {self.high:.3g})" if math.isfinite(self.low) else "")


class Difference(NamedTuple):
    """A mean difference with its interval, and the p-value of no difference."""

    value: float
    low: float
    high: float
    p: float

    @property
    def significant(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


class Slope(NamedTuple):
    """An observed order, and the evaluations from `first` to `last` that it was fitted on, `points` of them."""

    order: float
    first: float
    last: float
    points: int


def interval(values: Sequence[float] | np.ndarray, level: float = LEVEL) -> Interval:
    """The mean and Student's interval for it."""
    from scipy import stats

    x = np.asarray(values, dtype=float)
    mean = float(x.mean()) if len(x) else math.nan
    if len(x) < 2:
        return Interval(mean, math.nan, math.nan)
    half = float(stats.t.ppf((1 + level) / 2, len(x) - 1)) * float(x.std(ddof=1)) / math.sqrt(len(x))
    return Interval(mean, mean - half, mean + half)


def paired(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, level: float = LEVEL) -> Difference:
    """a − b, block by block: Student's interval and p-value of the mean."""
    off = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    return _tested(interval(off, level), off.std(ddof=1) / math.sqrt(len(off)) if len(off) > 1 else math.nan, len(off) - 1)


def unpaired(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, level: float = LEVEL) -> Difference:
    """a − b of unrelated blocks: Welch's interval and p-value."""
    from scipy import stats

    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    mean = float(x.mean() - y.mean())
    if min(len(x), len(y)) < 2:
        return Difference(mean, math.nan, math.nan, math.nan)
    u, v = x.var(ddof=1) / len(x), y.var(ddof=1) / len(y)
    if u + v == 0:
        return _tested(Interval(mean, mean, mean), 0.0, 1)
    freedom = (u + v) ** 2 / (u**2 / (len(x) - 1) + v**2 / (len(y) - 1))
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * math.sqrt(u + v)
    return _tested(Interval(mean, mean - half, mean + half), math.sqrt(u + v), freedom)


def _tested(mean: Interval, error: float, freedom: float) -> Difference:
    from scipy import stats

    if not error > 0:
        return Difference(*mean, math.nan if math.isnan(error) else float(mean.value == 0))
    return Difference(*mean, float(2 * stats.t.sf(abs(mean.value) / error, freedom)))


def discoveries(p: Sequence[float], rate: float = 1 - LEVEL) -> list[bool]:
    """Which of many tests hold when at most this share of those held may be false.

    Reference:
        Controlling the False Discovery Rate (Benjamini & Hochberg, 1995).
    """
    from scipy import stats

    known = [q for q in p if math.isfinite(q)]
    if not known:
        return [False] * len(p)
    adjusted = iter(stats.false_discovery_control(known).tolist())
    return [math.isfinite(q) and next(adjusted) <= rate for q in p]


def slope(nfe: Sequence[float], errors: Sequence[float], least: float = 0.0) -> Slope | None:
    """The observed order where the error falls as a power: the longest run of three or more budgets in which no slope
    between neighbours is further than 0.35 from the fit, the later one of two; errors below `least` are left out.
    """
    points = sorted((n, e) for n, e in zip(nfe, errors, strict=True) if math.isfinite(e) and e > least and n > 0)
    points = [point for i, point in enumerate(points) if i == 0 or point[0] > points[i - 1][0]]
    best: Slope | None = None
    for i in range(len(points)):
        for j in range(i + 3, len(points) + 1):
            x, y = np.log(np.array(points[i:j])).T
            order = -float(np.polyfit(x, y, 1)[0])
            steady = np.abs(-np.diff(y) / np.diff(x) - order).max() <= 0.35
            if steady and (best is None or j - i >= best.points):
                best = Slope(order, points[i][0], points[j - 1][0], j - i)
    return best
