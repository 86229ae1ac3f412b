"""Coefficients of the registered samplers as data, for projects in other languages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scoreflow._core import NUMERICS
from scoreflow._core.files import check_file, whole_file
from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.path import PATHS
from scoreflow._core.row import Row
from scoreflow._run.solve import plan
from scoreflow._samplers.plan import Plan
from scoreflow._samplers.step import SAMPLERS, VARIANTS, Linear, get_sampler

SCHEMA, VERSION = "scoreflow-conformance", 1
STEPS = 5
CASES = (("vp", "uniform"), ("vp", "logsnr"), ("ddpm", "trailing"), ("flow", "uniform"), ("ve", "karras"))
"""Paths and grids."""


def conformance() -> dict[str, Any]:
    """The rows of every registered sampler on stated paths and grids, in float64: docs/conformance.md has the fields.

    A sampler that has no rows on a path is among `left_out`, with why.
    """
    runs, left_out = [], []
    for name in (*SAMPLERS, *VARIANTS):
        sampler = get_sampler(name)
        if not isinstance(sampler, Linear):
            continue
        for on, grid in CASES:
            path = PATHS[on]()
            try:
                runs.append({"sampler": name, "path": on, "grid": grid, **_run(plan(sampler, path, STEPS, grid=grid), path)})
            except ValueError as error:
                left_out.append({"sampler": name, "path": on, "grid": grid, "why": str(error)})
    paths = {on: repr(PATHS[on]()) for on, _ in CASES}
    return {
        "schema": SCHEMA, "version": VERSION, "numerics": NUMERICS, "paths": paths, "runs": runs, "left_out": left_out,
    }  # fmt: skip


def _run(laid: Plan, path: GaussianPath) -> dict[str, Any]:
    """A plan in plain words."""
    steps = [
        {
            "t": step.t, "s": step.s, "evaluates": step.evaluates,
            "draws": [{"t": draw.t, "s": draw.s, "area": draw.area} for draw in step.draws],
            "rows": [{"to": stage.t, **_row(stage.row)} for stage in step.stages],
        }
        for step in laid.steps
    ]  # fmt: skip
    times = dict.fromkeys([laid.steps[0].t, *laid.evaluation_times, *(step.s for step in laid.steps)])
    levels = [{"t": t, "alpha": path.alpha(t), "sigma": path.sigma(t)} for t in sorted(times, reverse=True)]
    return {"prediction": laid.prediction, "reuse": laid.reuse, "levels": levels, "steps": steps}


def _row(row: Row) -> dict[str, Any]:
    return {"x": float(row.x), "m": [float(m) for m in row.m], "noise": [[k, float(z)] for k, z in row.draws if z]}


def write(file: str | Path) -> Path:
    """The table as JSON, whole or not at all; numbers have the digits that give them back.

    Raises:
        FileNotFoundError: no such folder.
    """
    out = check_file("out", file)
    with whole_file(out) as part:
        part.write_text(json.dumps(conformance(), indent=1) + "\n", encoding="utf-8")
    return out
