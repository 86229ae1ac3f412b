"""Extended reverse-time SDEs, whose noise is any function of κ."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from scoreflow._core.check import number, one_of, whole
from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.row import Row, weights
from scoreflow._samplers.step import Linear, Sampler, family

Phi = str | float | Callable[[float], float]
PHI: dict[str, Callable[[float], float]] = {
    "ode": lambda k: k,
    "sde": lambda k: k**2,
    "er-sde-5": lambda k: k * (math.exp(k**0.3) + 10),
}
"""Noise scales by name: no noise, Anderson's reverse SDE, and the authors' choice."""


@family("er-sde", also={f"er-sde-{p}": {"order": p} for p in (1, 2, 3)})
def er_sde(order: int = 3, phi: Phi = "er-sde-5") -> Sampler:
    """ER-SDE: `x_s = r (α_s/α_t) x_t + α_s Σ_j ∫ ℓ_j d(φ_s/φ) x̂_0,j + α_s √(κ_s² − r² κ_t²) ε`, `r = φ(κ_s)/φ(κ_t)`.

    The integral goes from κ_t to κ_s, ℓ_j the Lagrange basis in κ through the last `order` outputs (1…3). φ says how much
    noise there is: "ode" (κ) has none, "sde" (κ²) is the reverse SDE, "er-sde-5" (κ(e^{κ^0.3} + 10)) is the authors'; a number
    p stands for κ^p, 1 ≤ p, the level η with p = 1 + η²; or a function of κ, growing at least as κ. With order 1 and "sde" it
    is `ddpm`. The authors take a Taylor expansion whose first derivative is a backward difference; from order 3 on that is of
    lower order than the interpolant here. The step to σ = 0 is x̂_0.

    Reference:
        Elucidating the Solution Space of Extended Reverse-Time SDE for Diffusion Models (Cui et al., 2023), Eqs. 20–24.
    """
    whole("order", order, 1, 3)
    if isinstance(phi, str):
        one_of("phi", phi, PHI)
    elif not callable(phi):
        number("phi", phi, least=1)
    return Linear(rows=er_sde_row, order=order if phi in ("ode", 1) else min(order, 2), cites=("cui2023ersde",), history=order)


def er_sde_row(path: GaussianPath, times: tuple[float, ...], s: float, *, order: int, phi: Phi) -> Row:
    """The row of `er-sde`."""
    t, scale = times[0], _scale(phi)
    if path.alpha(t) == 0:
        raise ValueError(f"er-sde begins where alpha > 0, and alpha=0 at t={t}: use a start below it")
    kappa_t, kappa_s = path.kappa(t), path.kappa(s)
    end = scale(kappa_s)
    r = end / scale(kappa_t)
    q = r * kappa_t / kappa_s
    if q > 1 + 1e-9:
        raise ValueError(f"phi must grow at least as kappa: phi({kappa_s:.4g})/phi({kappa_t:.4g}) = {r:.4g}")
    # By parts, ∫ p dφ_s/φ = p(κ_s) + ∫ p' φ_s/φ dκ for p(κ_t) = 0: Newton's basis, integrated in log κ, where it is smooth.
    knots = [path.kappa(u) for u in times]

    def by_parts(slope: Callable[[np.ndarray], np.ndarray]) -> float:
        def measure(k: np.ndarray) -> np.ndarray:
            ratio = np.array([end / scale(float(value)) for value in np.exp(k)])
            return slope(np.exp(k)) * ratio * np.exp(k)

        return weights(measure, [0.0], math.log(kappa_s), math.log(kappa_t))[0]

    m = np.zeros(len(knots))
    m[0] = 1 - r
    if len(knots) > 1:
        first = kappa_s - kappa_t + by_parts(np.ones_like)
        m[:2] += first * np.array([1.0, -1.0]) / (knots[0] - knots[1])
    if len(knots) > 2:
        a, b, c = knots
        second = (kappa_s - a) * (kappa_s - b) + by_parts(lambda k: 2 * k - a - b)
        m += second * np.array([1 / ((a - b) * (a - c)), 1 / ((b - a) * (b - c)), 1 / ((c - a) * (c - b))])
    left = (1 - q) * (1 + q)
    std = path.sigma(s) * math.sqrt(left) if left > 1e-12 else 0.0
    return Row(r * path.alpha(s) / path.alpha(t), tuple(float(path.alpha(s) * w) for w in m), std)


def _scale(phi: Phi) -> Callable[[float], float]:
    if isinstance(phi, str):
        return PHI[phi]
    if callable(phi):
        return phi
    power = phi
    return lambda k: k**power
