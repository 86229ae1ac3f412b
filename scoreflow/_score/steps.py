"""The rows of a run, for models that depend on the step that is taken."""

from __future__ import annotations

from typing import Any

from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.row import Row


def single_rows(steps: Any, path: GaussianPath, who: str) -> dict[float, tuple[float, Row]]:
    """By the time t of each step of a plan that evaluates: the time s that it leads to, and its row for x̂_0.

    Raises:
        ValueError: it is no plan; a step has several stages or outputs, or two that begin at one time are not the same.
    """
    found = dict[float, tuple[float, Row]]()
    for step in steps.steps if hasattr(steps, "steps") else (None,):
        if step is not None and not step.nfe and not step.stages[0].row.m:  # up, by noise
            continue
        if step is not None and step.evaluates and len(step.stages) == 1 and len(step.stages[0].row.m) == 1:
            row = step.stages[0].row.through(*path.convert("x0", steps.prediction, step.t))
            if found.setdefault(step.t, (step.s, row)) == (step.s, row):
                continue
        raise ValueError(
            f"{who} stands on steps of one evaluation and one row, and {getattr(steps, 'sampler', steps)!r} has others: "
            "use ddim, ddpm, or pf-ode with method='euler'"
        )
    return found
