"""`Posterior`: a score model of x_0 given what was measured, made of a score model of x_0."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from scoreflow._core.check import meant, number
from scoreflow._core.noise import Draws
from scoreflow._core.row import Row
from scoreflow._score.flow_map import FlowMap
from scoreflow._score.model import ScoreModel, check_model
from scoreflow._score.observation import Observation
from scoreflow._score.steps import single_rows
from scoreflow.guidance.base import Guided
from scoreflow.posterior.denoised import Denoised, innermost, trusted
from scoreflow.posterior.stepwise import METHODS, replaced


@dataclass
class Passes:
    """What a model and its copies for some samples have counted together."""

    backward: int = 0
    residual: Tensor = field(default_factory=lambda: torch.zeros(0))


class Posterior(Guided):
    """`E[x_0 | x_t, y]` in place of `E[x_0 | x_t]`: a score model on the path of the inner one, for every sampler and guidance.

    Args:
        model: of x_0; guided and conditional ones too.
        observation: what was measured of it.
        method: "mmps", the default, or another of `sf.posterior.METHODS`: what they add, what they cost and where they are
            exact stands in their docstrings, `help(sf.posterior.METHODS["mmps"].correct)`.
        kappa_max: the largest κ at which methods that differentiate the network do so; above it they take the C of N(m, I)
            data, `κ²/(1 + κ²) I`. None: 5 for a network that gives ε or the score, since `C = κ² (I − σ ∂ε̂/∂x)` multiplies
            what its derivative errs; else `math.inf`. `dps` and `mcg` differentiate it everywhere.
        options: of the method.

    Network evaluations count forward passes; `backward` counts the backward ones. `residual` is that of the last system that
    was solved, relative, one a sample.

    Raises:
        ValueError: an unknown method; a flow map; an observation that is not linear for a method that needs it. TypeError: an
            option that the method does not have.
    """

    def __init__(
        self, model: ScoreModel, observation: Observation, method: str = "mmps", *, kappa_max: float | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        check_model(model)
        if not isinstance(observation, Observation):
            raise TypeError(f"observation must be an Observation(A, y, noise), got {type(observation).__name__}")
        if isinstance(innermost(model), FlowMap):
            raise ValueError("model is a flow map, whose jump is no mean of x_0: give flow_map.score_model()")
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}{meant(str(method), METHODS)}")
        known = METHODS[method]
        for name in options:
            if name not in known.options:
                raise TypeError(f"{method} has no option {name!r}; it has {', '.join(known.options) or 'none'}")
        if known.linear and not observation.linear:
            raise ValueError(f"{method} needs a linear A, and {observation!r} is not")
        if kappa_max is not None and kappa_max != math.inf:
            number("kappa_max", kappa_max, least=0)
        limit = {} if kappa_max is None else {"kappa_max": kappa_max}
        super().__init__(model, "x0", observation=observation, method=method, **limit, **options)
        self.kappa_max = trusted(model) if kappa_max is None else kappa_max
        self.name = method
        self.observation, self.method, self.works = observation, known, known.cites
        self.given = options
        self._passes = Passes()
        self._rows: dict[float, tuple[float, Row]] | None = None
        """Of a run, for methods that are told its steps."""
        self._draws: Draws | None = None

    @property
    def backward(self) -> int:  # type: ignore[override]
        """Backward passes since it was made."""
        return self._passes.backward + self.model.backward

    @property
    def residual(self) -> Tensor:
        """Of the last system that was solved, relative, one a sample."""
        return self._passes.residual

    @property
    def is_affine(self) -> bool:
        """Whether x̂_0 given y is affine in the state and the draws where the model's x̂_0 is: no norm, no unfinished solve."""
        if self.name == "mmps":
            return self.given.get("iterations", self.method.options["iterations"]) is None
        return self.name not in ("dps", "mcg")

    def seeing(self, observation: Observation) -> Self:
        """The same model and method with another observation; they count their backward passes together."""
        other = copy.copy(self)
        other.observation, other.options = observation, {**self.options, "observation": observation}
        return other

    def evaluate(self, x: Tensor, t: float | Tensor, **conditions: Any) -> tuple[Tensor, Tensor | None]:
        if float(torch.as_tensor(self.path.alpha(t)).min()) == 0:  # type: ignore[type-var]
            raise ValueError(f"alpha=0 at t={t}, where a state says nothing of x_0 and a measurement all: use a start below it")
        told = self._told(t) if self.method.follows else {}
        given = replaced(self.observation, x, self.path, float(t), told["draw"]) if self.method.replaces else x
        most = math.inf if self.method.step else self.kappa_max
        at = Denoised(self.model, given, t, conditions, self.method.gradient, most)
        vars(at).update(told)
        x_0 = at.x_0 + self.method.correct(at, self.observation, **self.given).to(at.x_0)
        self._passes.backward += at.backward
        self._passes.residual = at.residual
        return x_0.to(x.dtype), None

    def begin(self, steps: object) -> ScoreModel:
        began = super().begin(steps)
        if not self.method.follows:
            return began
        rows = single_rows(steps, self.path, self.name) if self.method.step else {}
        return self._with(began, _rows=rows)

    def drawing(self, draws: Draws) -> ScoreModel:
        drawn = super().drawing(draws)
        return self._with(drawn, _draws=draws) if self.method.follows else drawn

    def _with(self, model: ScoreModel, **changed: Any) -> Self:
        other = copy.copy(model)
        assert isinstance(other, type(self))
        vars(other).update(changed)
        return other

    def _told(self, t: float | Tensor) -> dict[str, Any]:
        """What a method that follows a run is told of the step that begins at t."""
        if self._rows is None or self._draws is None:
            raise ValueError(f"{self.name} follows the steps of a run, and there is none: use solve or sample")
        if isinstance(t, Tensor):
            raise ValueError(f"{self.name} follows the steps of one run, and this one takes it apart: use fixed steps, alone")
        if not self.method.step:
            return {"draw": self._draws}
        if t not in self._rows:
            raise ValueError(f"{self.name} depends on the step that is taken, and t={t} is the beginning of none")
        s, row = self._rows[t]
        return {"s": s, "row": row, "draw": self._draws}

    def of(self, samples: Tensor, batch: int, x: Tensor) -> ScoreModel:
        one = self._over(self.model.of(samples, batch, x))
        seen = self.observation.some(samples, batch, x)
        return one if seen is self.observation else one.seeing(seen)
