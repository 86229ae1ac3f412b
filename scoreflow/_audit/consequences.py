"""What a run's coefficients come to: the law of its outputs, its limit, its order, and what a slip costs."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoreflow._audit.compare import Times, laid_out, times_of
from scoreflow._audit.rows import as_plan
from scoreflow._audit.stranger import Stranger
from scoreflow._core.gaussian import GaussianPath
from scoreflow._run.solve import solve
from scoreflow._samplers.plan import Plan
from scoreflow._samplers.step import Linear
from scoreflow._score.model import ScoreModel
from scoreflow._uses.read_back import Reading, read_back
from scoreflow.analysis import problem

VARIANCE = 0.5
"""Of the Gaussian data."""
ORDERS = (10, 20, 40, 80, 160, 320)
"""Steps at which the error on a mixture is taken."""
INSIDE = 0.1
"""σ/α down to which errors are taken."""
LEAST = 5
"""Steps."""


class Reader:
    """Readings of a stranger by steps, each made once."""

    def __init__(self, stranger: Stranger) -> None:
        self.stranger = stranger
        self.read = functools.cache(self._read)

    def _read(self, steps: int) -> tuple[Reading, Times] | None:
        try:
            found = read_back(self.stranger.build(steps))
        except (ValueError, ArithmeticError, IndexError, RuntimeError):
            return None
        return found, times_of(found, self.stranger, steps)

    def plan(self, steps: int) -> Plan | None:
        """The run as a plan that runs here, in the prediction in which its steps look back least; None if it is none."""
        if (known := self.read(steps)) is None:
            return None
        return plan_of(*known, self.stranger)


def plan_of(found: Reading, times: Times, stranger: Stranger) -> Plan | None:
    """A reading as a plan; None if it is not affine, has constants, or its labels are no times of the path."""
    if found.breaks is not None or float(found.offsets.abs().max()) > 1e-9 or not times.known or not found.nfe:
        return None
    plans = []
    for prediction in dict.fromkeys((stranger.prediction, "x0", "eps")):
        turned = found.among(times.path, stranger.prediction, prediction, times.told)
        if turned.every.isfinite().all():
            plans.append(as_plan(turned, stranger.name, times.path, prediction, times.told, times.end))
    return min(plans, key=lambda plan: (max(len(step.stages) for step in plan.steps), plan.history), default=None)


# -- laws -----------------------------------------------------------------------------------------------------------------


def laws(reader: Reader, most: int, steps: int) -> dict[int, float]:
    """The variance of the outputs over that of the data: at 5 steps, at `steps`, and at `most`, its half, its quarter, …."""
    counts = {most // 2**k for k in range(20)} | {LEAST, steps}
    out = {}
    for n in sorted(n for n in counts if LEAST <= n <= most or n == steps):
        known = reader.read(n)
        if known is not None and known[0].breaks is None and all(map(math.isfinite, known[1].told)):
            out[n] = output_variance(known[0], known[1].told, reader.stranger) / VARIANCE
    return out


def output_variance(found: Reading, told: Sequence[float], stranger: Stranger, v: float = VARIANCE) -> float:
    """Of the last state on N(0, v I) data, from the coefficients: the exact network's output is a multiple of the state."""
    every, K = found.every, found.nfe
    made = torch.zeros(1 + K, 1 + found.draws, dtype=every.dtype)
    made[0, 0] = stranger.path.prior_std(stranger.start)
    state = made[0]
    for k, row in enumerate(every):
        state = row[: 1 + k] @ made[: 1 + k]
        state[1:] += row[1 + K :]
        if k < K:
            made[1 + k] = stranger.path.gaussian(told[k], stranger.prediction, v) * state
    return float(state @ state)


def limit(law: dict[int, float]) -> float | None:
    """What the variance tends to, from its last three values, whose steps double (Aitken); None if it does not settle."""
    if len(law) < 3:
        return None
    a, b, c = list(law.values())[-3:]
    if abs(c - b) < 1e-6:
        return c
    return c - (c - b) ** 2 / ((c - b) - (b - a)) if abs(c - b) < 0.9 * abs(b - a) else None


def weak_order(law: dict[int, float]) -> float | None:
    """At which power of the steps the variance goes to its limit, from its last three values."""
    if len(law) < 3:
        return None
    a, b, c = list(law.values())[-3:]
    return math.log2(abs(b - a) / abs(c - b)) if abs(c - b) > 1e-9 and abs(b - a) > 1e-9 else None


# -- order and costs ------------------------------------------------------------------------------------------------------


def distances(reader: Reader, right: Linear | None, most: int, steps: int) -> dict[int, tuple[float, float]]:
    """How far a run and a registered sampler on its times are from the probability-flow ODE on a mixture, by steps.

    The median over 64 states, at the last step that ends with κ ≥ 0.1: what comes after, to data, is of first order in most
    published samplers, from a σ that does not fall with the steps. NaN where there is no such sampler; runs with noise are left
    out.
    """
    path = reader.stranger.path
    model, normal = problem().model(path), torch.Generator().manual_seed(1)
    x = torch.randn(64, 3, generator=normal, dtype=torch.float64) * path.prior_std(reader.stranger.start)
    pairs = dict[int, tuple[Plan, Plan | None]]()
    for n in sorted({n for n in ORDERS if n <= most} | {steps}):
        known = reader.read(n)
        theirs = _inside(reader.plan(n), path)
        if known is not None and theirs is not None and not theirs.noise_count:
            pairs[n] = theirs, None if right is None else _inside(laid_out(right, known[1]), path)
    ends = {n: (theirs.times[0], theirs.times[-1]) for n, (theirs, _) in pairs.items()}
    exact = _flow(model, x, set(ends.values()))

    def far(plan: Plan | None, first: float, last: float) -> float:
        if plan is None or abs(plan.times[-1] - last) > 1e-6:
            return math.nan
        return float((solve(model, x, plan).x - exact[first, last]).norm(dim=1).median())

    return {n: (far(theirs, *ends[n]), far(ours, *ends[n])) for n, (theirs, ours) in pairs.items()}


def _inside(plan: Plan | None, path: GaussianPath) -> Plan | None:
    """The steps of a plan up to the last that ends with κ ≥ `INSIDE`; None if there is none, or time does not fall."""
    if plan is None:
        return None
    kept = [step for step in plan.steps if step.s > 0 and path.kappa(step.s) >= INSIDE]
    if not kept or not kept[-1].s < kept[0].t:
        return None
    return dataclasses.replace(plan, steps=plan.steps[: len(kept)])


def _flow(model: ScoreModel, x: Tensor, ends: set[tuple[float, float]]) -> dict[tuple[float, float], Tensor]:
    """The states of the probability-flow ODE from x, by first and last time."""
    out = dict[tuple[float, float], Tensor]()
    for first in {first for first, _ in ends}:
        grid = [first, *sorted((last for begin, last in ends if begin == first), reverse=True)]
        # In λ the ODE knows nothing of the path, whose β may have jumps; from α = 0, where λ is infinite, in t.
        chosen: dict[str, Any] = {"variable": "lambda" if model.path.alpha(first) > 0 else "t", "method": "DOP853"}
        run = solve(model, x, "scipy", **chosen, rtol=1e-9, atol=1e-9, grid=grid, trajectory=True)
        assert run.states is not None
        out |= {(first, last): state for last, state in zip(grid[1:], run.states[1:], strict=True)}
    return out


def slope(errors: dict[int, float]) -> float | None:
    """The observed order, from the errors at the last three numbers of steps."""
    kept = [(math.log(n), math.log(error)) for n, error in sorted(errors.items()) if 1e-8 < error < math.inf][-3:]
    return -float(np.polyfit([n for n, _ in kept], [error for _, error in kept], 1)[0]) if len(kept) == 3 else None
