"""The fit: weights by least squares along the student's own states, then times and weights by gradient descent."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoreflow._core.row import wide
from scoreflow.tuning.problem import Part, Problem, errors
from scoreflow.tuning.student import Form, Student, no_memory

RATES = (0.05, 0.02)
"""Of Adam, for the logits of the times and for the weights; both fall to 0 along half a cosine."""
RIDGE = 1e-6
"""Of the least squares, relative to the largest product: outputs of late steps are nearly alike."""
MOST = 3.0
"""The largest weight that least squares may begin with; above, the weights of even steps stay."""


class Start(NamedTuple):
    """Where a fit begins.

    Attributes:
        name: the candidate whose times these are.
        v: the variance of the first answer; None asks the network.
    """

    name: str
    times: tuple[float, ...]
    v: float | None


class Asked(NamedTuple):
    """What is fitted, as of `tune`."""

    form: Form
    history: int
    free: bool
    weights: bool
    labels: bool
    iterations: int
    scale: float
    """δ of the loss `mean log(1 + ‖e‖²/δ²)`: a few samples that end at another mode do not rule it."""


class Fitted(NamedTuple):
    """What a fit gave.

    Attributes:
        state: the numbers. loss: on all states that were fitted to. curve: (iteration, loss of its batch).
        nfe: evaluations, of all states together. seconds: what it took.
    """

    start: Start
    state: dict[str, Tensor]
    loss: float
    curve: list[tuple[int, float]]
    nfe: int
    seconds: float


def student(problem: Problem, start: Start, asked: Asked) -> Student:
    """The student of a start."""
    return Student(
        problem.model.path, start.times, asked.form, problem.most,
        history=asked.history, free=asked.free, v=start.v, labels=asked.labels, fixed=problem.model.time == "label",
    )  # fmt: skip


def loss_of(x: Tensor, target: Tensor, scale: float) -> Tensor:
    """`mean log(1 + ‖e‖²/δ²)`, ‖e‖ RMS per entry."""
    square = (wide(x).double() - wide(target).double()).flatten(1).square().mean(1)
    return torch.log1p(square / scale**2).mean()


@torch.no_grad()
def least_squares(problem: Problem, student: Student, part: Part, count: list[int]) -> None:
    """Set the weights step by step: each step from the student's own state, as near as can be to the ODE's state."""
    times = student.times()
    plain = [float(t) for t in times]
    targets, nfe = problem.ode(part.x, part.told, plain[1:-1])
    count[0] += nfe
    answer, x, memory, told = problem.answer(part.told, count), wide(part.x), no_memory(), student.told(times)
    for k, target in enumerate(targets):
        row = student.row(times[k], times[k + 1], student.all_weights(k))
        memory = student.step(answer, x, memory, told, k, row)[1]
        seen: list[Tensor] = [output for _, output in memory][: len(row.m)]
        base = student.base(times[k], times[k + 1])
        rest, outputs = target.double() - float(base.x) * x.double(), [float(base.m[0]) * output.double() for output in seen]
        if not student.free:
            newest = outputs.pop(0)
            rest, outputs = rest - newest, [output - newest for output in outputs]
        if outputs:
            columns = torch.stack([output.flatten() for output in outputs], -1)
            products = columns.mT @ columns
            # More than 0 for a network that says nothing.
            products.diagonal().add_(RIDGE * products.diagonal().max() + 1e-30)
            found = torch.linalg.solve(products, columns.mT @ rest.flatten()).to(student.weights[k])
            if bool(found.isfinite().all()) and float(found.abs().max()) <= MOST:
                student.weights[k] = found
        x = student.row(times[k], times[k + 1], student.all_weights(k))(x, seen)


def descend(
    problem: Problem, begin: Start, asked: Asked, part: Part, until: float, seed: int, state: dict[str, Tensor] | None = None
) -> Fitted:
    """Fit from one start, or go on from numbers; it ends when the time is over, with the best that its checks have seen."""
    began, count, curve = time.monotonic(), [0], list[tuple[int, float]]()
    one, generator = student(problem, begin, asked), torch.Generator().manual_seed(seed)
    if state is not None:
        one.load(state)
    elif asked.weights:
        few = part.of(torch.arange(min(64, len(part)), device=part.x.device))
        least_squares(problem, one, few, count)
    best = (math.inf, one.state())

    def check() -> None:
        nonlocal best
        with torch.no_grad():
            whole = [
                loss_of(one.run(problem.answer(some.told, count), some.x), some.target, asked.scale) * len(some)
                for some in batches(part, problem.batch)
            ]
        if (value := float(sum(whole)) / len(part)) < best[0]:
            best = (value, one.state())

    check()
    moved = [p for p in (one.shares if not one.fixed else None, one.log_v, one.shift) if p is not None]
    weights = [w for w in one.weights if w.numel()] if asked.weights else []
    parameters = [p.requires_grad_() for p in (*moved, *weights)]
    groups: list[dict[str, Any]] = [{"params": moved, "lr": RATES[0]}, {"params": weights, "lr": RATES[1]}]
    optimizer = torch.optim.Adam([group for group in groups if group["params"]], betas=(0.9, 0.99)) if parameters else None
    base = [group["lr"] for group in optimizer.param_groups] if optimizer else []
    step_time, order = 0.0, torch.empty(0, dtype=torch.long)
    for i in range(asked.iterations if optimizer else 0):
        at = time.monotonic()
        if at + step_time > until:
            break
        # Along half a cosine of the iterations, or of the time if that is the shorter.
        share = i / asked.iterations
        if math.isfinite(until):
            share = max(share, (at - began) / max(until - began, 1e-9))
        for group, rate in zip(optimizer.param_groups, base, strict=True):  # type: ignore[union-attr]
            group["lr"] = rate * (1 + math.cos(math.pi * min(share, 1.0))) / 2
        if len(order) < problem.batch:
            order = torch.cat([order, torch.randperm(len(part), generator=generator)])
        now, order = order[: problem.batch], order[problem.batch :]
        some = part.of(now.to(part.x.device))
        loss = loss_of(one.run(problem.answer(some.told, count), some.x), some.target, asked.scale)
        slopes = torch.autograd.grad(loss, parameters, allow_unused=True)
        if not bool(loss.isfinite()) or any(g is not None and not bool(g.isfinite().all()) for g in slopes):
            one.load(best[1])
            break
        for p, g in zip(parameters, slopes, strict=True):
            p.grad = g
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()  # type: ignore[union-attr]
        curve.append((i, float(loss.detach())))
        step_time = time.monotonic() - at
        if i % 50 == 49:
            check()
    check()
    return Fitted(begin, best[1], best[0], curve, count[0], time.monotonic() - began)


def batches(part: Part, size: int) -> Sequence[Part]:
    """The part in pieces."""
    numbers = torch.arange(len(part), device=part.x.device)
    return [part] if size >= len(part) else [part.of(numbers[k : k + size]) for k in range(0, len(part), size)]


__all__ = ["Asked", "Fitted", "Start", "batches", "descend", "errors", "student"]
