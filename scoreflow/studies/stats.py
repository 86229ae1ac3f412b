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


def interval(values: Sequence[float] | np.ndarray, level: float = LEVEL, chance: bool = False) -> Interval:
    """The mean and Student's interval for it, without its skewness: `W + γW²/3 + γ²W³/27 + γ/(6n)` is taken as Student's
    t/√n, with `W = (x̄ − μ)/s` and γ the skewness of the values.

    As measured by its coverage at 95 % for 4, 8 and 16 blocks: 0.95 for normal values and for means of 64 exponentials; 0.91,
    0.92 and 0.94 for the unbiased energy distance and MMD² of data to data, a weighted sum of chi-squares, where Student's
    own has 0.89, 0.90 and 0.91. Two values have no skewness.

    Equal values are an interval of no width, unless by `chance`, as shares of few samples are: then its ends are NaN, as where
    values are not finite.

    Reference:
        On the Removal of Skewness by Transformation (Hall, 1992).
    """
    x = np.asarray(values, dtype=float)
    mean, error = _moments(x)
    if not error > 0:
        error = math.nan if chance else error
        return Interval(mean, mean - error, mean + error)
    n, s = len(x), error * math.sqrt(len(x))
    skew = float((((x - mean) / s) ** 3).mean())

    def w(t: float) -> float:
        t = t / math.sqrt(n) - skew / (6 * n)
        c = float(np.cbrt(1 + skew * t))
        return 3 * t / (1 + c + c * c)

    t = _student(level, n - 1)
    return Interval(mean, mean - s * w(t), mean - s * w(-t))


def paired(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, level: float = LEVEL, chance: bool = False
) -> Difference:  # fmt: skip
    """a − b, block by block: Student's interval and p-value of the mean.

    Differences of two samplers that are alike have no skewness: where the energy distance of data to data is the value, the
    interval holds 0 in 96 % at 4 and 8 blocks.

    Equal differences are certain, unless by `chance` and not 0: then nothing is known.

    Raises:
        ValueError: not as many of each.
    """
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if x.shape != y.shape:
        raise ValueError(f"paired blocks must be as many of each, got {len(x)} and {len(y)}")
    with np.errstate(invalid="ignore"):
        mean, error = _moments(x - y)
    return _tested(mean, error, len(x) - 1, level, chance)


def unpaired(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, level: float = LEVEL, chance: bool = False
) -> Difference:  # fmt: skip
    """a − b of unrelated blocks: Welch's interval and p-value.

    Where energy distances of data to data are compared, 8 blocks with 16, it holds 0 in 95 %, 4 with 16 in 92 %. It then
    errs to one side: it calls the 4 or the 8 the larger in 1 %, not in 2.5 %.
    """
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    (mean, u), (other, v) = _moments(x), _moments(y)
    error = math.hypot(u, v)
    freedom = 1 / ((u / error) ** 4 / (len(x) - 1) + (v / error) ** 4 / (len(y) - 1)) if error > 0 else math.nan  # Welch's
    return _tested(mean - other, error, freedom, level, chance)


def _moments(x: np.ndarray) -> tuple[float, float]:
    """The mean and its standard error: 0 for equal values, NaN where it is not known."""
    if not len(x):
        return math.nan, math.nan
    if (x == x[0]).all():
        return float(x[0]), 0.0 if len(x) > 1 else math.nan
    with np.errstate(invalid="ignore", over="ignore"):
        mean, error = float(x.mean()), float(x.std(ddof=1)) / math.sqrt(len(x))
    return mean, error if math.isfinite(error) else math.nan


def _student(level: float, freedom: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + level) / 2))


def _tested(mean: float, error: float, freedom: float, level: float, chance: bool) -> Difference:
    """Student's test; not where the error is 0 or not known, or the mean infinite."""
    if not error > 0:
        error = math.nan if chance and mean != 0 else error
        certain = error == 0 and not math.isnan(mean)
        return Difference(mean, mean - error, mean + error, float(mean == 0) if certain else math.nan)
    if math.isinf(mean):
        return Difference(mean, mean, mean, 0.0)
    from scipy.special import stdtr

    half = error * _student(level, freedom)
    return Difference(mean, mean - half, mean + half, 2 * float(stdtr(freedom, -abs(mean) / error)))


def discoveries(p: Sequence[float], rate: float = 1 - LEVEL) -> list[bool]:
    """Which of many tests hold when at most this share of those held may be false.

    For independent tests; as simulated also for all pairs of 8 samplers, which are not. A test that is NaN does not hold.

    Reference:
        Controlling the False Discovery Rate (Benjamini & Hochberg, 1995).
    """
    from scipy.stats import false_discovery_control

    known = np.array([q for q in p if math.isfinite(q)])
    held = iter(false_discovery_control(known) <= rate) if len(known) else iter(())
    return [math.isfinite(q) and bool(next(held)) for q in p]


def slope(nfe: Sequence[float], errors: Sequence[float], least: float = 0.0) -> Slope | None:
    """The observed order where the error falls as a power: the longest run of three or more budgets in which no slope
    between neighbours is further from the fit than 0.35, nor than a quarter of it; the later one of two.

    Errors up to `least` are left out: a few times the floor, for near it an order reads low. None if there is no such run in
    which the error falls to less than 60 %. Six errors that do not fall but scatter, at doubled budgets, pass for a fall by
    chance: fewer than 1 in 500 where they scatter by 10 %, 4 % of them by 20 %, 9 % by 30 %.
    """
    points = sorted((n, e) for n, e in zip(nfe, errors, strict=True) if math.isfinite(e) and e > least and n > 0)
    points = [point for i, point in enumerate(points) if i == 0 or point[0] > points[i - 1][0]]
    best: Slope | None = None
    for i in range(len(points)):
        for j in range(i + 3, len(points) + 1):
            x, y = np.log(np.array(points[i:j])).T
            order = -float((x - x.mean()) @ y / ((x - x.mean()) @ x))
            steady = np.abs(-np.diff(y) / np.diff(x) - order).max() <= min(0.35, order / 4)
            if steady and y[-1] - y[0] < math.log(0.6) and (best is None or j - i >= best.points):
                best = Slope(order, points[i][0], points[j - 1][0], j - i)
    return best
