"""Samplers that go up by noise and further down: EDM's churn, Restart, RePaint."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import pairwise

from scoreflow._core.check import number, whole
from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.row import Row
from scoreflow._samplers.dpm_solver import dpm_solver_rows
from scoreflow._samplers.plan import Draw, Plan, PlannedStep, Stage
from scoreflow._samplers.step import Linear, Sampler, family, get_sampler


@dataclass(frozen=True, repr=False)
class Churn(Linear):
    """EDM's stochastic sampler.

    Attributes:
        gamma: by how much a step raises κ first.
    """

    gamma: float = 0.0

    def stochastic_on(self, path: GaussianPath) -> bool:
        return bool(self.options["S_churn"] > 0)

    def _build_all(self, path: GaussianPath, times: tuple[float, ...]) -> Plan:
        gamma = min(self.options["S_churn"] / (len(times) - 1), 2**0.5 - 1)
        return super(Churn, replace(self, gamma=gamma))._build_all(path, times)

    def build(self, path: GaussianPath, evaluated: tuple[float, ...], t: float, s: float) -> tuple[PlannedStep, ...]:
        """A step up, where κ is between S_tmin and S_tmax, and a step down."""
        if not self.options["S_tmin"] <= path.kappa(t) <= self.options["S_tmax"] or self.gamma == 0:
            return super().build(path, evaluated, t, s)
        top = min(path.above(t, 1 + self.gamma), 1.0)
        if top <= t:
            return super().build(path, evaluated, t, s)
        return (_up(path, t, top, self.options["S_noise"]), *super().build(path, (), top, s))


def _up(path: GaussianPath, t: float, top: float, scale: float = 1.0) -> PlannedStep:
    row = path.forward(t, top)
    return PlannedStep(t, top, False, (Stage(top, row._replace(z=row.z * scale)),), (Draw(t, top),))


@family("edm-churn")
def edm_churn(S_churn: float = 40.0, S_tmin: float = 0.05, S_tmax: float = 50.0, S_noise: float = 1.0) -> Sampler:
    """EDM's stochastic sampler: where S_tmin ≤ κ_t ≤ S_tmax, noise from κ_t up to `κ̂ = (1 + γ) κ_t`, then Heun to κ_s.

    `γ = min(S_churn/N, √2 − 1)`, N the steps of the grid; a step taken by itself is a grid of one. Noise does not go above
    the path's own at t = 1. `S_noise` scales it; the paper takes it a little over 1 against networks that remove too much.
    With S_churn = 0 it is `edm`. The step to σ = 0 is x̂_0. The order is that of the law to the data's.

    Reference:
        Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), Algorithm 2.
    """
    for name, value in (("S_churn", S_churn), ("S_tmin", S_tmin), ("S_tmax", S_tmax), ("S_noise", S_noise)):
        number(name, value, least=0)
    if not S_tmin < S_tmax:
        raise ValueError(f"S_tmin must lie below S_tmax, got S_tmin={S_tmin}, S_tmax={S_tmax}")
    gamma = min(S_churn, 2**0.5 - 1)
    return Churn(rows=heun_rows, order=2, cites=("karras2022edm",), prediction="eps", marginal=False, gamma=gamma)


def heun_rows(path: GaussianPath, times: tuple[float, ...], s: float, **_: float) -> list[tuple[float, Row]]:
    """The rows of EDM's Heun."""
    return dpm_solver_rows(path, times, s, order=2, r1=1.0, r2=None)


@dataclass(frozen=True, repr=False)
class Restart(Linear):
    """Heun with loops up by noise and down again."""

    def stochastic_on(self, path: GaussianPath) -> bool:
        return bool(self.options["restarts"] > 0)

    def build(self, path: GaussianPath, evaluated: tuple[float, ...], t: float, s: float) -> tuple[PlannedStep, ...]:
        """A step, and where it comes to κ ≤ t_min the loops: at s, or if σ_s = 0 at κ = t_min, on the way there."""
        low, high, restarts = (self.options[name] for name in ("t_min", "t_max", "restarts"))
        if not path.kappa(s) <= low < path.kappa(t) or not restarts:
            return super().build(path, evaluated, t, s)
        at = s if path.sigma(s) > 0 else path.time(-math.log(low))
        way = super().build(path, evaluated, t, at)
        if (top := min(path.above(at, high / path.kappa(at)), 1.0)) > at:
            n, rho = self.options["restart_steps"], 7.0
            k = [((n - i) / n * path.kappa(top) ** (1 / rho) + i / n * path.kappa(at) ** (1 / rho)) ** rho for i in range(1, n)]
            times = (top, *(path.above(at, kappa / path.kappa(at)) for kappa in k), at)
            loop = [_up(path, at, top)]
            for a, b in pairwise(times):
                loop += super().build(path, (), a, b)
            way = (*way, *loop * restarts)
        return way if at == s else (*way, *super().build(path, (), at, s))


@family("restart")
def restart(restarts: int = 2, t_min: float = 0.1, t_max: float = 2.0, restart_steps: int = 4) -> Sampler:
    """Restart: Heun down; from κ ≤ `t_min`, `restarts` times noise up to κ = `t_max` and `restart_steps` Heun steps back.

    The way up is `x_t = (α_t/α_s) x_s + α_t √(κ_t² − κ_s²) ε`. The loop begins at the first node of the grid with κ ≤ t_min, or
    at κ = t_min where the grid steps over it to σ = 0, and goes by karras' spacing. It contracts the error gathered so far, and
    adds its own, whatever the grid, so there is no order. The step to σ = 0 is x̂_0. The least budget of a run to data is
    `2 + 2 restarts · restart_steps + 1` evaluations, 19 as it stands.

    Reference:
        Restart Sampling for Improving Generative Processes (Xu et al., 2023), Algorithm 1.
    """
    whole("restarts", restarts, 0)
    whole("restart_steps", restart_steps)
    number("t_min", t_min, above=0)
    number("t_max", t_max, above=t_min)
    return Restart(rows=heun_rows, cites=("xu2023restart",), prediction="eps", marginal=False)


@dataclass(frozen=True, repr=False)
class RePaint(Linear):
    """The steps of `inner`, some of them over and over.

    Attributes:
        inner: what steps down.
    """

    inner: Linear = field(default_factory=Linear)

    def stochastic_on(self, path: GaussianPath) -> bool:
        return self.inner.stochastic_on(path) or self.options["resamplings"] > 1

    def default_grid(self, path: GaussianPath) -> str | None:
        return self.inner.default_grid(path)

    def build(self, path: GaussianPath, evaluated: tuple[float, ...], t: float, s: float) -> tuple[PlannedStep, ...]:
        """A step down."""
        return self.inner.build(path, evaluated, t, s)

    def _build_all(self, path: GaussianPath, times: tuple[float, ...]) -> Plan:
        steps, jump, n = list[PlannedStep](), self.options["jump"], len(times) - 1
        left = {k: self.options["resamplings"] - 1 for k in range(n - 1, jump - 1, -jump)}
        k = 0
        while k < n:
            steps += self.build(path, (), times[k], times[k + 1])
            k += 1
            if left.get(k, 0):
                left[k] -= 1
                steps.append(_up(path, times[k], times[k - jump]))
                k -= jump
        return self._planned(path, tuple(steps))


@family("repaint")
def repaint(base: str = "ddpm", resamplings: int = 10, jump: int = 1) -> Sampler:
    """RePaint's way: the steps of `base`, and every `jump` of them back up by noise and down again, `resamplings` times in all.

    The way up is `x_t = (α_t/α_s) x_s + α_t √(κ_t² − κ_s²) ε`. Counted from the end, the run goes up from where 1, 1 + jump,
    1 + 2·jump, … steps are left. With `Posterior(model, observation, "replacement")` it is RePaint, whose text has jump 1
    and whose code 10 of 250 steps; by itself it is a sampler like another. The last step is taken once. N steps take
    `N + (r−1)·jump·⌊(N − 1)/jump⌋` evaluations, r the resamplings.

    Reference:
        RePaint: Inpainting using Denoising Diffusion Probabilistic Models (Lugmayr et al., 2022), Algorithm 1, Section 4.2.
    """
    whole("resamplings", resamplings)
    whole("jump", jump)
    inner = get_sampler(base)
    if type(inner) is not Linear or inner.history > 1 or inner.reuse:
        raise ValueError(f"base must step by one row from each state alone, as ddpm and ddim do, got {base!r}")
    return RePaint(
        rows=inner.rows, order=inner.order, cites=("lugmayr2022repaint", *inner.cites), prediction=inner.prediction,
        default_steps=inner.default_steps, lands=inner.lands, marginal=inner.marginal, inner=inner,
    )  # fmt: skip
