"""Multistep methods in κ: with `dy/dκ = ε̂` for y = x/α, the classical methods for ordinary differential equations.

All go by the transfer of DDIM, with a combination of the last outputs in place of one,

    x_s = (α_s/α_t) x_t + α_s (κ_s − κ_t) Σ_j w_j ε̂_j,  Σ_j w_j = 1.
"""

from __future__ import annotations

from collections.abc import Sequence

from scoreflow._core.check import number, whole
from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.row import Row
from scoreflow._samplers.exponential import deis_row
from scoreflow._samplers.step import Linear, Sampler, family, landing

ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""The weights on even steps, newest output first."""


def transfer(path: GaussianPath, t: float, s: float, weights: Sequence[float]) -> Row:
    """The first-order step, its output the weighted sum of outputs: `x_s = (α_s/α_t) x_t + α_s (κ_s − κ_t) Σ_j w_j ε̂_j`."""
    x, (m,), _ = deis_row(path, (t,), s, degree=0, variable="rho")
    return Row(x, tuple(m * w for w in weights))


@family("lms", also={**{f"lms-{p}": {"order": p} for p in (1, 2, 3, 4)}, "ipndm-v": {}})
def lms(order: int = 4) -> Sampler:
    """Linear multistep: `x_s = (α_s/α_t) x_t + α_s Σ_j ∫_{κ_t}^{κ_s} ℓ_j dκ ε̂_j`, ℓ_j through the last `order` outputs (1…4).

    These are the Adams–Bashforth methods with steps of any size in κ; ρAB-DEIS of degree order − 1 is the same. So is
    iPNDM with variable steps (`ipndm-v`) once it is right: we observe slips in published code from its order 3 on. The last
    step, to σ = 0, keeps the order.

    Reference:
        k-diffusion (Crowson, 2022), `sample_lms`; Solving Ordinary Differential Equations I (Hairer et al., 1993),
        Section III.5.
    """
    whole("order", order, 1, 4)
    return Linear(
        rows=lms_row, order=order, cites=("crowson2022kdiffusion", "hairer1993solving"), prediction="eps", history=order,
        lands=True, default_steps=20,
    )  # fmt: skip


def lms_row(path: GaussianPath, times: tuple[float, ...], s: float, *, order: int) -> Row:
    """The row of `lms`."""
    return deis_row(path, times, s, degree=order - 1, variable="rho")


@family("ipndm", also={f"ipndm-{p}": {"order": p} for p in (1, 2, 3, 4)})
def ipndm(order: int = 4, damping: float = 0.0) -> Sampler:
    """iPNDM: `x_s = (α_s/α_t) x_t + α_s (κ_s − κ_t) Σ_j w_j ε̂_j`, w the Adams–Bashforth weights of even steps.

    The last `order` outputs (1…4), fewer while fewer are known: (3, −1)/2, (23, −16, 5)/12, (55, −59, 37, −9)/24. On nodes even
    in κ it is `lms`; on all others the weights are off by the change of the step, and the order is 2 at most. The last step,
    to σ = 0, is of the same form.

    These weights are `Σ_k γ_k ∇^k`, backward differences with γ = 1, ½, 5/12, ⅜. `damping` takes that share from the highest,
    between the method of this order (0) and the one below (1). Order 3 with 0.4 is `ε̂ + ½ ∇ε̂ + ¼ ∇²ε̂`: of learned scores
    the higher differences are rough, and less of the last is nearer (docs/auto.md).

    Reference:
        Fast Sampling of Diffusion Models with Exponential Integrator (Zhang & Chen, 2023); the
        weights are those of Pseudo Numerical Methods for Diffusion Models on Manifolds (Liu et al., 2022).
    """
    whole("order", order, 1, 4)
    if number("damping", damping, 0, 1) and order == 1:
        raise ValueError(f"damping is of the highest difference, and order=1 has none, got damping={damping}")
    return Linear(
        rows=ipndm_row, order=min(order - (damping > 0), 2), cites=("zhang2023deis", "liu2022pndm"), prediction="eps",
        history=order, lands=True, default_steps=20,
    )  # fmt: skip


def ipndm_row(path: GaussianPath, times: tuple[float, ...], s: float, *, order: int, damping: float) -> Row:
    """The row of `ipndm`."""
    weights = ADAMS_BASHFORTH[len(times) - 1]
    if damping and len(times) == order:
        below = (*ADAMS_BASHFORTH[order - 2], 0.0)
        weights = tuple(w + damping * (b - w) for w, b in zip(weights, below, strict=True))
    return transfer(path, times[0], s, weights)


@family("pndm")
def pndm() -> Sampler:
    """PNDM: `x_s = φ(x_t, e)`, φ the step of DDIM, with `e = (55 ε̂_t − 59 ε̂_1 + 37 ε̂_2 − 9 ε̂_3)/24`.

    The first three steps find e by the classical Runge–Kutta method, `e = (e_1 + 2e_2 + 2e_3 + e_4)/6`: `e_1 = ε̂(x_t)`;
    e_2, e_3 at the middle m of the times t and s, in `φ(x_t, e_1)` and `φ(x_t, e_2)`; e_4 at s, in `φ(x_t, e_3)`. They take
    four evaluations each, and what is remembered of them is e_1. The order is 2, as that of `ipndm`. The last step, to
    σ = 0, is φ; x̂_0 while fewer than four outputs are known.

    Reference:
        Pseudo Numerical Methods for Diffusion Models on Manifolds (Liu et al., 2022), Section 3.3.
    """
    return Linear(rows=pndm_rows, order=2, cites=("liu2022pndm",), prediction="eps", history=4, lands=True)


def pndm_rows(path: GaussianPath, times: tuple[float, ...], s: float) -> Row | list[tuple[float, Row]]:
    """The rows of `pndm`."""
    t = times[0]
    if len(times) == 4:
        return transfer(path, t, s, ADAMS_BASHFORTH[3])
    if path.sigma(s) == 0:
        return landing(path, t, s, "eps")
    middle = (t + s) / 2
    return [
        (middle, transfer(path, t, middle, (1,))),
        (middle, transfer(path, t, middle, (1, 0))),
        (s, transfer(path, t, s, (1, 0, 0))),
        (s, transfer(path, t, s, (1 / 6, 1 / 3, 1 / 3, 1 / 6))),
    ]


@family("gradient-estimation")
def gradient_estimation(gamma: float = 2.0) -> Sampler:
    """`x_s = (α_s/α_t) x_t + α_s (κ_s − κ_t) [γ ε̂_t + (1 − γ) ε̂_1]`, ε̂_1 the output before.

    The outputs are taken for noisy gradients of the distance to the data, and γ, `gamma`, corrects the last by the one before.
    γ = 1 is `ddim`, γ = 3/2 is `ipndm-2`, of order 2; any other γ leaves order 1. The step to σ = 0 is x̂_0.

    Reference:
        Interpreting and Improving Diffusion Models from an Optimization Perspective (Permenter & Yuan, 2024), Section 5.
    """
    order = 2 if number("gamma", gamma) == 1.5 else 1
    return Linear(
        rows=gradient_estimation_row, order=order, cites=("permenter2024interpreting",), prediction="eps", history=2,
        default_steps=20,
    )  # fmt: skip


def gradient_estimation_row(path: GaussianPath, times: tuple[float, ...], s: float, *, gamma: float) -> Row:
    """The row of `gradient-estimation`."""
    return transfer(path, times[0], s, (gamma, 1 - gamma) if len(times) == 2 else (1,))
