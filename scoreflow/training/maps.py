"""Losses of flow maps: from data alone, or from a teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoreflow._core.check import number, one_of, whole
from scoreflow._core.path import Flow
from scoreflow._core.row import flat, per_sample
from scoreflow._score.conditions import rows
from scoreflow._score.flow_map import FlowMap
from scoreflow._score.model import ScoreModel, check_model
from scoreflow.training.objective import Draw, Objective
from scoreflow.training.times import LossHistory


class MapDraw(NamedTuple):
    """As a `Draw`, with where each jump leads.

    Attributes:
        r: times (B,), float64, on the host: t where the sample is of the diagonal.
    """

    t: Tensor
    eps: Tensor
    importance_weight: Tensor
    dropped: Tensor
    r: Tensor


@dataclass(frozen=True)
class MapObjective(Objective):
    """The loss of a `FlowMap`: on a share of the samples, the diagonal r = t, that of a score model; on the others one of

    - "lagrangian": `‖∂_r Φ_{t→r}(x_t) − v(Φ, r)‖²`, a jvp in r; v the teacher's velocity, or the map's own at r = t, held
      fixed;
    - "meanflow": `‖ū − sg[v − (t−r)(∂_x ū v + ∂_t ū)]‖²` on `Flow()`, a jvp in x and t; v the teacher's, or `ε − x_0`;
    - "progressive": `‖p̄ − sg p̄*‖²`, p̄* what leads where two half jumps lead: shortcut models; with a teacher the two halves
      are steps of DDIM by it, on a grid of `steps`: progressive distillation;
    - "consistency": `‖Φ_{t→0}(x_t) − sg Φ_{s→0}(x_s)‖²`, s the neighbour below t on a grid of `steps`; x_s by a step of DDIM by
      the teacher from x_t, consistency distillation, or from the same x_0 and ε, consistency training.

    All vanish on the exact map with an exact teacher; from data, "meanflow" and "consistency" do in the mean of their gradient.

    Args:
        loss: one of these names.
        teacher: a score model on the same path, guided ones too, or a flow map, whose jumps take the place of steps; None to
            learn from data alone.
        diagonal: the share of samples with r = t; None for 0 of "consistency", and with a teacher of all but "lagrangian"; else
            ½, of "meanflow" ¾.
        adaptive: "meanflow" weighs each sample by `1/(‖Δ‖² + adaptive)`, held fixed; 0 for not.
        steps: of the grid of "progressive" with a teacher and of "consistency", even in t.
        times, drop, null, weighting and its options: as of `Objective`; weightings act on the diagonal.

    Raises:
        ValueError, TypeError: for names and values that are not allowed.

    Reference:
        How to Build a Consistency Model (Boffi et al., 2025), Section 3; Mean Flows (Geng et al., 2025), Eq. 10; One Step
        Diffusion via Shortcut Models (Frans et al., 2024), Eq. 4; Progressive Distillation (Salimans & Ho, 2022), Algorithm 2;
        Consistency Models (Song et al., 2023), Algorithms 2 and 3.
    """

    loss: str = "lagrangian"
    teacher: ScoreModel | None = None
    diagonal: float | None = None
    adaptive: float = 0.01
    steps: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("loss", self.loss, tuple(MAP_LOSSES))
        if self.vlb:
            raise ValueError(f"vlb={self.vlb} trains a variance, and a flow map has none")
        if self.teacher is not None:
            check_model(self.teacher, "teacher")
        if self.diagonal is not None:
            number("diagonal", self.diagonal, 0, 1)
        number("adaptive", self.adaptive, 0)
        whole("steps", self.steps, 2)

    @property
    def share(self) -> float:
        """Of samples with r = t."""
        if self.diagonal is not None:
            return self.diagonal
        if self.loss == "consistency" or (self.teacher is not None and self.loss != "lagrangian"):
            return 0.0
        return 0.75 if self.loss == "meanflow" else 0.5

    def check(self, model: ScoreModel) -> None:
        super().check(model)
        if not isinstance(model, FlowMap):
            raise ValueError(f"loss={self.loss!r} trains a FlowMap, got {model!r}: give sf.FlowMap(net, path, prediction)")
        if model.times == 1 and self.loss != "consistency":
            raise ValueError(f"loss={self.loss!r} needs a network net(x, t, r), and this one jumps to data only: times=2")
        if self.loss == "meanflow" and not (isinstance(model.path, Flow) and model.prediction == "flow"):
            raise ValueError(f"loss='meanflow' is of average velocities: prediction='flow' on Flow(), got {model!r}")
        if self.teacher is not None and repr(self.teacher.path) != repr(model.path):
            raise ValueError(f"teacher must stand on the map's path, {model.path}, got {self.teacher.path}")

    def draw(
        self, model: ScoreModel, x_0: Tensor, seed: int, step: int = 0, part: tuple[int, int] = (0, 1),
        history: LossHistory | None = None,
    ) -> Draw:  # fmt: skip
        one, other = (super(MapObjective, self).draw(model, x_0, s, step, part, history) for s in (seed, seed + 2**31))
        n = len(x_0) * part[1]
        still = (torch.arange(n) < round(self.share * n))[part[0] * len(x_0) : (part[0] + 1) * len(x_0)]
        t, r = torch.maximum(one.t, other.t), torch.minimum(one.t, other.t)
        if self.loss == "consistency" or (self.loss == "progressive" and self.teacher is not None):
            k = (one.t * self.steps).ceil().clamp(1, self.steps)
            t, r = k / self.steps, (k - 1) / self.steps
        t, r = torch.where(still, one.t, t), torch.where(still, one.t, r)
        return MapDraw(t, one.eps, one.importance_weight, one.dropped, r)  # type: ignore[return-value]

    def errors(self, model: ScoreModel, x_0: Tensor, draw: Any, conditions: dict[str, Any]) -> tuple[Tensor, Tensor]:
        assert isinstance(model, FlowMap)
        each = torch.zeros(len(x_0), dtype=x_0.dtype, device=x_0.device)
        for still in (True, False):
            if not len(at := ((draw.r == draw.t) == still).nonzero().flatten()):
                continue
            here = at.to(x_0.device)
            part = MapDraw(draw.t[at], draw.eps[here], draw.importance_weight[at], draw.dropped[here], draw.r[at])
            told = rows(conditions, here, len(x_0), conditions)
            if still:
                error, _ = super().errors(model, x_0[here], part, told)  # type: ignore[arg-type]
            else:
                error = self._jumps(model, x_0[here], part, told)
            each = each.index_add(0, here, error.to(each))
        return each, each

    def _jumps(self, model: FlowMap, x_0: Tensor, draw: MapDraw, conditions: dict[str, Any]) -> Tensor:
        given = self.dropped(model, conditions, draw.dropped)
        if given is None:
            raise ValueError(f"drop={self.drop}: what stands for no condition cannot stand among the rows of a batch")
        device = x_0.device
        x = model.path.q_sample(x_0, draw.t, draw.eps)
        return MAP_LOSSES[self.loss](self, model, Jump(x_0, x, draw.eps, draw.t.to(device), draw.r.to(device), given))


class Jump(NamedTuple):
    """Samples that jump from x at t to r: the data x_0 and the noise that x is made of, and conditions."""

    x_0: Tensor
    x: Tensor
    eps: Tensor
    t: Tensor
    r: Tensor
    conditions: dict[str, Any]


MapLoss = Callable[[MapObjective, FlowMap, Jump], Tensor]


def lagrangian(of: MapObjective, model: FlowMap, at: Jump) -> Tensor:
    """`‖∂_r Φ_{t→r}(x) − sg v(Φ, r)‖²`, an entry."""
    found = torch.func.jvp(lambda r: model.jump(at.x, at.t, r, **at.conditions), (at.r,), (torch.ones_like(at.r),))
    end, speed = found[0], found[1]
    with torch.no_grad():
        velocity = (of.teacher or model).flow(end.detach(), at.r, **at.conditions)
    return mean_square(speed - velocity)


def meanflow(of: MapObjective, model: FlowMap, at: Jump) -> Tensor:
    """`‖ū − sg[v − (t − r)(∂_x ū v + ∂_t ū)]‖²`, an entry."""
    with torch.no_grad():
        v = at.eps - at.x_0 if of.teacher is None else of.teacher.flow(at.x, at.t, **at.conditions)
    along = v, torch.ones_like(at.t)
    found = torch.func.jvp(lambda x, t: model.average(x, t, at.r, **at.conditions), (at.x, at.t), along)
    u, change = found[0], found[1]
    error = mean_square(u - (v - per_sample(at.t - at.r, at.x) * change).detach())
    return error / (error.detach() + of.adaptive) if of.adaptive else error


def progressive(of: MapObjective, model: FlowMap, at: Jump) -> Tensor:
    """`‖p̄ − sg p̄*‖²`, an entry, p̄* of the one jump that leads where two halves lead."""
    middle = (at.t + at.r) / 2
    with torch.no_grad():
        half = hop(of.teacher or model, model, at.x, at.t, middle, at.conditions)
        end = hop(of.teacher or model, model, half, middle, at.r, at.conditions)
        row = model.path.bridge(at.t, at.r)
        x_0 = (end - per_sample(row.x, at.x) * at.x) / per_sample(row.m[0], at.x)
        a, b = model.path.convert("x0", model.prediction, at.t)
        target = per_sample(a, at.x) * at.x + per_sample(b, at.x) * x_0
    return mean_square(model.average(at.x, at.t, at.r, **at.conditions) - target)


def consistency(of: MapObjective, model: FlowMap, at: Jump) -> Tensor:
    """`‖Φ_{t→0}(x_t) − sg Φ_{s→0}(x_s)‖²`, an entry; here r is s, the neighbour."""
    none = torch.zeros_like(at.t)
    with torch.no_grad():
        if of.teacher is None:
            below = model.path.q_sample(at.x_0, at.r, at.eps)
        else:
            below = hop(of.teacher, model, at.x, at.t, at.r, at.conditions)
        target = torch.where(per_sample(at.r, at.x) > 0, model.jump(below, at.r, none, **at.conditions), below)
    return mean_square(model.jump(at.x, at.t, none, **at.conditions) - target)


def hop(of: ScoreModel, model: FlowMap, x: Tensor, t: Tensor, r: Tensor, conditions: dict[str, Any]) -> Tensor:
    """From t to r by a flow map, or a step of DDIM by a score model."""
    return of.jump(x, t, r, **conditions) if isinstance(of, FlowMap) else model.across(x, of.x0(x, t, **conditions), t, r)


def mean_square(x: Tensor) -> Tensor:
    """Of each sample, (B,)."""
    return flat(x).square().mean(1)


MAP_LOSSES: dict[str, MapLoss] = {
    "lagrangian": lagrangian, "meanflow": meanflow, "progressive": progressive, "consistency": consistency,
}  # fmt: skip
