"""Which of the registered samplers a run is, and where it leaves the nearest."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args, get_origin

from scoreflow._audit.stranger import Stranger
from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.path import VPSDE
from scoreflow._run.solve import plan
from scoreflow._samplers.plan import Plan
from scoreflow._samplers.step import SAMPLERS, VARIANTS, Linear, get_sampler
from scoreflow._uses.read_back import Reading, read_plan

SAME = 1e-6
"""Below this relative difference two coefficients are one; float32 labels leave 1e-7."""
ORDERS = (1, 2, 3, 4)
"""What is tried of options that are whole numbers."""
SLIPS = ("dpm-solver++-3m-published",)
"""Names of published slips, which are here for who reproduces a figure: nobody's sampler is right by being one of them."""
GRIDS = (None, "uniform", "trailing", "karras")


class Near(NamedTuple):
    """A registered sampler beside what was read.

    Attributes:
        name: of the sampler, with its options.
        apart: the largest relative difference of a state, of its weights and of the variance of its noise.
        step: the first call whose state differs, or the number of calls for the end; None if none does.
        coupling: the largest relative difference of the covariance of the noise of two states, where `apart` is none: draws of
            stages that go together otherwise.
    """

    name: str
    apart: float
    step: int | None
    coupling: float


class Times(NamedTuple):
    """When a run asks.

    Attributes:
        told: the times that the labels tell, call by call. end: where the last state stands; NaN if at no level of the path.
        steps: that were asked for. start: of the first state. path: of the states.
    """

    told: tuple[float, ...]
    end: float
    steps: int
    start: float
    path: GaussianPath

    @property
    def known(self) -> bool:
        """Whether all of them are times of the path."""
        return all(math.isfinite(t) and 0 <= t <= 1 + 1e-6 for t in (*self.told, self.end))

    def _asks(self, calls: int, steps: int) -> bool:
        """Whether so many steps of so many calls may be the run's: first and last ones may take fewer or more. 0: any may."""
        return not calls or abs(calls * steps - len(self.told)) <= 2 * calls + 10

    def grids(self, calls: int) -> Iterator[dict[str, Any]]:
        """What a sampler of so many calls a step is asked for to run at these times: the times, or a grid by name."""
        falling = list(self.told[:1])
        for t in self.told[1:]:
            if t < falling[-1] - 1e-9:
                falling.append(t)
        grids = ([*falling[::every], self.end] for every in (1, 2, 3) if self.end < falling[-1] - 1e-9)
        yield from ({"grid": grid} for grid in grids if self._asks(calls, len(grid) - 1))
        if self._asks(calls, self.steps):
            yield from ({"steps": self.steps, "start": self.start, "grid": grid} for grid in GRIDS)


def times_of(found: Reading, stranger: Stranger, steps: int) -> Times:
    """When a run that was read back asks."""
    told, end = tuple(stranger.time_of(label) for label in found.labels), math.nan
    if told and all(math.isfinite(t) and 0 <= t <= 1 + 1e-6 for t in told):
        path = stranger.path
        alpha, sigma = found.levels(path, stranger.prediction, told, told[0])[-1].tolist()
        # Where the path begins, whose level may not be 0; where the last state has more noise than the network was told, too.
        begins = sigma < (1e-5 + path.kappa(0.0) * (1 + 1e-6)) * abs(alpha)
        end = 0.0 if begins else path.time(math.log(alpha / sigma)) if alpha > 0 else math.nan
        end = 0.0 if end >= min(told) else end
    return Times(told, end, steps, stranger.start, stranger.path)


def first_state(found: Reading) -> float:
    """How many times x_T the first state is; 1 where it has more in it."""
    first = found.states[0]
    return float(first[0]) if first[0] > 0 and not first[1:].any() else 1.0


def from_first(found: Reading) -> Reading:
    """The same run from its first state on, whatever that is times x_T."""
    every = found.every
    every[:, 0] /= first_state(found)
    return dataclasses.replace(found, states=every[:-1], end=every[-1])


def nearest(found: Reading, stranger: Stranger, times: Times) -> list[tuple[Near, Plan]]:
    """The registered samplers nearest to a run, from the nearest on, each as it would run at the same times.

    All are tried with every choice of their options that are names or orders; numbers, such as η, are fitted. They ask at the
    same times, or, if none does, as often.
    """
    if not times.known:
        return []
    plans = dict(_plans(times))
    if stranger.own is not None and (laid := laid_out(stranger.own, times)) is not None:
        registered = stranger.name in VARIANTS and get_sampler(stranger.name) == stranger.own
        plans.setdefault(stranger.name if registered else repr(stranger.own), laid)

    def placed() -> list[tuple[Near, Plan]]:
        pairs = [(beside(name, found, read_plan(p, times.path, stranger.prediction)), p) for name, p in plans.items()]
        return sorted(pairs, key=lambda pair: (-_agreed(pair[0]), _digits(pair[0])))

    near = placed()
    if near and near[0][0].step in (1, 2) and _alike(near[0][1], times):  # a number acts from the first step on
        for name in [name for name in plans if name in SAMPLERS]:
            plans |= _fitted(name, found, stranger, times)
        near = placed()
    return near


def _agreed(one: Near) -> int:
    return 10**9 if one.step is None else one.step


def _digits(one: Near) -> float:
    """How far apart, in three digits: of several names for the same rows the first stays first."""
    return 0.0 if one.step is None else float(f"{one.apart:.3g}")


def beside(name: str, found: Reading, reading: Reading) -> Near:
    """How far two readings of as many calls are apart, state by state."""
    ours, theirs = (one.every[:, : 1 + one.nfe] for one in (found, reading))
    one, other = found.covariance(), reading.covariance()
    noise = [cov.diagonal().clamp(min=0).sqrt() for cov in (one, other)]
    size = theirs.abs().amax(1).maximum(noise[1]).clamp(min=1e-300)
    off = (ours - theirs).abs().amax(1).maximum((noise[0] - noise[1]).abs()).maximum(found.offsets.abs()) / size
    differs = (~(off <= SAME)).nonzero()
    both = (one - other).abs() / (size[:, None] * size)
    return Near(name, float(off.max()), int(differs[0]) if len(differs) else None, float(both.max()))


@functools.lru_cache(maxsize=8)
def _plans(times: Times) -> dict[str, Plan]:
    """Of all samplers that are made of rows and ask as often, by name: at the same times, if any does."""
    same, others = dict[str, Plan](), dict[str, Plan]()
    for name, sampler in candidates().items():
        if (laid := laid_out(sampler, times)) is not None:
            (same if _alike(laid, times) else others).setdefault(name, laid)
    return same or others


@functools.cache
def candidates() -> dict[str, Linear]:
    """All samplers that are made of rows, by name; then with every choice of their options that are names or orders."""
    bases = [(name, name, dict[str, Any]()) for name in SAMPLERS]
    bases += [(name, base, chosen) for name, (base, chosen) in VARIANTS.items() if name not in SLIPS]
    found, met = dict[str, Linear](), set[tuple[Any, ...]]()
    tried = list(bases)
    for _, base, chosen in bases:
        free = {option: values for option, values in _choices(base).items() if option not in chosen}
        for values in itertools.product(*free.values()):
            more = {**chosen, **dict(zip(free, values, strict=True))}
            tried.append((typed(base, more), base, more))
    for name, base, chosen in tried:
        try:
            sampler = get_sampler(base, **chosen)
        except (ValueError, TypeError):
            continue
        identity = (sampler.name, sampler.options)
        if isinstance(sampler, Linear) and (identity not in met or name in VARIANTS):
            met.add(identity)
            found[name] = sampler
    return found


def _choices(name: str) -> dict[str, tuple[Any, ...]]:
    """The values to be tried of each option that is a name or an order."""
    out: dict[str, tuple[Any, ...]] = {}
    for option, parameter in SAMPLERS[name].options.items():
        if get_origin(parameter.annotation) is Literal:
            out[option] = get_args(parameter.annotation)
        elif option in ("order", "degree"):
            out[option] = ORDERS
    return out


def typed(name: str, options: dict[str, Any]) -> str:
    """A sampler as the command line takes it."""
    words = (f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}" for key, value in options.items())
    return f"{name}({', '.join(words)})" if options else name


def laid_out(sampler: Linear, times: Times, calls: int | None = None) -> Plan | None:
    """A sampler's plan at these times, or at as many; None if it has none. `calls`: of the network in a step, if known."""
    some = None
    for chosen in times.grids(_calls(sampler) if calls is None else calls):
        try:
            laid = plan(sampler, times.path, **chosen)
        except (ValueError, TypeError):
            continue
        if laid.reuse and laid.nfe == len(times.told) + 1:
            laid = _predicted_last(laid)
        if laid.analytic is None and laid.nfe == len(times.told):
            if _alike(laid, times):
                return laid
            some = some or laid
    return some


def _predicted_last(laid: Plan) -> Plan:
    """A predictor-corrector that does not correct its last state, as UniPC's own code."""
    last = laid.steps[-1]
    return dataclasses.replace(laid, steps=(*laid.steps[:-1], last._replace(stages=last.stages[:1])))


@functools.lru_cache(maxsize=512)
def _calls(sampler: Linear) -> int:
    """Of the network in a step; 0 of one that takes steps of its own between those of the grid."""
    few, more = (sampler.plan(VPSDE(), tuple(1 - k / n for k in range(n + 1))) for n in (5, 6))
    return max(1, more.nfe - few.nfe) if len(more.steps) == 6 else 0


def _alike(laid: Plan, times: Times) -> bool:
    return all(abs(a - b) <= 1e-6 for a, b in zip(laid.evaluation_times, times.told, strict=True))


def _fitted(name: str, found: Reading, stranger: Stranger, times: Times) -> dict[str, Plan]:
    """The sampler with its first option that is a number at the value that lies nearest, if it has one."""
    from scipy.optimize import minimize_scalar

    numbers = {option: p.default for option, p in SAMPLERS[name].options.items() if isinstance(p.default, float)}
    if not numbers:
        return {}
    option, default = next(iter(numbers.items()))
    as_registered = get_sampler(name)
    assert isinstance(as_registered, Linear)
    calls = _calls(as_registered)

    def made(value: float) -> Plan | None:
        try:
            sampler = get_sampler(name, **{option: float(value)})
            laid = laid_out(sampler, times, calls) if isinstance(sampler, Linear) else None
        except ValueError:  # beyond what the option may be
            return None
        return laid if laid is not None and _alike(laid, times) else None

    def off(value: float) -> float:
        if (laid := made(value)) is None:
            return 1e9
        reading = read_plan(laid, times.path, stranger.prediction)
        weights = found.every[:, : 1 + found.nfe] - reading.every[:, : 1 + found.nfe]
        return float((found.covariance() - reading.covariance()).square().sum() + weights.square().sum())

    ends = (0.0, max(2.0, 4 * default))
    best = float(minimize_scalar(off, bounds=ends, method="bounded", options={"xatol": 1e-10}).x)
    laid = made(best)
    return {} if laid is None else {typed(name, {option: best}): laid}
