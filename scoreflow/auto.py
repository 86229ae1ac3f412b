"""`sampler="auto"`: family, order, form, grid and first step by the budget, from a table of measured choices.

The grid matters more than the sampler, and the best order grows with the budget; so both are chosen together. The tables
are printed by `python benchmarks/auto.py table`; docs/auto.md says how good they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from scoreflow.check import whole
from scoreflow.grid import check_ends, check_times, default_t_min, rectified
from scoreflow.path import GaussianPath
from scoreflow.schedule import Grid, schedule
from scoreflow.step import SAMPLERS, Linear, get_sampler, resolve

AUTO = "auto"
DEFAULT_NFE = 30


class Choice(NamedTuple):
    """What is taken from a budget of `nfe` evaluations on: a sampler, and the power and shift of the grid `rectified`."""

    nfe: int
    sampler: str
    form: str
    power: float
    shift: float


TABLE = (
    Choice(1, "ipndm-3", "noise", 0.603, 0.737),
    Choice(6, "ipndm-3", "noise", 0.6, 1.05),
    Choice(7, "ipndm-3", "noise", 0.687, 1),
    Choice(8, "ipndm-3", "noise", 0.697, 1.04),
    Choice(10, "ipndm-3", "noise", 0.826, 1.07),
    Choice(12, "ipndm-3", "noise", 0.856, 1.24),
    Choice(15, "ipndm-3", "noise", 0.905, 1.17),
    Choice(20, "exponential-ab-4", "noise", 0.456, 2.17),
    Choice(25, "exponential-ab-4", "noise", 0.433, 3.49),
    Choice(30, "exponential-ab-4", "noise", 0.439, 3.13),
    Choice(40, "exponential-ab-4", "noise", 0.432, 3.13),
    Choice(50, "exponential-ab-4", "noise", 0.416, 3.27),
    Choice(75, "exponential-ab-4", "noise", 0.386, 2.97),
    Choice(100, "exponential-ab-4", "noise", 0.364, 2.61),
)
"""For a network as it is."""
STEADY = (
    Choice(1, "unipc-1", "data", 0.479, 1.06),
    Choice(6, "unipc-1", "data", 0.463, 0.506),
    Choice(7, "unipc-2", "data", 0.621, 0.384),
    Choice(8, "unipc-2", "data", 0.71, 0.442),
    Choice(10, "exponential-ab-3", "data", 0.385, 0.103),
    Choice(12, "exponential-ab-3", "data", 0.387, 0.176),
    Choice(15, "exponential-ab-3", "data", 0.409, 0.245),
    Choice(20, "exponential-ab-3", "data", 0.408, 0.251),
    Choice(25, "exponential-ab-3", "data", 0.413, 0.273),
    Choice(30, "exponential-ab-3", "data", 0.401, 0.228),
    Choice(40, "unipc-2", "data", 0.422, 0.481),
    Choice(50, "unipc-2", "data", 0.417, 0.784),
    Choice(75, "unipc-2", "data", 0.425, 1.69),
)
"""Where the network is guided or thresholded, or α = 0 at the start: data form, which stays bounded."""


def choose(
    path: GaussianPath,
    steps: int | None = None,
    nfe: int | None = None,
    grid: Grid = None,
    start: float = 1.0,
    stop: float = 0.0,
    denoise: bool = False,
    *,
    steady: bool = False,
    labels: bool = False,
    analytic: float | None = 1.0,
    per_call: Callable[[float], int] | None = None,
) -> tuple[Linear, tuple[float, ...]]:
    """The sampler and the times for a budget; arguments as of `solve`.

    Args:
        steady: whether the model is guided or thresholded.
        labels: whether the network knows the nodes of its chain only, so that times are moved to the nearest.
        analytic: the variance of the data, for the first answer; used where the run starts in noise.
        per_call: network evaluations of a call at t, if not 1: the table is entered with the calls that the budget pays for.

    Raises:
        ValueError, TypeError: as of `solve`.
    """
    check_ends(start, stop)
    if grid is None or isinstance(grid, str) or callable(grid):
        if steps is None and nfe is None:
            nfe = DEFAULT_NFE
        budget = whole("nfe", nfe) if steps is None else whole("steps", steps)
        if steps is None and per_call is not None:
            among = [per_call(start + (stop - start) * (k + 0.5) / 32) for k in range(32)]
            budget = max(1, 32 * budget // sum(among))
    else:
        budget = len(check_times(grid)) - 1
    table = STEADY if steady or path.alpha(start) == 0 else TABLE
    choice = [choice for choice in table if choice.nfe <= budget][-1]
    first = analytic if path.kappa(start) > 40 else None
    chosen = made(choice.sampler, choice.form, first)
    rule = partial(nodes, power=choice.power, shift=choice.shift, labels=labels) if grid is None else grid
    return chosen, schedule(chosen, path, steps, nfe, rule, start, stop, denoise, per_call)


def made(name: str, form: str, analytic: float | None) -> Linear:
    """A sampler of the tables; `form` goes to those that have more than one."""
    several = {"form": form} if "form" in SAMPLERS[resolve(name)[0]].options else {}
    chosen = get_sampler(name, analytic=analytic, **several)
    assert isinstance(chosen, Linear)
    return chosen


def nodes(path: GaussianPath, steps: int, start: float, stop: float, power: float, shift: float, labels: bool) -> Tensor:
    """The times of `auto`: `rectified`, no lower than the times that networks are trained on."""
    low = min(default_t_min(path), start / 2) if path.sigma(stop) == 0 else None
    times = rectified(path, steps, start, stop, power, shift, low)
    times[0], times[-1] = start, stop
    return _on_chain(times, path.T) if labels and path.T else times


def _on_chain(times: Tensor, T: int) -> Tensor:
    """The nearest nodes of the chain, moved apart where two fall together."""
    if len(times) > (times[0] - times[-1]) * T + 1:
        raise ValueError(f"steps={len(times) - 1} is more than the chain of {T} steps has between its ends")
    place = torch.arange(len(times))
    ahead = torch.cummin((times * T).round() + place, 0).values  # each at least one below the one before
    low = torch.round(times[-1] * T) + (len(times) - 1)
    return (torch.maximum(ahead, low) - place) / T
