"""The objective of flow maps: from data alone, or from a teacher."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoreflow._core.check import number, one_of, whole
from scoreflow._core.check import options as check_options
from scoreflow._core.noise import stream_key
from scoreflow._core.path import Flow
from scoreflow._score.conditions import rows
from scoreflow._score.flow_map import FlowMap
from scoreflow._score.model import ScoreModel, check_model
from scoreflow.guidance.base import Contrast
from scoreflow.training.map_losses import MAP_LOSSES, Jump, MapLoss, Teacher, easy_neighbour, mean_square
from scoreflow.training.objective import Draw, Objective
from scoreflow.training.times import LossHistory
from scoreflow.training.weighting import Weighting


class MapDraw(NamedTuple):
    """As a `Draw`, with where each jump leads.

    Attributes:
        r: times (B,), float64, on the host: t where the sample is of the diagonal.
        scale: of guidance (B,), or None. step: of the training.
    """

    t: Tensor
    eps: Tensor
    importance_weight: Tensor
    dropped: Tensor
    r: Tensor
    scale: Tensor | None = None
    step: int = 0


@dataclass(frozen=True)
class MapObjective(Objective):
    """The loss of a `FlowMap`: on a share of the samples, the diagonal r = t, that of a score model; on the others one of

    - "lagrangian": `‖∂_r Φ_{t→r}(x_t) − v(Φ, r)‖²`, a jvp in r; v the teacher's velocity, or the map's own at r = t, held
      fixed;
    - "meanflow": `‖ū − sg[v − (t−r)(∂_x ū v + ∂_t ū)]‖²` on `Flow()`, a jvp in x and t; v the teacher's, or `ε − x_0`;
    - "progressive": `‖p̄ − sg p̄*‖²`, p̄* what leads where two halves of the map itself lead: shortcut models;
    - "progressive-distillation": the same with two halves by the teacher, steps of DDIM on a grid of `steps`;
    - "consistency-distillation": `‖Φ_{t→0}(x_t) − sg Φ_{s→0}(x_s)‖²`, s the neighbour below t on a grid of `steps`, x_s by a
      step of DDIM by the teacher from x_t;
    - "consistency-training": the same with x_s from the same x_0 and ε, and a gap that halves with every `stage` (ECT);
    - "scm": the limit of a gap of 0, on a VP path, by a tangent that is normalised; a jvp in x and t;
    - "regression": `‖p̄ − p̄*‖²` to the teacher, a flow map.

    All vanish on the exact map with an exact teacher; from data, "meanflow" does in the mean of its gradient with adaptive=0.
    Where there is a teacher, the diagonal is learned from it and not from the data, so that the map of a guided one is guided
    there too.

    Args:
        loss: one of these names.
        teacher: a score model on the same path, guided ones too, or a flow map, whose jumps take the place of steps; None to
            learn from data alone.
        diagonal: the share of samples with r = t; None for what `MAP_LOSSES` says of the loss.
        adaptive: "meanflow" weighs each sample by `1/(‖Δ‖² + adaptive)`, held fixed; 0 for not.
        steps: of the grid of the two distillations, even in t.
        stage: steps of the training after which the gap of "consistency-training" halves.
        warmup: steps in which "scm" brings in its second term.
        guidance: (low, high), the scales of a guided teacher that the map learns at once: each sample has one of its own, drawn
            evenly, and the network is told it as `scale`. None: the teacher's own, baked in.
        times, times_options: as of `Objective`; None for the loss's own, in `MAP_LOSSES`. Of two times the later is t.
        weighting: as of `Objective`, on the diagonal from data.
        drop, null, weighting_options: as of `Objective`.

    Raises:
        ValueError, TypeError: for names and values that are not allowed, and losses without what they need.

    Reference:
        How to Build a Consistency Model (Boffi et al., 2025), Section 3; Mean Flows (Geng et al., 2025), Eq. 10; One Step
        Diffusion via Shortcut Models (Frans et al., 2024), Eq. 4; Progressive Distillation (Salimans & Ho, 2022), Algorithm 2;
        Consistency Models (Song et al., 2023), Algorithms 2 and 3; Consistency Models Made Easy (Geng et al., 2024); Lu & Song
        (2024); scales: On Distillation of Guided Diffusion Models (Meng et al., 2023), Section 3.1.
    """

    weighting: str | Weighting | None = None
    times: str | None = None  # type: ignore[assignment]
    loss: str = "lagrangian"
    teacher: ScoreModel | None = None
    diagonal: float | None = None
    adaptive: float = 0.01
    steps: int = 32
    stage: int = 1000
    warmup: int = 1000
    guidance: Sequence[float] | None = None

    def __post_init__(self) -> None:
        one_of("loss", self.loss, tuple(MAP_LOSSES))
        if self.times is None:
            object.__setattr__(self, "times", self.kind.times)
            object.__setattr__(self, "times_options", self.times_options or dict(self.kind.times_options))
        super().__post_init__()
        if self.vlb:
            raise ValueError(f"vlb={self.vlb} trains a variance, and a flow map has none")
        if self.teacher is not None:
            check_model(self.teacher, "teacher")
        if self.kind.teacher == "required" and self.teacher is None:
            raise ValueError(f"loss={self.loss!r} needs a teacher, a score model or a flow map, got teacher=None")
        if self.kind.teacher == "none" and self.teacher is not None:
            raise ValueError(f"loss={self.loss!r} learns from data alone, got teacher={self.teacher!r}")
        if self.loss == "regression" and not isinstance(self.teacher, FlowMap):
            raise ValueError(f"loss='regression' needs a flow map as the teacher, got {self.teacher!r}")
        if self.diagonal is not None:
            number("diagonal", self.diagonal, 0, 1)
        number("adaptive", self.adaptive, 0)
        whole("steps", self.steps), whole("stage", self.stage), whole("warmup", self.warmup, 0)
        if self.guidance is not None:
            self._check_guidance(self.guidance)

    def _check_guidance(self, guidance: Sequence[float]) -> None:
        if isinstance(guidance, str) or not isinstance(guidance, Sequence) or len(guidance) != 2:
            raise TypeError(f"guidance must be two scales (low, high), got {guidance!r}")
        low, high = (number(f"guidance[{k}]", scale) for k, scale in enumerate(guidance))
        if low > high:
            raise ValueError(f"guidance must be two scales (low, high), got {guidance!r}")
        if not isinstance(self.teacher, Contrast):
            raise ValueError(
                f"guidance={guidance!r} needs a guided teacher, such as ClassifierFree(model, 1.0), got {self.teacher!r}"
            )
        object.__setattr__(self, "guidance", (low, high))

    @property
    def kind(self) -> MapLoss:
        """The loss and what it stands on."""
        return MAP_LOSSES[self.loss]

    @property
    def share(self) -> float:
        """Of samples with r = t."""
        return self.kind.diagonal[self.teacher is not None] if self.diagonal is None else self.diagonal

    def check(self, model: ScoreModel) -> None:
        super().check(model)
        if not isinstance(model, FlowMap):
            raise ValueError(f"loss={self.loss!r} trains a FlowMap, got {model!r}: give sf.FlowMap(net, path, prediction)")
        if model.times == 1 and not (self.kind.one_time and self.share == 0):
            raise ValueError(
                f"loss={self.loss!r} with diagonal={self.share:g} needs a network net(x, t, r), and this one jumps to data "
                "only: times=2, as of sf.nets.two_times(net)"
            )
        if self.loss == "meanflow" and not (isinstance(model.path, Flow) and model.prediction == "flow"):
            raise ValueError(f"loss='meanflow' is of average velocities: prediction='flow' on Flow(), got {model!r}")
        if self.loss == "scm" and not (model.prediction == "v" and _is_vp(model)):
            raise ValueError(f"loss='scm' is of prediction='v' on a path with α² + σ² = 1, such as VPSDE(), got {model!r}")
        if self.teacher is not None and repr(self.teacher.path) != repr(model.path):
            raise ValueError(f"teacher must stand on the map's path, {model.path}, got {self.teacher.path}")
        if self.guidance is not None and not model.accepts("scale"):
            raise ValueError(
                f"guidance={self.guidance!r} needs a network that is told the scale, and {type(model.net).__name__} is not: "
                "make it with guidance=True"
            )

    def rehearse(self, model: ScoreModel, x_0: Tensor, conditions: dict[str, Any]) -> None:
        """Raise ValueError if the network has no forward-mode derivatives and the loss needs them; of two samples x_0."""
        if not self.kind.jvp or not x_0.is_floating_point():  # of such data the loop tells
            return
        draw = dataclasses.replace(self, diagonal=0.0).draw(model, x_0, 0)
        with torch.no_grad(), torch.random.fork_rng():
            try:
                self(model, x_0, draw, **conditions)
            except (RuntimeError, NotImplementedError) as error:
                net = type(model.net).__name__
                raise ValueError(
                    f"loss={self.loss!r} needs torch.func.jvp through the network, and {net} has none: {error}"
                ) from error

    def draw(
        self, model: ScoreModel, x_0: Tensor, seed: int, step: int = 0, part: tuple[int, int] = (0, 1),
        history: LossHistory | None = None,
    ) -> Draw:  # fmt: skip
        one = super().draw(model, x_0, seed, step, part, history)
        n, mine = len(x_0) * part[1], slice(part[0] * len(x_0), (part[0] + 1) * len(x_0))
        other = self._times(model, n, seed + 2**31, step, history)[0][mine]
        still = (torch.arange(n) < round(self.share * n))[mine]
        t, r = torch.maximum(one.t, other), torch.minimum(one.t, other)
        if self.kind.neighbours:
            k = (one.t * self.steps).ceil().clamp(1, self.steps)
            t, r = k / self.steps, (k - 1) / self.steps
        elif self.kind.one_time:
            t, r = one.t, torch.zeros_like(one.t)
            r = easy_neighbour(model.path, t, step // self.stage) if self.loss == "consistency-training" else r
        t, r = torch.where(still, one.t, t), torch.where(still, one.t, r)
        scale = None
        if self.guidance is not None:
            low, high = self.guidance
            generator = torch.Generator().manual_seed(stream_key(seed, "scale", step))
            scale = (low + (high - low) * torch.rand(n, generator=generator, dtype=torch.float64))[mine]
        return MapDraw(t, one.eps, one.importance_weight, one.dropped, r, scale, step)  # type: ignore[return-value]

    def errors(self, model: ScoreModel, x_0: Tensor, draw: Any, conditions: dict[str, Any]) -> tuple[Tensor, Tensor]:
        assert isinstance(model, FlowMap)
        each, weighed = (torch.zeros(len(x_0), dtype=x_0.dtype, device=x_0.device) for _ in range(2))
        for still in (True, False):
            if not len(at := ((draw.r == draw.t) == still).nonzero().flatten()):
                continue
            here = at.to(x_0.device)
            part = MapDraw(
                draw.t[at], draw.eps[here], draw.importance_weight[at], draw.dropped[here], draw.r[at],
                None if draw.scale is None else draw.scale[at], draw.step,
            )  # fmt: skip
            told = rows(conditions, here, len(x_0), conditions)
            if still and self.teacher is None:
                error, plain = super().errors(model, x_0[here], part, told)  # type: ignore[arg-type]
            else:
                error = plain = self._jumps(model, x_0[here], part, told)
            each, weighed = each.index_add(0, here, error.to(each)), weighed.index_add(0, here, plain.detach().to(each))
        return each, weighed

    def _jumps(self, model: FlowMap, x_0: Tensor, draw: MapDraw, conditions: dict[str, Any]) -> Tensor:
        given = self.dropped(model, conditions, draw.dropped)
        if given is None:
            raise ValueError(f"drop={self.drop}: what stands for no condition cannot stand among the rows of a batch")
        t, r = draw.t.to(x_0.device), draw.r.to(x_0.device)
        x, teacher = model.path.q_sample(x_0, draw.t, draw.eps), None
        if self.teacher is not None:
            guided = self.teacher if draw.scale is None else self.teacher.scaled(draw.scale.to(x_0.device))  # type: ignore[attr-defined]
            teacher = Teacher(guided, given)
        told = given if draw.scale is None else {**given, "scale": draw.scale.to(x_0)}
        if bool((draw.r == draw.t).all()):
            assert teacher is not None
            return mean_square(model.average(x, t, t, **told) - teacher(x, t, model.prediction))
        return self.kind.measure(self, model, Jump(x_0, x, draw.eps, t, r, told, draw.step, teacher))


def _is_vp(model: ScoreModel) -> bool:
    """Whether α² + σ² = 1."""
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    return bool(((model.path.alpha(t) ** 2 + model.path.sigma(t) ** 2 - 1).abs() < 1e-9).all())


LOSSES = ("score", "reflow", *MAP_LOSSES)
"""Objectives by name."""


def get_objective(loss: str = "score", **options: Any) -> Objective:
    """An objective by the name of its loss.

    "score" is that of a score model; "reflow" the same on pairs, by the plain error of the network's prediction; the others
    are those of flow maps, `MAP_LOSSES`.

    Args:
        options: of `Objective`, or for a flow map of `MapObjective`.

    Raises:
        ValueError, TypeError: no such loss, or options that it does not have.
    """
    one_of("loss", loss, LOSSES)
    kind = MapObjective if loss in MAP_LOSSES else Objective
    known = [f.name for f in dataclasses.fields(kind) if f.name != "loss"]
    check_options(f"loss {loss!r}", options, known)
    if loss in MAP_LOSSES:
        return MapObjective(loss=loss, **options)
    return Objective(**({"pairs": True, "weighting": None} | options if loss == "reflow" else options))
