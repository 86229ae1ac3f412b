"""Times by name: decreasing, in [0, 1], the same for all samplers.

A grid of n steps has n + 1 times, from `start` to `stop`. Names that space by λ or κ, which are infinite or zero at
t = 0, space n − 1 steps down to `t_min` and then step to 0; the step to σ = 0 is the exact last row of every sampler.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from scoreflow._core import check
from scoreflow._core.aliases import GRID_ALIASES, plain
from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.known import once

T = TypeVar("T")
GridRule = Callable[..., Tensor]
GRIDS: dict[str, GridRule] = {}
NAMES = {plain(name): meant for name, meant in GRID_ALIASES.items()}
CHAIN_GRIDS = ("trailing", "leading", "ddim-uniform", "linspace")
"""Those whose times are nodes of a DDPM chain."""


class TooFine(ValueError):
    """More steps than a grid has times."""


def grid_rule(name: str) -> Callable[[GridRule], GridRule]:
    """Register a rule `(path, steps, start, stop, **options) → float64 times (steps + 1,)` by name.

    Times are kept with the path: a budget tries several counts, and runs need the same again and again.
    """

    def register(rule: GridRule) -> GridRule:
        if name in GRIDS:
            raise ValueError(f"the grid name {name!r} is taken")

        @functools.wraps(rule)
        def kept(path: GaussianPath, steps: int, start: float, stop: float, *values: Any, **options: Any) -> Tensor:
            key = (rule, steps, start, stop, values, *sorted(options.items()))
            return _kept(path, key, lambda: rule(path, steps, start, stop, *values, **options)).clone()

        GRIDS[name] = kept
        return kept

    return register


def _kept(path: GaussianPath, key: tuple[Any, ...], make: Callable[[], T]) -> T:
    """What `make` gives, kept with the path, unless an option is a list."""
    try:
        hash(key)
    except TypeError:
        return make()
    return once(path, key, make)


def grid(
    path: GaussianPath,
    steps: int,
    name: str | GridRule | None = None,
    *,
    start: float = 1.0,
    stop: float = 0.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    **options: Any,
) -> tuple[float, ...]:
    """The times of a run, decreasing, as floats.

    Args:
        path: the path they are for.
        steps: the number of intervals.
        name: a grid's name, here or elsewhere (an alias), or None: on a path made from betas "trailing", the
            chain itself or a stride of it, elsewhere "uniform"; a run takes its sampler's. Or a rule
            `(path, steps, start, stop) → times`, such as `functools.partial(GRIDS["karras"], rho=3.0)`.
        start, stop: the first and last time, 1 ≥ start > stop ≥ 0.
        sigma_min, sigma_max: instead, the last level before 0 and the first, in κ = σ/α (EDM's sigma); of grids with `t_min`.
        options: of the grid, such as `rho=` of karras, `t_min=` of karras and logsnr, `nodes=` of ays.

    Raises:
        ValueError: an unknown name or option, steps < 1, ends outside [0, 1] or in the wrong order, more steps than the
            chain has, or an end where the grid's variable is infinite.
        TypeError: steps is not a whole number.
    """
    check_path(path)
    if sigma_max is not None:
        if start != 1.0:
            raise ValueError(f"start={start} and sigma_max={sigma_max} exclude each other: give one")
        (start,) = sigmas(path, [sigma_max])
    if sigma_min is not None:
        if "t_min" in options:
            raise ValueError(f"t_min={options['t_min']} and sigma_min={sigma_min} exclude each other: give one")
        (options["t_min"],) = sigmas(path, [sigma_min])
    start, stop = check_ends(start, stop)
    return build(path, check.whole("steps", steps), name, start, stop, **options)


def sigmas(path: GaussianPath, levels: Sequence[float] | np.ndarray | Tensor) -> tuple[float, ...]:
    """The times at which κ = σ/α (EDM's and k-diffusion's sigma) is these; 0 stands at t = 0.

    Raises:
        ValueError: a level below 0, or above that of t = 1. TypeError: no numbers.
    """
    check_path(path)
    given = levels.tolist() if isinstance(levels, Tensor | np.ndarray) else levels
    most, times = path.kappa(1.0), []
    for i, level in enumerate(given):
        kappa = check.number(f"sigma {i}", level, 0)
        if kappa > most * (1 + 1e-9):
            raise ValueError(f"sigma {i} must be at most that of t = 1, {most:g}, got {kappa:g}")
        times.append(0.0 if kappa == 0 else 1.0 if kappa >= most else float(path.time(-math.log(kappa))))
    return tuple(times)


def build(
    path: GaussianPath, steps: int, name: str | GridRule | None, start: float, stop: float, **options: Any
) -> tuple[float, ...]:
    """`grid`, once path, steps and ends are checked."""
    options = {option: check.scalar(value) for option, value in options.items()}
    name = ("uniform" if path.T is None else "trailing") if name is None else name
    if callable(name):
        times = check_times(name(path, steps, start, stop, **options))
        if len(times) != steps + 1 or times[0] > start + 1e-9 or abs(times[-1] - stop) > 1e-9:
            raise ValueError(
                f"a rule must give {steps + 1} times, from start={start} or below to stop={stop}; "
                f"it gave {len(times)}, from {times[0]} to {times[-1]}"
            )
        return (start if times[0] > start - 1e-9 else times[0], *times[1:-1], stop)
    name = named(name)
    if not isinstance(name, str) or name not in GRIDS:
        near = check.suggestion(name, GRIDS, also=GRID_ALIASES)
        raise ValueError(f"no grid is called {name!r}{near}; or give solve the times themselves")
    if options and (unknown := set(options) - set(known := list(inspect.signature(GRIDS[name]).parameters)[4:])):
        raise ValueError(check.no_option(f"grid {name!r}", min(unknown), known))

    def made() -> tuple[float, ...]:
        nodes = GRIDS[name](path, steps, start, stop, **options)
        nodes[0], nodes[-1] = start if name not in CHAIN_GRIDS else nodes[0], stop
        return check_times(nodes)

    return _kept(path, ("times", GRIDS[name], steps, start, stop, *sorted(options.items())), made)


def named(name: Any) -> Any:
    """The registered name that this one means, or what it is."""
    if not isinstance(name, str) or name in GRIDS:
        return name
    return next((own for own in GRIDS if plain(own) == plain(name)), NAMES.get(plain(name), name))


def check_path(path: GaussianPath) -> None:
    """Raise TypeError unless it is a path."""
    if not isinstance(path, GaussianPath):
        raise TypeError(f"path must be a GaussianPath such as VPSDE(), got {type(path).__name__}")


def check_ends(start: float, stop: float) -> tuple[float, float]:
    """Both as floats. Raises ValueError unless 1 ≥ start > stop ≥ 0."""
    first, last = check.time("start", start), check.time("stop", stop)
    if not first > last:
        raise ValueError(f"start must lie above stop, got start={start}, stop={stop}")
    return first, last


def check_times(times: Sequence[float] | np.ndarray | Tensor) -> tuple[float, ...]:
    """Explicit times as floats.

    Raises:
        ValueError: fewer than two, outside [0, 1], or not strictly decreasing. TypeError: no sequence of numbers.
    """
    plain: Any = times
    if isinstance(times, Tensor | np.ndarray):
        try:
            plain = times.tolist()
        except RuntimeError:  # torch before 2.5 has none inside `torch.func`
            plain = [t.item() for t in times]
    if not isinstance(plain, Sequence) or any(isinstance(t, Sequence) and not isinstance(t, str) for t in plain):
        raise TypeError(f"grid must be a name or a one-dimensional sequence of decreasing times, got {times!r}")
    values = tuple(
        t if type(t) is float and 0 <= t <= 1 else check.time(f"time {i} of the grid", t) for i, t in enumerate(plain)
    )
    if len(values) < 2:
        raise ValueError(f"a grid needs at least two times, got {len(values)}")
    for i, (a, b) in enumerate(pairwise(values), start=1):
        if not b < a:
            raise TooFine(f"the times of a grid must decrease, got {a} then {b} at place {i}")
    return values


def default_t_min(path: GaussianPath) -> float:
    """The last time before 0 where a grid or a solver cannot reach 0: the chain's first node, else 1e-3."""
    return 1 / path.T if path.T else 1e-3


def inner_ends(path: GaussianPath) -> tuple[float, float]:
    """What networks are trained on: from `default_t_min` to 1, or just below it where α(1) = 0."""
    return default_t_min(path), 1.0 if path.alpha(1.0) > 0 else 1 - 1e-3


@grid_rule("uniform")
def uniform(path: GaussianPath, steps: int, start: float, stop: float) -> Tensor:
    """Equal steps in t."""
    return _even(start, stop, steps)


@grid_rule("quadratic")
def quadratic(path: GaussianPath, steps: int, start: float, stop: float) -> Tensor:
    """Equal steps in √t (Song et al., 2021, DDIM, Appendix D.2)."""
    return _even(math.sqrt(start), math.sqrt(stop), steps) ** 2


@grid_rule("cosine")
def cosine(path: GaussianPath, steps: int, start: float, stop: float) -> Tensor:
    """Equal steps in the angle θ = arctan κ, by which DDIM turns a state; the nodes of a cosine schedule."""
    angles = _even(math.atan(path.kappa(start)), math.atan(path.kappa(stop)), steps)
    return path.time(-torch.log(torch.tan(angles)))


@grid_rule("logsnr")
def logsnr(path: GaussianPath, steps: int, start: float, stop: float, t_min: float | None = None) -> Tensor:
    """Equal steps in λ (Lu et al., 2022, DPM-Solver, Section 3.4)."""
    return _through(path, steps, _begins("logsnr", path, start), stop, t_min, path.lam, path.time)


@grid_rule("karras")
def karras(path: GaussianPath, steps: int, start: float, stop: float, t_min: float | None = None, rho: float = 7.0) -> Tensor:
    """Equal steps in κ^{1/ρ} (Karras et al., 2022, Eq. 5)."""
    check.number("rho", rho, above=0)
    return _through(
        path,
        steps,
        _begins("karras", path, start),
        stop,
        t_min,
        lambda t: path.kappa(t) ** (1 / rho),
        lambda k: path.time(-rho * k.log()),
    )


@grid_rule("polyexponential")
def polyexponential(
    path: GaussianPath, steps: int, start: float, stop: float, t_min: float | None = None, rho: float = 1.0
) -> Tensor:
    """λ rises by the share 1 − (1 − i/n)^ρ of its way; ρ = 1 is logsnr (k-diffusion's polyexponential)."""
    check.number("rho", rho, above=0)
    _begins("polyexponential", path, start)
    last = stop if path.sigma(stop) > 0 else _low(path, start, t_min)
    end, whole = path.lam(last), path.lam(last) - path.lam(start)

    def share(t: float) -> float:
        return math.pow(max(0.0, (end - path.lam(t)) / whole), 1 / rho)

    return _through(path, steps, start, stop, t_min, share, lambda r: path.time(end - whole * r**rho))


@grid_rule("rectified")
def rectified(
    path: GaussianPath,
    steps: int,
    start: float,
    stop: float,
    power: float = 1.0,
    shift: float = 1.0,
    t_min: float | None = None,
) -> Tensor:
    """Equal steps in κ^p/(c^p + κ^p), p the power and c the shift: finite at both ends, so that `t_min` may be left out.

    With p = c = 1 it is σ/(α + σ): the nodes that are even in rectified flow's time; c is then the shift of its nodes. As
    p falls they near those of logsnr.
    """
    power, shift = check.number("power", power, above=0), check.number("shift", shift, above=0)
    centre, share = -math.log(shift), _share(path, power, shift)

    def inverse(u: Tensor) -> Tensor:
        return path.time(centre + torch.log((1 - u) / u) / power)

    if t_min is None:
        return inverse(_even(share(start), share(stop), steps))
    return _through(path, steps, start, stop, t_min, share, inverse)


def _share(path: GaussianPath, power: float, shift: float) -> Callable[[float], float]:
    """κ^p/(c^p + κ^p) of t."""
    return lambda t: _logistic(power * (-math.log(shift) - path.lam(t)))


@grid_rule("ode")
def ode(
    path: GaussianPath, steps: int, start: float, stop: float, power: float = 0.6, shift: float = 2.0, exact: bool = False
) -> Tensor:
    """`rectified`, no lower than the times that networks are trained on: the default of ODE samplers of order 2 and above.

    The last node is free, so that the steps shrink toward σ = 0, until it falls below `default_t_min`; then it stays there. An
    `exact` score is right at all times, and its last node is always free. Power and shift were measured (docs/auto.md).
    """
    check.flag("exact", exact)
    low = min(default_t_min(path), start / 2)
    share = _share(path, check.number("power", power, above=0), check.number("shift", shift, above=0))
    free = exact or path.sigma(stop) > 0 or float(_even(share(start), share(stop), steps)[-2]) >= share(low)
    times = rectified(path, steps, start, stop, power, shift, None if free else low)
    times[0] = start  # to the last digit, where a run calls this as a rule
    return times


def on_chain(times: Sequence[float], T: int) -> tuple[float, ...]:
    """The nearest nodes i/T of a chain, moved apart where two fall together.

    Raises:
        ValueError: more steps than there are nodes.
    """
    if len(times) > (times[0] - times[-1]) * T + 1:
        raise TooFine(f"steps={len(times) - 1} is more than the chain of {T} steps has between its ends")
    place = torch.arange(len(times))
    ahead = torch.cummin((torch.tensor(times, dtype=torch.float64) * T).round() + place, 0).values  # each below the one before
    low = round(times[-1] * T) + (len(times) - 1)
    return tuple(((ahead.clamp(min=low) - place) / T).tolist())


def _logistic(z: float) -> float:
    """1/(1 + e^{−z}), at infinity too."""
    return 1 / (1 + math.exp(-z)) if z > 0 else math.exp(z) / (1 + math.exp(z))


@grid_rule("beta")
def beta(path: GaussianPath, steps: int, start: float, stop: float, a: float = 0.6, b: float = 0.6) -> Tensor:
    """Quantiles of a Beta(a, b) law of t, at equal steps: dense at both ends for a, b < 1 (Lee et al., 2024)."""
    from scipy.special import betainc, betaincinv

    for name, value in (("a", a), ("b", b)):
        check.number(name, value, above=0)
    return torch.from_numpy(betaincinv(a, b, _even(betainc(a, b, start), betainc(a, b, stop), steps).numpy()))


AYS = {
    "sd1": (14.6146, 6.4746, 3.8637, 2.6946, 1.8842, 1.3944, 0.9643, 0.6524, 0.3977, 0.1515, 0.0292),
    "sdxl": (14.6146, 6.3184, 3.7682, 2.1811, 1.3405, 0.8621, 0.5551, 0.3799, 0.2332, 0.1114, 0.0292),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}
"""Nodes in κ that were optimised for three networks, to four digits (Sabour et al., 2024)."""


@grid_rule("ays")
def ays(path: GaussianPath, steps: int, start: float, stop: float, nodes: str | Sequence[float] = "sd1") -> Tensor:
    """log κ interpolated through given nodes of κ, a name of `AYS` or decreasing numbers; the ends are start and stop.

    Align Your Steps: Optimizing Sampling Schedules in Diffusion Models (Sabour et al., 2024).
    """
    if isinstance(nodes, str):
        check.one_of("nodes", nodes, AYS)
    given = [check.number("nodes", k, above=0) for k in (AYS[nodes] if isinstance(nodes, str) else check.listed(nodes))]
    if len(given) < 2 or any(not b < a for a, b in pairwise(given)):
        raise ValueError(f"nodes must be at least two decreasing values of kappa, got {nodes!r}")
    inner = np.interp(_even(0.0, len(given) - 1.0, steps).numpy()[1:-1], np.arange(len(given)), np.log(given))
    if steps > 1 and not path.lam(start) < -inner[0] <= -inner[-1] < path.lam(stop):
        raise ValueError(
            f"the nodes between start={start} and stop={stop} must lie below kappa={path.kappa(start):.4g} and above "
            f"{path.kappa(stop):.4g}, got {math.exp(inner[0]):.4g} … {math.exp(inner[-1]):.4g}"
        )
    return torch.cat([torch.tensor([start]), path.time(-torch.from_numpy(inner)), torch.tensor([stop])])


def _even(a: float, b: float, steps: int) -> Tensor:
    """steps + 1 evenly spaced values, both ends exact."""
    i = torch.arange(steps + 1, dtype=torch.float64)
    return (a * (steps - i) + b * i) / steps


def _through(
    path: GaussianPath,
    steps: int,
    start: float,
    stop: float,
    t_min: float | None,
    variable: Callable[[float], float],
    inverse: Callable[[Tensor], Tensor],
) -> Tensor:
    """Equal steps in a variable that is infinite at t = 0: down to `t_min`, then 0."""
    if path.sigma(stop) > 0:
        return inverse(_even(variable(start), variable(stop), steps))
    low = _low(path, start, t_min)
    if steps == 1:
        return torch.tensor([start, stop], dtype=torch.float64)
    return torch.cat([inverse(_even(variable(start), variable(low), steps - 1)), torch.zeros(1, dtype=torch.float64)])


def _low(path: GaussianPath, start: float, t_min: float | None) -> float:
    """The last time before 0, below the start."""
    low = default_t_min(path) if t_min is None else check.number("t_min", t_min)
    if not 0 < low < start:
        raise ValueError(f"t_min must lie between 0 and start={start}, got {low}")
    return low


def _begins(name: str, path: GaussianPath, start: float) -> float:
    """The start, where λ must be finite."""
    if path.alpha(start) == 0:
        raise ValueError(f"grid {name!r} needs alpha > 0 at its start; {path} has alpha=0 at t={start}: give a start below it")
    return start
