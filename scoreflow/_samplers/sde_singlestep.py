"""Singlestep integrators of the reverse SDE, and samplers that go down further and up again by noise.

The stages of a step share one Brownian path: each takes the draws of the parts of the step that lie above it.
"""

from __future__ import annotations

from scoreflow._core.check import number, one_of, whole
from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.row import Row
from scoreflow._samplers.dpm_solver import dpm_solver_pp_rows, dpm_solver_rows
from scoreflow._samplers.exponential import PREDICTION, Form
from scoreflow._samplers.plan import Draw, Stages
from scoreflow._samplers.singlestep import dpm_2
from scoreflow._samplers.step import Linear, Sampler, family
from scoreflow._samplers.stochastic import noisy_stages


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
    whole("order", order, 1, 3)
    number("eta", eta, least=0)
    one_of("form", form, PREDICTION)
    return Linear(
        rows=seeds_rows, order=min(order, 2), cites=("gonzalez2023seeds",), prediction=PREDICTION[form], marginal=form == "data"
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


@family("dpm-2-ancestral")
def dpm_2_ancestral(eta: float = 1.0) -> Sampler:
    """`dpm-2` from t down to u, then noise up to s: `κ_u² = κ_s² − c²/α_s²`, `c = η σ_s √(1 − e^{−2h})`.

    η = 0 is `dpm-2`. The noise is that of level η to first order only where 0 < η < 1, as in `ddim`. The step to σ = 0 is x̂_0.

    Reference:
        k-diffusion (Crowson, 2022), `sample_dpm_2_ancestral`.
    """
    order = 2 if number("eta", eta, least=0) in (0, 1) else 1
    return Linear(rows=dpm_2_ancestral_rows, order=order, cites=("crowson2022kdiffusion",), prediction="eps")


def dpm_2_ancestral_rows(path: GaussianPath, times: tuple[float, ...], s: float, *, eta: float) -> list[tuple[float, Row]]:
    """The rows of `dpm-2-ancestral`."""
    u = path.below(times[0], s, eta)
    (middle, stage), (_, down) = dpm_2(path, times, u)
    up = path.forward(u, s)
    return [(middle, stage), (s, Row(down.x * up.x, tuple(m * up.x for m in down.m), up.z))]


# -- up and down -------------------------------------------------------------------------------------------------------
