"""DPM-Solver and DPM-Solver++ (Lu et al., 2022), singlestep and multistep."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scoreflow._core.check import number, one_of, whole
from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.row import Row
from scoreflow._samplers.exponential import Form, half_row, inside, integral, whole_weight
from scoreflow._samplers.step import Linear, Sampler, family


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
    return Linear(rows=dpm_solver_rows, order=order, cites=("lu2022dpmsolver",), prediction="eps", default_steps=20)


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
        return half_row(path, times[0], s, times[1], "bh2", "data")
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
    whole("order", order, 1, 3)
    for name, r, needs in (("r1", r1, 2), ("r2", r2, 3)):
        if r is not None and order < needs:
            raise ValueError(f"{name} belongs to order {needs} and above, got {name}={r} with order={order}")
        if r is not None:
            number(name, r, above=0, most=1)
    if order == 3 and not (1 / 3 if r1 is None else r1) < (2 / 3 if r2 is None else r2):
        raise ValueError(f"r1 must lie below r2, got r1={r1}, r2={r2}")
