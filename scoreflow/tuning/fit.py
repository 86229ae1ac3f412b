"""The fit: weights by least squares along the student's own states, then times and weights together by L-BFGS."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from scoreflow._core.row import wide
from scoreflow.tuning.problem import Part, Problem, errors
from scoreflow.tuning.student import Form, Student, no_memory

T = TypeVar("T")

FEW = 64
"""States that least squares and the first fits see: there are far fewer numbers than entries of these."""
ITERATIONS = {"network": 100, "oracle": 400}
"""Of L-BFGS: a network's loss has little left to fall by then."""
MEMORY = 20
"""Pairs of slopes that L-BFGS keeps."""
WORST = 1e6
"""A loss that is no number, as the line search is told it."""
RIDGE = 1e-6
"""Of the least squares, relative to the largest product: outputs of late steps are nearly alike."""
MOST = 3.0
"""The largest weight that least squares may begin with; above, the weights of even steps stay."""


class Start(NamedTuple):
    """Where a fit begins.

    Attributes:
        name: the candidate whose times these are.
        v: the variance of the first answer; None asks the network.
        even: keep the weights of even steps, where others begin with those of least squares.
        state: all numbers, as those of a shorter plan with one more step.
    """

    name: str
    times: tuple[float, ...]
    v: float | None = None
    even: bool = False
    state: dict[str, Tensor] | None = None


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
        state: the numbers. loss: on the states that it was fitted to. curve: (call, loss).
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


class _OverTime(Exception):
    """The time of a fit is over."""


def lowest(
    parameters: Sequence[Tensor], loss_and_slopes: Callable[[], tuple[float, Sequence[Tensor]]], state: Callable[[], T],
    iterations: int, until: float,
) -> tuple[float, T, list[tuple[int, float]]]:  # fmt: skip
    """The least loss that L-BFGS comes by, the state that had it, and the curve; it ends when the time is over.

    `parameters` are written to. What is no number counts as a loss of `WORST`.
    """
    from scipy.optimize import minimize

    best, last, curve = (math.inf, state()), 0.0, list[tuple[int, float]]()
    sizes = [p.numel() for p in parameters]

    def called(numbers: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best, last
        at = time.monotonic()
        if curve and at + last > until:
            raise _OverTime
        if not np.isfinite(numbers).all():  # the line search went astray
            return WORST, np.zeros_like(numbers)
        with torch.no_grad():
            for p, piece in zip(parameters, torch.split(torch.from_numpy(numbers.copy()), sizes), strict=True):
                p.copy_(piece.reshape(p.shape))
        loss, slopes = loss_and_slopes()
        slope = np.concatenate([np.zeros(0), *(g.flatten().double().numpy() for g in slopes)])
        last = time.monotonic() - at
        curve.append((len(curve), loss))
        if not math.isfinite(loss) or not np.isfinite(slope).all():
            return WORST, np.zeros_like(numbers)
        if loss < best[0]:
            best = (loss, state())
        return loss, slope

    first = np.concatenate([np.zeros(0), *(p.detach().flatten().numpy() for p in parameters)])
    try:
        if parameters and iterations:
            how = {"maxiter": iterations, "maxcor": MEMORY, "maxfun": 10 * iterations}
            minimize(called, first, jac=True, method="L-BFGS-B", options=how)
        else:
            called(first)
    except _OverTime:
        pass
    return *best, curve


def descend(
    problem: Problem, begin: Start, asked: Asked, part: Part, until: float, state: dict[str, Tensor] | None = None
) -> Fitted:
    """Fit from one start, or go on from numbers; it ends when the time is over, with the best that was seen."""
    began, count, one = time.monotonic(), [0], student(problem, begin, asked)
    if (numbers := begin.state if state is None else state) is not None:
        one.load(numbers)
    elif asked.weights and not begin.even:
        least_squares(problem, one, part.of(torch.arange(min(FEW, len(part)), device=part.x.device)), count)
    moved = [p for p in (one.shares if not one.fixed else None, one.log_v, one.shift) if p is not None]
    parameters = [p.requires_grad_() for p in (*moved, *(w for w in one.weights if w.numel() and asked.weights))]

    def loss_and_slopes() -> tuple[float, list[Tensor]]:
        loss, slopes = 0.0, [torch.zeros_like(p) for p in parameters]
        for some in batches(part, problem.batch):
            end = one.run(problem.answer(some.told, count), some.x)
            share = loss_of(end, some.target, asked.scale) * (len(some) / len(part))
            loss += float(share.detach())
            if parameters:
                more = torch.autograd.grad(share, parameters, allow_unused=True, materialize_grads=True)
                slopes = [a + b for a, b in zip(slopes, more, strict=True)]
        return loss, slopes

    least, found, curve = lowest(parameters, loss_and_slopes, one.state, asked.iterations, until)
    return Fitted(begin, found, least, curve, count[0], time.monotonic() - began)


def batches(part: Part, size: int) -> Sequence[Part]:
    """The part in pieces."""
    numbers = torch.arange(len(part), device=part.x.device)
    return [part] if size >= len(part) else [part.of(numbers[k : k + size]) for k in range(0, len(part), size)]


__all__ = ["Asked", "Fitted", "Start", "batches", "descend", "errors", "student"]
