"""Stochastic Runge–Kutta for additive noise: strong order 1.5, from the increment and the area of a Brownian path."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from scoreflow._core.check import number, one_of
from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.row import Row
from scoreflow._samplers.plan import Draw, Stages
from scoreflow._samplers.runge_kutta import check_variable, reverse_family
from scoreflow._samplers.step import Linear, Sampler, family


class Additive(NamedTuple):
    """Rößler's tableau: stages at `c0`, drift weights `a` and `alpha`; noise weights `b` on I₁₀/Δ times g at `c1`.

    `beta1` weighs g ΔW and `beta2` g I₁₀/Δ in the end, g at `c1`.
    """

    c0: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[tuple[float, ...], ...]
    alpha: tuple[float, ...]
    c1: tuple[float, ...]
    beta1: tuple[float, ...]
    beta2: tuple[float, ...]


TABLEAUS = {
    "sra1": Additive((0.0, 3 / 4), ((), (3 / 4,)), ((), (3 / 2,)), (1 / 3, 2 / 3), (1.0, 0.0), (1.0, 0.0), (-1.0, 1.0)),
    "sra3": Additive(
        (0.0, 1.0, 1 / 2), ((), (1.0,), (1 / 4, 1 / 4)), ((), (0.0,), (1.0, 1 / 2)), (1 / 6, 1 / 6, 2 / 3),
        (1.0, 0.0), (1.0, 0.0), (-1.0, 1.0),
    ),
}  # fmt: skip


@family("sra", also={method: {"method": method} for method in TABLEAUS})
def sra(method: str = "sra1", eta: float = 1.0) -> Sampler:
    """SRA: `Y_i = x_t + Δ Σ_j a_ij F(Y_j) + Σ_k b_ik G(u_k) I₁₀/Δ`,

    `x_s = x_t + Δ Σ_i α_i F(Y_i) + Σ_k G(u_k) (β1_k ΔW + β2_k I₁₀/Δ)`,

    for the reverse SDE in t, of drift F and noise G dw̄, `G = η g`. `I₁₀ = ∫ (W_u − W_t) du` has, besides the increment ΔW,
    the area between the path and its chord. The strong order is 1.5 with two evaluations a step (sra1) or three (sra3, whose
    drift has order 3), where `reverse-sde` has 1; the weak order is 2. The step to σ = 0 is x̂_0.

    Reference:
        Runge–Kutta Methods for the Strong Approximation of Solutions of Stochastic Differential Equations (Rößler, 2010),
        Section 6.
    """
    one_of("method", method, TABLEAUS)
    number("eta", eta, above=0)
    return Linear(rows=sra_rows, order=2, cites=("rossler2010srk", "song2021sde"), prediction="eps", marginal=False)


def sra_rows(path: GaussianPath, times: tuple[float, ...], s: float, *, method: str, eta: float) -> Stages:
    """The rows of `sra`: run on symbols, every Y and F its vector of weights on x_t, M_1 … M_n, ΔW and the area."""
    t, tableau = times[0], TABLEAUS[method]
    check_variable(path, t, "t", eta)
    delta, n = s - t, len(tableau.alpha)
    symbols = np.eye(n + 3)
    # Over a step of length |Δ|, ΔW = √|Δ| ε₁ and I₁₀/|Δ| = ½ ΔW + √(|Δ|/12) ε₂.
    dw = math.sqrt(-delta) * symbols[n + 1]
    i10 = dw / 2 + math.sqrt(-delta / 12) * symbols[n + 2]
    at = [s if c == 1 else t + c * delta for c in tableau.c0]
    noise = [math.sqrt(reverse_family(path, s if c == 1 else t, "t", eta).c2) for c in tableau.c1]
    slopes: list[np.ndarray] = []
    rows = []

    def row(weights: np.ndarray, outputs: int) -> Row:
        x, m, z = weights[0], weights[1 : outputs + 1][::-1], weights[n + 1 :]
        return Row(float(x), tuple(map(float, m)), tuple(map(float, z)))

    for i, u in enumerate(at):
        state = symbols[0] + delta * sum(w * k for w, k in zip(tableau.a[i], slopes, strict=True))
        state = state + sum(w * g for w, g in zip(tableau.b[i], noise, strict=False)) * i10
        if i:
            rows.append((u, row(state, i)))
        rate = reverse_family(path, u, "t", eta)
        slopes.append(rate.a * state + rate.b * symbols[i + 1])
    final = symbols[0] + delta * sum(w * k for w, k in zip(tableau.alpha, slopes, strict=True))
    for g, on_dw, on_area in zip(noise, tableau.beta1, tableau.beta2, strict=True):
        final = final + g * (on_dw * dw + on_area * i10)
    return Stages([*rows, (s, row(final, n))], (Draw(t, s), Draw(t, s, area=True)))
