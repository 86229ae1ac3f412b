"""UniP and UniPC: predictors and correctors through the outputs of the network, of any order (Zhao et al., 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from scoreflow._core.check import listed, number, one_of, whole
from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.row import Row, lagrange
from scoreflow._samplers.exponential import PREDICTION, Form, Unified, exponential_ab_row, half_row, integral
from scoreflow._samplers.step import Linear, Sampler, family


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
        rows=unip_row, order=order, cites=("zhao2023unipc",), prediction=PREDICTION[form], history=order, default_steps=20
    )  # fmt: skip


@family("unipc", also={f"unipc-{p}": {"order": p} for p in (1, 2, 3, 4)})
def unipc(order: int = 3, B: Unified = "bh2", form: Form = "data") -> Sampler:
    """UniPC: predict with `unip`, evaluate there, correct with that output too: UniC-p interpolates through p + 1 outputs.

    At order 1 the corrector is `x_s = (σ_s/σ_t) x_t + α_s [(1−e^{−h}) D_0 + ½ B(h) (D_s − D_0)]`. The output at the predicted
    state opens the next step, so n steps to σ = 0, the last of them x̂_0, take n evaluations. The corrector raises the
    order by one.

    Reference:
        UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models (Zhao et al., 2023), Algorithm 1.
    """
    _unified(order, B, form)
    return Linear(
        rows=unipc_rows, order=order + 1, cites=("zhao2023unipc",), prediction=PREDICTION[form], history=order, reuse=True,
        default_steps=20,
    )  # fmt: skip


def unip_row(path: GaussianPath, times: tuple[float, ...], s: float, *, order: int, B: Unified, form: Form) -> Row:
    """The row of `unip`."""
    return (
        half_row(path, times[0], s, times[1], B, form)
        if len(times) == 2
        else exponential_ab_row(path, times, s, order=order, form=form)
    )


def unipc_rows(
    path: GaussianPath, times: tuple[float, ...], s: float, *, order: int, B: Unified, form: Form
) -> list[tuple[float, Row]]:
    """The rows of `unipc`; the corrector's newest output is that at s."""
    if path.alpha(times[0]) == 0:
        correct = integral(path, times[0], s, [path.lam(s), -math.inf], form)._replace(m=(0.0, path.alpha(s)))
    elif len(times) == 1:
        x, (old, new), _ = half_row(path, times[0], s, s, B, form)
        correct = Row(x, (new, old))
    else:
        correct = integral(path, times[0], s, [path.lam(u) for u in (s, *times)], form)
    return [(s, unip_row(path, times, s, order=order, B=B, form=form)), (s, correct)]


LOOK_BACK = 3
"""The outputs through which DC-Solver interpolates: the degree is 2."""


@family("dc-solver")
def dc_solver(ratio: float | Sequence[float] = 1.0, order: int = 3, B: Unified = "bh2", form: Form = "data") -> Sampler:
    """DC-Solver: UniPC, `x_s = (σ_s/σ_t) x_t + …`, whose newest output is replaced by `Σ_j ℓ_j(ρ t + (1 − ρ) t_1) D_j`.

    ℓ_j is the Lagrange basis in t through the last three times t, t_1, t_2, and the D_j of the last two steps are replaced ones
    too. So a step looks back on all outputs before it. `ratio` is ρ: a number for all steps, or one for each, the first two of
    which change nothing, as do those after its end; 1 is `unipc`. What ρ is good depends on the network, the grid and guidance:
    `sf.dc_ratios` finds them. Any other ρ than 1 leaves order 1. The step to σ = 0 is x̂_0.

    Reference:
        DC-Solver: Improving Predictor-Corrector Diffusion Sampler via Dynamic Compensation (Zhao et al., 2024), Section 3.
    """
    _unified(order, B, form)
    values = [number("ratio", value) for value in listed(ratio)]
    return Linear(
        rows=dc_solver_rows, order=order + 1 if all(value == 1 for value in values) else 1, cites=("zhao2024dcsolver",),
        prediction=PREDICTION[form], history=10**6, reuse=True, default_steps=20,
    )  # fmt: skip


def dc_solver_rows(
    path: GaussianPath,
    times: tuple[float, ...],
    s: float,
    *,
    ratio: float | Sequence[float],
    order: int,
    B: Unified,
    form: Form,
) -> list[tuple[float, Row]]:
    """The rows of `dc-solver`: those of `unipc` on replaced outputs, each its weights on the network's."""
    n, symbols = len(times), np.eye(len(times))
    replaced = list[np.ndarray]()  # newest first
    for k, output in enumerate(symbols[::-1]):
        rho = ratio if isinstance(ratio, int | float) else ratio[k] if k < len(ratio) else 1.0
        if k + 1 >= LOOK_BACK and rho != 1:
            knots = times[n - 1 - k :][:LOOK_BACK]
            shares = lagrange(knots, rho * knots[0] + (1 - rho) * knots[1])
            output = sum(share * one for share, one in zip(shares, [output, *replaced[: LOOK_BACK - 1]], strict=True))
        replaced.insert(0, output)
    kept = np.stack(replaced[:order])
    (at_s, predict), (_, correct) = unipc_rows(path, times[:order], s, order=order, B=B, form=form)

    def of_outputs(row: Row, ahead: int) -> Row:
        m = np.array(row.m[ahead:]) @ kept[: len(row.m) - ahead]
        return row._replace(m=(*row.m[:ahead], *m.tolist()))

    return [(at_s, of_outputs(predict, 0)), (s, of_outputs(correct, 1))]


def _unified(order: int, B: Unified, form: Form) -> None:
    whole("order", order, 1, 4)
    one_of("B", B, ("bh1", "bh2"))
    one_of("form", form, PREDICTION)
