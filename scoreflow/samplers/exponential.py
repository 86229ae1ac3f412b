"""Exponential integrators of the probability-flow ODE: the linear part exactly, the network's word interpolated.

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

from scoreflow.check import number, one_of, whole
from scoreflow.path import GaussianPath, Prediction
from scoreflow.row import Row, weights
from scoreflow.step import Linear, Sampler, family

Form = Literal["noise", "data"]
WANTS: dict[Form, Prediction] = {"noise": "eps", "data": "x0"}


def integral(path: GaussianPath, t: float, s: float, knots: Sequence[float], form: Form, eta: float = 0.0) -> Row:
    """The step t → s with the interpolant through the knots, which are values of λ: a row of their weights.

    In data form also of the reverse SDE of level η, with r = 1 + η²:
    `x_s = (σ_s/σ_t) e^{−η²h} x_t + α_s Σ_j ∫ r e^{r(λ − λ_s)} ℓ_j dλ D_j + σ_s √(1 − e^{−2η²h}) ε`.
    """
    lo, hi, r = path.lam(t), path.lam(s), 1 + eta**2
    if form == "data":
        # From α_t = 0 the integral begins at −∞: a word spoken there is taken for constant, and later left out.
        known = [k for k in knots if k > -math.inf] or [hi]
        m = weights(lambda u: r * np.exp(r * (u - hi)), known, lo, hi) if lo > -math.inf else (1.0,) * len(known)
        decay = math.exp(-(eta**2) * (hi - lo)) if eta else 1.0
        return Row(path.sigma(s) / path.sigma(t) * decay, tuple(path.alpha(s) * w for w in m), path.posterior_std(t, s, eta))
    if lo == -math.inf:
        raise ValueError(f"noise form begins where alpha > 0, and alpha=0 at t={t}: use a start below it, or form='data'")
    if hi == math.inf:  # a polynomial in λ does not reach there; in κ, which ends at 0, it does
        return rho_row(path, t, s, [math.exp(-k) for k in knots])
    m = weights(lambda u: np.exp(hi - u), knots, lo, hi)
    return Row(path.alpha(s) / path.alpha(t), tuple(-path.sigma(s) * w for w in m))


def rho_row(path: GaussianPath, t: float, s: float, knots: Sequence[float]) -> Row:
    """`x_s = (α_s/α_t) x_t + α_s Σ_j ∫_{κ_t}^{κ_s} ℓ_j dκ ε̂_j`, ℓ_j through knots that are values of κ."""
    m = weights(np.ones_like, knots, path.kappa(t), path.kappa(s))
    return Row(path.alpha(s) / path.alpha(t), tuple(path.alpha(s) * w for w in m))


def whole_weight(path: GaussianPath, t: float, s: float, form: Form, eta: float = 0.0) -> tuple[float, float]:
    """The weights of x_t and of a word that does not change: the first-order step."""
    x, (m,), _ = integral(path, t, s, [path.lam(t)], form, eta)
    return float(x), float(m)


def inside(path: GaussianPath, t: float, s: float, r: float) -> float:
    """The time at the share r of the way from λ_t to λ_s."""
    if path.alpha(t) == 0:
        raise ValueError(f"a singlestep method begins where alpha > 0, and alpha=0 at t={t}: use a start below it")
    return s if r == 1 else path.time(path.lam(t) + r * (path.lam(s) - path.lam(t)))


# -- multistep ---------------------------------------------------------------------------------------------------------


@family("exponential-ab", also={f"exponential-ab-{p}": {"order": p} for p in (1, 2, 3, 4)})
def exponential_ab(order: int = 3, form: Form = "noise") -> Sampler:
    """Exponential Adams–Bashforth: `x_s = (α_s/α_t) x_t − σ_s Σ_j ∫ e^{λ_s−λ} ℓ_j dλ ε̂_j`, or the same in data form.

    ℓ_j is the Lagrange basis in λ through the last `order` words (1…4); fewer while fewer are known. In noise form the
    last step, to σ = 0, keeps the order, with the basis in κ: ρAB-DEIS. In data form it is x̂_0, of first order.

    Reference:
        Exponential Integrators (Hochbruck & Ostermann, 2010), Section 2.5. Order 2 in data form is DPM-Solver++(2M) in its
        Heun form, order 3 UniP-3.
    """
    _order(order, 4)
    one_of("form", form, WANTS)
    return Linear(
        rows=exponential_ab_row, order=order, cites=("hochbruck2010exponential",), wants=WANTS[form], history=order,
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
    """`x_s = (α_s/α_t) x_t + α_s Σ_j ∫_{κ_t}^{κ_s} ℓ_j dκ ε̂_j`, ℓ_j through the last degree + 1 words.

    The polynomial, of degree 0…3, is in t (tAB-DEIS) or in ρ = κ (ρAB-DEIS, which is linear multistep in κ). The last
    step, to σ = 0, keeps the order in ρ; in t it has order 1 on paths where κ goes as √t there, as on VP and VE.

    Reference:
        Fast Sampling of Diffusion Models with Exponential Integrator (Zhang & Chen, 2023), Eqs. 11–15.
    """
    if whole("degree", degree, 0) > 3:
        raise ValueError(f"degree must be a whole number from 0 to 3, got {degree}")
    one_of("variable", variable, ("t", "rho"))
    return Linear(
        rows=deis_row, order=degree + 1, cites=("zhang2023deis",), wants="eps", history=degree + 1, lands=True, default_steps=20
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


Unified = Literal["bh1", "bh2"]


@family("unip", also={f"unip-{p}": {"order": p} for p in (1, 2, 3, 4)})
def unip(order: int = 3, B: Unified = "bh2", form: Form = "data") -> Sampler:
    """UniP: `x_s = (σ_s/σ_t) x_t + α_s [(1−e^{−h}) D_0 + B(h) Σ_k ρ_k (D_k − D_0)/r_k]`, the predictor of UniPC.

    From order 3 the ρ solve as many equations as they are, so it is `exponential-ab`, whatever B; at order 2 ρ = ½, with
    B(h) = h (bh1) or 1 − e^{−h} (bh2; then it is DPM-Solver++(2M) in its midpoint form). In noise form with −σ_s, e^h − 1.

    Reference:
        UniPC (Zhao et al., 2023), Eqs. 3 and 8, Section 3.3.
    """
    _unified(order, B, form)
    return Linear(
        rows=unip_row, order=order, cites=("zhao2023unipc",), wants=WANTS[form], history=order, default_steps=20
    )  # fmt: skip


@family("unipc", also={f"unipc-{p}": {"order": p} for p in (1, 2, 3, 4)})
def unipc(order: int = 3, B: Unified = "bh2", form: Form = "data") -> Sampler:
    """UniPC: predict with `unip`, ask there, correct with that word too: UniC-p interpolates through p + 1 words.

    At order 1 the corrector is `x_s = (σ_s/σ_t) x_t + α_s [(1−e^{−h}) D_0 + ½ B(h) (D_s − D_0)]`. The word at the predicted
    state opens the next step, so n steps to σ = 0, the last of them x̂_0, take n evaluations. The corrector raises the
    order by one.

    Reference:
        UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models (Zhao et al., 2023), Algorithm 1.
    """
    _unified(order, B, form)
    return Linear(
        rows=unipc_rows, order=order + 1, cites=("zhao2023unipc",), wants=WANTS[form], history=order, reuse=True,
        default_steps=20,
    )  # fmt: skip


def unip_row(path: GaussianPath, times: tuple[float, ...], s: float, *, order: int, B: Unified, form: Form) -> Row:
    """The row of `unip`."""
    return (
        _half(path, times[0], s, times[1], B, form)
        if len(times) == 2
        else exponential_ab_row(path, times, s, order=order, form=form)
    )


def unipc_rows(
    path: GaussianPath, times: tuple[float, ...], s: float, *, order: int, B: Unified, form: Form
) -> list[tuple[float, Row]]:
    """The rows of `unipc`; the corrector's newest word is that at s."""
    if path.alpha(times[0]) == 0:
        correct = integral(path, times[0], s, [path.lam(s), -math.inf], form)._replace(m=(0.0, path.alpha(s)))
    elif len(times) == 1:
        x, (old, new), _ = _half(path, times[0], s, s, B, form)
        correct = Row(x, (new, old))
    else:
        correct = integral(path, times[0], s, [path.lam(u) for u in (s, *times)], form)
    return [(s, unip_row(path, times, s, order=order, B=B, form=form)), (s, correct)]


def _half(path: GaussianPath, t: float, s: float, other: float, B: Unified, form: Form) -> Row:
    """The step with one other word, weighed by ρ = ½ and B(h): the row of (M_t, M_other)."""
    x, m = whole_weight(path, t, s, form)
    if path.alpha(other) == 0:
        return Row(x, (m, 0.0))
    h = path.lam(s) - path.lam(t)
    scale = m if B == "bh2" else h * (path.alpha(s) if form == "data" else -path.sigma(s))
    rho = scale / 2 * h / (path.lam(other) - path.lam(t))
    return Row(x, (m - rho, rho))


def _unified(order: int, B: Unified, form: Form) -> None:
    _order(order, 4)
    one_of("B", B, ("bh1", "bh2"))
    one_of("form", form, WANTS)


def _order(order: int, most: int) -> None:
    if whole("order", order) > most:
        raise ValueError(f"order must be a whole number from 1 to {most}, got {order}")


# -- DPM-Solver --------------------------------------------------------------------------------------------------------


@family("dpm-solver", also={f"dpm-solver-{p}": {"order": p} for p in (1, 2, 3)})
def dpm_solver(order: int = 2, r1: float | None = None, r2: float | None = None) -> Sampler:
    """DPM-Solver-1, -2, -3, singlestep, in noise form: `order` evaluations a step.

    With `u_i` the state at the share r_i of the step in λ and `Δ_i = ε̂(u_i) − ε̂_t`:

    - 1: `x_s = (α_s/α_t) x_t − σ_s (e^h − 1) ε̂_t`;
    - 2: `… − σ_s (e^h − 1)/(2 r_1) Δ_1`, r_1 = ½;
    - 3: `… − σ_s/r_2 ((e^h − 1)/h − 1) Δ_2`, r_1 = ⅓, r_2 = ⅔, where u_2 in turn has `… r_2/r_1 (…) Δ_1`.

    With order 2, r_1 = 1 it is EDM's Heun, with r_1 = ½ k-diffusion's dpm_2. The step to σ = 0 is x̂_0.

    Reference:
        DPM-Solver (Lu et al., 2022), Algorithms 1 and 2, and Appendix C for free r_1, r_2.
    """
    _shares(order, r1, r2)
    return Linear(rows=dpm_solver_rows, order=order, cites=("lu2022dpmsolver",), wants="eps", default_steps=20)


def dpm_solver_rows(
    path: GaussianPath, times: tuple[float, ...], s: float, *, order: int, r1: float | None, r2: float | None
) -> list[tuple[float, Row]]:
    """The rows of `dpm-solver`."""
    return singlestep(path, times[0], s, order, r1, r2, "noise")


DPMPP = {"1": 1, "2m": 2, "2m-heun": 2, "3m": 3, "3m-published": 2, "2s": 2, "3s": 3}


@family("dpm-solver++", also={f"dpm-solver++-{method}": {"method": method} for method in DPMPP})
def dpm_solver_pp(method: str = "2m", r1: float | None = None, r2: float | None = None) -> Sampler:
    """DPM-Solver++, in data form: multistep 2m, 2m-heun, 3m, 3m-published; singlestep 1, 2s, 3s with free r_1, r_2.

    - 2m: `x_s = (σ_s/σ_t) x_t + α_s (1−e^{−h}) [D_0 + (D_0 − D_1)/(2r)]`, r the last step over this one;
    - 2m-heun: the same with the interpolant through D_0, D_1 integrated: `exponential-ab` of order 2;
    - 3m: through D_0, D_1, D_2: of order 3;
    - 3m-published: as in the authors' code, whose weight on the second difference
      `(D'_0 − D'_1)/(r_0 + r_1)` lacks a factor 2: of order 2, and the nearer one at some twenty steps (docs/orders.md);
    - 2s, 3s: as `dpm-solver` in data form.

    The step to σ = 0 is x̂_0.

    Reference:
        DPM-Solver++ (Lu et al., 2022), Algorithms 1 and 2, Appendix A.
    """
    one_of("method", method, DPMPP)
    if method in ("2s", "3s"):
        _shares(DPMPP[method], r1, r2)
    elif r1 is not None or r2 is not None:
        raise ValueError(f"r1={r1}, r2={r2} belong to the methods 2s and 3s, got method={method!r}")
    history = {"2m": 2, "2m-heun": 2, "3m": 3, "3m-published": 3}.get(method, 1)
    return Linear(rows=dpm_solver_pp_rows, order=DPMPP[method], cites=("lu2022dpmsolverpp",), history=history, default_steps=20)


def dpm_solver_pp_rows(
    path: GaussianPath, times: tuple[float, ...], s: float, *, method: str, r1: float | None, r2: float | None
) -> Row | list[tuple[float, Row]]:
    """The rows of `dpm-solver++`."""
    if method in ("1", "2s", "3s"):
        return singlestep(path, times[0], s, int(method[0]), r1, r2, "data")
    if method == "2m" and len(times) == 2:
        return _half(path, times[0], s, times[1], "bh2", "data")
    knots = [path.lam(u) for u in times]
    if method != "3m-published" or len(times) < 3 or knots[-1] == -math.inf:
        return integral(path, times[0], s, knots, "data")
    # The interpolant's second difference with half its weight: half way to the interpolant that has the same first
    # derivative at λ_t and no second difference.
    x, full, _ = integral(path, times[0], s, knots, "data")
    tangent = _tangent(path, times[0], s, knots)
    return Row(x, tuple((a + b) / 2 for a, b in zip(full, tangent, strict=True)))


def _tangent(path: GaussianPath, t: float, s: float, knots: Sequence[float]) -> tuple[float, ...]:
    """Weights of the line through D_0 whose slope is that of the parabola through three knots at λ_t."""
    a, b, c = knots
    slope = (1 / (a - b) + 1 / (a - c), (a - c) / ((b - a) * (b - c)), (a - b) / ((c - a) * (c - b)))
    _, (_, rise), _ = integral(path, t, s, [a, a + 1], "data")  # ∫ (λ − λ_t) against the measure
    _, constant = whole_weight(path, t, s, "data")
    return tuple(float(rise) * k + (constant if j == 0 else 0.0) for j, k in enumerate(slope))


def singlestep(
    path: GaussianPath, t: float, s: float, order: int, r1: float | None, r2: float | None, form: Form, eta: float = 0.0
) -> list[tuple[float, Row]]:
    """One to three stages: each integrates the line through M_t and the stage before it. Of level η without its noise."""
    x, m = whole_weight(path, t, s, form, eta)
    if order == 1:
        return [(s, Row(x, (m,)))]
    r1 = (0.5 if order == 2 else 1 / 3) if r1 is None else r1
    first = inside(path, t, s, r1)
    x_1, m_1 = whole_weight(path, t, first, form, eta)
    if order == 2:
        return [(first, Row(x_1, (m_1,))), (s, Row(x, (m / (2 * r1), m - m / (2 * r1))))]
    second = inside(path, t, s, 2 / 3 if r2 is None else r2)
    lam = path.lam(t)
    x_2, (old, new), _ = integral(path, t, second, [lam, path.lam(first)], form, eta)
    _, (start, end), _ = integral(path, t, s, [lam, path.lam(second)], form, eta)
    return [(first, Row(x_1, (m_1,))), (second, Row(x_2, (new, old))), (s, Row(x, (end, 0.0, start)))]


def _shares(order: int, r1: float | None, r2: float | None) -> None:
    _order(order, 3)
    for name, r, needs in (("r1", r1, 2), ("r2", r2, 3)):
        if r is not None and order < needs:
            raise ValueError(f"{name} belongs to order {needs} and above, got {name}={r} with order={order}")
        if r is not None:
            number(name, r, above=0, most=1)
    if order == 3 and not (1 / 3 if r1 is None else r1) < (2 / 3 if r2 is None else r2):
        raise ValueError(f"r1 must lie below r2, got r1={r1}, r2={r2}")
