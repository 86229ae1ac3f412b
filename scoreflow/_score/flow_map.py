"""`FlowMap`: a network that jumps along the probability-flow ODE."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from scoreflow._core.check import time as check_time
from scoreflow._core.gaussian import GaussianPath, Prediction
from scoreflow._core.row import Row, double, per_sample
from scoreflow._score.conditions import plain
from scoreflow._score.labels import TimeLabel
from scoreflow._score.model import ScoreModel, say
from scoreflow._score.network import attribute
from scoreflow._score.steps import single_rows

ONLY = "use the sampler consistency, or flow-map in one step"


class FlowMap(ScoreModel):
    """A network `net(x, t, r, **conditions)` that jumps: `Φ_{t→r}(x_t)`, where the probability-flow ODE from x_t at t is at r.

    `x_r = α_r x̄_0 + σ_r ε̄` with `x_t = α_t x̄_0 + σ_t ε̄`: the row of `ddim`, of x̄_0 and ε̄ that are averages over the jump. The
    network gives one of their predictions: x̄_0, ε̄, or v̄ and the flow of the two; on `Flow()` the last is the average velocity,
    `x_r = x_t − (t − r) ū`. At r = t it is a score model, and one where no run says where to; at r = 0 a consistency model.

    In a run the network is told the level whose noise the row keeps: r = s on steps without noise, `flow-map`; r = 0 on those
    of `consistency`, which jumps to data and adds noise again; a level between on other steps with noise. It stands on steps of
    one evaluation and one row.

    Args:
        net: a module or callable from states (B, ...) and two times (B,). path: of the ODE.
        prediction, time: as of `ScoreModel`; both times are told alike.
        times: 1 for a consistency network `net(x, t, **conditions)`, which jumps to data only.

    Raises:
        As `ScoreModel`; ValueError if `times` is not 1 or 2.

    Reference:
        Consistency Trajectory Models (Kim et al., 2024), Section 3; How to Build a Consistency Model (Boffi et al., 2025),
        Section 2; consistency models: Song et al. (2023).
    """

    default_sampler = "flow-map"

    def __init__(
        self,
        net: Callable[..., Tensor],
        path: GaussianPath,
        prediction: Prediction = "eps",
        time: TimeLabel | Callable[[Tensor], Tensor] = "unit",
        times: Literal[1, 2] = 2,
    ) -> None:
        super().__init__(net, path, prediction, time)
        if times not in (1, 2):
            raise ValueError(f"times must be 2, or 1 for a network that jumps to data only, got {times!r}")
        if times == 2 and self._one_time():
            raise ValueError(
                f"net must take two times, net(x, t, r, **conditions), and {type(net).__name__} takes one: give "
                "sf.nets.two_times(net), or times=1 for a network that jumps to data only"
            )
        self.times: Literal[1, 2] = times
        self.positional = 1 + times
        self.fixed: dict[str, Any] = {}
        """Conditions that it is always told, before those of a call."""
        self._to: dict[float, float] | None = None
        """Of a run, where the jump from t leads."""
        self._of: FlowMap | None = None
        """In a run the map that it is of, which counts the evaluations."""

    def __repr__(self) -> str:
        fixed = ", ".join(f"{name}={say(value)}" for name, value in self.fixed.items())
        return super().__repr__().replace("ScoreModel(", "FlowMap(", 1) + (f" with {fixed}" if fixed else "")

    def jump(self, x: Tensor, t: float | Tensor, r: float | Tensor, **conditions: Any) -> Tensor:
        """`Φ_{t→r}(x)` of states x (B, ...) and times in [0, 1], each a float or (B,): in the shape of x.

        Raises:
            As a call of a `ScoreModel`; ValueError for r above 0 of a network that jumps to data only.
        """
        x_0 = self.express(self.average(x, t, r, **conditions), x, t, "x0")
        return self.across(x, x_0, t, r)

    def across(self, x: Tensor, x_0: Tensor, t: float | Tensor, r: float | Tensor) -> Tensor:
        """`α_r x̄_0 + σ_r ε̄` of states x at t and their x̄_0."""
        row = self.path.bridge(*self._both(x, t, r))
        return x * per_sample(row.x, x) + x_0 * per_sample(row.m[0], x)

    def _both(self, x: Tensor, t: float | Tensor, r: float | Tensor) -> Any:
        """Two floats, or two tensors (B,)."""
        if not isinstance(t, Tensor) and not isinstance(r, Tensor):
            return check_time("t", t), check_time("r", r)
        both = (torch.as_tensor(u, dtype=torch.float64, device=x.device) for u in (t, r))
        return tuple(double(u).expand(len(x)) for u in both)

    def average(self, x: Tensor, t: float | Tensor, r: float | Tensor, **conditions: Any) -> Tensor:
        """What the network gives for the jump: its own prediction, an average over it, (B, ...)."""
        if self.times == 1 and bool(torch.as_tensor(r).any()):
            raise ValueError(f"this network jumps to data only, got r={r}: {ONLY}")
        labels = [self.label(x, u) for u in (t, r)[: self.times]]
        self.count(t)
        given = x if (dtype := self.dtype) is None else x.to(dtype)
        return self.read(self.net(given, *labels, **plain(self.fixed | conditions)), x)[0]

    def evaluate(self, x: Tensor, t: float | Tensor, **conditions: Any) -> tuple[Tensor, Tensor | None]:
        r: float | Tensor = 0.0 if self.times == 1 else t
        if self._to is not None and not isinstance(t, Tensor):
            r = self._to[t]
        elif self._to is not None and isinstance(t, Tensor):
            r = torch.tensor([self._to[u] for u in t.tolist()], dtype=torch.float64, device=t.device)
        return self.average(x, t, r, **conditions), None

    def count(self, t: float | Tensor) -> None:
        (self._of or self).nfe += 1

    def over(self, net: Callable[..., Tensor]) -> FlowMap:
        other = FlowMap(net, self.path, self.prediction, self.time, self.times)
        other.fixed = self.fixed
        return other

    def begin(self, steps: object) -> ScoreModel:
        begun = copy.copy(self)
        begun._of = self._of or self
        begun._to = {t: self._kept(t, s, row) for t, (s, row) in single_rows(steps, self.path, "a flow map").items()}
        if self.times == 1 and (far := [t for t, r in begun._to.items() if r > 0]):
            raise ValueError(
                f"this network jumps to data only, and a step from t={far[0]:g} leads to t={begun._to[far[0]]:g}: {ONLY}"
            )
        return begun

    def _kept(self, t: float, s: float, row: Row) -> float:
        """The level whose noise this row keeps, beside what it adds."""
        if not row.draws:
            return s
        noise, signal = float(row.x) * self.path.sigma(t), float(row.x) * self.path.alpha(t) + float(row.m[0])
        return self.path.time(-math.log(noise / signal)) if noise > 0 else 0.0

    def _one_time(self) -> bool:
        """Whether the network can be seen not to take a second time."""
        if (known := attribute(self.net, "times")) is not None:
            return bool(known == 1)
        taken = self._parameters()
        if taken is None or any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) or p.name == "r" for p in taken.values()):
            return False
        return len(taken) < 3

    def fixing(self, **conditions: Any) -> FlowMap:
        """The same map, always told these conditions, such as a guidance `scale`: for what passes on none.

        Raises:
            TypeError: conditions that the network does not take.
        """
        self.check_conditions(conditions, (), " of fixing")
        other = self.over(self.net)
        other.fixed = {**self.fixed, **conditions}
        return other

    def score_model(self) -> ScoreModel:
        """What it is at r = t, for samplers of any kind.

        Raises:
            ValueError: it jumps to data only.
        """
        if self.times == 1:
            raise ValueError("this network jumps to data only: of x̂_0 along the way it knows nothing")
        return ScoreModel(Diagonal(self.net, self.fixed), self.path, self.prediction, self.time)


class Diagonal(nn.Module):
    """`net(x, t, t, …)`."""

    def __init__(self, net: Callable[..., Tensor], fixed: dict[str, Any]) -> None:
        super().__init__()
        self.net, self.fixed = net, fixed

    def forward(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        """As of a score network."""
        return self.net(x, t, t, **self.fixed | conditions)
