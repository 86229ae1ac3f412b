"""Guided by a worse model, by a classifier, or held to the range of the data."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from scoreflow._core import check
from scoreflow._core.noise import Draws
from scoreflow._core.row import double, double_on, per_sample
from scoreflow._score.conditions import plain
from scoreflow._score.model import ScoreModel, check_model
from scoreflow.guidance.base import Contrast, Guided, Scale, check_interval, check_scale, value_at


class Autoguidance(Contrast):
    """A worse version of the model guides it: `worse + scale (model − worse)`.

    Args:
        model: the good one. worse: one that was trained less, or is smaller, on the same path and the same conditions. It may
            have another prediction, and is told the conditions that it takes.
        scale, interval: as of `ClassifierFree`.

    Raises:
        ValueError: another path.

    Reference:
        Guiding a Diffusion Model with a Bad Version of Itself (Karras et al., 2024), Eq. 3.
    """

    works: tuple[str, ...] = ("karras2024autoguidance",)

    def __init__(self, model: ScoreModel, worse: ScoreModel, scale: Scale, *, interval: Sequence[float] | None = None) -> None:
        check_model(worse, "worse")
        super().__init__(model, scale, interval, worse=worse)
        if repr(worse.path) != repr(model.path):
            raise ValueError(f"worse must stand on the model's path, {model.path}, got {worse.path}")
        self.worse = worse

    @property
    def cites(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*super().cites, *self.worse.cites)

    @property
    def with_rows(self) -> frozenset[str]:
        return self.model.with_rows | self.worse.with_rows

    @property
    def nulls(self) -> tuple[Mapping[str, Any], ...]:
        return (*self.model.nulls, *self.worse.nulls)

    @property
    def nfe(self) -> int:  # type: ignore[override]
        """Network evaluations of both since they were made."""
        return self.model.nfe + self.worse.nfe

    @property
    def backward(self) -> int:  # type: ignore[override]
        """Backward passes through both networks since they were made."""
        return self.model.backward + self.worse.backward

    def begin(self, steps: object) -> ScoreModel:
        return self._beside(super().begin(steps), self.worse.begin(steps))

    def drawing(self, draws: Draws) -> ScoreModel:
        return self._beside(super().drawing(draws), self.worse.drawing(draws))

    def of(self, samples: Tensor, batch: int, x: Tensor) -> ScoreModel:
        return self._beside(super().of(samples, batch, x), self.worse.of(samples, batch, x))

    def _beside(self, this: ScoreModel, worse: ScoreModel) -> ScoreModel:
        """This one with another worse model."""
        if worse is self.worse:
            return this
        this = copy.copy(this)
        assert isinstance(this, Autoguidance)
        this.worse = worse
        return this

    def _other(self, x: Tensor, t: float | Tensor, conditions: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        taken = {name: value for name, value in conditions.items() if self.worse.accepts(name)}
        output, variance_output = self.worse.evaluate(x, t, **taken)
        return self.worse.express(output, x, t, self.prediction), variance_output

    def _other_evaluations(self, t: float | Tensor) -> int | Tensor:
        return self.worse.evaluations(t)

    def _count_other(self, t: float | Tensor) -> None:
        self.worse.count(t)


class ClassifierGuidance(Guided):
    """`∇log p_t(x) + scale ∇log p_t(y | x)`: a classifier of noisy states guides.

    Args:
        model: conditional or not. classifier: `classifier(x, label)` to logits (B, classes), told the time as the network is.
        scale: 1 is Bayes' rule; a number or a function of t. interval: as of `ClassifierFree`.
        conditional: whether the model is told `y` too.

    Runs take `y=`, whole numbers (B,). The classifier's calls are not among the network evaluations; each is one forward and
    one backward pass. Where the scale is 0, and outside the interval, it is not called.

    Raises:
        TypeError: a classifier that cannot be called. ValueError: `conditional` with a model that takes no y; on a call, a y
            that is none or no class, or logits that are not (B, classes).

    Reference:
        Diffusion Models Beat GANs on Image Synthesis (Dhariwal & Nichol, 2021), Section 4.2, Algorithm 2; on steps with noise
        it changes the score likewise, where Algorithm 1 shifts the mean by `scale Σ ∇log p(y | x)`.
    """

    works: tuple[str, ...] = ("dhariwal2021beatgans",)

    def __init__(
        self, model: ScoreModel, classifier: Callable[[Tensor, Tensor], Tensor], scale: Scale, *,
        interval: Sequence[float] | None = None, conditional: bool = False,
    ) -> None:  # fmt: skip
        if not callable(classifier):
            raise TypeError(f"classifier must be a module or a callable, got {type(classifier).__name__}")
        check_scale(scale)
        span = (0.0, 1.0) if interval is None else check_interval(interval)
        options: dict[str, Any] = {"scale": scale, **({} if interval is None else {"interval": span})}
        super().__init__(model, classifier=classifier, **options | ({"conditional": True} if conditional else {}))
        if check.flag("conditional", conditional) and not model.accepts("y"):
            raise ValueError("conditional=True tells the model y, and its network takes none: let conditional=False")
        self.classifier, self.scale, self.interval, self.conditional = classifier, scale, span, conditional

    @property
    def with_rows(self) -> frozenset[str]:
        return self.model.with_rows.union({"y"})

    def accepts(self, keyword: str) -> bool:
        return keyword == "y" or self.model.accepts(keyword)

    def scale_at(self, t: float) -> float:
        """The scale at t, 0 outside the interval."""
        return value_at(self.scale, t) if self.interval[0] <= t <= self.interval[1] else 0.0

    def evaluate(self, x: Tensor, t: float | Tensor, **conditions: Any) -> tuple[Tensor, Tensor | None]:
        y = plain(conditions.get("y"))
        if not isinstance(y, Tensor) or y.shape != x.shape[:1] or y.is_floating_point() or y.dtype == torch.bool:
            found = f"{y.dtype} of shape {tuple(y.shape)}" if isinstance(y, Tensor) else repr(y)
            raise ValueError(
                f"classifier guidance needs y, whole numbers of shape ({len(x)},), such as solve(..., y=labels), got {found}"
            )
        told = conditions if self.conditional else {k: v for k, v in conditions.items() if k != "y"}
        output, variance_output = self._inner(x, t, told)
        if not isinstance(t, Tensor) or not t.ndim:
            w = self.scale_at(float(t))
            b = self.path.convert("score", self.prediction, float(t))[1]
            return (output + b * w * self.slope(x, t, y) if w else output), variance_output
        each = self.path.convert("score", self.prediction, double(t))[1]
        if t.device.type == "meta":
            return output + per_sample(each, x) * self.slope(x, t, y), variance_output
        scales = torch.tensor([self.scale_at(u) for u in t.tolist()], dtype=double_on(t.device), device=t.device)
        if len(at := scales.nonzero().flatten()):
            here = at.to(x.device)
            slope = per_sample((each * scales)[at], x) * self.slope(x[here], t[at], y[at.to(y.device)])
            output = output.index_add(0, here, slope)
        return output, variance_output

    def slope(self, x: Tensor, t: float | Tensor, y: Tensor) -> Tensor:
        """`∇_x log p_t(y | x)`."""
        graph = torch.is_grad_enabled()
        kept = next((p.dtype for p in getattr(self.classifier, "parameters", lambda: ())() if p.is_floating_point()), x.dtype)
        with torch.inference_mode(False), torch.enable_grad():
            state = x if graph and x.requires_grad else x.detach().clone().requires_grad_()
            logits = self.classifier(state.to(kept), self.label(x, t).clone())
            if logits.ndim != 2 or len(logits) != len(x):
                raise ValueError(f"the classifier must give logits ({len(x)}, classes), got shape {tuple(logits.shape)}")
            if y.device.type == "cpu" and not bool(((y >= 0) & (y < logits.shape[1])).all()):
                raise ValueError(f"y must be among the classifier's classes, 0…{logits.shape[1] - 1}, got {y.tolist()}")
            log_prob = logits.log_softmax(1).gather(1, y.to(logits.device, torch.int64, copy=True)[:, None]).sum()
            (slope,) = torch.autograd.grad(log_prob, state, create_graph=graph)
        return slope


class Thresholding(Guided):
    """x̂_0 held to [−limit, limit], or, with a percentile, to `[−s, s] · limit/s`, s that percentile of a sample's |x̂_0|.

    Args:
        model: any. limit: what data keep to.
        percentile: between 0 and 1, such as 0.995, for dynamic thresholding; s is at least `limit`.

    Reference:
        Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding (Saharia et al., 2022), Section 2.3.
    """

    works: tuple[str, ...] = ("saharia2022imagen",)

    def __init__(self, model: ScoreModel, limit: float = 1.0, *, percentile: float | None = None) -> None:
        check.number("limit", limit, above=0)
        if percentile is not None:
            check.number("percentile", percentile, 0, 1)
        super().__init__(model, "x0", limit=limit, **({} if percentile is None else {"percentile": percentile}))
        self.limit, self.percentile = limit, percentile

    def evaluate(self, x: Tensor, t: float | Tensor, **conditions: Any) -> tuple[Tensor, Tensor | None]:
        x_0, variance_output = self._inner(x, t, conditions)
        if self.percentile is None or not x_0.numel():
            return x_0.clamp(-self.limit, self.limit), variance_output
        wide = x_0.flatten(1).abs()
        wide = wide.float() if wide.dtype.itemsize < 4 else wide
        s = per_sample(quantile(wide, self.percentile).clamp(min=self.limit), x)
        return x_0.clamp(-s, s) * (self.limit / s), variance_output


def quantile(values: Tensor, q: float) -> Tensor:
    """Of every row of (B, d), between the two values beside it, as `torch.quantile`, which ends at 2^24 entries."""
    place = q * (values.shape[1] - 1)
    ordered = values.sort(dim=1).values
    return torch.lerp(ordered[:, math.floor(place)], ordered[:, math.ceil(place)], place - math.floor(place))
