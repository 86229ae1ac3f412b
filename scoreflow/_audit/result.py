"""What an audit found, as text, JSON and a page."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scoreflow._audit.checks import Check
from scoreflow._audit.compare import Near, from_first
from scoreflow._audit.consequences import limit, slope, weak_order
from scoreflow._audit.mend import Mend
from scoreflow._audit.report import Section, write
from scoreflow._audit.rows import as_plan
from scoreflow._core.check import one_of
from scoreflow._core.files import check_file, whole_file
from scoreflow._core.gaussian import GaussianPath, Prediction
from scoreflow._extras import needs
from scoreflow._html import card, note, table
from scoreflow._samplers.plan import Plan
from scoreflow._uses.read_back import Reading, read_plan

NAMED = 3
"""Names that are printed."""


@dataclass(frozen=True)
class Audit:
    """What was found of a sampler.

    Attributes:
        name: of the sampler. steps: it was read at. path, prediction: of its states and its network.
        start: of the first state. reading: its coefficients.
        times: that the network was told, call by call.
        plan: it as a plan, that runs here; None if its coefficients are none of a run on the path.
        nearest: registered samplers on the same times, from the nearest on. right: the plan of the nearest.
        mends: the weights by which it differs from the nearest, if they are few.
        checks: what holds and what does not; those that were waived are left out.
        law: by steps, the variance of its outputs over that of the data, on N(0, ½) data with the exact network; empty where it
            is not affine. right_law: at `steps`, that of the nearest.
        distances: by steps, how far it and the nearest are from the ODE on a mixture; empty of runs with noise.
    """

    name: str
    steps: int
    path: GaussianPath
    prediction: Prediction
    start: float
    reading: Reading = field(repr=False)
    times: tuple[float, ...] = field(repr=False)
    plan: Plan | None = field(repr=False)
    nearest: tuple[Near, ...]
    right: Plan | None = field(repr=False)
    mends: tuple[Mend, ...]
    checks: tuple[Check, ...]
    law: dict[int, float] = field(repr=False)
    right_law: float | None
    distances: dict[int, tuple[float, float]] = field(repr=False)

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

    @property
    def limit(self) -> float | None:
        """What the variance of its outputs over the data's tends to; None if it does not settle."""
        return limit(self.law)

    @property
    def order(self) -> float | None:
        """Observed: without noise by the distances to the ODE, with noise by the variance; None if too little is known."""
        return (
            slope({n: theirs for n, (theirs, _) in self.distances.items()})
            if self.distances
            else weak_order(self.law)
            if self.limit
            else None
        )

    def says(self) -> list[str]:
        """What it is and what comes of it, a sentence a line."""
        lines = []
        if self.same:
            off = max(one.apart for one in self.nearest if one.step is None)
            more = f", and {len(self.same) - NAMED} more" if len(self.same) > NAMED else ""
            lines.append(f"is {', '.join(self.same[:NAMED])}{more}: all coefficients to {off:.1e}")
        elif self.nearest:
            near = self.nearest[0]
            where = "the end" if near.step == self.reading.nfe else f"call {near.step}"
            lines.append(f"nearest is {near.name}, from which it differs at {where} first, by {near.apart:.2g} at most")
            lines += map(str, self.mends)
        else:
            lines.append("no registered sampler asks at its times")
        if self.law:
            lines.append("variance over the data's: " + ", ".join(f"{ratio:.4g} at {n}" for n, ratio in self.law.items()))
        if self.order is not None:
            what = "on a mixture" if self.distances else "of the variance on Gaussian data"
            lines.append(f"observed order {self.order:.2f} {what}")
        if not self.same and self.right_law is not None and self.steps in self.law:
            cost = f"variance {self.law[self.steps]:.4g} of the data's, {self.right_law:.4g} by {self.nearest[0].name}"
            if (pair := self.distances.get(self.steps)) is not None and math.isfinite(pair[1]):
                cost = f"distance to the ODE {pair[0]:.3g} on a mixture, {pair[1]:.3g} by {self.nearest[0].name}; {cost}"
            lines.append(f"at the same {self.reading.nfe} evaluations: {cost}")
        return lines

    def save(self, file: str | Path) -> Path:
        """Write what was found: a page with charts as .html, all of it as .json.

        Raises:
            ValueError: another ending. FileNotFoundError: no such folder. ModuleNotFoundError: a page needs `scoreflow[study]`.
        """
        return save([self], file)

    def _repr_html_(self) -> str:
        checks = [("holds" if check.holds else "fails", check.name, check.says) for check in self.checks]
        return card(self.head, {}, *map(note, self.says()), table(("", "check", "what was found"), checks))

    @property
    def head(self) -> str:
        """What was read, in a line."""
        return f"{self.name}, {self.steps} steps: {self.reading.nfe} calls of the network, {self.reading.draws} draws"

    def __str__(self) -> str:
        return "\n".join([self.head, *self.says(), *map(str, sorted(self.checks, key=lambda check: check.holds))])

    def to_json(self) -> str:
        """All of it, as JSON; the coefficients are those of its plan."""
        return json.dumps(
            {
                "name": self.name, "steps": self.steps, "path": repr(self.path), "nfe": self.reading.nfe,
                "draws": self.reading.draws, "passed": self.passed, "times": list(self.times), "same": list(self.same),
                "nearest": [one._asdict() for one in self.nearest], "mends": [one._asdict() for one in self.mends],
                "checks": [check._asdict() for check in self.checks], "law": self.law, "limit": self.limit,
                "order": self.order, "distances": self.distances, "plan": self.plan and json.loads(self.plan.to_json()),
            }
        )  # fmt: skip


def save(found: Sequence[Audit], file: str | Path) -> Path:
    """Write audits: a page with charts as .html, all of it as .json.

    Raises:
        ValueError: another ending. FileNotFoundError: no such folder. ModuleNotFoundError: a page needs `scoreflow[study]`.
    """
    out = check_out(file)
    if out.suffix.lower() == ".html":
        return write([section(one) for one in found], out)
    with whole_file(out) as part:
        part.write_text(as_json(found) + "\n", encoding="utf-8")
    return out


def check_out(file: str | Path) -> Path:
    """The file, once it is known that it can be written.

    Raises:
        ValueError, FileNotFoundError, ModuleNotFoundError: as `save`.
    """
    out = check_file("out", file)
    one_of("the ending of out", out.suffix.lower(), (".html", ".json"))
    if out.suffix.lower() == ".html":
        needs("study", "jinja2", "matplotlib")
    return out


def as_json(found: Sequence[Audit]) -> str:
    """Audits as a JSON array."""
    return json.dumps([json.loads(one.to_json()) for one in found])


def section(one: Audit) -> Section:
    """What a page shows of an audit."""
    told = [one.path.kappa(t) for t in one.times if math.isfinite(t) and 0 <= t <= 1 + 1e-6]
    levels = list[tuple[float, float]]()
    if len(told) == one.reading.nfe:
        stands = one.reading.levels(one.path, one.prediction, one.times, one.start).tolist()
        levels = [(kappa, sigma / alpha if alpha else math.inf) for kappa, (alpha, sigma) in zip(told, stands, strict=False)]
    apart, rows, readings = list[float](), list[tuple[int, str, str]](), [from_first(one.reading)]
    if one.right is not None:
        readings.append(read_plan(one.right, one.path, one.prediction))
        apart = (readings[0].apart(readings[1]) / readings[1].every.abs().amax(1).clamp(min=1e-300)).tolist()
    if one.plan is not None:
        its, *others = ([*_lines(one, one.plan, reading)] for reading in readings)
        ours = others[0] if others else [""] * len(its)
        rows = [(k, *pair) for k, pair in enumerate(zip(its, ours, strict=True), 1)]
    return Section(
        one.head, one.passed, one.says(), one.checks, one.nearest[0].name if one.nearest else "", levels, apart, one.law,
        one.limit, one.distances, rows, json.dumps(json.loads(one.to_json()), indent=1),
    )  # fmt: skip


def _lines(one: Audit, read: Plan, found: Reading) -> Iterator[str]:
    """The rows of a reading at the times of an audit, one a state, in six digits: of the nearest sampler's prediction if these
    are finite, as these are few weights.
    """
    for prediction in (one.right.prediction if one.right else read.prediction, read.prediction):
        turned = found.among(one.path, one.prediction, prediction, one.times)
        if turned.every.isfinite().all():
            break
    plan = as_plan(turned, "", one.path, prediction, one.times, read.times[-1])
    for row in (stage.row for step in plan.steps for stage in step.stages):
        weights = [(float(row.x), "x"), *((float(m), plan.prediction) for m in row.m)]
        weights += [(float(z), f"n{k + 1}") for k, z in row.draws]
        least = 1e-9 * max(abs(weight) for weight, _ in weights)
        yield " ".join(f"{weight:+.6g}·{what}" for weight, what in weights if abs(weight) > least)
