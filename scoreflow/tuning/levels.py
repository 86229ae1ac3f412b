"""Stochastic samplers with one number a level: how much of the noise is fresh, or how far each step goes up first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from scoreflow._core.gaussian import GaussianPath, Prediction
from scoreflow._core.noise import Draws
from scoreflow._core.row import Row
from scoreflow._samplers.plan import Draw, Fit, Plan, PlannedStep, Stage, advance, drive
from scoreflow.tuning.student import Answer, no_memory

Kind = Literal["variance", "churn"]
PREDICTION: dict[Kind, Prediction] = {"variance": "x0", "churn": "eps"}
LEAST, CLOSE = 1e-4, 1e-6
"""The least share that a fit begins with, and what is taken for none."""
HIGHEST = math.log(2)
"""How far up in λ a step of churn may go: κ doubles at most. EDM allows √2."""


class Levelled:
    """A sampler on a grid, with a number for each step but the last.

    "variance": `ddim` with fresh noise of standard deviation c at each level, `c = σ_s · sigmoid(number)`. Every c carries the
    path's marginals. With `variances`, those of x_0 given x_t, m² of them is added to c², as in `analytic-dpm`; they move too.

    "churn": from κ_t up by noise to κ̂, then Heun's step to κ_s, as in `edm-churn`; λ goes back by sigmoid(number) of the way to
    the start of the run, and by `HIGHEST` at most. The first step, from the start, has no way.

    A last step to σ = 0 is x̂_0.

    Attributes:
        numbers: (levels,), what is fitted. log_variances: (levels,), as much; or None.
    """

    def __init__(
        self, path: GaussianPath, times: Sequence[float], kind: Kind, begin: float | Sequence[float],
        variances: Sequence[float] | None = None,
    ) -> None:  # fmt: skip
        self.path, self.times, self.kind = path, tuple(times), kind
        levels = len(self.times) - 1 - (path.sigma(self.times[-1]) == 0)
        share = torch.as_tensor(begin, dtype=torch.float64).clamp(LEAST, 1 - LEAST).expand(levels)
        self.numbers = share.logit()
        self.log_variances: Tensor | None = None
        if variances is not None:
            self.log_variances = torch.tensor(variances, dtype=torch.float64).clamp(min=LEAST**2).log()

    def state(self) -> list[Tensor]:
        """The numbers, to keep."""
        return [one.detach().clone() for one in self.parameters]

    def load(self, state: Sequence[Tensor]) -> None:
        """Take the numbers that `state` gave."""
        self.numbers = state[0].clone()
        if self.log_variances is not None:
            self.log_variances = state[1].clone()

    @property
    def prediction(self) -> Prediction:
        """What the rows weigh."""
        return PREDICTION[self.kind]

    @property
    def parameters(self) -> list[Tensor]:
        """What moves."""
        return [self.numbers] if self.log_variances is None else [self.numbers, self.log_variances]

    def steps(self) -> list[PlannedStep]:
        """Their coefficients tensors."""
        out, shares = list[PlannedStep](), torch.sigmoid(self.numbers)
        for k, (t, s) in enumerate(pairwise(self.times)):
            if k == len(self.numbers):
                row = Row(0.0, (self.path.alpha(s),))
                if self.kind == "churn":
                    row = row.through(*self.path.convert("eps", "x0", t))
                out.append(PlannedStep(t, s, True, (Stage(s, row),)))
            elif self.kind == "variance":
                ends: Any = t, s
                x, (m,), z = self.path.bridge(*ends, std=self.path.sigma(s) * shares[k])
                more: Any = 0.0 if self.log_variances is None else m**2 * self.log_variances[k].exp()
                row = Row(x, (m,), (z**2 + more).sqrt())
                out.append(PlannedStep(t, s, True, (Stage(s, row),), (Draw(t, s),)))
            else:
                out += self._churned(t, s, shares[k])
        return out

    def _churned(self, t: float, s: float, share: Tensor) -> list[PlannedStep]:
        path = self.path
        way = min(path.lam(t) - path.lam(self.times[0]), HIGHEST)
        top: Any = path.time(path.lam(t) - way * share) if way > 0 else t
        end: Any = s
        x, (m,), _ = path.bridge(top, end).through(*path.convert("eps", "x0", top))
        stages = (Stage(s, Row(x, (m,))), Stage(s, Row(x, (m / 2, m / 2))))
        down = PlannedStep(top, s, True, stages)
        if way <= 0:
            return [down]
        return [PlannedStep(t, top, False, (Stage(top, path.forward(t, top)),), (Draw(t, top),)), down]

    def plan(self, fit: Fit) -> Plan:
        """The plan, its numbers as floats."""

        def plain(row: Row) -> Row:
            return Row(float(row.x), tuple(map(float, row.m)), float(row.z))

        with torch.no_grad():
            steps = tuple(
                PlannedStep(
                    float(step.t), float(step.s), step.evaluates,
                    tuple(Stage(float(u), plain(row)) for u, row in step.stages),
                    tuple(Draw(float(t), float(s)) for t, s, _ in step.draws),
                )
                for step in self.steps()
            )  # fmt: skip
        return Plan("tuned", repr(self.path), self.prediction, steps, fit=fit, path_object=self.path)

    def run(self, answer: Answer, x: Tensor, draws: Callable[..., Tensor] | Draws) -> Tensor:
        """The last state, differentiable in the numbers; the same `advance` as every run."""
        steps: Any = tuple(self.steps())
        plan: Any = Plan("tuned", "", self.prediction, steps, 2)  # 2: not the step that converts nothing
        model: Any = self  # a path and a prediction are all that `advance` reads of it
        memory = no_memory()
        for step in steps:
            x, memory, _ = drive(advance(step, plan, model, x, memory, draws), answer)  # type: ignore[arg-type]
        return x


def levelled(path: GaussianPath, plan: Plan) -> Levelled | None:
    """The plan as one of kind "variance", if its steps are: one output each, whose rows carry the path's means."""
    c, variances = list[float](), list[float]()
    for step in plan.steps:
        (u, row), *more = step.stages
        if more or not step.evaluates or len(row.m) != 1 or isinstance(row.z, tuple) or plan.analytic is not None:
            return None
        if plan.prediction == "eps":
            row = row.through(*path.convert("x0", "eps", step.t))
        elif plan.prediction != "x0":
            return None
        m, x, z, std = float(row.m[0]), float(row.x), float(row.z), float(path.sigma(u))
        left = std**2 - (x * path.sigma(step.t)) ** 2
        if abs(x * path.alpha(step.t) + m - path.alpha(u)) > CLOSE or left < -CLOSE:
            return None
        if std > 0:
            c.append(math.sqrt(max(left, 0.0)) / std)
            variances.append(max(z**2 - left, 0.0) / m**2)
    more_noise = any(v > CLOSE for v in variances)
    return Levelled(path, (plan.times[0], *(step.s for step in plan.steps)), "variance", c, variances if more_noise else None)
