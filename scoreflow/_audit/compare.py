"""Which of the registered samplers a run is, and where it leaves the nearest."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch

from scoreflow._audit.stranger import Stranger
from scoreflow._core.gaussian import GaussianPath
from scoreflow._run.solve import plan, solve
from scoreflow._samplers.plan import Plan
from scoreflow._samplers.step import SAMPLERS, VARIANTS, Linear, get_sampler
from scoreflow._score.model import ScoreModel
from scoreflow._uses.read_back import Reading, read_back

SAME = 1e-6
"""Below this relative difference two coefficients are one; float32 labels leave 1e-7."""


class Near(NamedTuple):
    """A registered sampler beside what was read.

    Attributes:
        name: of the sampler. apart: the largest relative difference of a state, of its weights and of the variance of its
            noise. step: the first call whose state differs, or the number of calls for the end; None if none does.
        coupling: the largest relative difference of the covariance of the noise of two states, where `apart` is none: draws of
            stages that go together otherwise.
    """

    name: str
    apart: float
    step: int | None
    coupling: float


def nearest(found: Reading, stranger: Stranger, steps: int, most: int = 8) -> list[Near]:
    """The registered samplers nearest to a run, from the nearest on.

    They ask at the same times, on a registered grid or on the times that were told, without stages; if none does, they ask as
    often.
    """
    told = told_times(found, stranger)
    if not all(math.isfinite(t) and 0 <= t <= 1 + 1e-6 for t in told):
        return []
    made = _readings(tuple(told), asked_times(found, stranger), steps, stranger.path, stranger.prediction, stranger.start)
    if stranger.own is not None and repr(stranger.own) not in made:
        laid = plan(stranger.own, stranger.path, steps, start=stranger.start)
        if laid.nfe == found.nfe:
            made = {**made, repr(stranger.own): of_plan(laid, stranger.path, stranger.prediction)}
    near = [beside(name, found, reading) for name, reading in made.items()]
    return sorted(near, key=lambda one: (-_agreed(one), 0.0 if one.step is None else one.apart))[:most]


def _agreed(one: Near) -> int:
    return 10**9 if one.step is None else one.step


def beside(name: str, found: Reading, reading: Reading) -> Near:
    """How far two readings of as many calls are apart, state by state."""
    ours, theirs = (torch.cat([one.states, one.end[None]])[:, : 1 + one.nfe] for one in (found, reading))
    one, other = found.covariance(), reading.covariance()
    noise = [cov.diagonal().clamp(min=0).sqrt() for cov in (one, other)]
    size = theirs.abs().amax(1).maximum(noise[1]).clamp(min=1e-300)
    off = (ours - theirs).abs().amax(1).maximum((noise[0] - noise[1]).abs()).maximum(found.offsets.abs()) / size
    differs = (off > SAME).nonzero()
    both = (one - other).abs() / (size[:, None] * size)
    return Near(name, float(off.max()), int(differs[0]) if len(differs) else None, float(both.max()))


def told_times(found: Reading, stranger: Stranger) -> list[float]:
    """The times that the labels tell, call by call."""
    return [stranger.time_of(label) for label in found.labels]


def asked_times(found: Reading, stranger: Stranger) -> tuple[float, ...] | None:
    """The falling times of a grid: those that were told, and that at which the run ends; None where they do not fall."""
    told = told_times(found, stranger)
    if not told or not all(math.isfinite(t) and 0 <= t <= 1 + 1e-9 for t in told):
        return None
    levels = found.levels(stranger.path, stranger.prediction, told, told[0])
    alpha, sigma = levels[-1].tolist()
    last = 0.0 if sigma < 1e-5 * abs(alpha) else stranger.path.time(-math.log(sigma / alpha)) if alpha > 0 else math.nan
    falling = [told[0]]
    for t in told[1:]:
        if t < min(falling) - 1e-9:
            falling.append(t)
    return (*falling, last) if last < falling[-1] - 1e-9 else None


@functools.lru_cache(maxsize=8)
def _readings(
    told: tuple[float, ...], times: tuple[float, ...] | None, steps: int, path: GaussianPath, prediction: str, start: float
) -> dict[str, Reading]:
    """Of all samplers that are made of rows and ask as often, by name: at the same times, if any does."""
    grids: list[dict[str, Any]] = [
        {"steps": steps, "start": start, "grid": grid} for grid in (None, "uniform", "trailing", "karras")
    ]
    for stages in (1, 2, 3):
        grids += [{"grid": [*times[:-1:stages], times[-1]]}] if times is not None else []
    same, others = dict[str, Plan](), dict[str, Plan]()
    for name in (*SAMPLERS, *VARIANTS):
        sampler = get_sampler(name)
        if not isinstance(sampler, Linear):
            continue
        for chosen in grids:
            try:
                laid = plan(sampler, path, **chosen)
            except (ValueError, TypeError):
                continue
            if laid.analytic is None and laid.nfe == len(told):
                alike = all(abs(a - b) <= 1e-6 for a, b in zip(laid.evaluation_times, told, strict=True))
                (same if alike else others).setdefault(name, laid)
    return {name: of_plan(laid, path, prediction) for name, laid in (same or others).items()}


def of_plan(laid: Plan, path: GaussianPath, prediction: str) -> Reading:
    """A plan, read as a stranger is."""
    return read_back(
        lambda net, x: solve(ScoreModel(lambda x, t: net(x, t), path, prediction), x, laid, seed=0).x  # type: ignore[arg-type]
    )
