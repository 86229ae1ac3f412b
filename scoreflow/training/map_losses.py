"""Losses of flow maps: what one jump from t to r must satisfy, a formula each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from scoreflow._core.row import flat, per_sample
from scoreflow._score.flow_map import FlowMap
from scoreflow._score.model import ScoreModel
from scoreflow._score.network import same_chance

if TYPE_CHECKING:
    from scoreflow.training.maps import MapObjective

HUBER = 0.00054
"""c of `√(‖Δ‖² + c²) − c`, an entry (Song & Dhariwal, 2023, Section 3.3)."""
FLAT = 0.1
"""c of the tangent g/(‖g‖ + c) (Lu & Song, 2024, Section 4.1)."""


class Jump(NamedTuple):
    """Samples that jump from x at t to r.

    Attributes:
        x_0, eps: the data and the noise that x is made of, (B, ...). x: the states.
        t, r: times (B,), float64. conditions: what the map is told. step: of the training.
        teacher: what teaches, if any, as a function of the states, the times and the prediction.
    """

    x_0: Tensor
    x: Tensor
    eps: Tensor
    t: Tensor
    r: Tensor
    conditions: dict[str, Any]
    step: int = 0
    teacher: Teacher | None = None


class Teacher(NamedTuple):
    """A score model or a flow map with its conditions."""

    model: ScoreModel
    conditions: dict[str, Any]

    def __call__(self, x: Tensor, t: Tensor, prediction: Any) -> Tensor:
        """Its prediction, held fixed."""
        with torch.no_grad():
            return self.model(x, t, prediction, **self.conditions)

    def hop(self, of: FlowMap, x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        """From t to r: by its jump, or by a step of DDIM; held fixed."""
        with torch.no_grad():
            if isinstance(self.model, FlowMap):
                return self.model.jump(x, t, r, **self.conditions)
            return of.across(x, self(x, t, "x0"), t, r)


Measure = Callable[["MapObjective", FlowMap, Jump], Tensor]


@dataclass(frozen=True)
class MapLoss:
    """A loss, and what it stands on.

    Attributes:
        measure: of jumps, (B,), to be differentiated.
        teacher: "required", "optional" or "none".
        jvp: whether it differentiates the network forward. one_time: whether a network that jumps to data only will do.
        diagonal: the share of samples with r = t, from data and with a teacher.
        times, times_options: where t lies if nothing is said.
        neighbours: whether r is the neighbour of t on a grid.
    """

    measure: Measure
    teacher: Literal["required", "optional", "none"] = "optional"
    jvp: bool = False
    one_time: bool = False
    diagonal: tuple[float, float] = (0.0, 0.0)
    times: str = "uniform"
    times_options: Mapping[str, float] = field(default_factory=dict)
    neighbours: bool = False


def lagrangian(of: MapObjective, model: FlowMap, at: Jump) -> Tensor:
    """`‖∂_r Φ_{t→r}(x) − sg v(Φ, r)‖²/(α'_r² + σ'_r²)`, v of the teacher, or of the map itself at r = t; a jvp in r."""
    end, speed = torch.func.jvp(lambda r: model.jump(at.x, at.t, r, **at.conditions), (at.r,), (torch.ones_like(at.r),))[:2]
    here = end.detach()
    if at.teacher is None:
        with torch.no_grad():
            velocity = model.flow(here, at.r, **at.conditions)
    else:
        velocity = at.teacher(here, at.r, "flow")
    a, b = model.path.basis("flow", at.r)
    return mean_square(speed - velocity) / (a**2 + b**2).to(speed)


def meanflow(of: MapObjective, model: FlowMap, at: Jump) -> Tensor:
    """`‖ū − sg[v − (t − r)(∂_x ū v + ∂_t ū)]‖²`, v the teacher's or `ε − x_0`; a jvp in x and t.

    Each sample is weighed by `1/(‖Δ‖² + adaptive)`, held fixed.
    """
    v = at.eps - at.x_0 if at.teacher is None else at.teacher(at.x, at.t, "flow")
    along = v, torch.ones_like(at.t)
    u, change = torch.func.jvp(lambda x, t: model.average(x, t, at.r, **at.conditions), (at.x, at.t), along)[:2]
    error = mean_square(u - (v - per_sample(at.t - at.r, at.x) * change).detach())
    return error / (error.detach() + of.adaptive) if of.adaptive else error


def progressive(of: MapObjective, model: FlowMap, at: Jump) -> Tensor:
    """`‖p̄ − sg p̄*‖²`, p̄* of the one jump that leads where two halves of the map itself lead."""
    return _to_one(model, at, Teacher(model, at.conditions))


def progressive_distillation(of: MapObjective, model: FlowMap, at: Jump) -> Tensor:
    """`‖p̄ − p̄*‖²`, p̄* of the one jump that leads where two halves by the teacher lead: steps of DDIM, or jumps of a map."""
    assert at.teacher is not None
    return _to_one(model, at, at.teacher)


def _to_one(model: FlowMap, at: Jump, by: Teacher) -> Tensor:
    middle = (at.t + at.r) / 2
    end = by.hop(model, by.hop(model, at.x, at.t, middle), middle, at.r)
    row = model.path.bridge(at.t, at.r)
    x_0 = (end - per_sample(row.x, at.x) * at.x) / per_sample(row.m[0], at.x)
    return _off_average(model, at, x_0)


def _off_average(model: FlowMap, at: Jump, x_0: Tensor) -> Tensor:
    """Of what the network gives to what x̄_0 would be in its prediction."""
    a, b = model.path.convert("x0", model.prediction, at.t)
    target = per_sample(a, at.x) * at.x + per_sample(b, at.x) * x_0
    return mean_square(model.average(at.x, at.t, at.r, **at.conditions) - target)


def regression(of: MapObjective, model: FlowMap, at: Jump) -> Tensor:
    """`‖p̄ − p̄*‖²`, p̄* of the teacher's own jump."""
    assert at.teacher is not None and isinstance(at.teacher.model, FlowMap)
    with torch.no_grad():
        of_teacher = at.teacher.model
        x_0 = of_teacher.express(of_teacher.average(at.x, at.t, at.r, **at.teacher.conditions), at.x, at.t, "x0")
    return _off_average(model, at, x_0)


def consistency_distillation(of: MapObjective, model: FlowMap, at: Jump) -> Tensor:
    """`‖Φ_{t→0}(x_t) − sg Φ_{s→0}(x_s)‖²`, s the neighbour of t and x_s a step of the teacher from x_t."""
    assert at.teacher is not None
    return mean_square(_off(model, at, at.teacher.hop(model, at.x, at.t, at.r)))


def consistency_training(of: MapObjective, model: FlowMap, at: Jump) -> Tensor:
    """`(√(‖Δ‖² + c²) − c)/(κ_t − κ_s)`, `Δ = Φ_{t→0}(x_t) − sg Φ_{s→0}(x_s)`, x_s of the same x_0 and ε.

    `κ_s = κ_t (1 − 2^{−(n+1)}(1 + 8 sigmoid(−κ_t)))`, at least 0, n the training step over `stage`, rounded down: the gap
    halves with every stage.

    Reference:
        Consistency Models Made Easy (Geng et al., 2024), Section 3.
    """
    off = mean_square(_off(model, at, model.path.q_sample(at.x_0, at.r, at.eps)))
    gap = (model.path.kappa(at.t) - model.path.kappa(at.r)).to(off)
    return ((off + HUBER**2).sqrt() - HUBER) / gap


def easy_neighbour(path: Any, t: Tensor, stage: int) -> Tensor:
    """s of the schedule of `consistency_training`, (B,)."""
    kappa = path.kappa(t)
    below = (kappa * (1 - 2.0 ** -(stage + 1) * (1 + 8 * torch.sigmoid(-kappa)))).clamp(min=0)
    return torch.where(below > 0, path.time(-below.clamp(min=1e-300).log()), 0.0)


def _off(model: FlowMap, at: Jump, below: Tensor) -> Tensor:
    """`Φ_{t→0}(x_t) − sg Φ_{s→0}(x_s)` with x_s = below; both with the same dropout."""
    none = torch.zeros_like(at.t)
    with torch.no_grad(), same_chance(at.x.device):
        target = torch.where(per_sample(at.r, at.x) > 0, model.jump(below, at.r, none, **at.conditions), below)
    return model.jump(at.x, at.t, none, **at.conditions) - target


def scm(of: MapObjective, model: FlowMap, at: Jump) -> Tensor:
    """`‖v̄ − sg[v̄ + g/(‖g‖ + 0.1)]‖²`, `g = −cos²θ (v̄ − v) − w cosθ sinθ (x + dv̄/dθ)`; a jvp in x and t.

    cosθ = α and sinθ = σ, so that the VP path is TrigFlow with unit data; v̄ is what the network gives for the jump to data, v
    the teacher's or `α ε − σ x_0`, d/dθ the derivative along the ODE, `dx/dθ = v`, and w rises from 0 to 1 in `warmup` steps.

    Reference:
        Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models (Lu & Song, 2024), Algorithm 1.
    """
    path, none = model.path, torch.zeros_like(at.t)
    cos, sin = (per_sample(of_t, at.x) for of_t in (path.alpha(at.t), path.sigma(at.t)))
    v = cos * at.eps - sin * at.x_0 if at.teacher is None else at.teacher(at.x, at.t, "v")
    # cosθ sinθ d/dθ, where dθ/dt = −λ' cosθ sinθ.
    along = cos * sin * v, -1 / path.lam_slope(at.t)
    found, change = torch.func.jvp(lambda x, t: model.average(x, t, none, **at.conditions), (at.x, at.t), along)[:2]
    still = found.detach()
    w = min(1.0, at.step / of.warmup) if of.warmup else 1.0
    g = -(cos**2) * (still - v) - w * (cos * sin * at.x + change.detach())
    g = g / (flat(g).norm(dim=1).reshape(-1, *[1] * (g.ndim - 1)) + FLAT)
    return mean_square(found - still - g)


def mean_square(x: Tensor) -> Tensor:
    """Of each sample, (B,)."""
    return flat(x).square().mean(1)


MAP_LOSSES: dict[str, MapLoss] = {
    "lagrangian": MapLoss(lagrangian, jvp=True, diagonal=(0.5, 0.25)),
    "meanflow": MapLoss(
        meanflow, jvp=True, diagonal=(0.75, 0.25), times="logit-normal", times_options={"mean": -0.4, "std": 1.0}
    ),
    "progressive": MapLoss(progressive, diagonal=(0.5, 0.5)),
    "progressive-distillation": MapLoss(progressive_distillation, "required", neighbours=True),
    "consistency-distillation": MapLoss(consistency_distillation, "required", one_time=True, neighbours=True),
    "consistency-training": MapLoss(
        consistency_training, "none", one_time=True, times="log-normal", times_options={"mean": -1.1, "std": 2.0}
    ),
    "scm": MapLoss(scm, jvp=True, one_time=True, times="log-normal", times_options={"mean": -1.0, "std": 1.4}),
    "regression": MapLoss(regression, "required"),
}
"""By name."""
