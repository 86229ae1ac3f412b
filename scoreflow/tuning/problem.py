"""What a plan is fitted to: a model, states to start from and where the ODE leads them, in parts with seeds of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoreflow._core.grid import default_t_min, ode, on_chain
from scoreflow._core.noise import White
from scoreflow._core.row import wide
from scoreflow._run.solve import solve
from scoreflow._samplers.plan import Fit, Plan
from scoreflow._score.conditions import Marked, each, rows
from scoreflow._score.fingerprint import identity
from scoreflow._score.model import ScoreModel
from scoreflow.tuning.student import Answer

PARTS = ("fit", "validate", "test")
TEACHER = {"network": 113, "oracle": 400}
"""Steps of UniPC-3 that stand for the ODE: of a network as of a study's reference."""
CLOSE = 1e-6
"""Times that are taken for one."""
LEAST_TIME = 1e-5
"""At which an exact score is asked; a network as of `default_t_min`."""


@dataclass(frozen=True)
class Part:
    """Some states, their conditions, and where the ODE leads them."""

    x: Tensor
    told: dict[str, Any]
    target: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def of(self, samples: Tensor) -> Part:
        """Some of them, by number."""
        return Part(self.x[samples], rows(self.told, samples, len(self)), self.target[samples])


@dataclass(frozen=True)
class Problem:
    """A model, and from where to where.

    Attributes:
        shape: of one state. conditions: as of `tune`.
        seeds: of each part, disjoint.
        start, stop: the first and last time.
        teacher: steps of the ODE's solver.
        batch: the most states in a network call that is differentiated; four times as many go in one that is not.
    """

    model: ScoreModel
    shape: tuple[int, ...]
    conditions: Mapping[str, Any]
    seeds: Mapping[str, Sequence[int]]
    start: float
    stop: float
    teacher: int
    batch: int

    def fit(self, nfe: int, cites: tuple[str, ...] = ()) -> Fit:
        """What a plan of it was fitted to."""
        model, told = self.model, tuple(sorted(self.conditions))
        return Fit(identity(model), repr(model), nfe, told, cites, (self.start, self.stop))

    def states(self, part: str, n: int | None = None) -> tuple[Tensor, dict[str, Any]]:
        """The first n states of a part, from the prior at `start`, and their conditions."""
        seeds = list(self.seeds[part])[:n]
        like = torch.empty(len(seeds), *self.shape, dtype=self.model.state_dtype, device=self.model.device)
        return White(seeds).draws("prior")(like) * self.model.path.prior_std(self.start), self.told(seeds)

    def told(self, seeds: Sequence[int]) -> dict[str, Any]:
        """The conditions of the samples of these seeds: of a tensor the row that the seed draws, marked as one a sample."""
        out = dict[str, Any]()
        for name, value in self.conditions.items():
            if callable(value):
                value = value(len(seeds), seeds[0])
                value = each(value) if isinstance(value, Tensor) and value.ndim and len(value) == len(seeds) else value
            elif isinstance(value, Tensor) and value.ndim and not isinstance(value, Marked):
                draws = [torch.randint(len(value), (), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
                value = each(value[torch.stack(draws).to(value.device)])
            out[name] = value
        return out

    def run(self, plan: Plan, x: Tensor, told: Mapping[str, Any]) -> tuple[Tensor, int]:
        """Where a plan leads, and the evaluations of all states together."""
        runs = [solve(self.model, y, plan.anyway(), conditions=some, seed=0) for y, some in self.pieces(x, told)]
        return torch.cat([sol.x for sol in runs]), sum(sum(sol.nfe_per_sample) for sol in runs)

    def pieces(self, x: Tensor, told: Mapping[str, Any]) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """States and conditions in pieces that a network call can hold: without a graph four times `batch`."""
        numbers = torch.arange(len(x), device=x.device)
        for k in range(0, len(x), 4 * self.batch):
            yield x[k : k + 4 * self.batch], rows(told, numbers[k : k + 4 * self.batch], len(x))

    def ode(self, x: Tensor, told: Mapping[str, Any], through: Sequence[float] = ()) -> tuple[list[Tensor], int]:
        """The ODE's states at these times and at `stop`, and the evaluations of all states together."""
        path, exact = self.model.path, self.model.oracle is not None
        whole_labels = self.model.time == "label" and path.T is not None
        steps = min(self.teacher, int((self.start - self.stop) * (path.T or 0))) if whole_labels else self.teacher
        times = tuple(ode(path, steps, self.start, self.stop, exact=exact).tolist())
        times = on_chain(times, path.T or 0) if whole_labels else times
        # Of a step of no length the multistep weights have no value.
        apart = [t for t in times if all(abs(t - u) > CLOSE for u in through)]
        nodes = sorted({*apart, *through}, reverse=True)
        found, nfe = list[list[Tensor]](), 0
        for y, some in self.pieces(x, told):
            sol = solve(self.model, y, "unipc-3", grid=nodes, trajectory=bool(through), conditions=some, seed=0)
            states = [sol.x] if sol.states is None else [sol.states[nodes.index(t)] for t in (*through, self.stop)]
            found.append(states)
            nfe += sum(sol.nfe_per_sample)
        return [torch.cat(states) for states in zip(*found, strict=True)], nfe

    def answer(self, told: Mapping[str, Any], count: list[int] | None = None) -> Answer:
        """What answers the questions of a run of these samples, differentiable in states and time. `count` counts."""

        def asked(x: Tensor, t: Any, prediction: Any) -> Tensor:
            t = torch.as_tensor(t, dtype=torch.float64)
            t = t.expand(len(x)) if self.model.guided else t  # guidance looks at single times, and leaves those of samples
            if count is not None:
                each_state: Any = self.model.evaluations(float(t.detach().flatten()[0]))
                count[0] += len(x) * int(each_state)
            return self.model(x, t, prediction, **told)

        return asked

    @property
    def most(self) -> float:
        """λ at the least time at which the network is asked."""
        path = self.model.path
        return path.lam(LEAST_TIME if self.model.oracle is not None else default_t_min(path))


def errors(x: Tensor, target: Tensor) -> Tensor:
    """How far each sample is from where the ODE leads it: RMS per entry."""
    return (wide(x).double() - wide(target).double()).flatten(1).square().mean(1).sqrt()
