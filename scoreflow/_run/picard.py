"""Parallel in time: the steps of a plan taken at once, with the outputs of the network of the round before."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoreflow._core.check import number, whole
from scoreflow._core.gaussian import GaussianPath, Prediction
from scoreflow._core.noise import Draws
from scoreflow._core.projection import Project, free
from scoreflow._run.walk import Run, State, walk
from scoreflow._samplers.plan import Memory, Plan, advance, drive

CITES = ("shih2023parallel",)


class Picard(NamedTuple):
    """Picard iteration over a sliding window of steps.

    Every round takes the steps of the window with the outputs of the round before, and evaluates the network anew, in
    one call, wherever the state has moved. The window begins at each sample's first output that has not settled. Round k has
    the first k outputs of the sequential run, whatever the network; most settle sooner.

    Attributes:
        window: how many steps are taken at once; the network's batch is up to so many times larger (times the stages).
        tol: an output has settled once its state moves by no more than tol · σ_t, root mean square over the sample's entries.
            0: not at all, and the result is that of the sequential run.

    Reference:
        Parallel Sampling of Diffusion Models (Shih et al., 2023), Algorithm 1.
    """

    window: int
    tol: float = 0.0

    @classmethod
    def of(cls, parallel: int | Picard) -> Picard:
        """From what was given as `parallel`. Raises ValueError, TypeError for a window or tolerance that cannot be."""
        how = parallel if isinstance(parallel, Picard) else cls(parallel)
        return cls(whole("parallel", how.window), number("tol", how.tol, least=0))


@dataclass
class Output:
    """What the network gave last, sample by sample: at time t, in the state `at`; and for which samples it is known."""

    t: float
    prediction: Prediction
    at: Tensor
    value: Tensor
    known: np.ndarray


class Sweep:
    """Answers in the place of the network with the outputs known, and notes the states that it is evaluated at.

    An output not yet known is taken to be the one before it.
    """

    def __init__(self, run: Run, outputs: dict[int, Output], n: int, before: Tensor | None) -> None:
        self.path, self.prediction, self.outputs, self.n, self.before = run.path, run.prediction, outputs, n, before
        self.states: dict[int, Tensor] = {}

    def __call__(self, x: Tensor, t: float, prediction: Prediction = "eps") -> Tensor:
        n, self.n = self.n, self.n + 1
        self.states[n] = x
        output = self.outputs.setdefault(n, Output(t, prediction, x, x, np.zeros(len(x), dtype=bool)))
        value = output.value
        if not output.known.all():
            if self.before is None:
                raise NothingKnown
            value = torch.where(_like(torch.from_numpy(output.known), x), value, self.before)
        self.before = value
        return value


class NothingKnown(Exception):
    """A sweep has come to the first output of a run, before the network was evaluated at all."""


class Kept:
    """A step's draws, taken from the noise once and handed out again in every sweep."""

    def __init__(self, noise: Draws) -> None:
        self.noise, self.draws, self.count = noise, list[Tensor](), 0

    def __call__(self, like: Tensor, t: float, s: float, area: bool) -> Tensor:
        if self.count == len(self.draws):
            self.draws.append(self.noise(like, t, s, area))
        self.count += 1
        return self.draws[self.count - 1]

    def again(self) -> Kept:
        """The same, at its first draw."""
        self.count = 0
        return self


def picard(run: Run, plan: Plan, x: Tensor, noise: Draws, how: Picard, project: Project = free) -> Iterator[State]:
    """As `walk` with a plan: yields the state at every time, once it is settled for the whole batch.

    Args:
        run: the model, bound to its conditions; its `rounds` count the calls of the network.
        plan: any; the states of stages are unknowns like those of steps.
        x: the state (B, ...) at the first time.
        noise: a cursor of a noise source; it is drawn from in the order of the steps.
        how: the window and the tolerance. Each sample has its own window, so that it does not depend on its batch-mates.
        project: of the states that the rows make.
    """
    if not len(x):
        yield from walk(run, plan, plan.times, x, noise, project)
        return
    steps, samples = plan.steps, range(len(x))
    first = [0, *accumulate(step.nfe for step in steps)]  # the number of each step's first output

    def step_of(n: int) -> int:
        return min(bisect_right(first, n) - 1, len(steps))

    outputs: dict[int, Output] = {}
    kept = [Kept(noise) for _ in steps]
    settled = [0 for _ in samples]  # how many outputs are settled
    base, before = 0, None
    run.analytic = plan.analytic
    yield State(0, steps[0].t, x)
    while base < len(steps):
        run.finite_check.step, run.finite_check.span = base + 1, (steps[base].t, steps[base].s)
        sweep = Sweep(run, outputs, first[base], before)
        after: list[tuple[Tensor, Memory, Tensor | None]] = [(x, run.memory, before)]
        with suppress(NothingKnown):
            # As far as a window beyond the outputs that may now prove settled.
            for i in range(base, min(len(steps), max(map(step_of, settled)) + 2 * how.window)):
                y, memory, _ = drive(advance(steps[i], plan, sweep, *after[-1][:2], kept[i].again(), project), sweep)
                after.append((y, memory, sweep.before))
        still = {n: _still(run.path, outputs[n], state, how.tol) for n, state in sweep.states.items()}
        for b in samples:
            while (n := settled[b]) in still and still[n][b]:
                settled[b] += 1
        done = min(map(step_of, settled))
        for i in range(base, done):
            x, run.memory, before = after[i + 1 - base]
            run.finite_check.state(x)
            yield State(i + 1, steps[i].s, x)
            kept[i].draws.clear()
        for n in range(first[base], first[done]):
            del outputs[n]
        base = done
        ends = [first[min(len(steps), step_of(n) + how.window)] for n in settled]
        wanted = {n: [b for b in samples if settled[b] <= n < ends[b] and not still[n][b]] for n in sweep.states}
        _evaluate(run, outputs, sweep.states, {n: chosen for n, chosen in wanted.items() if chosen})


def _still(path: GaussianPath, output: Output, x: Tensor, tol: float) -> list[bool]:
    """For which samples the output was taken at this state, to the tolerance."""
    if not output.known.any():
        return [False] * len(x)
    moved = (x - output.at).detach().reshape(len(x), -1).float().square().mean(1).sqrt()
    # What is not finite does not move: where it is not seen at once, the run must still end.
    moves: list[bool] = (moved > tol * path.sigma(output.t)).tolist()
    return [bool(wanted) and not m for wanted, m in zip(output.known, moves, strict=True)]


def _evaluate(run: Run, outputs: dict[int, Output], states: dict[int, Tensor], wanted: dict[int, list[int]]) -> None:
    """Evaluate outputs of some samples each, in one call."""
    if not wanted:
        return
    if run.analytic is not None:
        (n,) = wanted
        output = outputs[n]
        outputs[n] = Output(
            output.t, output.prediction, states[n], run(states[n], output.t, output.prediction), np.ones_like(output.known)
        )
        run.analytic = None
        return
    places = {n: torch.tensor(chosen, device=states[n].device) for n, chosen in wanted.items()}
    x = [states[n][at] for n, at in places.items()]
    times = torch.tensor([outputs[n].t for n, chosen in wanted.items() for _ in chosen], dtype=torch.float64)
    value = run.evaluate_samples(torch.cat(x), times, torch.cat(list(places.values())))
    for (n, at), y, part in zip(places.items(), x, torch.split(value, [len(y) for y in x]), strict=True):
        output = outputs[n]
        output.value = output.value.index_put((at,), run.express(part, y, output.t, output.prediction))
        output.at = output.at.index_put((at,), y)
        output.known[wanted[n]] = True


def _like(mask: Tensor, x: Tensor) -> Tensor:
    return mask.to(x.device).reshape(-1, *[1] * (x.ndim - 1))
