"""What all wrappers of a score model share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from scoreflow._core import check
from scoreflow._core.gaussian import PREDICTIONS, Prediction
from scoreflow._core.noise import Draws
from scoreflow._core.row import double, double_on, per_sample
from scoreflow._score.model import ScoreModel, check_model, say

Scale = float | Callable[[float], float]
"""A number, or a function of t."""


class Guided(ScoreModel):
    """A score model made of another. It stands on its path and is told its conditions.

    Attributes:
        model: the inner one.
        options: what it was made with, for `repr`, a solution's record and a study's.
    """

    guided = True
    works: tuple[str, ...] = ()
    """Keys of the works that this wrapper rests on."""

    def __init__(self, model: ScoreModel, prediction: Prediction | None = None, **options: Any) -> None:
        check_model(model)
        if prediction is not None:
            check.one_of("prediction", prediction, PREDICTIONS)
        self.model, self.options = model, options
        self.net, self.path, self.time = model.net, model.path, model.time
        self.prediction = prediction or model.prediction

    def __repr__(self) -> str:
        return f"{self.kind} of {self.model!r}"

    def _facts(self) -> dict[str, object]:
        inner = self.model._facts()
        guidance = f"{self.kind} of {inner['guidance']}" if "guidance" in inner else self.kind
        return {**inner, "guidance": guidance, "prediction": self.prediction}

    @property
    def kind(self) -> str:
        """Its name and options."""
        return f"{type(self).__name__}({', '.join(f'{k}={say(v)}' for k, v in self.options.items())})"

    @property
    def cites(self) -> tuple[str, ...]:  # type: ignore[override]
        """Keys of the works that it and what it wraps rest on."""
        return (*self.works, *self.model.cites)

    @property
    def default_sampler(self) -> str:  # type: ignore[override]
        """What "auto" means for it: of a flow map its own."""
        return self.model.default_sampler

    @property
    def nfe(self) -> int:  # type: ignore[override]
        """Network evaluations since the inner model was made."""
        return self.model.nfe

    @property
    def backward(self) -> int:  # type: ignore[override]
        """Backward passes through the network since it was made: of methods that differentiate it."""
        return self.model.backward

    def accepts(self, keyword: str) -> bool:
        return self.model.accepts(keyword)

    def evaluations(self, t: float | Tensor) -> int | Tensor:
        return self.model.evaluations(t)

    def count(self, t: float | Tensor) -> None:
        self.model.count(t)

    def label(self, x: Tensor, t: float | Tensor) -> Tensor:
        return self.model.label(x, t)

    @property
    def with_rows(self) -> frozenset[str]:
        return self.model.with_rows

    @property
    def nulls(self) -> tuple[Mapping[str, Any], ...]:
        return self.model.nulls

    def begin(self, steps: object) -> ScoreModel:
        return self._over(self.model.begin(steps))

    def drawing(self, draws: Draws) -> ScoreModel:
        return self._over(self.model.drawing(draws))

    def of(self, samples: Tensor, batch: int, x: Tensor) -> ScoreModel:
        return self._over(self.model.of(samples, batch, x))

    def _over(self, model: ScoreModel) -> Self:
        """The same over this model; itself if it is so."""
        if model is self.model:
            return self
        other = copy.copy(self)
        other.model = model
        return other

    def _inner(self, x: Tensor, t: float | Tensor, conditions: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """What the inner model says, as this one's prediction."""
        output, variance_output = self.model.evaluate(x, t, **conditions)
        return self.model.express(output, x, t, self.prediction), variance_output


class Contrast(Guided):
    """`other + scale (model − other)`, where t lies in `interval`; elsewhere the model alone.

    A branch that has no weight is not evaluated: at scale 1, at scale 0, and outside the interval a call costs one branch.

    Raises:
        TypeError, ValueError: a scale that is no finite number, or whose function gives none; an interval that does not rise.
    """

    scale: Scale
    interval: tuple[float, float]
    affine = True
    """Whether it is no more than that sum, so that the model has no weight at scale 0."""

    def __init__(
        self, model: ScoreModel, scale: Scale, interval: Sequence[float] | None = None, prediction: Prediction | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        check_scale(scale)
        low, high = (0.0, 1.0) if interval is None else check_interval(interval)
        super().__init__(model, prediction, scale=scale, **({} if interval is None else {"interval": (low, high)}), **options)
        self.scale, self.interval = scale, (low, high)

    def scale_at(self, t: float | Tensor) -> float | Tensor:
        """The scale at t; for times (n,), one a sample."""
        return scale_at(self.scale, self.interval, t)

    def scaled(self, scale: float | Tensor) -> Self:
        """The same with another scale: a number, or one a sample (B,), for calls with that batch."""
        if not isinstance(scale, Tensor):
            check_scale(scale)
        other = copy.copy(self)
        other.scale, other.options = scale, {**self.options, "scale": scale}  # type: ignore[assignment]
        return other

    def of(self, samples: Tensor, batch: int, x: Tensor) -> ScoreModel:
        found = super().of(samples, batch, x)
        if not isinstance(self.scale, Tensor):
            return found
        assert isinstance(found, Contrast)
        return found.scaled(self.scale[samples.to(self.scale.device)])

    def evaluations(self, t: float | Tensor) -> int | Tensor:
        (this, other), inner = self._branches(t), self.model.evaluations(t)
        return inner * this + self._other_evaluations(t) * other

    def count(self, t: float | Tensor) -> None:
        this, other = self._branches(t)
        if this if isinstance(this, int) else bool(this.any()):
            self.model.count(t)
        if other if isinstance(other, int) else bool(other.any()):
            self._count_other(t)

    def _branches(self, t: float | Tensor) -> tuple[int, int] | tuple[Tensor, Tensor]:
        """How often the model and the other branch are asked at t; for times (n,), sample by sample."""
        w = self.scale_at(t)
        if isinstance(w, Tensor):
            return ((w != 0) | (not self.affine)).long(), (w != 1).long()
        return int(w != 0 or not self.affine), int(w != 1)

    def evaluate(self, x: Tensor, t: float | Tensor, **conditions: Any) -> tuple[Tensor, Tensor | None]:
        w = self.scale_at(t)
        if not isinstance(w, Tensor) or x.device.type == "meta" or not len(w):
            return self._weighed(x, t, w, conditions)
        t = t if isinstance(t, Tensor) else torch.full_like(w, t)
        kind = torch.where(w == 1, 1, torch.where((w == 0) & self.affine, 0, 2))
        if bool((kind == kind[0]).all()):
            return self._weighed(x, t, w if int(kind[0]) == 2 else float(kind[0]), conditions)
        groups = [found for k in range(3) if len(found := (kind == k).nonzero().flatten())]
        parts = [self.evaluate_some(x[g], t[g], g, len(x), conditions) for g in groups]
        back = torch.cat(groups).argsort().to(x.device)
        variances = [variance_output for _, variance_output in parts if variance_output is not None]
        return torch.cat([out for out, _ in parts])[back], torch.cat(variances)[back] if len(variances) == len(parts) else None

    def _weighed(
        self, x: Tensor, t: float | Tensor, w: float | Tensor, conditions: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        if not isinstance(w, Tensor):
            if w == 1:
                return self._inner(x, t, conditions)
            if w == 0 and self.affine:
                return self._other(x, t, conditions)
        ours, other, variance_output = self._both(x, t, conditions)
        return self.combine(ours, other, per_sample(w, x), x, t), variance_output

    def combine(self, ours: Tensor, other: Tensor, w: float | Tensor, x: Tensor, t: float | Tensor) -> Tensor:
        """One prediction of two."""
        return other + w * (ours - other)

    def _both(self, x: Tensor, t: float | Tensor, conditions: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
        ours, variance_output = self._inner(x, t, conditions)
        return ours, self._other(x, t, conditions)[0], variance_output

    def _other(self, x: Tensor, t: float | Tensor, conditions: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """The other branch, as this one's prediction."""
        raise NotImplementedError(f"{type(self).__name__} must say what its other branch is")

    def _other_evaluations(self, t: float | Tensor) -> int | Tensor:
        return self.model.evaluations(t)

    def _count_other(self, t: float | Tensor) -> None:
        self.model.count(t)


def scale_at(scale: Scale, interval: tuple[float, float], t: float | Tensor) -> float | Tensor:
    """The scale at t, 1 outside the interval; for times (n,), one a sample."""
    if isinstance(scale, Tensor) or (isinstance(t, Tensor) and t.ndim and not callable(scale)):
        at: Any = scale if isinstance(scale, Tensor) else t
        times = torch.as_tensor(t, device=at.device)
        given = double(scale) if isinstance(scale, Tensor) else torch.as_tensor(scale, dtype=double_on(at.device)).to(at.device)
        return torch.where((times >= interval[0]) & (times <= interval[1]), given, 1.0)
    if isinstance(t, Tensor) and t.ndim:
        if t.device.type == "meta":
            return double(t)
        scales = [scale_at(scale, interval, u) for u in t.tolist()]
        return torch.tensor(scales, dtype=double_on(t.device), device=t.device)
    return value_at(scale, float(t)) if interval[0] <= float(t) <= interval[1] else 1.0


def value_at(scale: Scale, t: float) -> float:
    """The scale at t.

    Raises:
        TypeError, ValueError: a function that gives no finite number.
    """
    return check.number(f"scale({t:g})", scale(t)) if callable(scale) else float(scale)


def check_scale(scale: Scale) -> None:
    """Raise unless it is a finite number or a function."""
    if not callable(scale) or isinstance(scale, ScoreModel):
        check.number("scale", scale)


def check_interval(interval: Sequence[float]) -> tuple[float, float]:
    """Two times that rise, as floats."""
    try:
        low, high = interval
    except (TypeError, ValueError):
        raise ValueError(f"interval must be two times, (low, high), got {interval!r}") from None
    if not check.number("interval", low, 0, 1) < check.number("interval", high, 0, 1):
        raise ValueError(f"interval must rise, (low, high), got {interval!r}")
    return float(low), float(high)
