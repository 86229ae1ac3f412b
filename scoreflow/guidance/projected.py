"""Classifier-free guidance with a projection: of what is added (APG), or of the unconditional branch (CFG-Zero*, TCFG)."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from scoreflow._core import check
from scoreflow._core.gaussian import Prediction
from scoreflow._core.row import flat, per_sample, wide
from scoreflow._score.model import ScoreModel
from scoreflow.guidance.base import Scale
from scoreflow.guidance.classifier_free import ClassifierFree


class APG(ClassifierFree):
    """Adaptive projected guidance: `x̂_c + (scale − 1) (Δ_⊥ + η Δ_∥)`, Δ = x̂_c − x̂_∅, split along x̂_c.

    Before, `Δ ← Δ + momentum · Δ_before`, the sum along the run, and Δ is shortened to the length `norm`. η = 1 without the
    two is classifier-free guidance. All in x̂_0, sample by sample.

    Args:
        model, scale, null, interval, batched: as of `ClassifierFree`.
        eta: what is left of the part along x̂_c, which saturates. norm: the largest length of Δ; 0 for any.
        momentum: negative to push away from where the run went. It follows the calls of a run, whose batch must stay together:
            it goes with neither adaptive steps nor `parallel`. A call without guidance leaves it as it is; a call outside a
            run is a first step.

    Raises:
        ValueError: as of `ClassifierFree`; momentum in a run that takes the batch apart, or tries steps.

    Reference:
        Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion Models (Sadat et al., 2024), Algorithm 1.
    """

    works: tuple[str, ...] = ("sadat2024apg", "ho2022classifierfree")

    def __init__(
        self, model: ScoreModel, scale: Scale, *, eta: float = 0.0, norm: float = 0.0, momentum: float = 0.0,
        null: Mapping[str, Any] | None = None, interval: Sequence[float] | None = None, batched: bool = True,
    ) -> None:  # fmt: skip
        check.number("eta", eta), check.number("norm", norm, 0), check.number("momentum", momentum, -1, 1)
        super().__init__(model, scale, null=null, interval=interval, batched=batched, prediction="x0")
        self.options |= {"eta": eta, "norm": norm, "momentum": momentum}
        self.eta, self.norm, self.momentum = eta, norm, momentum
        self.affine = eta == 1 and not norm and not momentum
        self._before: list[Tensor] | None = None

    def begin(self, steps: object) -> ScoreModel:
        began = super().begin(steps)
        if not self.momentum:
            return began
        began = copy.copy(began)
        assert isinstance(began, APG)
        began._before = []
        evaluations: Any = getattr(steps, "evaluations", None)  # of a sampler; a plan has fixed steps
        if evaluations is not None and evaluations(self.path, (0.6, 0.5)) is None:
            raise ValueError(self._apart(f"and {steps!r} tries steps and takes them back"))
        if getattr(steps, "control", None) == "sample":
            raise ValueError(self._apart(f"and {steps!r} takes it apart"))
        return began

    def _apart(self, why: str) -> str:
        return (
            f"momentum={self.momentum} follows a batch that stays together, {why}: use fixed steps, without parallel, "
            "or momentum=0"
        )

    def combine(self, ours: Tensor, other: Tensor, w: float | Tensor, x: Tensor, t: float | Tensor) -> Tensor:
        step = (ours - other).flatten(1)
        if self.momentum and self._before is not None:
            if (isinstance(t, Tensor) and t.ndim) or (self._before and self._before[0].shape != step.shape):
                raise ValueError(self._apart("and this run takes it apart"))
            step = step + self.momentum * self._before[0] if self._before else step
            self._before[:] = [step]
        if self.norm:
            step = step * (self.norm / step.norm(dim=1, keepdim=True)).clamp(max=1)
        return ours + (w - 1) * (step - (1 - self.eta) * onto(step, ours.flatten(1))).reshape(x.shape)


class CFGZeroStar(ClassifierFree):
    """CFG-Zero*: `s* v_∅ + scale (v_c − s* v_∅)`, `s* = ⟨v_c, v_∅⟩/‖v_∅‖²`, and no velocity in the first steps of a run.

    `s* v_∅` is the part of v_c along v_∅. Both are velocities dx/dt along the model's path, its flow prediction, whatever the
    network gives; on rectified flow's path that is what such a network gives. Sample by sample. At scale 1 the conditional
    model remains, at scale 0 `s* v_∅`.

    Args:
        model, scale, null, interval, batched: as of `ClassifierFree`.
        zero_init: how many of a run's first steps have the velocity 0; the network is not evaluated there. It is 0 at all
            times above the end of these steps: a stage that stands on this end has the model's. Upwards, in `invert`, it is
            that of the last steps. It helps networks whose first velocities are poor; 0 does without. A call outside a run has
            none; in a run of `ask`, `guided.begin(run.plan)` has them.

    Raises:
        ValueError: as of `ClassifierFree`; `zero_init` in a run that has no more steps, or is not made of rows.

    Reference:
        CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching Models (Fan et al., 2025), Section 4.
    """

    works: tuple[str, ...] = ("fan2025cfgzero", "ho2022classifierfree")

    def __init__(
        self, model: ScoreModel, scale: Scale, *, zero_init: int = 1, null: Mapping[str, Any] | None = None,
        interval: Sequence[float] | None = None, batched: bool = True,
    ) -> None:  # fmt: skip
        self.zero_init = check.whole("zero_init", zero_init, 0)
        super().__init__(model, scale, null=null, interval=interval, batched=batched, prediction="flow")
        self.options |= {"zero_init": self.zero_init}
        self.affine, self._still = False, math.inf

    def begin(self, steps: object) -> ScoreModel:
        began = super().begin(steps)
        if not self.zero_init:
            return began
        plan: Any = steps if hasattr(steps, "steps") else None
        if plan is None:
            raise ValueError(
                f"zero_init={self.zero_init} counts the steps of a run, and {steps!r} is not made of rows: give zero_init=0"
            )
        taken, up = [sorted((step.t, step.s)) for step in plan.steps if step.nfe], plan.times[-1] > plan.times[0]
        if len(taken) <= self.zero_init:
            raise ValueError(
                f"zero_init={self.zero_init} leaves no step of a run of {len(taken)}: give more steps, or zero_init=0"
            )
        low, high = taken[-self.zero_init if up else self.zero_init - 1]
        began = copy.copy(began)
        assert isinstance(began, CFGZeroStar)
        # Their end belongs to the step that is evaluated there, downwards the next one. It may be rounded to 32 bits.
        began._still = low + (low - high if up else high - low) / 1000
        return began

    def _branches(self, t: float | Tensor) -> tuple[int, int] | tuple[Tensor, Tensor]:
        (this, other), moves = super()._branches(t), t <= self._still
        if isinstance(this, Tensor) and isinstance(other, Tensor):
            return this * moves, other * moves
        return int(this) * int(moves), int(other) * int(moves)

    def evaluate(self, x: Tensor, t: float | Tensor, **conditions: Any) -> tuple[Tensor, Tensor | None]:
        if math.isinf(self._still) or (isinstance(t, Tensor) and t.device.type == "meta"):
            return super().evaluate(x, t, **conditions)
        moves = torch.as_tensor(t <= self._still).expand(len(x)).nonzero().flatten()
        if len(moves) == len(x):
            return super().evaluate(x, t, **conditions)
        out = torch.zeros_like(x)
        if not len(moves):
            return out, None
        assert isinstance(t, Tensor)
        output = self.evaluate_some(x[moves], t[moves], moves, len(x), conditions)[0]
        return out.index_copy(0, moves.to(x.device), output), None

    def combine(self, ours: Tensor, other: Tensor, w: float | Tensor, x: Tensor, t: float | Tensor) -> Tensor:
        return super().combine(ours, onto(ours, other), w, x, t)


class TCFG(ClassifierFree):
    """Tangential damping: `u' + scale (c − u')`, `u' = ⟨u, v_1⟩ v_1` with v_1 the first right singular vector of (u, c).

    u and c are the unconditional and the conditional prediction of a sample, the two rows of a matrix; what of u lies across
    their common direction v_1 is left out. At scale 1 the conditional model remains, at scale 0 u'.

    Args:
        model, scale, null, interval, batched: as of `ClassifierFree`.
        prediction: what u and c are. None: what the network gives, as in published code, but ε̂ of an x0-network. The
            paper's score is the same as ε̂; other predictions give other u'. ε̂ cannot begin where α = 0.

    Raises:
        ValueError: as of `ClassifierFree`; an unknown prediction.

    Reference:
        TCFG: Tangential Damping Classifier-free Guidance (Kwon et al., 2025).
    """

    works: tuple[str, ...] = ("kwon2025tcfg", "ho2022classifierfree")

    def __init__(
        self, model: ScoreModel, scale: Scale, *, prediction: Prediction | None = None, null: Mapping[str, Any] | None = None,
        interval: Sequence[float] | None = None, batched: bool = True,
    ) -> None:  # fmt: skip
        own = getattr(model, "prediction", None)
        of = prediction or ("eps" if own == "x0" else own)
        super().__init__(model, scale, null=null, interval=interval, batched=batched, prediction=of)
        self.options |= {} if prediction is None else {"prediction": prediction}
        self.affine = False

    def combine(self, ours: Tensor, other: Tensor, w: float | Tensor, x: Tensor, t: float | Tensor) -> Tensor:
        return super().combine(ours, damped(other, ours), w, x, t)


def onto(y: Tensor, along: Tensor) -> Tensor:
    """The part of y along another, sample by sample: `⟨y, a⟩ a/‖a‖²`; 0 where a is 0."""
    unit = torch.nn.functional.normalize(flat(along), dim=1)
    return ((flat(y) * unit).sum(1, keepdim=True) * unit).reshape(y.shape)


def damped(u: Tensor, c: Tensor) -> Tensor:
    """The part of u along the first right singular vector of the rows u and c, sample by sample; u itself if there are two.

    The first left singular vector, (cos θ, sin θ), is an eigenvector of the rows' 2×2 products:
    `tan 2θ = 2 ⟨u, c⟩/(‖u‖² − ‖c‖²)`, and the part is `cos θ (cos θ u + sin θ c)`.
    """
    a, b = flat(wide(u)), flat(wide(c))
    apart, both = (a - b).mul(a + b).sum(1), 2 * (a * b).sum(1)
    square = apart**2 + both**2
    length = torch.where(square > 0, square, 1.0).sqrt()
    cos, sin = torch.where(square > 0, apart / length, 1.0), both / length
    return (per_sample((1 + cos) / 2, u) * u + per_sample(sin / 2, u) * c).reshape(u.shape)
