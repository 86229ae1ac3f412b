"""`Posterior`: a score model of x_0 given what was measured, made of a score model of x_0."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from scoreflow._core.check import meant
from scoreflow._score.model import ScoreModel, check_model
from scoreflow._score.observation import Observation
from scoreflow.guidance.base import Guided
from scoreflow.posterior.denoised import Denoised
from scoreflow.posterior.methods import METHODS


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
        options: of the method.

    Network evaluations count forward passes; `backward` counts the backward ones. `residual` is that of the last system that
    was solved, relative, one a sample.

    Raises:
        ValueError: an unknown method; an observation that is not linear for a method that needs it. TypeError: an option that
            the method does not have.
    """

    def __init__(self, model: ScoreModel, observation: Observation, method: str = "mmps", **options: Any) -> None:
        check_model(model)
        if not isinstance(observation, Observation):
            raise TypeError(f"observation must be an Observation(A, y, noise), got {type(observation).__name__}")
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}{meant(str(method), METHODS)}")
        known = METHODS[method]
        for name in options:
            if name not in known.options:
                raise TypeError(f"{method} has no option {name!r}; it has {', '.join(known.options) or 'none'}")
        if known.linear and not observation.linear:
            raise ValueError(f"{method} needs a linear A, and {observation!r} is not")
        super().__init__(model, "x0", observation=observation, method=method, **options)
        self.observation, self.method, self.works = observation, known, known.cites
        self.given = options
        self._passes = Passes()

    @property
    def backward(self) -> int:  # type: ignore[override]
        """Backward passes since it was made."""
        return self._passes.backward + self.model.backward

    @property
    def residual(self) -> Tensor:
        """Of the last system that was solved, relative, one a sample."""
        return self._passes.residual

    def seeing(self, observation: Observation) -> Self:
        """The same model and method with another observation; they count their backward passes together."""
        other = copy.copy(self)
        other.observation, other.options = observation, {**self.options, "observation": observation}
        return other

    def evaluate(self, x: Tensor, t: float | Tensor, **conditions: Any) -> tuple[Tensor, Tensor | None]:
        if float(torch.as_tensor(self.path.alpha(t)).min()) == 0:  # type: ignore[type-var]
            raise ValueError(f"alpha=0 at t={t}, where a state says nothing of x_0 and a measurement all: use a start below it")
        at = Denoised(self.model, x, t, conditions, self.method.gradient)
        x_0 = at.x_0 + self.method.correct(at, self.observation, **self.given).to(at.x_0)
        self._passes.backward += at.backward
        self._passes.residual = at.residual
        return x_0.to(x.dtype), None

    def of(self, samples: Tensor, batch: int, x: Tensor) -> ScoreModel:
        one = self._over(self.model.of(samples, batch, x))
        seen = self.observation.some(samples, batch, x)
        return one if seen is self.observation else one.seeing(seen)
