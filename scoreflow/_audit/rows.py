"""A run that was read back, as a plan: what it takes to run it here."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from scoreflow._core.gaussian import GaussianPath, Prediction
from scoreflow._core.row import Row
from scoreflow._samplers.plan import Draw, Plan, PlannedStep, Stage
from scoreflow._uses.read_back import Reading, read_plan

NONE = (1e-9, 1e-4)
"""Shares of the largest weight below which one is what rounding left: in float64, and over steps whose tables are float32."""


def as_plan(found: Reading, name: str, path: GaussianPath, prediction: Prediction, times: Sequence[float], end: float) -> Plan:
    """The plan whose run has these coefficients.

    A step ends at a state of which the next one is a multiple, beside outputs and new draws; stages of one step share its
    draws. Where outputs of stages are used in later steps, or draws used anew, the whole run is one step.

    Args:
        found: affine, without constants. times: that the network was told. end: where the last state stands.
    """
    nodes, K = (*times, end), found.nfe
    plans = []
    for none in NONE:
        bases = [k for k in range(K) if k == 0 or _share(found, k, k + 1, none) is not None]
        for begins in (bases, [0]):
            steps = [_step(found, nodes, b, e, none) for b, e in zip(begins, [*begins[1:], K], strict=True)]
            kept = tuple(step for step in steps if step is not None)
            plan = Plan(name, repr(path), prediction, kept, history=_history(kept), path_object=path)
            same = len(kept) == len(steps) and _apart(found, plan, path) < none
            if same:
                plans.append(plan)
                break
    # Rows that lose digits, such as where the first state is scaled otherwise, are one step all the same.
    return min(plans or [plan], key=lambda plan: max(len(step.stages) for step in plan.steps))


def _apart(found: Reading, plan: Plan, path: GaussianPath) -> float:
    """How far the run of a plan is, as a share of the largest weight; infinite if a row takes outputs that are out of view."""
    if any(len(stage.row.m) > k + i for k, step in enumerate(plan.steps, 1) for i, stage in enumerate(step.stages)):
        return math.inf
    run = read_plan(plan, path, plan.prediction)
    return float(found.apart(run).max() / found.every.abs().max()) if run.nfe == found.nfe else math.inf


def _step(found: Reading, nodes: Sequence[float], b: int, e: int, none: float) -> PlannedStep | None:
    """From the state of call b to that of call e; None if it takes draws of steps before."""
    every, K = found.every, found.nfe
    fresh = [j for j in range(1 + K, every.shape[1]) if not every[: b + 1, j].any() and every[b + 1 : e + 1, j].any()]
    stages = []
    for k in range(b + 1, e + 1):
        share = _share(found, b, k, none)
        if share is None:
            return None
        left = every[k] - share * every[b]
        m = left[1 : 1 + k].flip(0)
        used = (m.abs() > none / 10 * every[k].abs().max()).nonzero()
        count = int(used.max()) + 1 if len(used) else 1
        stages.append(Stage(nodes[k], Row(share, tuple(m[:count].tolist()), tuple(left[fresh].tolist()) or 0.0)))
    t, length = nodes[b], (nodes[e] - nodes[b]) / max(1, len(fresh))
    draws = tuple(Draw(t + j * length, t + (j + 1) * length) for j in range(len(fresh)))
    return PlannedStep(t, nodes[e], True, tuple(stages), draws)


def _history(steps: Sequence[PlannedStep]) -> int:
    return max((len(stage.row.m) - i for step in steps for i, stage in enumerate(step.stages)), default=1)


def _share(found: Reading, b: int, k: int, none: float) -> float | None:
    """What multiple of state b state k is, beside outputs and new draws; None if there is none.

    It leaves nothing of x_T and of the draws in b over. If b has neither, what is left of the outputs before is least.
    """
    every, K = found.every, found.nfe
    base, state = every[b], every[k]
    old = torch.cat([torch.tensor([0]), 1 + K + every[: b + 1, 1 + K :].any(0).nonzero().flatten()])
    size = float(base.abs().max())
    free = float(base[old].abs().max()) <= NONE[0] * size
    fitted = slice(1, 1 + b) if free else old
    u, v = base[fitted], state[fitted]
    share = float(u @ v / (u @ u)) if u.any() else 0.0
    left = float((state - share * base)[old].abs().max())
    return share if left <= none * max(float(state.abs().max()), abs(share) * size) else None
