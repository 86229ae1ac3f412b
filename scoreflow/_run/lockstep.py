"""Several runs together: samplers and budgets of all kinds, their states in one network call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from scoreflow._core.check import check_state, whole
from scoreflow._core.projection import Project, projection
from scoreflow._run.asked import AskedRun
from scoreflow._run.schedule import Schedule
from scoreflow._run.solution import Solution
from scoreflow._run.solve import ARGUMENTS, Prepared, carry, options_of, prepare
from scoreflow._run.walk import Run
from scoreflow._samplers.plan import Plan
from scoreflow._samplers.step import Sampler
from scoreflow._score.model import ScoreModel, check_model, check_settled

Asked = str | Sampler | Plan | tuple[str | Sampler, int] | Mapping[str, Any]
TIMES = tuple(one.name for one in fields(Schedule))


def solve_many(
    runs: Sequence[Asked],
    model: ScoreModel,
    x_T: Tensor,
    *,
    seed: int | Sequence[int] | None = None,
    batch: int | None = None,
    project: Project | None = None,
    conditions: Mapping[str, Any] | None = None,
    **keywords: Any,
) -> list[Solution]:
    """Carry the states x_T down by several runs at once, each asked when it waits: one network call for all that wait.

    Every result is that of its own `solve`, to rounding: networks are not the same to the last digit in batches of another
    size. Runs that cannot be asked, those of adaptive samplers, of solvers of other libraries and of guidance that follows a
    run, go one after the other.

    Args:
        runs: each a plan, a sampler or its name, a pair (sampler, nfe), or a mapping with keywords of `solve`: sampler, steps,
            nfe, grid, start, stop, denoise, seed, noise, and options of the sampler.
        model, x_T, project, conditions: as of `solve`, for all runs; x_T (B, ...).
        seed: of the runs that have none of their own; each has its own draws from it, as if it were alone.
        batch: the most states in one network call; at least those of one run. None: of all runs.
        keywords: conditions of the network.

    Raises:
        As `solve`; TypeError for a run that is none of these.
    """
    check_model(model)
    check_state("x_T", x_T)
    check_settled(model)
    held = projection(project)
    most = None if batch is None else max(1, whole("batch", batch) // max(1, len(x_T)))
    told = model.check_conditions(keywords if conditions is None else {**keywords, "conditions": conditions}, ARGUMENTS)
    found: list[Solution | None] = []
    waiting: list[tuple[int, AskedRun, Run, Prepared, Any]] = []
    for each in runs:
        chosen = _keywords(each)
        sampler, noise = chosen.pop("sampler", "auto"), chosen.pop("noise", None)
        own = chosen.pop("seed", seed if noise is None else None)
        times = Schedule(**{name: chosen.pop(name) for name in TIMES if name in chosen})
        if other := set(chosen) - set(options_of(sampler, chosen)):
            raise TypeError(f"{min(other)!r} is no option of {sampler!r}; conditions are those of all runs: give them beside")
        prepared = replace(prepare(model, sampler, times, chosen), conditions=told)
        source, kept = prepared.source(noise, own, len(x_T), model.path)
        if prepared.plan is None or model.begin(prepared.plan) is not model:
            found.append(carry(model, x_T, prepared, source, seed=kept, project=held))
            continue
        run = Run(model, prepared.conditions, len(x_T))
        asking = AskedRun(model, prepared, x_T, source.draws("step"), project=held)
        waiting.append((len(found), asking, run, prepared, kept))
        found.append(None)
    samples = torch.arange(len(x_T), device=x_T.device)
    with torch.no_grad():
        while left := [one for one in waiting if not one[1].done]:
            for begin in range(0, len(left), most or len(left)):
                _answer(model, left[begin : begin + (most or len(left))], samples)
    for place, asking, run, prepared, kept in waiting:
        found[place] = prepared.solution(
            model, asking.x, run.counts, asking.noise_count, states=None, memory=asking.memory, seed=kept, backward=run.backward
        )
    return [one for one in found if one is not None]


def _keywords(each: Asked) -> dict[str, Any]:
    """A run as keywords of `solve`."""
    if isinstance(each, str | Sampler | Plan):
        return {"sampler": each}
    if isinstance(each, Mapping):
        return dict(each)
    if isinstance(each, tuple) and len(each) == 2:
        return {"sampler": each[0], "nfe": each[1]}
    raise TypeError(f"a run must be a plan, a sampler, a pair (sampler, nfe) or a mapping of keywords, got {each!r}")


def _answer(model: ScoreModel, together: Sequence[tuple[int, AskedRun, Run, Prepared, Any]], samples: Tensor) -> None:
    """Tell each of these runs the network's output, from one call."""
    x = torch.cat([asking.x for _, asking, *_ in together])
    t = torch.cat([x.new_full((len(samples),), asking.t, dtype=torch.float64) for _, asking, *_ in together])
    conditions, passes = together[0][2].conditions, model.backward
    outputs = model.evaluate_some(x, t, samples.repeat(len(together)), len(samples), conditions)[0]
    for (_, asking, run, *_), output in zip(together, torch.split(outputs, len(samples)), strict=True):
        run.calls += int(model.evaluations(asking.t))
        run.backward += model.backward - passes
        asking.tell(output)
