"""Explicit Runge–Kutta steps of the reverse family, in t or in λ: a tableau, turned into rows.

The reverse family is `dx = [f x − (1+η²)/2 · g² ∇log p_t] dt + η g dw̄`. With y = x/μ it reads, in a variable u,

    dy = (a y + b M) du + c dw̄,

| variable | μ | M | a | b | c² a unit of u |
|---|---|---|---|---|---|
| t, η = 0 | 1 | flow | 0 | 1 | 0 |
| t | 1 | ε̂ | f | (1+η²)/2 · g²/σ | η² g² |
| λ | α | ε̂ | 0 | −(1+η²) κ | 2 η² κ² |
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np

from scoreflow._core.gaussian import GaussianPath, Prediction
from scoreflow._core.row import Row

Variable = Literal["t", "lambda"]


class Tableau(NamedTuple):
    """Stages at `c`, made with the weights `a` (one row a stage), joined with `b`."""

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int


TABLEAUS = {
    "euler": Tableau((0.0,), ((),), (1.0,), 1),
    "midpoint": Tableau((0.0, 0.5), ((), (0.5,)), (0.0, 1.0), 2),
    "heun": Tableau((0.0, 1.0), ((), (1.0,)), (0.5, 0.5), 2),
    "rk4": Tableau((0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), 4),
}


class Coefficients(NamedTuple):
    """Of the reverse family at one time: μ, a, b and c² as in the table above."""

    scale: float
    a: float
    b: float
    c2: float


def reverse_family(path: GaussianPath, t: float, variable: Variable, eta: float) -> Coefficients:
    """The coefficients at t."""
    if variable == "lambda":
        kappa = path.kappa(t)
        return Coefficients(path.alpha(t), 0.0, -(1 + eta**2) * kappa, 2 * eta**2 * kappa**2)
    if eta == 0:
        return Coefficients(1.0, 0.0, 1.0, 0.0)
    g2 = path.g2(t)
    return Coefficients(1.0, path.f(t), (1 + eta**2) / 2 * g2 / path.sigma(t), eta**2 * g2)


def prediction_of(variable: Variable, eta: float) -> Prediction:
    """The prediction that the rows weigh."""
    return "flow" if variable == "t" and eta == 0 else "eps"


def check_variable(path: GaussianPath, t: float, variable: Variable, eta: float) -> None:
    """Raise ValueError where u or its coefficients are infinite."""
    if path.alpha(t) == 0 and (variable == "lambda" or eta > 0):
        cure = "variable='t'" if variable == "lambda" and eta == 0 else "a start below it"
        raise ValueError(
            f"the coefficients are infinite at t={t}, where alpha=0 (variable={variable!r}, eta={eta}): use {cure}"
        )


def runge_kutta(
    path: GaussianPath, times: tuple[float, ...], s: float, *, method: str, variable: Variable = "t", eta: float = 0.0
) -> list[tuple[float, Row]]:
    """`Y_i = y_t + Δ Σ_j a_ij K_j + c_i c(u_t) √|Δ| ε`, `K_j = a Y_j + b M_j`, all stages with one draw ε;

    `y_s = y_t + Δ Σ_i b_i K_i + √(|Δ| Σ_i b_i c(u_i)²) ε`.

    The step is run on symbols: every Y and K is its vector of weights on y_t, M_1 … M_n and ε.
    """
    t, tableau = times[0], TABLEAUS[method]
    check_variable(path, t, variable, eta)
    begin, end = (path.lam(t), path.lam(s)) if variable == "lambda" else (t, s)
    delta, n = end - begin, len(tableau.c)
    symbols = np.eye(n + 2)
    y_t, noise = symbols[0], math.sqrt(abs(delta)) * symbols[-1]
    at = [_time(path, begin + c * delta, variable) if 0 < c < 1 else (s if c == 1 else t) for c in tableau.c]
    rates = [reverse_family(path, u, variable, eta) for u in at]
    slopes: list[np.ndarray] = []
    rows = []

    def row(weights: np.ndarray, scale: float, outputs: int) -> Row:
        x, m, z = weights[0], weights[1 : outputs + 1][::-1] * rates[0].scale, weights[-1] * rates[0].scale
        ratio = scale / rates[0].scale
        return Row(float(x * ratio), tuple(float(w * ratio) for w in m), float(z * ratio))

    for i, (c, a, rate) in enumerate(zip(tableau.c, tableau.a, rates, strict=True)):
        state = y_t + c * math.sqrt(rates[0].c2) * noise + delta * sum(w * k for w, k in zip(a, slopes, strict=True))
        if i:
            rows.append((at[i], row(state, rate.scale, i)))
        slopes.append(rate.a * state + rate.b * symbols[i + 1])
    spread = math.sqrt(sum(b * r.c2 for b, r in zip(tableau.b, rates, strict=True)))
    final = y_t + delta * sum(b * k for b, k in zip(tableau.b, slopes, strict=True)) + spread * noise
    scale = path.alpha(s) if variable == "lambda" else 1.0
    return [*rows, (s, row(final, scale, n))]


def _time(path: GaussianPath, u: float, variable: Variable) -> float:
    return path.time(u) if variable == "lambda" else u
