"""A multistep sampler whose times and weights are numbers to be fitted: rows as tensors, and as a plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from scoreflow._core.gaussian import GaussianPath, Prediction
from scoreflow._core.row import Row
from scoreflow._samplers.multistep import ADAMS_BASHFORTH
from scoreflow._samplers.plan import Memory, Plan, PlannedStep, Stage, advance, drive

Form = Literal["noise", "data"]
PREDICTION: dict[Form, Prediction] = {"noise": "eps", "data": "x0"}
Answer = Callable[[Tensor, Tensor, Prediction], Tensor]
"""What answers the questions of a step: the model, with its conditions."""


class Student:
    """Rows `x_s = x·x_t + m Σ_j w_j M_j`, x and m those of DDIM, M the last outputs as ε̂ or x̂_0.

    Σ_j w_j = 1, as the newest weight is one minus the others: so the rows keep `x α_t + Σm = α_s` whatever the numbers are.
    The times are the shares of the way in λ, a softmax, from the start to `most`; the last share leads from the last evaluation
    to there, if the run ends at σ = 0.

    Attributes:
        fixed: the times, where they are not to be moved.
        shares: (steps,), the logits of the shares.
        weights: one tensor a step, the weights of the older outputs, the newer first; with `free` all of them.
        log_v: of the variance v in a first answer of N(0, v I) data; None asks the network.
        shift: (steps,), by how much more λ the network is told than the state has; None: nothing.
    """

    def __init__(
        self, path: GaussianPath, times: Sequence[float], form: Form, most: float, *, history: int = 4, free: bool = False,
        v: float | None = None, labels: bool = False, fixed: bool = False,
    ) -> None:  # fmt: skip
        self.path, self.form, self.history, self.free = path, form, history, free
        self.fixed = tuple(times) if fixed else None
        self.start, self.stop, self.steps = times[0], times[-1], len(times) - 1
        self.lands = path.sigma(self.stop) == 0
        self.first = path.lam(self.start if path.alpha(self.start) > 0 else self.start * (1 - 1e-3))
        self.last = most if self.lands else path.lam(self.stop)
        inner = [path.lam(t) for t in times[1 : self.steps]]
        inner = [min(max(lam, self.first + 1e-6), self.last - 1e-3) for lam in inner]
        pieces = torch.tensor([self.first, *inner, self.last], dtype=torch.float64).diff().clamp(min=1e-4)
        self.shares = pieces.log()
        self.weights = [self._adams_bashforth(k) for k in range(self.steps)]
        self.log_v = None if v is None else torch.tensor(math.log(v), dtype=torch.float64)
        self.shift = torch.zeros(self.steps, dtype=torch.float64) if labels else None

    def _adams_bashforth(self, k: int) -> Tensor:
        known = min(k + 1, self.history)
        even = ADAMS_BASHFORTH[min(known, len(ADAMS_BASHFORTH)) - 1]
        weights = (*even, *(0.0,) * (known - len(even)))
        return torch.tensor(weights if self.free else weights[1:], dtype=torch.float64)

    @property
    def parameters(self) -> list[Tensor]:
        """The numbers."""
        more = [one for one in (self.log_v, self.shift) if one is not None]
        return [self.shares, *(w for w in self.weights if w.numel()), *more]

    @property
    def prediction(self) -> Prediction:
        """What the rows weigh."""
        return PREDICTION[self.form]

    def state(self) -> dict[str, Tensor]:
        """The numbers by name, to keep and to go on from."""
        named = {"shares": self.shares, **{f"weights{k}": w for k, w in enumerate(self.weights)}}
        if self.log_v is not None:
            named["log_v"] = self.log_v
        if self.shift is not None:
            named["shift"] = self.shift
        return {name: value.detach().clone() for name, value in named.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take the numbers that `state` gave."""
        self.shares = state["shares"].clone()
        self.weights = [state[f"weights{k}"].clone() for k in range(self.steps)]
        self.log_v = state["log_v"].clone() if "log_v" in state else None
        self.shift = state["shift"].clone() if "shift" in state else None

    def grown(self) -> tuple[tuple[float, ...], dict[str, Tensor]]:
        """Times and numbers of the same run with one more step: the longest in λ is made in two, and the new output weighs 0.

        The run is the same to rounding, but where a step would weigh more outputs than `history`: the last takes the weight
        of the one left out.
        """
        shares = self.shares.detach()
        inner = shares[:-1] if self.lands and self.steps > 1 else shares
        k, state = int(inner.argmax()), self.state()
        half = (shares[k] - math.log(2)).reshape(1)
        state["shares"] = torch.cat([shares[:k], half, half, shares[k + 1 :]])
        with torch.no_grad():
            every = [self.all_weights(j) for j in range(self.steps)]
        longer = [*every[: k + 1], *(self._with_zero(every[j], j - k) for j in range(k, self.steps))]
        state |= {f"weights{j}": w if self.free else w[1:] for j, w in enumerate(longer)}
        if self.shift is not None:
            shift = self.shift.detach()
            state["shift"] = torch.cat([shift[: k + 1], shift[k : k + 2].mean().reshape(1), shift[k + 1 :]])
        times = [float(t) for t in self.times()]
        middle = self.path.time((self._lam(times[k]) + self._lam(times[k + 1])) / 2)
        return (*times[: k + 1], middle, *times[k + 1 :]), state

    def _lam(self, t: float) -> float:
        return min(max(self.path.lam(t), self.first), self.last)

    def _with_zero(self, weights: Tensor, place: int) -> Tensor:
        if place >= self.history:
            return weights
        longer = torch.cat([weights[:place], weights.new_zeros(1), weights[place:]])
        most = self.history
        return longer if len(longer) <= most else torch.cat([longer[: most - 1], longer[most - 1 :].sum().reshape(1)])

    def times(self) -> list[Tensor | float]:
        """Decreasing, the ends as floats."""
        if self.fixed is not None:
            return list(self.fixed)
        way = torch.softmax(self.shares, 0).cumsum(0)[:-1]
        inner = self.path.time(self.first + (self.last - self.first) * way) if self.steps > 1 else ()
        return [self.start, *inner, self.stop]

    def rows(self, times: Sequence[Tensor | float]) -> list[Row]:
        """Those of all steps, the weights tensors."""
        return [self.row(times[k], times[k + 1], self.all_weights(k)) for k in range(self.steps)]

    def all_weights(self, k: int) -> Tensor:
        """Those of step k, newest first."""
        older = self.weights[k]
        return older if self.free else torch.cat([(1 - older.sum()).reshape(1), older])

    def base(self, t: Any, s: Any) -> Row:
        """DDIM's row, of one output."""
        path = self.path
        row = path.bridge(t, s) if not isinstance(s, float) or path.sigma(s) > 0 else Row(0.0, (path.alpha(s),))
        return row if self.form == "data" else row.through(*path.convert("eps", "x0", t))

    def row(self, t: Any, s: Any, weights: Tensor) -> Row:
        """One row."""
        x, (m,), _ = self.base(t, s)
        return Row(x, tuple(m * w for w in weights))

    def told(self, times: Sequence[Tensor | float]) -> Sequence[Tensor | float]:
        """What the network is told of the times."""
        if self.shift is None:
            return times
        first = times[0]
        inner: list[Any] = [*times[1:-1]]
        inner = [self.path.time(self.path.lam(t) + d) for t, d in zip(inner, self.shift[1:], strict=True)]
        return [first, *inner, times[-1]]

    def plan(self, **more: Any) -> Plan:
        """The plan, its numbers as floats."""
        with torch.no_grad():
            times = [float(t) for t in self.times()]
            told = [float(t) for t in self.told(times)]
            rows = [Row(float(x), tuple(float(v) for v in m)) for x, m, _ in self.rows(times)]
        steps = tuple(PlannedStep(t, s, True, (Stage(s, row),)) for t, s, row in zip(told, told[1:], rows, strict=False))
        v = None if self.log_v is None else float(self.log_v.detach().exp())
        return Plan("tuned", repr(self.path), self.prediction, steps, self.history, analytic=v, path_object=self.path, **more)

    def run(self, answer: Answer, x: Tensor, steps: int | None = None) -> Tensor:
        """The state after so many steps, all by default, differentiable in the numbers; the same `advance` as every run."""
        times, memory = self.times(), no_memory()
        rows, told = self.rows(times), self.told(times)
        for k in range(self.steps if steps is None else steps):
            x, memory = self.step(answer, x, memory, told, k, rows[k])
        return x

    def step(
        self, answer: Answer, x: Tensor, memory: Memory, told: Sequence[Tensor | float], k: int, row: Row
    ) -> tuple[Tensor, Memory]:
        """Step k from x, with what it remembers."""
        step: Any = PlannedStep(told[k], told[k + 1], True, (Stage(told[k + 1], row),))  # type: ignore[arg-type]
        plan: Any = Plan("tuned", "", self.prediction, (step,), max(self.history, 2))  # 2: not the step that converts nothing

        def asked(x: Tensor, t: Any, prediction: Prediction) -> Tensor:
            if k == 0 and self.log_v is not None:
                gain: Any = self.path.gaussian(torch.as_tensor(t, dtype=torch.float64), prediction, self.log_v.exp())  # type: ignore[arg-type]
                return x * gain
            return answer(x, t, prediction)

        model: Any = self
        x, memory, _ = drive(advance(step, plan, model, x, memory, lambda like, *_: torch.zeros_like(like)), asked)
        return x, memory[: self.history]


def no_memory() -> Memory:
    """That of a run that begins."""
    return ()
