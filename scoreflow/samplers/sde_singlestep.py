"""Singlestep integrators of the reverse SDE, and samplers that go down further and up again by noise.

The stages of a step share one Brownian path: each takes the draws of the parts of the step that lie above it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

from scoreflow.check import number, one_of, whole
from scoreflow.path import GaussianPath
from scoreflow.plan import Draw, Plan, PlannedStep, Stage, Stages
from scoreflow.row import Row
from scoreflow.samplers.exponential import WANTS, Form, dpm_solver_pp_rows, dpm_solver_rows
from scoreflow.samplers.stochastic import noisy_stages
from scoreflow.step import Linear, Sampler, family


@family("seeds", also={f"seeds-{p}": {"order": p} for p in (1, 2, 3)})
def seeds(order: int = 3, eta: float = 1.0, form: Form = "data") -> Sampler:
    """SEEDS-1, -2, -3 of the reverse SDE of level η; η = 1 is the paper's. In data form, with r = 1 + η²,

    `x_s = (σ_s/σ_t) e^{−η²h} x_t + α_s ∫ r e^{r(λ−λ_s)} x̂_0 dλ + σ_s √(1−e^{−2η²h}) ε`,

    in noise form `x_s = (α_s/α_t) x_t − r σ_s ∫ e^{λ_s−λ} ε̂ dλ + η α_s √(κ_t² − κ_s²) ε`.

    The integral is that of `dpm-solver++` 1, 2s, 3s or of `dpm-solver` of the same order, with its shares of the step; the
    noise of every stage is that of the whole step up to it. In data form it stays bounded however long the step, and of
    order 1 is `ddpm`, of 2 `sde-dpm-solver++-2s`. The paper's noise form puts out values of 10 to 10⁵ at few evaluations.
    Order 1 is of weak order 1, the others of 2 — an evaluation more a step lowers the constant only. The step to σ = 0 is
    x̂_0.

    Reference:
        SEEDS: Exponential SDE Solvers for Fast High-Quality Sampling from Diffusion Models (Gonzalez et al., 2023),
        Algorithms 1–3.
    """
    if whole("order", order) > 3:
        raise ValueError(f"order must be a whole number from 1 to 3, got {order}")
    number("eta", eta, least=0)
    one_of("form", form, WANTS)
    return Linear(
        rows=seeds_rows, order=min(order, 2), cites=("gonzalez2023seeds",), wants=WANTS[form], marginal=form == "data"
    )  # fmt: skip


def seeds_rows(path: GaussianPath, times: tuple[float, ...], s: float, *, order: int, eta: float, form: Form) -> Stages:
    """The rows of `seeds`."""
    if form == "data":
        return noisy_stages(path, times[0], s, order, None, eta)
    rows, above, parts = [], times[0], []
    for u, row in dpm_solver_rows(path, times, s, order=order, r1=None, r2=None):
        parts.append(Draw(above, u))
        above = u
        # In x/α the noises of the parts add up as they are.
        z = (path.alpha(u) / path.alpha(p.t) * float(path.forward(p.s, p.t).z) * eta for p in parts)
        rows.append((u, Row(row.x, tuple((1 + eta**2) * m for m in row.m), tuple(z))))
    return Stages(rows, tuple(parts))


@family("dpm-solver++-2s-ancestral")
def dpm_solver_pp_2s_ancestral(eta: float = 1.0) -> Sampler:
    """DPM-Solver++(2S) from t down to u, then noise up to s: `κ_u² = κ_s² − c²/α_s²`, `c = η σ_s √(1 − e^{−2h})`.

    With the first-order step in the place of 2S this is `ddim` with η. η = 0 is `dpm-solver++-2s`. The weak order is 2 for
    η = 0 and 1; between them c is the noise of level η to first order only, as in `ddim`. The step to σ = 0 is x̂_0.

    Reference:
        k-diffusion (Crowson, 2022), `sample_dpmpp_2s_ancestral`; 2S: DPM-Solver++ (Lu et al., 2022), Algorithm 1.
    """
    order = 2 if number("eta", eta, least=0) in (0, 1) else 1
    return Linear(rows=ancestral_rows, order=order, cites=("lu2022dpmsolverpp", "crowson2022kdiffusion"))


def ancestral_rows(path: GaussianPath, times: tuple[float, ...], s: float, *, eta: float) -> list[tuple[float, Row]]:
    """The rows of `dpm-solver++-2s-ancestral`."""
    t = times[0]
    u = path.below(t, s, eta)
    out = dpm_solver_pp_rows(path, (t,), u, method="2s", r1=None, r2=None)
    assert isinstance(out, list)
    (middle, stage), (_, down) = out
    up = path.forward(u, s)
    return [(middle, stage), (s, Row(down.x * up.x, tuple(m * up.x for m in down.m), up.z))]


# -- up and down -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Churn(Linear):
    """EDM's stochastic sampler.

    Attributes:
        gamma: by how much a step raises κ first.
    """

    gamma: float = 0.0

    def stochastic_on(self, path: GaussianPath) -> bool:
        return bool(self.options["S_churn"] > 0)

    def _lay_all(self, path: GaussianPath, times: tuple[float, ...]) -> Plan:
        gamma = min(self.options["S_churn"] / (len(times) - 1), 2**0.5 - 1)
        return super(Churn, replace(self, gamma=gamma))._lay_all(path, times)

    def lay(self, path: GaussianPath, spoken: tuple[float, ...], t: float, s: float) -> tuple[PlannedStep, ...]:
        """A step up, where κ is between S_tmin and S_tmax, and a step down."""
        if not self.options["S_tmin"] <= path.kappa(t) <= self.options["S_tmax"] or self.gamma == 0:
            return super().lay(path, spoken, t, s)
        top = min(path.above(t, 1 + self.gamma), 1.0)
        if top <= t:
            return super().lay(path, spoken, t, s)
        return (_up(path, t, top, self.options["S_noise"]), *super().lay(path, (), top, s))


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
    return Churn(rows=heun_rows, order=2, cites=("karras2022edm",), wants="eps", marginal=False, gamma=gamma)


def heun_rows(path: GaussianPath, times: tuple[float, ...], s: float, **_: float) -> list[tuple[float, Row]]:
    """The rows of EDM's Heun."""
    return dpm_solver_rows(path, times, s, order=2, r1=1.0, r2=None)


@dataclass(frozen=True, repr=False)
class Restart(Linear):
    """Heun with loops up by noise and down again."""

    def stochastic_on(self, path: GaussianPath) -> bool:
        return bool(self.options["restarts"] > 0)

    def lay(self, path: GaussianPath, spoken: tuple[float, ...], t: float, s: float) -> tuple[PlannedStep, ...]:
        """A step, and where it comes to κ ≤ t_min the loops: at s, or if σ_s = 0 at κ = t_min, on the way there."""
        low, high, restarts = (self.options[name] for name in ("t_min", "t_max", "restarts"))
        if not path.kappa(s) <= low < path.kappa(t) or not restarts:
            return super().lay(path, spoken, t, s)
        at = s if path.sigma(s) > 0 else path.time(-math.log(low))
        way = super().lay(path, spoken, t, at)
        if (top := min(path.above(at, high / path.kappa(at)), 1.0)) > at:
            n, rho = self.options["restart_steps"], 7.0
            k = [((n - i) / n * path.kappa(top) ** (1 / rho) + i / n * path.kappa(at) ** (1 / rho)) ** rho for i in range(1, n)]
            times = (top, *(path.above(at, kappa / path.kappa(at)) for kappa in k), at)
            loop = [_up(path, at, top)]
            for a, b in pairwise(times):
                loop += super().lay(path, (), a, b)
            way = (*way, *loop * restarts)
        return way if at == s else (*way, *super().lay(path, (), at, s))


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
    return Restart(rows=heun_rows, cites=("xu2023restart",), wants="eps", marginal=False)
