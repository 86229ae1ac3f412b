"""A run: the model with its conditions bound, its evaluations counted and its values watched; and the loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from scoreflow._core.check import finite, hidden
from scoreflow._core.gaussian import Prediction
from scoreflow._core.noise import Draws
from scoreflow._core.projection import Project, free
from scoreflow._samplers.plan import Plan, advance, drive
from scoreflow._samplers.step import Linear, Sampler
from scoreflow._score.model import ScoreModel

T = TypeVar("T")


class State(NamedTuple):
    """Where a walk stands: how many steps it took, the time, the state (B, ...)."""

    step: int
    t: float
    x: Tensor


class Run:
    """A model for one run: its conditions bound, its evaluations counted sample by sample, its outputs watched."""

    def __init__(self, model: ScoreModel, conditions: dict[str, Any], batch: int, counts: np.ndarray | None = None) -> None:
        self.model, self.path, self.prediction = model, model.path, model.prediction
        self.conditions, self.batch = conditions, batch
        self._counts = np.zeros(batch, dtype=int) if counts is None else counts
        self.calls = 0
        """Evaluations of all samples, beside those that are counted sample by sample."""
        self.samples: Tensor | None = None
        """Which of the batch it is for, by number; None for all."""
        self.finite_check = FiniteCheck()
        self.analytic: float | None = None
        """If not None, the first answer is the exact one of N(0, v I) data, v this number, and is not counted."""
        self.memory: tuple[Any, ...] = ()
        """What the next step may use: a walk begins with it, and leaves it."""
        self.backward = 0
        """Backward passes through the network, where several runs share its calls."""
        self.rounds = 0
        """Calls of `evaluate_samples`."""

    @property
    def counts(self) -> np.ndarray:
        """The evaluations of each sample, (B,)."""
        return self._counts + self.calls

    def __call__(self, x: Tensor, t: float, prediction: Prediction = "eps") -> Tensor:
        if self.analytic is not None:
            v, self.analytic = self.analytic, None
            return x * self.path.gaussian(t, prediction, v)
        return self.express(self.evaluate(x, t)[0], x, t, prediction)

    def evaluate(self, x: Tensor, t: float) -> tuple[Tensor, Tensor | None]:
        """As of `ScoreModel`."""
        if self.analytic is not None:
            raise ValueError("analytic has no variance output: use it with a sampler that needs none")
        nfe = int(self.model.evaluations(t))
        if self.samples is None:
            output = self.model.evaluate(x, t, **self.conditions)
            self.calls += nfe
        else:
            output = self.model.evaluate_some(x, t, self.samples, self.batch, self.conditions)
            self._counts += nfe
        self.finite_check.output(output[0], t)
        return output

    def express(self, output: Tensor, x: Tensor, t: float | Tensor, prediction: Prediction) -> Tensor:
        """As of `ScoreModel`."""
        return self.model.express(output, x, t, prediction)

    def evaluate_samples(self, x: Tensor, t: Tensor, samples: Tensor) -> Tensor:
        """The network's own prediction at states (n, ...) and times (n,) of these samples of the batch."""
        output = self.model.evaluate_some(x, t, samples, self.batch, self.conditions)[0]
        nfe = self.model.evaluations(t)
        np.add.at(self._counts, samples.tolist(), nfe.tolist() if isinstance(nfe, Tensor) else nfe)
        self.rounds += 1
        self.finite_check.look(output, "the network's output")
        return output

    def part(self, start: int, stop: int) -> Run:
        """The same run for some samples of the batch."""
        part = Run(self.model, self.conditions, self.batch, self._counts[start:stop])
        part.samples, part.finite_check, part.analytic = torch.arange(start, stop), self.finite_check, self.analytic
        return part


class FiniteCheck:
    """Raises where a value is not finite: at once on the host, in `close` elsewhere, so as not to wait.

    With `every` above 1 only one state in so many is looked at, and the last: what is not finite stays so. The run then
    goes once more to find where it broke.
    """

    def __init__(self, every: int = 1) -> None:
        self.step, self.span, self.every = 0, (1.0, 0.0), every
        self.seen: list[tuple[Tensor, str]] = []

    def output(self, value: Tensor, t: float) -> None:
        """Look at what the network says."""
        if self.every == 1:
            self.look(value, f"the network's output at t={t:.6g}")

    def state(self, value: Tensor, last: bool = False) -> None:
        """Look at a new state."""
        if last or self.step % self.every == 0:
            self.look(value, "the state")

    def look(self, value: Tensor, what: str) -> None:
        """Raise if it is not finite."""
        if hidden(value):
            return
        message = f"{what} is not finite, in step {self.step} (t={self.span[0]:.6g} → {self.span[1]:.6g})"
        if value.device.type != "cpu":
            self.seen.append((value.isfinite().all(), message))
        elif not finite(value):
            raise FloatingPointError(message)

    def close(self) -> None:
        """Raise for the first value that was not finite; the only wait for a device."""
        seen, self.seen = self.seen, []
        found = torch.stack([one for one, _ in seen]).tolist() if seen else []
        if not all(found):
            raise FloatingPointError(seen[found.index(False)][1])


def walk(
    run: Run, sampler: Sampler | Plan, times: Sequence[float], x: Tensor, noise: Draws, project: Project = free
) -> Iterator[State]:
    """Yield the state at every time of the grid. The only loop of the library.

    A plan's rows are used as they are, a linear sampler's are planned ahead; anything else steps by itself. A plan goes
    through its own times: those of the grid and any that its sampler adds.

    Args:
        run: the model, bound to its conditions.
        sampler: what steps.
        times: decreasing, or rising to invert; for a plan, its own.
        x: the state (B, ...) at `times[0]`.
        noise: a cursor of a noise source.
        project: of the states that rows make.

    Raises:
        ValueError: `project` with a sampler that is not made of rows.
        FloatingPointError: a network output or state that is not finite; names the step and its times.
    """
    plan = sampler.plan(run.path, tuple(times)) if isinstance(sampler, Linear) else sampler
    if not isinstance(plan, Plan):
        if project is not free:
            raise ValueError(f"project holds the states that rows make, and {plan!r} is not made of rows")
        yield from _steps(run, plan, times, x, noise)
        return
    memory, again = run.memory, noise.fork()
    run.finite_check.every = 8
    try:
        yield from _steps(run, plan, plan.times, x, noise, project)
    except FloatingPointError:
        run.finite_check.every, run.memory = 1, memory
        for _ in _steps(run, plan, plan.times, x, again, project):
            pass
        raise


def _steps(
    run: Run, plan: Sampler | Plan, times: Sequence[float], x: Tensor, noise: Draws, project: Project = free
) -> Iterator[State]:
    """The steps themselves."""
    finite_check, planned = run.finite_check, plan.steps if isinstance(plan, Plan) else None
    run.analytic = plan.analytic
    yield State(0, times[0], x)
    for i, span in enumerate(pairwise(times)):
        finite_check.step, finite_check.span = i + 1, span
        if planned is not None:
            x, run.memory, _ = drive(advance(planned[i], plan, run, x, run.memory, noise, project), run)  # type: ignore[arg-type]
        else:
            x, run.memory, _ = plan.step(run, x, *span, run.memory, noise)  # type: ignore[union-attr]
        if run.analytic is not None and (planned is None or planned[i].nfe):
            run.analytic = None
        finite_check.state(x, last=i + 2 == len(times))
        yield State(i + 1, span[1], x)
    finite_check.close()


def shown(items: Iterable[T], total: int, name: str, progress: bool) -> Iterable[T]:
    """The items, with a bar if asked."""
    if not progress:
        return items
    from tqdm.auto import tqdm

    return tqdm(items, total=total, desc=name)
