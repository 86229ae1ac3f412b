"""One-step methods with names of their own: EDM's and k-diffusion's, RES, and Richardson extrapolation."""

from __future__ import annotations

import numpy as np

from scoreflow._core.check import number, one_of
from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.row import Row
from scoreflow._samplers.dpm_solver import dpm_solver_rows
from scoreflow._samplers.exponential import exponential_ab_row, inside, integral, whole_weight
from scoreflow._samplers.plan import Stages
from scoreflow._samplers.step import Linear, Sampler, family, get_sampler, sampler

EDM = {"euler": 1, "heun": 2}


@family("edm", also={f"edm-{method}": {"method": method} for method in EDM})
def edm(method: str = "heun") -> Sampler:
    """EDM without churn. With `y = x/α`, the variable κ (EDM's sigma) and the slope `d = dy/dκ = ε̂`:

    - euler: `y_s = y_t + (κ_s − κ_t) d_t`: `ddim`;
    - heun: `y_s = y_t + (κ_s − κ_t) (d_t + d_s)/2`, d_s at the Euler step: `dpm-solver` of order 2 with r_1 = 1.

    The step to σ = 0 is x̂_0, by one evaluation, so n steps of heun take 2n − 1.

    Reference:
        Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), Algorithm 1.
    """
    one_of("method", method, EDM)
    return Linear(rows=edm_rows, order=EDM[method], cites=("karras2022edm",), prediction="eps", default_steps=20)


def edm_rows(path: GaussianPath, times: tuple[float, ...], s: float, *, method: str) -> list[tuple[float, Row]]:
    """The rows of `edm`."""
    return dpm_solver_rows(path, times, s, order=EDM[method], r1=1.0, r2=None)


@sampler("dpm-2", order=2, cites=("crowson2022kdiffusion", "karras2022edm"), prediction="eps", default_steps=20)
def dpm_2(path: GaussianPath, times: tuple[float, ...], s: float) -> list[tuple[float, Row]]:
    """k-diffusion's DPM-2: `x_s/α_s = x_t/α_t + (κ_s − κ_t) ε̂_u`, the midpoint rule in κ with `κ_u = √(κ_t κ_s)`.

    It is `dpm-solver` of order 2 with r_1 = ½. The step to σ = 0 is x̂_0.

    Reference:
        k-diffusion (Crowson, 2022), `sample_dpm_2` without churn, after Algorithm 2 of (Karras et al., 2022).
    """
    return dpm_solver_rows(path, times, s, order=2, r1=0.5, r2=None)


@family("res", also={f"res-{method}": {"method": method} for method in ("2s", "2m")})
def res(method: str = "2m", c2: float | None = None) -> Sampler:
    """RES: `x_s = (σ_s/σ_t) x_t + α_s h [(φ_1 − φ_2/c) D_t + φ_2/c D_u]`, φ_k at −h, u at the share c of the step in λ.

    - 2s: c = `c2`, in (0, 1], ½ if None; D_u is taken at the first-order step to u. `dpm-solver++-2s` has φ_1/(2c) for φ_2/c;
      that is right to order 2 only as h → 0: the conditions here hold for stiff problems too.
    - 2m: D_u is the output before, c < 0: `exponential-ab` of order 2 in data form, which is DPM-Solver++(2M) in its Heun form.

    The step to σ = 0 is x̂_0.

    Reference:
        Improved Order Analysis and Design of Exponential Integrator for Diffusion Models Sampling (Zhang et al., 2023).
    """
    one_of("method", method, ("2s", "2m"))
    if c2 is not None:
        number("c2", c2, above=0, most=1)
        if method != "2s":
            raise ValueError(f"c2 belongs to the method 2s, got c2={c2} with method={method!r}")
    history = 2 if method == "2m" else 1
    return Linear(rows=res_rows, order=2, cites=("zhang2023res",), history=history, default_steps=20)


def res_rows(
    path: GaussianPath, times: tuple[float, ...], s: float, *, method: str, c2: float | None
) -> Row | list[tuple[float, Row]]:
    """The rows of `res`."""
    t = times[0]
    if method == "2m":
        return exponential_ab_row(path, times, s, order=2, form="data")
    u = inside(path, t, s, 0.5 if c2 is None else c2)
    x, m = whole_weight(path, t, u, "data")
    return [(u, Row(x, (m,))), (s, integral(path, t, s, [path.lam(u), path.lam(t)], "data"))]


# -- Richardson extrapolation ------------------------------------------------------------------------------------------


@family("richardson")
def richardson(base: str | Sampler = "ddim") -> Sampler:
    """`x_s = x″ + (x″ − x′)/(2^p − 1)`: x′ by one step of `base`, of order p, x″ by two that meet at the middle in λ.

    The leading error cancels, so the order is p + 1. All share the output at t: with `base="ddim"` two evaluations a step.
    `base` is a deterministic sampler made of rows that looks back on no earlier output. The step to σ = 0 is x̂_0.

    Reference:
        Solving Ordinary Differential Equations I (Hairer et al., 1993), Section II.4.
    """
    one = get_sampler(base)
    if not isinstance(one, Linear) or one.history > 1 or one.reuse or one.stochastic or one.analytic or not one.order:
        raise ValueError(
            f"base must be a deterministic one-step sampler made of rows, such as 'ddim' or 'dpm-solver', got {one!r}"
        )
    return Linear(
        rows=richardson_rows, order=one.order + 1, cites=("hairer1993solving", *one.cites), prediction=one.prediction,
        marginal=one.marginal, default_steps=20,
    )  # fmt: skip


def richardson_rows(path: GaussianPath, times: tuple[float, ...], s: float, *, base: str | Sampler) -> list[tuple[float, Row]]:
    """The rows of `richardson`: those of the base run on symbols, every state its vector of weights on x_t and the outputs."""
    t, one = times[0], get_sampler(base)
    assert isinstance(one, Linear) and one.order
    middle = inside(path, t, s, 0.5)
    parts = [_stages(one, path, *ends) for ends in ((t, s), (t, middle), (middle, s))]
    symbols = np.eye(3 + sum(len(part) - 1 for part in parts))
    evaluated, rows = [symbols[1]], []

    def evaluate(u: float, state: np.ndarray) -> np.ndarray:
        rows.append((u, _row(state, len(evaluated))))
        output: np.ndarray = symbols[len(evaluated) + 1]
        evaluated.append(output)
        return output

    def step(x: np.ndarray, output: np.ndarray, part: list[tuple[float, Row]]) -> np.ndarray:
        outputs = [output]
        for u, row in part[:-1]:
            outputs.insert(0, evaluate(u, _joined(row, x, outputs)))
        return _joined(part[-1][1], x, outputs)

    x_t, output = symbols[0], symbols[1]
    whole = step(x_t, output, parts[0])
    half = step(x_t, output, parts[1])
    halves = step(half, evaluate(middle, half), parts[2])
    return [*rows, (s, _row(halves + (halves - whole) / (2**one.order - 1), len(evaluated)))]


def _joined(row: Row, x: np.ndarray, outputs: list[np.ndarray]) -> np.ndarray:
    return np.array([row.x, *row.m]) @ np.stack([x, *outputs])


def _stages(one: Linear, path: GaussianPath, t: float, s: float) -> list[tuple[float, Row]]:
    out = one.rows_at(path, (t,), s)
    assert not isinstance(out, Stages)
    return [(s, out)] if isinstance(out, Row) else out


def _row(state: np.ndarray, outputs: int) -> Row:
    return Row(float(state[0]), tuple(float(m) for m in state[outputs:0:-1]))
