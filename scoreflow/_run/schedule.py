"""The times of a run, from what was asked: explicit times, a number of steps, a budget, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from scoreflow._core.check import flag, whole
from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.grid import (
    CHAIN_GRIDS,
    GridRule,
    TooFine,
    build,
    check_ends,
    check_path,
    check_times,
    default_t_min,
    on_chain,
)
from scoreflow._samplers.step import Linear, Sampler

Grid = str | GridRule | Sequence[float] | Tensor | None


@dataclass(frozen=True)
class Schedule:
    """What a run was asked for; checked when it is made, and the same for all calls. Arguments as of `solve`.

    Attributes:
        grid: a name, a rule or None; explicit times as a tuple of floats.

    Raises:
        ValueError, TypeError: as `solve` says.
    """

    steps: int | None = None
    nfe: int | None = None
    grid: Grid = None
    start: float = 1.0
    stop: float = 0.0
    denoise: bool = False

    def __post_init__(self) -> None:
        flag("denoise", self.denoise)
        if explicit(self.grid):
            for name, default in (("steps", None), ("nfe", None), ("start", 1.0), ("stop", 0.0)):
                if (value := getattr(self, name)) != default:
                    raise ValueError(f"{name}={value} and explicit times in grid exclude each other: the times say it all")
            self._set(grid=check_times(self.grid))  # type: ignore[arg-type]
            return
        start, stop = check_ends(self.start, self.stop)
        if self.steps is not None and self.nfe is not None:
            raise ValueError(f"steps={self.steps} and nfe={self.nfe} exclude each other: give one")
        counts = {name: whole(name, n) for name in ("steps", "nfe") if (n := getattr(self, name)) is not None}
        self._set(start=start, stop=stop, **counts)

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def times(
        self,
        sampler: Sampler,
        path: GaussianPath,
        per_call: Callable[[float], int] | None = None,
        labels: bool = False,
    ) -> tuple[float, ...]:
        """The times for a sampler on a path.

        Args:
            per_call: network evaluations of a call at t, if not 1.
            labels: whether times are to be moved to the nearest nodes of the chain, as a network that knows no others needs.

        Raises:
            ValueError, TypeError: as `solve` says.
        """
        if isinstance(self.grid, tuple):
            return (*self.grid, 0.0) if self.denoise and self.grid[-1] > 0 else self.grid
        check_path(path)
        start, stop, steps = self.start, self.stop, self.steps
        tail = (0.0,) if self.denoise and stop > 0 else ()
        if steps is None and self.nfe is None:
            if sampler.default_steps is None and self.grid is None:
                low = default_t_min(path)
                short = (low,) if stop == 0 and start > low else ()
                return (start, *short, stop, *tail)
            steps = sampler.default_steps or 50
            if path.T and (self.grid is None or self.grid in CHAIN_GRIDS):
                nodes = max(1, round((start - stop) * path.T))
                steps = nodes if steps >= 1000 else min(steps, nodes)
        named: Any = sampler.default_grid(path) if self.grid is None else self.grid

        def built(n: int) -> tuple[float, ...]:
            times = build(path, n, named, start, stop)
            return (*(on_chain(times, path.T) if labels and path.T else times), *tail)

        return built(steps) if steps is not None else built(_within(sampler, path, built, self.nfe or 0, per_call))

    def on(self, grid: Grid) -> Schedule:
        """The same on this grid, if none was named."""
        return replace(self, grid=grid) if self.grid is None else self


def explicit(grid: Grid) -> bool:
    """Whether it is the times themselves."""
    return not (grid is None or isinstance(grid, str) or callable(grid))


def _within(
    sampler: Sampler,
    path: GaussianPath,
    built: Callable[[int], tuple[float, ...]],
    nfe: int,
    per_call: Callable[[float], int] | None,
) -> int:
    """The most steps whose evaluations stay within the budget."""

    def cost(n: int) -> int:
        try:
            times = built(n)
            count = sampler.evaluations(path, times)
            if per_call is not None and count is not None:
                if isinstance(sampler, Linear):
                    count = sum(map(per_call, sampler.plan(path, times).evaluation_times))
                else:  # it may be evaluated between the times
                    among = (times[0] + (times[-1] - times[0]) * k / 64 for k in range(65))
                    count *= max(map(per_call, (*times, *among)))
        except TooFine:
            if n == 1:
                raise
            return 10**9
        if count is None:
            raise ValueError(
                f"{sampler!r} cannot be held to nfe={nfe}: only its run tells how many it takes; set its tolerance"
            )
        return count

    if (taken := cost(nfe)) == nfe:  # a step more would take one more at least
        return nfe
    # Most take the same at every step: the guess by proportion is the answer then.
    guess = nfe * nfe // max(taken, 1)
    if guess and (cost(guess) == nfe or cost(guess) < nfe < cost(guess + 1)):
        return guess
    if nfe < cost(1):
        raise ValueError(f"nfe={nfe} is less than the {cost(1)} evaluations of one step of {sampler!r}")
    # Far from the ends every step costs the same: from two counts the guess is the answer, or near it.
    n, few = 1, cost(8)
    if few <= nfe and (each := cost(9) - few) > 0:
        guess = 8 + (nfe - few) // each
        n = guess if cost(guess) <= nfe else 8
        if cost(n + 1) > nfe:
            return n
    while cost(2 * n) <= nfe:
        n *= 2
    high = 2 * n
    while high - n > 1:
        middle = (n + high) // 2
        n, high = (middle, high) if cost(middle) <= nfe else (n, middle)
    return n
