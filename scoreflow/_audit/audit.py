"""`audit`: what a sampler is, to how many digits, and where it slips."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from scoreflow._audit.checks import Check, of_reading, of_runs
from scoreflow._audit.compare import Near, nearest, told_times
from scoreflow._audit.found import found
from scoreflow._audit.stranger import Stranger
from scoreflow._core.check import one_of, whole
from scoreflow._core.gaussian import GaussianPath, Prediction
from scoreflow._run.solve import plan
from scoreflow._samplers.step import SAMPLERS, VARIANTS, Linear, get_sampler
from scoreflow._uses.read_back import Reading, read_back

CHECKS = (
    "affine", "no-constant", "draws-used", "steps", "labels", "labels-fall", "levels", "signal", "ends-at-data",
    "no-last-noise", "repeats", "one-object", "float32", "batch", "finite", "law",
)  # fmt: skip
"""All checks by name."""
LAWS = (10, 20, 40, 80, 160)
"""Steps at which the law of the outputs is taken."""
VARIANCE = 0.5
"""Of the Gaussian data."""
NAMED = 3


@dataclass(frozen=True)
class Audit:
    """What was found of a sampler.

    Attributes:
        name: of the sampler. steps: it was read at. reading: its coefficients.
        times: that the network was told, call by call.
        nearest: registered samplers on the same times, from the nearest on.
        checks: what holds and what does not; those that were waived are left out.
        law: by steps, the variance of its outputs over that of the data, on N(0, v) data with the exact network; empty where it
            is not affine.
    """

    name: str
    steps: int
    reading: Reading = field(repr=False)
    times: tuple[float, ...] = field(repr=False)
    nearest: tuple[Near, ...]
    checks: tuple[Check, ...]
    law: dict[int, float] = field(repr=False)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that do not hold."""
        return tuple(check for check in self.checks if not check.holds)

    @property
    def passed(self) -> bool:
        """Whether all checks hold."""
        return not self.failures

    @property
    def same(self) -> tuple[str, ...]:
        """The registered samplers that it is, coefficient by coefficient."""
        return tuple(one.name for one in self.nearest if one.step is None)

    def __str__(self) -> str:
        lines = [f"{self.name}, {self.steps} steps: {self.reading.nfe} calls of the network, {self.reading.draws} draws"]
        if self.same:
            off = max(one.apart for one in self.nearest if one.step is None)
            more = f", and {len(self.same) - NAMED} more names" if len(self.same) > NAMED else ""
            lines.append(f"is {', '.join(self.same[:NAMED])}{more}: all coefficients to {off:.1e}")
        elif self.nearest:
            near = self.nearest[0]
            where = "the end" if near.step == self.reading.nfe else f"call {near.step}"
            lines.append(f"nearest is {near.name}, from which it differs at {where} first, by {near.apart:.2g} at most")
        else:
            lines.append("no registered sampler asks at its times")
        lines += [str(check) for check in self.checks]
        if self.law:
            lines.append("variance over the data's: " + ", ".join(f"{ratio:.4g} at {n}" for n, ratio in self.law.items()))
        return "\n".join(lines)

    def to_json(self) -> str:
        """All of it but the coefficients, as JSON."""
        return json.dumps(
            {
                "name": self.name, "steps": self.steps, "nfe": self.reading.nfe, "draws": self.reading.draws,
                "passed": self.passed, "times": list(self.times), "nearest": [one._asdict() for one in self.nearest],
                "checks": [check._asdict() for check in self.checks], "law": self.law,
            }
        )  # fmt: skip


def audit(
    sampler: Any,
    steps: int = 20,
    *,
    path: GaussianPath | None = None,
    prediction: Prediction | None = None,
    time: Any = None,
    start: float = 1.0,
    waive: Sequence[str] = (),
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
        options: of the sampler: of its class, of the call, and of what it stands on, as `schedule=`, `noise_schedule=`, `sde=`.

    Raises:
        ValueError: it asks the network otherwise from run to run, changes the shape of states, is no sampler of a path, or a
            check that does not exist. TypeError: it is no sampler, or has no such option.
    """
    for name in waive:
        one_of("waive", name, CHECKS)
    whole("steps", steps)
    stranger = found(sampler, path, prediction, time, start, **options)
    reading = read_back(stranger.build(steps))
    told = told_times(reading, stranger)
    near = tuple(nearest(reading, stranger, steps)) if reading.breaks is None else ()
    known = [one.name for one in near if one.step is None and one.name in (*SAMPLERS, *VARIANTS)]
    checks = [*of_reading(reading, stranger, steps), *of_runs(reading, stranger, steps)]
    law = _laws(stranger) if reading.breaks is None and all(map(math.isfinite, told)) else {}
    checks += [_tends(law)] if law else []
    checks = [_by_design(check, known[0], reading.nfe, stranger, steps) if known else check for check in checks]
    kept = tuple(check for check in checks if check.name not in waive)
    return Audit(stranger.name, steps, reading, tuple(told), near, kept, law)


def _by_design(check: Check, known: str, calls: int, stranger: Stranger, steps: int) -> Check:
    """Of a registered sampler, what it does by design: rows that miss the levels by their order, levels that rise by noise."""
    sampler = get_sampler(known)
    assert isinstance(sampler, Linear)
    if check.holds or check.name not in ("levels", "signal", "labels-fall", "steps", "law"):
        return check
    if check.name in ("levels", "signal") and sampler.marginal:
        return check
    if check.name == "steps" and plan(sampler, stranger.path, steps, start=stranger.start).nfe != calls:
        return check
    return check._replace(holds=True, says=f"{check.says}, as in {known}", step=None)


def _laws(stranger: Stranger) -> dict[int, float]:
    """The variance of the outputs over that of the data, by steps."""
    out = {}
    for n in LAWS:
        try:
            reading = read_back(stranger.build(n))
            out[n] = output_variance(reading, stranger, told_times(reading, stranger)) / VARIANCE
        except (ValueError, ArithmeticError, IndexError, RuntimeError):
            continue
    return out


def output_variance(reading: Reading, stranger: Stranger, told: Sequence[float], v: float = VARIANCE) -> float:
    """Of the last state on N(0, v I) data, from the coefficients: the exact network's output is a multiple of the state."""
    every, K = torch.cat([reading.states, reading.end[None]]), reading.nfe
    made = torch.zeros(1 + K, 1 + reading.draws, dtype=every.dtype)
    made[0, 0] = stranger.path.prior_std(stranger.start)
    state = made[0]
    for k, row in enumerate(every):
        state = row[: 1 + k] @ made[: 1 + k]
        state[1:] += row[1 + K :]
        if k < K:
            made[1 + k] = stranger.path.gaussian(told[k], stranger.prediction, v) * state
    return float(state @ state)


def _tends(law: dict[int, float]) -> Check:
    """Whether the variance tends to the data's: it does where its error at the most steps is small, or falls."""
    (n, before), (most, last) = list(law.items())[-2:] if len(law) > 1 else [*law.items()] * 2
    right = abs(last - 1) < 0.01 or (most > n and abs(last - 1) < 0.75 * abs(before - 1))
    limit = last + (last - before)  # of an error that falls as 1/steps
    says = f"the variance tends to the data's, {last:.4g} of it at {most} steps"
    return Check(
        "law", right, says if right else f"the variance tends to {limit:.3g} of the data's, {last:.4g} at {most} steps"
    )
