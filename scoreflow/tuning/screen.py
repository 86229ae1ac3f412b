"""The samplers that were there before: every deterministic one made of rows, on every grid, within a budget."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

import torch

from scoreflow._core.grid import GRIDS
from scoreflow._run.auto import AUTO
from scoreflow._run.schedule import Schedule
from scoreflow._run.solve import prepare
from scoreflow._samplers.plan import Plan
from scoreflow._samplers.step import SAMPLERS, VARIANTS, Linear, get_sampler
from scoreflow.studies.spec import parse
from scoreflow.tuning.problem import Part, Problem, errors

FEW, SOME, KEPT = 4, 16, 8
"""Seeds that all candidates are run on, those that the better quarter is run on, and how many are run on all."""
FIRST = ("ode", "rectified", "logsnr", "karras")
"""Grids to begin with, where time is short."""


class Candidate(NamedTuple):
    """A plan that was there before.

    Attributes:
        name: sampler and grid, as typed.
        median, quantile: of the errors, the quantile that of 90 %.
        seeds: how many they were measured on.
    """

    name: str
    plan: Plan
    median: float
    quantile: float
    seeds: int

    @property
    def line(self) -> dict[str, object]:
        """What is kept of it."""
        return {"name": self.name, "median": self.median, "quantile": self.quantile, "seeds": self.seeds}


def planned(problem: Problem, nfe: int, sampler: str, grid: str | None, **options: Any) -> Plan | None:
    """The plan within a budget; None for a grid or a sampler that this path or budget does not have."""
    schedule = Schedule(nfe=nfe, grid=grid, start=problem.start, stop=problem.stop)
    try:
        return prepare(problem.model, sampler, schedule, dict(options)).plan
    except (ValueError, ZeroDivisionError):
        return None


def linear(problem: Problem, stochastic: bool) -> list[str]:
    """The samplers that are made of rows, with noise or without."""
    every = ((name, get_sampler(name)) for name in (*SAMPLERS, *VARIANTS))
    return [name for name, one in every if isinstance(one, Linear) and one.stochastic_on(problem.model.path) == stochastic]


def grids() -> list[str | None]:
    """Those to run on: a sampler's own, those to begin with, all others."""
    return [None, *sorted(GRIDS, key=lambda name: name not in FIRST)]


def different(found: Iterable[tuple[str, Plan | None]]) -> Iterator[tuple[str, Plan]]:
    """Those that there are, no two with the same rows."""
    seen = set[object]()
    for name, plan in found:
        if plan is not None and (key := (plan.prediction, plan.steps, plan.history, plan.reuse, plan.analytic)) not in seen:
            seen.add(key)
            yield name, plan


def candidates(problem: Problem, nfe: int, v: float | None, named: Sequence[str] | None = None) -> Iterator[tuple[str, Plan]]:
    """Those within the budget, no two with the same rows; "auto" comes first. `named` are those to take, as typed."""

    def every() -> Iterator[tuple[str, Plan | None]]:
        yield AUTO, planned(problem, nfe, AUTO, None)
        if v is not None:
            yield f"{AUTO}(analytic={v:.3g})", planned(problem, nfe, AUTO, None, analytic=v)
        if named is not None:
            for text in named:
                name, options, grid = parse(text)
                yield text, planned(problem, nfe, name, grid, **options)
            return
        names = linear(problem, stochastic=False)
        for on in grids():
            for name in names:
                yield name if on is None else f"{name}@{on}", planned(problem, nfe, name, on)

    return different(every())


def measured(problem: Problem, found: Sequence[tuple[str, Plan]], part: Part, until: float) -> tuple[list[Candidate], int]:
    """Each on these states, in order, until the time is over; and the evaluations."""
    out, nfe = list[Candidate](), 0
    for name, plan in found:
        if out and time.monotonic() > until:
            break
        try:
            x, taken = problem.run(plan, part.x, part.told)
        except (FloatingPointError, ValueError):  # a network of whole labels may not be asked at these times
            continue
        off, nfe = errors(x, part.target), nfe + taken
        out.append(Candidate(name, plan, float(off.median()), float(off.quantile(0.9)), len(part)))
    return out, nfe


def screened(
    problem: Problem,
    nfe: int,
    part: Part,
    v: float | None,
    until: float,
    named: Sequence[str] | None = None,
    executor: Executor | None = None,
    jobs: int = 8,
) -> tuple[list[Candidate], int, int]:
    """The best in full, the best first; how many there were; and the evaluations.

    All go on `FEW` seeds, the better quarter on `SOME`, the best `KEPT` and "auto" on all.
    """
    found = list[tuple[str, Plan]]()
    for one in candidates(problem, nfe, v, named):
        found.append(one)
        if time.monotonic() > until:
            break

    def through(chosen: Sequence[tuple[str, Plan]], some: Part, until: float) -> tuple[list[Candidate], int]:
        if executor is None:
            return measured(problem, chosen, some, until)
        parts = [chosen[k::jobs] for k in range(jobs)]
        runs = [run.result() for run in [executor.submit(measured, problem, one, some, until) for one in parts if one]]
        return [one for run, _ in runs for one in run], sum(taken for _, taken in runs)

    taken, rounds = (
        0,
        ((min(FEW, len(part)), len(found)), (min(SOME, len(part)), max(KEPT, len(found) // 4)), (len(part), KEPT)),
    )
    best = [(name, plan, 0.0) for name, plan in found]
    for k, (n, most) in enumerate(rounds):
        chosen = sorted(best, key=lambda one: one[2])[:most]
        if k and all(name != AUTO for name, *_ in chosen):
            chosen += [one for one in best if one[0] == AUTO]
        some = part.of(torch.arange(n, device=part.x.device))
        share = until if k == 0 else float("inf")  # what is left is little, and is run to its end
        seen, cost = through([(name, plan) for name, plan, _ in chosen], some, share)
        best, taken = [(one.name, one.plan, one.median) for one in seen], taken + cost
    return sorted(seen, key=lambda one: one.median), len(found), taken


def kept(found: Sequence[Candidate]) -> str:
    """As JSON, to go on from."""
    return json.dumps([{**one.line, "plan": one.plan.to_json()} for one in found])


def read(text: str) -> list[Candidate]:
    """What `kept` wrote."""
    return [Candidate(**{**one, "plan": Plan.from_json(one["plan"])}) for one in json.loads(text)]
