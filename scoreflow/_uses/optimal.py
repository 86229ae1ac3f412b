"""Times fitted to a sampler or to a network, where `grid` has rules for all."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoreflow._core.check import number, whole
from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.grid import check_ends, check_times, default_t_min, grid
from scoreflow._core.row import wide
from scoreflow._run.solve import solve
from scoreflow._run.walk import Run
from scoreflow._samplers.plan import Memory, Plan, advance, drive
from scoreflow._samplers.step import Linear, Sampler, get_sampler
from scoreflow._score.model import ScoreModel
from scoreflow._uses.read_back import read_plan

FIT = {"maxiter": 50, "ftol": 1e-7}
NUDGE = 1e-6
"""By how much a node is moved in λ, for the slope of the bound."""


def dmn_grid(
    sampler: str | Sampler,
    path: GaussianPath,
    steps: int,
    *,
    power: float = 1.0,
    start: float = 1.0,
    stop: float = 0.0,
    t_min: float | None = None,
    **options: Any,
) -> tuple[float, ...]:
    """The times that minimise a bound on a linear sampler's error, without a network.

    A state is `Σ_i W_i x̂_0(t_i)` plus its share of the noise, the weights W_i summed over all steps before it. If x̂_0 is
    wrong by κ_i^p at time i, the state is wrong by at most `Σ_i |W_i| κ_i^p`. This bound, at the last time where σ > 0, is
    made small; the least that descents from uniform steps in λ and in t meet is taken. For p > 1 they begin at the times for 1.

    Args:
        sampler, options: a linear sampler, best a multistep one.
        path, steps, start, stop: as of `grid`.
        power: p, how the error of x̂_0 grows with noise: 1 is advised for pixels, 2 for latents.
        t_min: the least time before 0.

    Raises:
        ValueError: the sampler is not linear, or values that are not allowed.

    Reference:
        Accelerating Diffusion Sampling with Optimized Time Steps (Xue et al., 2024), Eqs. 13–17.
    """
    from scipy.optimize import minimize

    chosen = get_sampler(sampler, **options)
    if not isinstance(chosen, Linear):
        raise ValueError(f"{chosen!r} is not made of rows and has no weights to minimise")
    number("power", power, least=0)
    check_ends(start, stop)
    lands = path.sigma(stop) == 0
    low = (default_t_min(path) if t_min is None else t_min) if lands else stop
    if not 0 < low < start:
        raise ValueError(f"t_min must lie between 0 and start={start}, got {low}")
    if whole("steps", steps) <= 1 + lands:
        return (start, *([low] if steps == 2 else []), stop)
    inner = steps - lands
    top = start if path.alpha(start) > 0 else start * (1 - 1e-3)
    first = path.lam(top)
    span = path.lam(low) - first

    # A node that is moved is in the rows of its own step and of the few after it; all others are kept.
    row = functools.lru_cache(maxsize=None)(functools.partial(chosen.rows_at, path))
    known = dataclasses.replace(chosen, rows=lambda _, times, s, **options: row(times, s))
    tried: list[tuple[float, list[float]]] = []

    def at(times: Sequence[float]) -> float:
        plan = known._build_all(path, check_times((start, *times, low)))
        return math.log(sum(abs(w) * path.kappa(t) ** power for t, w in word_weights(plan, path) if path.alpha(t) > 0))

    def bound(z: np.ndarray) -> tuple[float, np.ndarray]:
        """A tenth of the bound's logarithm, so that first steps are short, and its slope.

        Any numbers z say the times: their softmax shares the way in λ.
        """
        share = np.exp(z - z.max())
        share /= share.sum()
        way = np.cumsum(share)[:-1]
        lam = first + span * way
        times, moved = path.time(torch.from_numpy(np.stack([lam, lam + NUDGE]))).tolist()
        try:
            with np.errstate(all="ignore"):
                value = at(times)
                slope = np.array([at([*times[:i], t, *times[i + 1 :]]) - value for i, t in enumerate(moved)]) / NUDGE
        except ValueError:  # times that fall together
            if not tried:
                raise
            slope = np.full_like(lam, math.nan)
        if not np.isfinite(slope).all():
            return 1e9, np.zeros_like(z)
        tried.append((value, times))
        # dλ_i/dz_k = span · share_k ([k ≤ i] − way_i)
        after = np.append(np.cumsum(slope[::-1])[::-1], 0.0)
        return value / 10, span * share * (after - slope @ way) / 10

    begins = [grid(path, inner, name, start=top, stop=low) for name in ("logsnr", "uniform")]
    if power > 1:  # whose bound is steeper, and both descents may end far above what is best for power 1
        gentle = dmn_grid(chosen, path, steps, power=1.0, start=start, stop=stop, t_min=t_min)
        begins = [(top, *gentle[1 : inner + 1])]
    for begin in begins:
        z = np.log(np.diff([path.lam(t) for t in begin]))
        for method in ("L-BFGS-B", "SLSQP"):  # where a weight changes sign there is a kink, at which the one or the other ends
            minimize(bound, z, method=method, jac=True, options=FIT)
    return check_times((start, *min(tried)[1], low, *([stop] if lands else [])))


def word_weights(plan: Plan, path: GaussianPath) -> list[tuple[float, float]]:
    """(time, weight in x̂_0) of every output of the network in the last state of a plan, the outputs taken as given."""
    run = read_plan(plan, path, plan.prediction)
    weights = run.end[1 : 1 + run.nfe].tolist()
    return [(t, w * path.convert("x0", plan.prediction, t)[1]) for t, w in zip(run.labels, weights, strict=True)]


def gits_grid(
    model: ScoreModel,
    x_T: Tensor,
    steps: int,
    *,
    teacher: int = 60,
    grid: str = "logsnr",
    discount: float = 1.0,
    start: float = 1.0,
    stop: float = 0.0,
    **conditions: Any,
) -> tuple[float, ...]:
    """The times, among a teacher's, along which first-order steps stray least from the teacher's trajectory.

    The cost of going from node i to node j at once is the RMS distance of the DDIM step from the teacher's x_i to its x_j;
    dynamic programming finds the `steps` intervals of least total cost. Trajectories bend alike for all samples, so a few
    suffice, and the times serve other samplers as well.

    Args:
        model, conditions: as of `solve`.
        x_T: a few states (B, ...) at `start`.
        steps: intervals of the result.
        teacher: intervals of the teacher, which is `ddim` on the grid of this name.
        discount: weighs the cost of later intervals down as `discount^interval`, 0 < discount ≤ 1.

    Raises:
        ValueError: steps is more than the teacher's. Otherwise as `solve`.

    Reference:
        On the Trajectory Regularity of ODE-based Diffusion Sampling (Chen et al., 2024), Algorithm 1.
    """
    if whole("steps", steps) > whole("teacher", teacher):
        raise ValueError(f"steps={steps} is more than the teacher's {teacher}")
    number("discount", discount, above=0, most=1)
    run = solve(model, x_T, "ddim", steps=teacher, grid=grid, start=start, stop=stop, trajectory=True, seed=0, **conditions)
    assert run.states is not None
    path, times = model.path, run.times
    n = len(times) - 1
    cost = np.full((n + 1, n + 1), math.inf)
    run_model = Run(model, conditions, len(x_T))
    with torch.no_grad():
        for i, t in enumerate(times[:-1]):
            x_0 = run_model(run.states[i], t, "x0")
            for j in range(i + 1, n + 1):
                off = path.bridge(t, times[j])(run.states[i], [x_0]) - run.states[j]
                cost[i, j] = float(off.square().mean().sqrt())
    best = np.full(n + 1, math.inf)
    best[0], back = 0.0, []
    for k in range(steps):
        total = best[:, None] + discount**k * cost
        back.append(total.argmin(0))
        best = total.min(0)
    place = [n]
    for came in reversed(back):
        place.append(int(came[place[-1]]))
    return tuple(times[i] for i in reversed(place))


def dc_ratios(
    model: ScoreModel,
    x_T: Tensor,
    times: Sequence[float] | Tensor,
    *,
    order: int = 3,
    parts: int = 20,
    limits: tuple[float, float] = (0.0, 2.0),
    **conditions: Any,
) -> tuple[float, ...]:
    """The `ratio` of `dc-solver` for a network and a grid: at each step the one whose state lies nearest to the ODE's.

    The steps are fitted in turn, each along the states that those before it lead to, with about 20 evaluations of the network
    each. The first two steps, and one to σ = 0, have nothing to fit and keep 1.

    Args:
        model, conditions: as of `solve`.
        x_T: a few states (B, ...) at the first time.
        times: those of the run, decreasing.
        order: of `dc-solver`.
        parts: the steps of UniPC to each interval, for the ODE.
        limits: between which ratios are looked for.

    Raises:
        ValueError, TypeError: as `solve` and `grid`.

    Reference:
        DC-Solver: Improving Predictor-Corrector Diffusion Sampler via Dynamic Compensation (Zhao et al., 2024), Algorithm 1.
    """
    from scipy.optimize import minimize_scalar

    path, nodes = model.path, check_times(times)
    whole("parts", parts)
    low, high = (number("limits", value) for value in limits)
    if not low < high:
        raise ValueError(f"limits must be two numbers, the lower first, got {limits}")
    fine = [t + (s - t) * k / parts for t, s in pairwise(nodes) for k in range(parts)] + [nodes[-1]]
    ode = solve(model, x_T, "unipc", grid=fine, trajectory=True, conditions=conditions).states
    assert ode is not None
    run, x, found = Run(model, conditions, len(x_T)), wide(x_T), list[float]()
    memory: Memory = ()

    def step(ratios: Sequence[float], t: float, s: float) -> tuple[Tensor, Memory]:
        chosen = get_sampler("dc-solver", ratio=tuple(ratios), order=order)
        assert isinstance(chosen, Linear)
        plan = chosen._planned(None, chosen.build(path, tuple(u for u, _ in memory), t, s))
        return drive(advance(plan.steps[0], plan, run, x, memory, lambda like, *_: torch.zeros_like(like)), run)[:2]

    with torch.no_grad():
        for k, (t, s) in enumerate(pairwise(nodes)):
            target = ode[(k + 1) * parts]

            def off(ratio: float, t: float = t, s: float = s, target: Tensor = target) -> float:
                return float((step([*found, float(ratio)], t, s)[0] - target).square().mean())

            free = k >= 2 and path.sigma(s) > 0
            found.append(float(minimize_scalar(off, bounds=(low, high), method="bounded").x) if free else 1.0)
            x, memory = step(found, t, s)
    return tuple(found)
