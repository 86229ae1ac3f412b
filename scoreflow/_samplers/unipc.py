"""UniP and UniPC: predictors and correctors through the outputs of the network, of any order (Zhao et al., 2023)."""

from __future__ import annotations

import math

from scoreflow._core.check import one_of, whole
from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.row import Row
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


def _unified(order: int, B: Unified, form: Form) -> None:
    whole("order", order, 1, 4)
    one_of("B", B, ("bh1", "bh2"))
    one_of("form", form, PREDICTION)
