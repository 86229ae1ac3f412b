"""Samplers whose step depends on its place in the grid: k-diffusion's DPM-Solver-fast, and Heun++."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from itertools import pairwise

from scoreflow._core.check import number, whole
from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.row import Row
from scoreflow._samplers.dpm_solver import dpm_solver_rows
from scoreflow._samplers.multistep import transfer
from scoreflow._samplers.plan import Plan, PlannedStep
from scoreflow._samplers.step import Linear, Sampler, family


@dataclass(frozen=True, repr=False)
class Placed(Linear):
    """A sampler whose rows also take `ahead`, the times after s, and `first`, that of the grid.

    A step taken by itself is the last of its grid.
    """

    def _build_all(self, path: GaussianPath, times: tuple[float, ...]) -> Plan:
        steps: list[PlannedStep] = []
        for k, (t, s) in enumerate(pairwise(times)):
            rows = functools.partial(self.rows, ahead=times[k + 2 :], first=times[0])
            steps += replace(self, rows=rows).build(path, (), t, s)
        return self._planned(path, tuple(steps))


@dataclass(frozen=True, repr=False)
class Fast(Placed):
    """DPM-Solver-fast."""

    def default_grid(self, path: GaussianPath) -> str | None:
        return "logsnr" if path.alpha(1.0) > 0 else super().default_grid(path)


@family("dpm-fast")
def dpm_fast(remainder: int = 2, eta: float = 0.0) -> Sampler:
    """DPM-Solver-fast: `x_s = (α_s/α_t) x_t − σ_s (…)`, the steps of `dpm-solver` of order 3, and the last of lower order.

    With m steps before the one to σ = 0 their orders are 3, …, 3, r, where r = `remainder` is 1 or 2, or 3, …, 3, 2, 1 for
    remainder 0: that is k-diffusion's `sample_dpm_fast` with `n = 3(m − 1) + r` evaluations. It runs on "logsnr". `eta` adds
    noise as in `dpm-2-ancestral`. The order is that of the last steps, once more for the step itself. The step to σ = 0
    is x̂_0.

    Reference:
        DPM-Solver (Lu et al., 2022), Section 3.4; k-diffusion (Crowson, 2022), `sample_dpm_fast`.
    """
    whole("remainder", remainder, 0, 2)
    number("eta", eta, least=0)
    order = 3 if remainder == 2 else 2
    if eta:
        order = 2 if eta == 1 else 1
    return Fast(rows=dpm_fast_rows, order=order, cites=("lu2022dpmsolver", "crowson2022kdiffusion"), prediction="eps")


def dpm_fast_rows(
    path: GaussianPath,
    times: tuple[float, ...],
    s: float,
    *,
    remainder: int,
    eta: float,
    ahead: tuple[float, ...] = (),
    first: float = 1.0,
) -> list[tuple[float, Row]]:
    """The rows of `dpm-fast`."""
    left = sum(path.sigma(u) > 0 for u in ahead)
    tail = (1, 2) if remainder == 0 else (remainder,)
    order = tail[left] if left < len(tail) else 3
    u = path.below(times[0], s, eta) if eta else s
    *stages, (_, down) = dpm_solver_rows(path, times, u, order=order, r1=None, r2=None)
    if not eta:
        return [*stages, (s, down)]
    up = path.forward(u, s)
    return [*stages, (s, Row(down.x * up.x, tuple(m * up.x for m in down.m), up.z))]


@family("heunpp2")
def heunpp2() -> Sampler:
    """Heun++: `x_s = (α_s/α_t) x_t + α_s (κ_s − κ_t) (w_1 ε̂_t + w_2 ε̂_s + w_3 ε̂_u)`, u the time after s.

    ε̂_s is taken at the Euler step to s and ε̂_u at the Euler step from there to u. `w_2 = κ_s/(3κ_0)`, `w_3 = κ_u/(3κ_0)`,
    κ_0 the first level of the run, and w_1 the rest; so the later outputs count less and less. The last step but one is
    `w_1 ε̂_t + w_2 ε̂_s` with `w_2 = κ_s/(2κ_0)`, the last one Euler's. These weights are those of no quadrature: the order is 1.

    Reference:
        sd-webui-samplers-scheduler (Carzit, 2023), from which ComfyUI has it.
    """
    return Placed(rows=heunpp2_rows, order=1, cites=("carzit2023heunpp",), prediction="eps")


def heunpp2_rows(
    path: GaussianPath, times: tuple[float, ...], s: float, *, ahead: tuple[float, ...] = (), first: float = 1.0
) -> list[tuple[float, Row]]:
    """The rows of `heunpp2`."""
    t, top, euler = times[0], path.kappa(first), transfer(path, times[0], s, (1.0,))
    if not ahead:
        return [(s, euler)]
    u = ahead[0]
    if len(ahead) == 1:
        w = path.kappa(s) / (2 * top)
        return [(s, euler), (s, transfer(path, t, s, (w, 1 - w)))]
    on = transfer(path, s, u, (1.0,))
    stage = Row(euler.x * on.x, (on.m[0], euler.m[0] * on.x))
    w, v = path.kappa(s) / (3 * top), path.kappa(u) / (3 * top)
    return [(s, euler), (u, stage), (s, transfer(path, t, s, (v, w, 1 - w - v)))]
