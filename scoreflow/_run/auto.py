"""`sampler="auto"`: sampler, order and grid by the budget, from a table of measured choices.

The grid matters more than the sampler, and the best order grows with the budget; so both are chosen together, on trained
networks and on exact scores. `python benchmarks/auto.py table` shows the fit; docs/auto.md says how good it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.grid import ode
from scoreflow._run.schedule import Schedule
from scoreflow._samplers.step import Linear, get_sampler

AUTO = "auto"
DEFAULT_NFE = 30


class Choice(NamedTuple):
    """What is taken from a budget of `nfe` evaluations on: a sampler with its options, and the grid's power and shift."""

    nfe: int
    sampler: str
    options: Mapping[str, Any]
    power: float
    shift: float


NOISE, DATA = {"form": "noise"}, {"form": "data"}
TABLE = (
    Choice(5, "ipndm-3", {"damping": 1.0}, 0.55, 1.4),
    Choice(6, "ipndm-3", {"damping": 1.0}, 0.55, 1.65),
    Choice(7, "ipndm-3", {"damping": 0.8}, 0.53, 1.8),
    Choice(11, "ipndm-3", {"damping": 0.8}, 0.5, 1.9),
    Choice(12, "ipndm-3", {"damping": 0.4}, 0.42, 3.2),
    Choice(17, "ipndm-3", {"damping": 0.4}, 0.42, 3.2),
    Choice(18, "unipc-2", NOISE, 0.38, 3.2),
    Choice(40, "unipc-3", NOISE, 0.35, 4.0),
    Choice(50, "unipc-3", NOISE, 0.35, 4.0),
    Choice(100, "unipc-3", NOISE, 0.38, 4.0),
)
"""For a network as it is."""
EXACT = (
    Choice(5, "ipndm-3", {"damping": 0.2}, 0.6, 1.5),
    Choice(7, "ipndm-3", {"damping": 0.4}, 0.63, 1.2),
    Choice(21, "ipndm-3", {"damping": 0.4}, 0.65, 2.0),
    Choice(22, "unipc-3", NOISE, 0.55, 2.0),
    Choice(100, "unipc-3", NOISE, 0.55, 4.0),
)
"""For the score of an oracle, which is right at all times."""
GUIDED = (
    Choice(5, "unipc-1", DATA, 0.58, 2.4),
    Choice(6, "ipndm-2", {}, 0.55, 2.4),
    Choice(8, "ipndm-3", {"damping": 0.7}, 0.55, 2.4),
    Choice(10, "ipndm-3", {"damping": 0.4}, 0.55, 2.4),
    Choice(17, "ipndm-3", {"damping": 0.4}, 0.45, 2.4),
    Choice(18, "unipc-2", NOISE, 0.5, 2.4),
    Choice(30, "unipc-2", NOISE, 0.45, 2.4),
)
"""For a guided or thresholded network, where higher orders pay only at larger budgets."""
FLOW = (
    Choice(5, "unipc-2", DATA, 0.65, 0.6),
    Choice(20, "unipc-2", DATA, 0.55, 0.4),
)
"""From α = 0, as on the path of rectified flow: data form, for ε says nothing there."""


def choose(
    path: GaussianPath,
    schedule: Schedule,
    *,
    guided: bool = False,
    labels: bool = False,
    exact: bool = False,
    analytic: float | None = None,
    per_call: Callable[[float], int] | None = None,
) -> tuple[Linear, tuple[float, ...]]:
    """The sampler and the times for a budget.

    Args:
        guided: whether the model is guided or thresholded.
        labels: whether the network knows the nodes of its chain only, so that times are moved to the nearest.
        exact: whether the score is that of an oracle, right at all times.
        analytic: the variance of the data, if they have mean 0 and the first answer is to be that of N(0, v I); None asks the
            network.
        per_call: network evaluations of a call at t, if not 1: the table is entered with the calls that the budget pays for.

    Raises:
        ValueError, TypeError: as of `solve`.
    """
    start, stop, budget = schedule.start, schedule.stop, schedule.steps
    if isinstance(schedule.grid, tuple):
        budget = len(schedule.grid) - 1
    elif budget is None:
        if schedule.nfe is None:
            schedule = replace(schedule, nfe=DEFAULT_NFE)
        budget = schedule.nfe or DEFAULT_NFE
        if per_call is not None:
            among = [per_call(start + (stop - start) * (k + 0.5) / 32) for k in range(32)]
            budget = max(1, 32 * budget // sum(among))
    table = GUIDED if guided else FLOW if path.alpha(start) == 0 else EXACT if exact else TABLE
    choice = chosen_at(table, budget)
    sampler = get_sampler(choice.sampler, analytic=analytic, **choice.options)
    assert isinstance(sampler, Linear)
    rule = partial(ode, power=choice.power, shift=choice.shift, exact=exact)
    return sampler, schedule.on(rule).times(sampler, path, per_call, labels and schedule.grid is None)


def chosen_at(table: Sequence[Choice], budget: int) -> Choice:
    """The choice at a budget; between two of one sampler, power and shift go evenly in log budget."""
    k = max([i for i, choice in enumerate(table) if choice.nfe <= budget], default=0)
    here, ahead = table[k], table[min(k + 1, len(table) - 1)]
    if (ahead.sampler, ahead.options) != (here.sampler, here.options) or budget <= here.nfe or ahead is here:
        return here
    share = math.log(budget / here.nfe) / math.log(ahead.nfe / here.nfe)
    power, shift = (a * (b / a) ** share for a, b in ((here.power, ahead.power), (here.shift, ahead.shift)))
    return Choice(budget, here.sampler, here.options, power, shift)
