"""Step sizes by an error estimate, for every sample by itself: a sample's steps do not depend on its batch-mates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoreflow._core.check import number, whole
from scoreflow._core.control import Control
from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.noise import BrownianDraws, Draws
from scoreflow._core.row import Row, double, double_on
from scoreflow._samplers.dpm_solver import dpm_solver_rows
from scoreflow._samplers.plan import Network
from scoreflow._samplers.runge_kutta import check_variable, reverse_family
from scoreflow._samplers.step import Sampler, Step, family, landing

FIXED = Control(0.0, 0.0)


class Pace(NamedTuple):
    """Of every sample the next step in u, and the last error that was taken."""

    h: list[float]
    error: list[float]


class Evaluate(NamedTuple):
    """The model at states (n, ...) and times, one a sample, for these samples of the batch."""

    model: Network
    samples: list[int]

    def __call__(self, x: Tensor, t: Sequence[float]) -> Tensor:
        """ε̂."""
        times = torch.tensor(t, dtype=double_on(x.device), device=x.device)
        output = self.model.evaluate_samples(x, times, torch.tensor(self.samples))
        return self.model.express(output, x, times, "eps")


@dataclass(frozen=True, repr=False)
class Adaptive(Sampler):
    """Steps from t to s of a size of their own for every sample; who has arrived leaves the batch.

    A step is taken if `E = RMS((x_s − x')/max(atol, rtol max(|x_t|, |x'|)))` ≤ 1, x' the lower solution; `Control` gives the
    length of the next. A step refused keeps its output at t.

    Attributes:
        rtol, atol, first: the tolerances, and the first step in u.
        control: what makes the next step longer or shorter.
    """

    rtol: float = 0.0
    atol: float = 0.0
    first: float = 0.0
    control: Control = FIXED

    @property
    def stochastic(self) -> bool:
        return self.brownian

    def variable(self, path: GaussianPath, t: float) -> float:
        """What the steps are measured in: it rises along the run."""
        raise NotImplementedError

    def time(self, path: GaussianPath, u: float) -> float:
        """The time at u."""
        raise NotImplementedError

    def attempt(
        self,
        path: GaussianPath,
        x: Tensor,
        output: Tensor,
        t: list[float],
        s: list[float],
        evaluate: Evaluate,
        draws: list[Draws],
    ) -> tuple[Tensor, Tensor]:
        """The new states and the lower solution, for samples (n, ...) from their times t to theirs s."""
        raise NotImplementedError

    def step(self, model: Network, x: Tensor, t: float, s: float, memory: tuple[Any, ...], noise: Draws) -> Step:
        path = model.path
        if path.sigma(s) == 0:
            return Step(landing(path, t, s, "eps")(x, [model(x, t, "eps")]))
        cursors = self._cursors(noise, len(x))
        h, errors = memory or ([self.first] * len(x), [1.0] * len(x))
        pace, end = Pace(list(h), list(errors)), self.variable(path, s)
        if not x.numel():
            return Step(x)
        out, output = x.clone(), model(x, t, "eps").clone()
        at, now, refused = [t] * len(x), [self.variable(path, t)] * len(x), [False] * len(x)
        while running := [b for b in range(len(x)) if at[b] != s]:
            noise.count += self.stochastic
            # A step that would leave less than a tenth of its length ends at s.
            ends = [end if now[b] + 1.1 * pace.h[b] >= end else now[b] + pace.h[b] for b in running]
            to = [s if u == end else self.time(path, u) for u in ends]
            of, chosen = [at[b] for b in running], [cursors[b] for b in running]
            new, low = self.attempt(path, out[running], output[running], of, to, Evaluate(model, running), chosen)
            moved = []
            for i, (b, error) in enumerate(zip(running, self._errors(out[running], new, low), strict=True)):
                if taken := error <= 1:
                    out[b] = new[i]
                if not taken or to[i] != s:
                    pace.h[b] = (ends[i] - now[b]) * self.control.factor(error, pace.error[b], refused[b])
                    moved += [b] * taken
                if taken:
                    at[b], now[b], pace.error[b] = to[i], ends[i], max(error, 1e-4)
                elif pace.h[b] < 1e-6 * (end - self.variable(path, t)):
                    raise RuntimeError(
                        f"{self!r}: sample {b} takes no step at t={at[b]:.6g} that is short enough: raise rtol or atol"
                    )
                refused[b] = not taken
            if moved:
                output[moved] = Evaluate(model, moved)(out[moved], [at[b] for b in moved])
        return Step(out, tuple(pace))

    def _errors(self, old: Tensor, new: Tensor, low: Tensor) -> list[float]:
        scale = double(torch.maximum(old.abs(), low.abs())).mul(self.rtol).clamp(min=self.atol)
        ratio = (double(new - low) / scale).reshape(len(new), -1)
        return ratio.square().mean(1).sqrt().tolist()

    def _cursors(self, noise: Draws, batch: int) -> list[Draws]:
        return [noise] * batch


def _stacked(of: Sequence[list[tuple[float, Row]]]) -> list[tuple[list[float], Row]]:
    """The stages of many samples as one each: their times, and a row with a coefficient a sample."""
    stages = []
    for stage in zip(*of, strict=True):
        x, m = (torch.tensor(part, dtype=torch.float64) for part in ([r.x for _, r in stage], [r.m for _, r in stage]))
        stages.append(([u for u, _ in stage], Row(x, tuple(m.unbind(1)))))
    return stages


# -- DPM-Solver-12 and -23 -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class DPMAdaptive(Adaptive):
    """See `dpm_adaptive`."""

    def variable(self, path: GaussianPath, t: float) -> float:
        return path.lam(t)

    def time(self, path: GaussianPath, u: float) -> float:
        return path.time(u)

    def attempt(
        self,
        path: GaussianPath,
        x: Tensor,
        output: Tensor,
        t: list[float],
        s: list[float],
        evaluate: Evaluate,
        draws: list[Draws],
    ) -> tuple[Tensor, Tensor]:
        order: int = self.options["order"]
        r1, r2 = (0.5, None) if order == 2 else (1 / 3, 2 / 3)
        *stages, (_, high) = _stacked(
            [dpm_solver_rows(path, (a,), b, order=order, r1=r1, r2=r2) for a, b in zip(t, s, strict=True)]
        )
        *_, (_, low) = _stacked(
            [dpm_solver_rows(path, (a,), b, order=order - 1, r1=r1, r2=None) for a, b in zip(t, s, strict=True)]
        )
        outputs = [output]
        for u, row in stages:
            outputs.insert(0, evaluate(row(x, outputs[: len(row.m)]), u))
        return high(x, outputs[: len(high.m)]), low(x, outputs[-len(low.m) :])


@family("dpm-adaptive", also={"dpm-solver-12": {"order": 2}, "dpm-solver-23": {"order": 3}})
def dpm_adaptive(order: int = 3, rtol: float = 0.05, atol: float = 0.0078, h_init: float = 0.05) -> Sampler:
    """DPM-Solver-12 (order p = 2) or -23: `x_s = x_s^{(p)}` if `x_s^{(p)} − x_s^{(p−1)}` is small, both of `dpm-solver`'s rows.

    The lower one shares all its evaluations: p a step, one fewer after a step refused. A PI controller, of exponents 0.7/p and
    0.4/p, sets the steps in λ, the first `h_init`; every sample has its own. The step to σ = 0 is x̂_0.

    Reference:
        DPM-Solver (Lu et al., 2022), Appendix C; the controller: Gustafsson's, in Solving Ordinary Differential Equations II
        (Hairer & Wanner, 1996), Section IV.2.
    """
    if whole("order", order) not in (2, 3):
        raise ValueError(f"order must be 2 or 3, got {order}")
    _tolerances(rtol, atol, h_init)
    return DPMAdaptive(
        cites=("lu2022dpmsolver", "hairer1996stiff"), default_steps=None, rtol=rtol, atol=atol, first=h_init,
        control=Control(0.7 / order, 0.4 / order),
    )  # fmt: skip


# -- Gotta Go Fast -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class GottaGoFast(Adaptive):
    """See `gotta_go_fast`."""

    def variable(self, path: GaussianPath, t: float) -> float:
        return -t

    def time(self, path: GaussianPath, u: float) -> float:
        return -u

    def attempt(
        self,
        path: GaussianPath,
        x: Tensor,
        output: Tensor,
        t: list[float],
        s: list[float],
        evaluate: Evaluate,
        draws: list[Draws],
    ) -> tuple[Tensor, Tensor]:
        for time in t:
            check_variable(path, time, "t", 1.0)
        step = torch.tensor([b - a for a, b in zip(t, s, strict=True)], dtype=torch.float64)
        each = zip(draws, torch.split(x, 1), t, s, strict=True)
        noise = torch.cat([draw(y, a, b) for draw, y, a, b in each])

        def euler(y: Tensor, output: Tensor, at: list[float]) -> Tensor:
            rates = torch.tensor([reverse_family(path, u, "t", self.options["eta"]) for u in at], dtype=torch.float64)
            _, a, b, c2 = rates.unbind(1)
            return Row(step * a, (step * b, (c2 * -step).sqrt()))(y, [output, noise])

        first = euler(x, output, t)
        low = x + first
        return x + (first + euler(low, evaluate(low, s), s)) / 2, low

    def _cursors(self, noise: Draws, batch: int) -> list[Draws]:
        if not isinstance(noise, BrownianDraws):
            raise ValueError(
                f"{self.name} needs a Brownian path: give seed= or noise=Brownian(seeds), not {type(noise).__name__}"
            )
        return [noise.of(b) for b in range(batch)]


@family("gotta-go-fast")
def gotta_go_fast(eta: float = 1.0, rtol: float = 0.05, atol: float = 0.0078, h_init: float = 0.01) -> Sampler:
    """`x' = x + Δ F(x, t) + G_t ΔW`, `x_s = x + ½ [Δ F(x, t) + G_t ΔW + Δ F(x', s) + G_s ΔW]`, the error `x_s − x'`,

    for the reverse SDE of level η in t, of drift F and noise G dw̄. Two evaluations a step, one after a step refused; the
    next is 0.9 E^{−0.9} times as long, the first `h_init`. ΔW is of a Brownian path, so what is refused is not lost: a
    shorter step sees the same path. With one seed a sample it is the path of a run with fixed steps. The steps depend on
    the draws: the law is the SDE's as rtol → 0, and no sooner. A Brownian path is rough, so rounding, such as that of another
    processor, changes which steps are taken, and the sample with them. The scale of the error takes the state at t for the
    lower solution before. The step to σ = 0 is x̂_0.

    Reference:
        Gotta Go Fast When Generating Data with Score-Based Models (Jolicoeur-Martineau et al., 2021), Algorithm 1.
    """
    number("eta", eta, above=0)
    _tolerances(rtol, atol, h_init)
    return GottaGoFast(
        cites=("jolicoeur2021gotta", "song2021sde"), default_steps=None, brownian=True, rtol=rtol, atol=atol, first=h_init,
        control=Control(0.9, 0.0),
    )  # fmt: skip


def _tolerances(rtol: float, atol: float, h_init: float) -> None:
    number("rtol", rtol, least=0)
    number("atol", atol, above=0)
    number("h_init", h_init, above=0)
