"""The times of a run, from what was asked: explicit times, a number of steps, a budget, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from scoreflow.check import flag, whole
from scoreflow.grid import CHAIN_GRIDS, GridRule, check_ends, check_path, check_times, default_t_min, on_chain
from scoreflow.grid import grid as make_grid
from scoreflow.path import GaussianPath
from scoreflow.step import Linear, Sampler

Grid = str | GridRule | Sequence[float] | Tensor | None


def schedule(
    sampler: Sampler,
    path: GaussianPath,
    steps: int | None = None,
    nfe: int | None = None,
    grid: Grid = None,
    start: float = 1.0,
    stop: float = 0.0,
    denoise: bool = False,
    per_call: Callable[[float], int] | None = None,
    labels: bool = False,
) -> tuple[float, ...]:
    """The times of a run: from explicit ones, a number of steps, a budget, or the sampler's default.

    Args:
        per_call: network evaluations of a call at t, if not 1.
        labels: whether times are to be moved to the nearest nodes of the chain, as a network that knows no others needs.

    Raises:
        ValueError, TypeError: as `solve` says.
    """
    flag("denoise", denoise)
    if grid is not None and not isinstance(grid, str) and not callable(grid):
        for name, value, default in (("steps", steps, None), ("nfe", nfe, None), ("start", start, 1.0), ("stop", stop, 0.0)):
            if value != default:
                raise ValueError(f"{name}={value} and explicit times in grid exclude each other: the times say it all")
        times = check_times(grid)
        return (*times, 0.0) if denoise and times[-1] > 0 else times
    check_path(path)
    start, stop = check_ends(start, stop)
    tail = (0.0,) if denoise and stop > 0 else ()
    if steps is not None and nfe is not None:
        raise ValueError(f"steps={steps} and nfe={nfe} exclude each other: give one")
    if steps is None and nfe is None:
        if sampler.default_steps is None and grid is None:
            low = default_t_min(path)
            short = (low,) if stop == 0 and start > low else ()
            return (start, *short, stop, *tail)
        steps = sampler.default_steps or 50
        if path.T and (grid is None or grid in CHAIN_GRIDS):
            nodes = max(1, round((start - stop) * path.T))
            steps = nodes if steps >= 1000 else min(steps, nodes)

    named = sampler.default_grid(path) if grid is None else grid

    def lay(n: int) -> tuple[float, ...]:
        times = make_grid(path, n, named, start=start, stop=stop)
        return (*(on_chain(times, path.T) if labels and path.T else times), *tail)

    return lay(steps) if steps is not None else lay(_within(sampler, path, lay, nfe, per_call))


def _within(
    sampler: Sampler,
    path: GaussianPath,
    lay: Callable[[int], tuple[float, ...]],
    nfe: int | None,
    per_call: Callable[[float], int] | None,
) -> int:
    """The most steps whose evaluations stay within the budget."""
    nfe = whole("nfe", nfe)

    def cost(n: int) -> int:
        try:
            times = lay(n)
            asked = sampler.evaluations(path, times)
            if per_call is not None and asked is not None:
                if isinstance(sampler, Linear):
                    asked = sum(map(per_call, sampler.plan(path, times).asked))
                else:  # it may ask between the times
                    among = (times[0] + (times[-1] - times[0]) * k / 64 for k in range(65))
                    asked *= max(map(per_call, (*times, *among)))
        except ValueError:
            if n == 1:
                raise
            return 10**9  # more steps than the grid has
        if asked is None:
            raise ValueError(f"{sampler!r} cannot be held to nfe={nfe}: only its run tells what it asks; set its tolerance")
        return asked

    if nfe < cost(1):
        raise ValueError(f"nfe={nfe} is less than the {cost(1)} evaluations of one step of {sampler!r}")
    # Far from the ends every step costs the same: the guess is the answer, or near it.
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
