"""Exponential integrators of the reverse SDE, in data form.

With `r = 1 + η²` and `h = λ_s − λ_t` the reverse SDE of level η is solved by

    x_s = (σ_s/σ_t) e^{−η²h} x_t + α_s ∫ r e^{r(λ − λ_s)} x̂_0 dλ + σ_s √(1 − e^{−2η²h}) ε.

Every method here replaces x̂_0 by a polynomial in λ. With a constant it is DDIM with noise; at η = 1 it is DDPM.
"""

from __future__ import annotations

from collections.abc import Callable

from scoreflow._core.check import number, one_of, whole
from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.row import Row
from scoreflow._samplers.dpm_solver import singlestep
from scoreflow._samplers.exponential import integral
from scoreflow._samplers.plan import Draw, Stages
from scoreflow._samplers.step import Linear, Sampler, family

METHODS = {"1": 1, "2m": 2, "2m-heun": 2, "3m": 3, "2s": 1}
"""And how many outputs they look back on."""
Tau = float | Callable[[float], float]


@family("sde-dpm-solver++", also={f"sde-dpm-solver++-{method}": {"method": method} for method in METHODS})
def sde_dpm_solver_pp(method: str = "2m", eta: float = 1.0, r1: float | None = None) -> Sampler:
    """SDE-DPM-Solver++: with `w = α_s (1 − e^{−r h})`, r = 1 + η², and the first-order step's decay and noise,

    - 1: `… + w D_0`: DDPM at η = 1;
    - 2m: `… + w [D_0 + (D_0 − D_1)/(2r_0)]`, r_0 the last step over this one;
    - 2m-heun: the line through D_0, D_1 integrated;
    - 3m: the parabola through D_0, D_1, D_2 integrated. Published code has other weights on the second difference;
    - 2s: `… + w [(1 − 1/(2r_1)) D_t + 1/(2r_1) D_u]`, u at the share r_1 = `r1` of the step, ½ if None. The stage's noise is
      that of the step's first part.

    k-diffusion's `eta` of its 2M-SDE is η². The step to σ = 0 is x̂_0. The weak order is 1 for the first, 2 for the others.

    Reference:
        DPM-Solver++ (Lu et al., 2022), Section 5, Eq. 18 and below.
    """
    one_of("method", method, METHODS)
    number("eta", eta, least=0)
    if r1 is not None:
        number("r1", r1, above=0, most=1)
        if method != "2s":
            raise ValueError(f"r1 belongs to the method 2s, got r1={r1} with method={method!r}")
    order, history = 1 if method == "1" else 2, METHODS[method]
    return Linear(rows=sde_dpm_solver_pp_rows, order=order, cites=("lu2022dpmsolverpp",), history=history)


def sde_dpm_solver_pp_rows(
    path: GaussianPath, times: tuple[float, ...], s: float, *, method: str, eta: float, r1: float | None
) -> Row | Stages:
    """The rows of `sde-dpm-solver++`."""
    t, lam = times[0], [path.lam(u) for u in times]
    if method == "2s":
        return noisy_stages(path, t, s, 2, r1, eta)
    if method != "2m" or len(times) == 1 or path.alpha(times[-1]) == 0:
        return integral(path, t, s, lam, "data", eta)
    x, (w,), z = integral(path, t, s, lam[:1], "data", eta)
    extra = float(w) / 2 * (path.lam(s) - lam[0]) / (lam[0] - lam[1])
    return Row(x, (float(w) + extra, -extra), z)


def noisy_stages(path: GaussianPath, t: float, s: float, order: int, r1: float | None, eta: float) -> Stages:
    """The stages of `dpm-solver++` 1, 2s or 3s of level η, each with the noise of the whole way to it, in its parts."""
    rows, parts, above, z = [], list[Draw](), t, list[float]()
    for u, row in singlestep(path, t, s, order, r1, None, "data", eta):
        carry = integral(path, above, u, [path.lam(above)], "data", eta) if u < above else Row(1.0)
        z = [*(float(carry.x) * c for c in z), float(carry.z)]
        parts.append(Draw(above, u))
        rows.append((u, row._replace(z=tuple(z))))
        above = u
    return Stages(rows, tuple(parts))


@family("sa-solver", also={"sa-solver-pece": {"mode": "pece"}})
def sa_solver(predictor: int = 2, corrector: int = 2, tau: Tau = 1.0, mode: str = "pec") -> Sampler:
    """SA-Solver: `x_s = (σ_s/σ_t) e^{−τ²h} x_t + α_s Σ_j ∫ r e^{r(λ − λ_s)} ℓ_j dλ D_j + σ_s √(1 − e^{−2τ²h}) ε`, r = 1 + τ².

    The predictor interpolates through the last `predictor` outputs (1…4); the corrector, with the same noise, through the
    output at the predicted state and the last `corrector` ones (0…4; 0 for none). That output opens the next step, so n steps
    to σ = 0, the last of them x̂_0, take n evaluations. With `mode="pece"` the network is evaluated at the corrected state too,
    and that opens the next step: 2n − 1 evaluations. `tau` is a number, or a function of t, constant along a step. τ = 0 is the
    probability-flow ODE, 1 the reverse SDE. The weak order is 2, or 1 with one output and no corrector.

    Reference:
        SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion Models (Xue et al., 2023), Eqs. 14 and 17.
    """
    for name, steps, least in (("predictor", predictor, 1), ("corrector", corrector, 0)):
        if whole(name, steps, least) > 4:
            raise ValueError(f"{name} must be a whole number from {least} to 4, got {steps}")
    if not callable(tau):
        number("tau", tau, least=0)
    one_of("mode", mode, ("pec", "pece"))
    if mode == "pece" and not corrector:
        raise ValueError("mode='pece' evaluates at the corrected state, and corrector=0 makes none")
    order = 1 if predictor == 1 and not corrector else 2
    return Linear(
        rows=sa_solver_rows, order=order, cites=("xue2023sasolver",), history=max(predictor, corrector),
        reuse=corrector > 0 and mode == "pec",
    )  # fmt: skip


def sa_solver_rows(
    path: GaussianPath, times: tuple[float, ...], s: float, *, predictor: int, corrector: int, tau: Tau, mode: str = "pec"
) -> list[tuple[float, Row]]:
    """The rows of `sa-solver`; the corrector's newest output is that at s."""
    level = number("tau(t)", tau(times[0]), least=0) if callable(tau) else tau
    lam = [path.lam(u) for u in times]
    predict = (s, integral(path, times[0], s, lam[:predictor], "data", level))
    if not corrector or path.alpha(times[0]) == 0:
        return [predict]
    return [predict, (s, integral(path, times[0], s, [path.lam(s), *lam[:corrector]], "data", level))]
