"""Exponential integrators of the probability-flow ODE: the linear part exactly, the network's output interpolated.

With `h = λ_s − λ_t`, in noise form and in data form,

    x_s = (α_s/α_t) x_t − σ_s ∫ e^{λ_s − λ} ε̂ dλ        x_s = (σ_s/σ_t) x_t + α_s ∫ e^{λ − λ_s} x̂_0 dλ,

the integrals from λ_t to λ_s (Lu et al., 2022, both papers). Every method here replaces ε̂ or x̂_0 by a polynomial.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from scoreflow._core.check import one_of, whole
from scoreflow._core.gaussian import GaussianPath, Prediction
from scoreflow._core.row import Row, exponential_weights, weights
from scoreflow._samplers.step import Linear, Sampler, family

Form = Literal["noise", "data"]
PREDICTION: dict[Form, Prediction] = {"noise": "eps", "data": "x0"}
Unified = Literal["bh1", "bh2"]


def integral(path: GaussianPath, t: float, s: float, knots: Sequence[float], form: Form, eta: float = 0.0) -> Row:
    """The step t → s with the interpolant through the knots, which are values of λ: a row of their weights.

    In data form also of the reverse SDE of level η, with r = 1 + η²:
    `x_s = (σ_s/σ_t) e^{−η²h} x_t + α_s Σ_j ∫ r e^{r(λ − λ_s)} ℓ_j dλ D_j + σ_s √(1 − e^{−2η²h}) ε`.
    """
    lo, hi, r, alpha_s, sigma_s = path.lam(t), path.lam(s), 1 + eta**2, path.alpha(s), path.sigma(s)
    if form == "data":
        # From α_t = 0 the integral begins at −∞: an output there is taken for constant, and later left out.
        known = [k for k in knots if k > -math.inf] or [hi]
        m = exponential_weights(r, known, lo, hi) if lo > -math.inf else (1.0,) * len(known)
        decay = math.exp(-(eta**2) * (hi - lo)) if eta else 1.0
        return Row(sigma_s / path.sigma(t) * decay, tuple(alpha_s * w for w in m), path.posterior_std(t, s, eta))
    if lo == -math.inf:
        raise ValueError(f"noise form begins where alpha > 0, and alpha=0 at t={t}: use a start below it, or form='data'")
    if hi == math.inf:  # a polynomial in λ does not reach there; in κ, which ends at 0, it does
        return rho_row(path, t, s, [math.exp(-k) for k in knots])
    m = exponential_weights(-1.0, knots, lo, hi)
    return Row(alpha_s / path.alpha(t), tuple(-sigma_s * w for w in m))


def rho_row(path: GaussianPath, t: float, s: float, knots: Sequence[float]) -> Row:
    """`x_s = (α_s/α_t) x_t + α_s Σ_j ∫_{κ_t}^{κ_s} ℓ_j dκ ε̂_j`, ℓ_j through knots that are values of κ."""
    m = weights(np.ones_like, knots, path.kappa(t), path.kappa(s))
    return Row(path.alpha(s) / path.alpha(t), tuple(path.alpha(s) * w for w in m))


def whole_weight(path: GaussianPath, t: float, s: float, form: Form, eta: float = 0.0) -> tuple[float, float]:
    """The weights of x_t and of an output that does not change: the first-order step."""
    x, (m,), _ = integral(path, t, s, [path.lam(t)], form, eta)
    return float(x), float(m)


def inside(path: GaussianPath, t: float, s: float, r: float) -> float:
    """The time at the share r of the way from λ_t to λ_s."""
    if path.alpha(t) == 0:
        raise ValueError(f"a singlestep method begins where alpha > 0, and alpha=0 at t={t}: use a start below it")
    return s if r == 1 else path.time(path.lam(t) + r * (path.lam(s) - path.lam(t)))


def half_row(path: GaussianPath, t: float, s: float, other: float, B: Unified, form: Form) -> Row:
    """The step with one other output, weighed by ρ = ½ and B(h): the row of (M_t, M_other)."""
    x, m = whole_weight(path, t, s, form)
    if path.alpha(other) == 0:
        return Row(x, (m, 0.0))
    h = path.lam(s) - path.lam(t)
    scale = m if B == "bh2" else h * (path.alpha(s) if form == "data" else -path.sigma(s))
    rho = scale / 2 * h / (path.lam(other) - path.lam(t))
    return Row(x, (m - rho, rho))


# -- multistep ---------------------------------------------------------------------------------------------------------


@family("exponential-ab", also={f"exponential-ab-{p}": {"order": p} for p in (1, 2, 3, 4)})
def exponential_ab(order: int = 3, form: Form = "noise") -> Sampler:
    """Exponential Adams–Bashforth: `x_s = (α_s/α_t) x_t − σ_s Σ_j ∫ e^{λ_s−λ} ℓ_j dλ ε̂_j`, or the same in data form.

    ℓ_j is the Lagrange basis in λ through the last `order` outputs (1…4); fewer while fewer are known. In noise form the
    last step, to σ = 0, keeps the order, with the basis in κ: ρAB-DEIS. In data form it is x̂_0, of first order.

    Reference:
        Exponential Integrators (Hochbruck & Ostermann, 2010), Section 2.5. Order 2 in data form is DPM-Solver++(2M) in its
        Heun form, order 3 UniP-3.
    """
    whole("order", order, 1, 4)
    one_of("form", form, PREDICTION)
    return Linear(
        rows=exponential_ab_row, order=order, cites=("hochbruck2010exponential",), prediction=PREDICTION[form], history=order,
        lands=form == "noise", default_steps=20,
    )  # fmt: skip


def exponential_ab_row(path: GaussianPath, times: tuple[float, ...], s: float, *, order: int, form: Form) -> Row:
    """The row of `exponential-ab`."""
    return integral(path, times[0], s, [path.lam(u) for u in times], form)


DEGREES: dict[str, dict[str, object]] = {
    f"deis-{kind}-{degree}": {"degree": degree, "variable": variable}
    for kind, variable in (("tab", "t"), ("rhoab", "rho"))
    for degree in (0, 1, 2, 3)
}


@family("deis", also=DEGREES)
def deis(degree: int = 3, variable: Literal["t", "rho"] = "t") -> Sampler:
    """`x_s = (α_s/α_t) x_t + α_s Σ_j ∫_{κ_t}^{κ_s} ℓ_j dκ ε̂_j`, ℓ_j through the last degree + 1 outputs.

    The polynomial, of degree 0…3, is in t (tAB-DEIS) or in ρ = κ (ρAB-DEIS, which is linear multistep in κ). The last
    step, to σ = 0, keeps the order in ρ; in t it has order 1 on paths where κ goes as √t there, as on VP and VE.

    Reference:
        Fast Sampling of Diffusion Models with Exponential Integrator (Zhang & Chen, 2023), Eqs. 11–15.
    """
    if whole("degree", degree, 0) > 3:
        raise ValueError(f"degree must be a whole number from 0 to 3, got {degree}")
    one_of("variable", variable, ("t", "rho"))
    return Linear(
        rows=deis_row, order=degree + 1, cites=("zhang2023deis",), prediction="eps", history=degree + 1,
        lands=True, default_steps=20,
    )  # fmt: skip


def deis_row(path: GaussianPath, times: tuple[float, ...], s: float, *, degree: int, variable: Literal["t", "rho"]) -> Row:
    """The row of `deis`."""
    t = times[0]
    if path.alpha(t) == 0:
        raise ValueError(f"the integral over κ begins where alpha > 0, and alpha=0 at t={t}: use a start below it")
    if variable == "rho":
        return rho_row(path, t, s, [path.kappa(u) for u in times])
    m = weights(np.ones_like, times, path.kappa(t), path.kappa(s), lambda k: path.time(-torch.from_numpy(k).log()).numpy())
    return Row(path.alpha(s) / path.alpha(t), tuple(path.alpha(s) * w for w in m))


# -- in the angle ------------------------------------------------------------------------------------------------------


@family("reab", also={f"reab-{p}": {"order": p} for p in (1, 2, 3, 4)})
def reab(order: int = 2) -> Sampler:
    """Rosenbrock-type Adams–Bashforth: `x_s = (ρ_s/ρ_t) x_t − ρ_s Σ_j ∫ ℓ_j/(2 cosh λ) dλ v_j/ρ_j`, ρ = √(α² + σ²).

    On x/ρ the ODE is a turn, `d(x/ρ)/dθ = v/ρ` with θ = arctan κ and v = α ε̂ − σ x̂_0. Its linear part is that of data of
    variance 1, so these rows are exact there, and not where x̂_0 is constant, as others are. ℓ_j is the Lagrange basis in λ
    through the last `order` outputs (1…4); fewer while fewer are known. The step to σ = 0 is x̂_0.

    Reference:
        Exponential Rosenbrock-type Methods (Hochbruck et al., 2009); with these coefficients azula (Rozet, 2024), after
        DPM-Solver-v3 (Zheng et al., 2023).
    """
    whole("order", order, 1, 4)
    return Linear(
        rows=reab_row, order=order, cites=("hochbruck2009rosenbrock", "zheng2023dpmsolverv3"), prediction="v", history=order,
        marginal=False, default_steps=20,
    )  # fmt: skip


def reab_row(path: GaussianPath, times: tuple[float, ...], s: float, *, order: int) -> Row:
    """The row of `reab`."""
    t, lam = times[0], [path.lam(u) for u in times]
    if lam[0] == -math.inf:
        turns: tuple[float, ...] = (math.atan(path.kappa(s)) - math.atan(path.kappa(t)),)
    else:  # an output at α = 0 has no place in λ
        known = [k for k in lam if k > -math.inf]
        turns = weights(lambda u: -0.5 / np.cosh(u), known, lam[0], path.lam(s))
    rho = path.prior_std
    return Row(rho(s) / rho(t), tuple(rho(s) / rho(u) * w for u, w in zip(times, turns, strict=False)))
