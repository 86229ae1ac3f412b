"""`audit`: what a sampler is, to how many digits, where it slips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scoreflow._audit.checks import COUNTS, Check, odd, of_reading, of_runs
from scoreflow._audit.compare import candidates, from_first, nearest, times_of
from scoreflow._audit.consequences import (
    VARIANCE,
    Reader,
    distances,
    laws,
    limit,
    output_variance,
    plan_of,
    slope,
)  # fmt: skip
from scoreflow._audit.found import found
from scoreflow._audit.mend import Mend, mends
from scoreflow._audit.result import Audit
from scoreflow._audit.stranger import Stranger
from scoreflow._core.check import one_of, whole
from scoreflow._core.gaussian import GaussianPath, Prediction
from scoreflow._run.solve import plan
from scoreflow._samplers.plan import Plan
from scoreflow._samplers.step import Linear, get_sampler
from scoreflow._uses.read_back import read_back, read_plan

CHECKS = (
    "affine", "no-constant", "first-state", "draws-used", "steps", "counts", "labels", "labels-fall", "calls-differ", "levels",
    "signal", "ends-at-data", "no-last-noise", "weights", "options", "repeats", "random-state", "one-object", "float32",
    "dtype", "batch", "batch-order", "finite", "law", "order",
)  # fmt: skip
"""All checks by name."""
DESIGNED = ("levels", "signal", "labels-fall", "calls-differ", "steps", "counts", "law")
"""Checks that a registered sampler may fail by design."""
MOST = 1000
"""Steps up to which runs are looked at."""
LISTED = 8
"""Near samplers that are kept, where fewer are the same."""


def audit(
    sampler: Any,
    steps: int = 20,
    *,
    path: GaussianPath | None = None,
    prediction: Prediction | None = None,
    time: Any = None,
    start: float = 1.0,
    waive: Sequence[str] = (),
    most: int = MOST,
    **options: Any,
) -> Audit:
    """Read a sampler back as coefficients, and hold it to the theory: which one is it, and where does it slip?

    A sampler that is affine in the first state, the network's outputs and its draws is known from a run in which these are unit
    vectors. Nothing is assumed of its code; draws of torch and Brownian paths of torchsde are handed to it.

    Args:
        sampler: any function `run(net, x_T, n)`, which calls `net(x, label)`; a name, a `Sampler` or a `Plan` of ours; or what
            is recognised by what it takes: schedulers of diffusers and functions of their step, samplers of azula, DPM-Solver,
            UniPC, predictors of score_sde, EDM's and k-diffusion's functions.
        steps: at which it is read.
        path, prediction, time, start: of a function, as of `ScoreModel`: by default `VPSDE()`, "eps", "unit" and 1. A scheduler
            says them by its configuration, or they are given; the others say them by their options.
        waive: checks that are left out, by name.
        most: steps up to which laws and errors are taken and runs are to be finite; fewer take less time.
        options: of the sampler: of its class, of the call, and of what it stands on, as `schedule=`, `noise_schedule=`, `sde=`.

    Raises:
        ValueError: it asks the network otherwise from run to run, changes the shape of states, is no sampler of a path, or a
            check that does not exist. TypeError: it is no sampler, or has no such option.
    """
    for name in waive:
        one_of("waive", name, CHECKS)
    whole("steps", steps)
    whole("most", most)
    stranger = found(sampler, path, prediction, time, start, **options)
    reading, reader = read_back(stranger.build(steps)), Reader(stranger)
    times = times_of(reading, stranger, steps)
    begun = from_first(reading) if reading.breaks is None else reading
    near = nearest(begun, stranger, times) if reading.breaks is None else []
    known = near[0][0].name if near and near[0][0].step is None else None
    mended = () if known else mends(begun, times, near, stranger.prediction)
    if mended:
        near.sort(key=lambda pair: pair[0].name != mended[0].right)
    alike = sum(one.step is None for one, _ in near)
    names, right = tuple(one for one, _ in near[: max(alike, LISTED)]), near[0][1] if near else None
    checks = [*of_reading(reading, stranger, times), *of_runs(reading, stranger, steps, most)]
    checks += _options(options, right if known else None)
    law = laws(reader, most, steps) if reading.breaks is None else {}
    checks += [_tends(law)] if law else []
    sampler = None if right is None else get_sampler(right.sampler, **dict(right.options))
    checks += _weights(mended) if near else []
    far, right_law = dict[int, tuple[float, float]](), None
    if isinstance(sampler, Linear) and right is not None:
        far = distances(reader, sampler, most, steps)
        other = read_plan(right, stranger.path, stranger.prediction)
        right_law = output_variance(other, right.evaluation_times, stranger) / VARIANCE
    checks += _orders(far, None if known else names[0].name if names else None)
    checks = [_by_design(check, known, reading.nfe, stranger, steps, most) if known else check for check in checks]
    kept = tuple(check for check in checks if check.name not in waive)
    laid = plan_of(reading, times, stranger)
    return Audit(
        stranger.name, steps, stranger.path, stranger.prediction, stranger.start, reading, times.told, laid, names, right,
        mended, kept, law, right_law, far,
    )  # fmt: skip


def _weights(wrong: Sequence[Mend]) -> list[Check]:
    """Whether a weight is off throughout."""
    lasting = [one for one in wrong if one.lasting]
    says = str(lasting[0]) if lasting else "none is off at many calls"
    return [Check("weights", not lasting, says, lasting[0].calls[0] if lasting else None)]


def _options(given: dict[str, Any], right: Plan | None) -> list[Check]:
    """Whether options that a registered sampler has by the same name do what they do there."""
    own = {} if right is None else dict(right.options)
    pairs = {name: (value, own[name]) for name, value in given.items() if name in own}
    wrong = [
        f"{name}={asked:g} acts as {name}={is_:.6g} of {right.sampler}"
        for name, (asked, is_) in pairs.items()
        if right is not None and all(isinstance(v, int | float) for v in (asked, is_)) and abs(asked - is_) > 1e-5
    ]
    return [Check("options", not wrong, "; ".join(wrong) or f"{', '.join(pairs)} as registered")] if pairs else []


def _tends(law: dict[int, float]) -> Check:
    """Whether the variance tends to the data's: it does where it is near at the most steps, or its limit is."""
    (n, before), (most, last) = list(law.items())[-2:] if len(law) > 1 else [*law.items()] * 2
    to = limit(law)
    near = abs(last - 1) < 0.01 or (to is not None and abs(to - 1) < 0.03)
    right = near or (most > n and abs(last - 1) < 0.6 * abs(before - 1))
    if right:
        return Check("law", True, f"the variance tends to the data's, {last:.4g} of it at {most} steps")
    where = "does not settle" if to is None else f"tends to {to:.3g} of the data's"
    return Check("law", False, f"the variance {where}, {last:.4g} at {most} steps")


def _orders(far: dict[int, tuple[float, float]], right: str | None) -> list[Check]:
    """Whether a run that is no registered one has the order of the nearest on the same times."""
    ours, other = (slope({n: pair[i] for n, pair in far.items()}) for i in (0, 1))
    if ours is None:
        return []
    if right is None or other is None:
        return [Check("order", True, f"{ours:.2f} on a mixture")]
    return [Check("order", ours > other - 0.4, f"{ours:.2f} on a mixture, {other:.2f} of {right} on the same times")]


def _by_design(check: Check, known: str, calls: int, stranger: Stranger, steps: int, most: int) -> Check:
    """Of a registered sampler, what it does by design: rows that miss the levels by their order, levels that rise by noise."""
    sampler = candidates().get(known)
    if (
        check.holds
        or sampler is None
        or check.name not in ("levels", "signal", "labels-fall", "calls-differ", "steps", "counts", "law")
    ):
        return check
    if check.name in ("levels", "signal") and sampler.marginal:
        return check
    if check.name == "steps" and plan(sampler, stranger.path, steps, start=stranger.start).nfe != calls:
        return check
    if check.name == "counts":
        counts = [n for n in COUNTS if n <= most]
        if not odd({n: plan(sampler, stranger.path, n, start=stranger.start).nfe for n in counts}):
            return check
    return check._replace(holds=True, says=f"{check.says}, as in {known}", step=None)
