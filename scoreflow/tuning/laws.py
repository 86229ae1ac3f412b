"""How near the law of a plan's samples is to that of the data: by samples, or on Gaussian data exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoreflow._core.noise import White
from scoreflow._core.row import wide
from scoreflow._run.solve import solve
from scoreflow._samplers.health import Symbolic, UnitVectors
from scoreflow._samplers.plan import Plan
from scoreflow._score.conditions import rows
from scoreflow._score.model import ScoreModel
from scoreflow._score.oracle import Gaussian
from scoreflow.analysis import law
from scoreflow.studies.metrics import distances, squared_energy
from scoreflow.tuning.decide import DRAWS, LEVEL
from scoreflow.tuning.levels import Levelled
from scoreflow.tuning.problem import Problem


class Sampled(NamedTuple):
    """States to start from, their noise and conditions, and samples of the law that runs should have."""

    problem: Problem
    x: Tensor
    seeds: Sequence[int]
    told: dict[str, Any]
    target: Tensor
    of_target: dict[str, Any]
    """The conditions of those samples, where they are known."""

    def few(self, n: int) -> Sampled:
        """The first n."""
        first = torch.arange(min(n, len(self.x)), device=self.x.device)
        told = rows(self.told, first, len(self.x))
        return self._replace(x=self.x[first], seeds=[*self.seeds][: len(first)], told=told)

    def ends(self, plan: Plan) -> Tensor:
        """Where a plan leads, (n, d)."""
        out, at = list[Tensor](), 0
        for y, some in self.problem.pieces(self.x, self.told):
            seeds = [*self.seeds][at : at + len(y)]
            out.append(solve(self.problem.model, y, plan.anyway(), conditions=some, seed=seeds).x)
            at += len(y)
        return wide(torch.cat(out)).double().flatten(1)

    @property
    def truth(self) -> Tensor:
        """The samples of the law, (m, d)."""
        return wide(self.target).double().flatten(1)

    def distance(self, plan: Plan) -> float:
        """Of the ends of a plan."""
        return float(squared_energy(self.ends(plan), self.truth))

    def loss_and_slopes(self, one: Levelled, count: list[int]) -> tuple[float, list[Tensor]]:
        """The energy distance, and its slopes by the numbers: first of the ends without a graph, then piece by piece."""
        size, n = self.problem.batch, len(self.x)

        def piece(k: int) -> Tensor:
            some = torch.arange(k, min(k + size, n), device=self.x.device)
            answer = self.problem.answer(rows(self.told, some, n), count)
            draws = White([*self.seeds][k : k + size]).draws("step")
            return wide(one.run(answer, self.x[some], draws)).double().flatten(1)

        whole = size >= n
        with torch.set_grad_enabled(whole):
            pieces = [piece(k) for k in range(0, n, size)]
        ends = pieces[0] if whole else torch.cat(pieces).requires_grad_()
        loss = squared_energy(ends, self.truth)
        if whole:
            return float(loss.detach()), list(torch.autograd.grad(loss, one.parameters))
        (slope,) = torch.autograd.grad(loss, ends)
        slopes, parameters = [torch.zeros_like(p) for p in one.parameters], one.parameters
        for k in range(0, n, size):
            more = torch.autograd.grad(piece(k), parameters, slope[k : k + size])
            slopes = [a + b for a, b in zip(slopes, more, strict=True)]
        return float(loss.detach()), slopes


class Exact(NamedTuple):
    """N(μ, Σ): the exact law of a plan, without samples."""

    model: ScoreModel
    data: Gaussian

    def distance(self, plan: Plan) -> float:
        """W₂ of the plan's law to the data."""
        return law(plan, self.model.path, self.data).w2

    def loss_and_slopes(self, one: Levelled, count: list[int]) -> tuple[float, list[Tensor]]:
        """W₂², direction by direction as in `analysis.law`, and its slopes."""
        var, eigenvectors = torch.linalg.eigh(self.data.cov)
        size, mean = len(one.numbers) + 2, eigenvectors.mT @ self.data.mean
        x = torch.zeros(len(var), size, dtype=torch.float64)
        x[:, 1] = self.model.path.prior_std(one.times[0])
        ends = one.run(Symbolic(self.model.path, mean, var, size), x, UnitVectors())  # type: ignore[arg-type]
        std = (ends[:, 1:].square().sum(1) + 1e-30).sqrt()
        loss = (ends[:, 0] - mean).square().sum() + (std - var.sqrt()).square().sum()
        return float(loss.detach()), list(torch.autograd.grad(loss, one.parameters))


def nearer(ours: Tensor, theirs: Tensor, truth: Tensor) -> tuple[float, float, float]:
    """The difference of two energy distances to the truth and both ends of its interval, by a bootstrap over seeds and truth.

    `ours` and `theirs` are of the same seeds, which are drawn together.
    """
    n, m = len(ours), len(truth)
    generator = torch.Generator().manual_seed(0)

    def drawn(k: int) -> Tensor:
        numbers = torch.randint(k, (DRAWS, k), generator=generator)
        shares = torch.zeros(DRAWS, k, dtype=torch.float64).scatter_add_(1, numbers, torch.ones(DRAWS, k, dtype=torch.float64))
        return (shares / k).to(ours.device)

    cross = distances(ours, truth) - distances(theirs, truth)
    own = (distances(ours, ours) - distances(theirs, theirs)) * n / (n - 1)
    w, v = drawn(n), drawn(m)
    all_draws = 2 * ((w @ cross) * v).sum(1) - ((w @ own) * w).sum(1)
    ends = all_draws.quantile(torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64, device=ours.device))
    return float(2 * cross.mean() - own.mean()), float(ends[0]), float(ends[1])
