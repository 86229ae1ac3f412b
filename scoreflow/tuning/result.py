"""What tuning gave: the plan, how it was decided, and what it cost; in a folder or as a page."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scoreflow._samplers.plan import Plan


@dataclass(frozen=True)
class Tuned:
    """A plan for one model and budget, and why it is this one.

    Attributes:
        plan: what to give as `sampler=`: the fitted one, or the best of those that were there before.
        nfe: the budget.
        accepted: whether it is the fitted one. reason: the decision as a sentence.
        candidates: those that were run in full, the best first: name, median and 90 % quantile of the errors, seeds.
        screened: how many there were.
        starts: of each fit where it began, its loss on all states fitted to, evaluations and seconds.
        curves: of each fit (iteration, loss of its batch).
        validation: on the validation seeds, ratios of the fitted to the best candidate: median and quantile of 90 %, each with
            the upper end of its one-sided interval of 95 %.
        test: on the test seeds, by "returned", "best" and "auto": median, quantile of 90 %, RMS of the errors; and "ratio",
            the returned plan's median over the best's with its interval of 95 %.
        cost: network evaluations, of one state each, and seconds.
    """

    plan: Plan
    nfe: int
    accepted: bool
    reason: str
    candidates: tuple[dict[str, Any], ...]
    screened: int
    starts: tuple[dict[str, Any], ...] = field(repr=False)
    curves: tuple[tuple[tuple[int, float], ...], ...] = field(repr=False)
    validation: dict[str, tuple[float, float]]
    test: dict[str, Any]
    cost: dict[str, float]

    def save(self, folder: str | Path) -> Path:
        """Write `tuned-NFE.json`, which holds all of it, and `plan-NFE.json`, the plan alone; the file of the plan.

        Raises:
            FileNotFoundError: no such folder.
        """
        kept = {name: value for name, value in self.__dict__.items() if name != "plan"}
        file = Path(folder) / f"plan-{self.nfe}.json"
        (Path(folder) / f"tuned-{self.nfe}.json").write_text(
            json.dumps({**kept, "plan": json.loads(self.plan.to_json())}, indent=1), encoding="utf-8"
        )
        file.write_text(self.plan.to_json(), encoding="utf-8")
        return file

    @classmethod
    def load(cls, file: str | Path) -> Tuned:
        """What `save` wrote as `tuned-NFE.json`.

        Raises:
            FileNotFoundError: no such file. ValueError: it is none.
        """
        text = Path(file).read_text(encoding="utf-8")
        try:
            data = json.loads(text)
            plan = Plan.from_json(json.dumps(data.pop("plan")))
            data["curves"] = tuple(tuple((int(i), float(v)) for i, v in curve) for curve in data["curves"])
            data["validation"] = {name: tuple(pair) for name, pair in data["validation"].items()}
            data["test"]["ratio"] = tuple(data["test"]["ratio"])
            more: dict[str, Any] = {n: tuple(v) if n in ("candidates", "starts") else v for n, v in data.items()}
            return cls(plan=plan, **more)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{file} holds no result of tune: {error}") from error

    def __str__(self) -> str:
        test, (ratio, low, high) = self.test, self.test["ratio"]
        lines = [f"{name:9} median {row['median']:.3g}, 90 % {row['quantile']:.3g}, RMS {row['rms']:.3g}"
                 for name, row in test.items() if name != "ratio"]  # fmt: skip
        return "\n".join(
            [
                f"{self.nfe} evaluations: {self.reason}",
                *lines,
                f"returned/best {ratio:.3g} ({low:.3g} to {high:.3g}), on {test['returned']['seeds']} test seeds",
                f"{self.screened} candidates, {len(self.starts)} fits, {self.cost['evaluations']:.3g} evaluations, "
                f"{self.cost['seconds']:.0f} s",
            ]
        )
