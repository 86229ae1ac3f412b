"""What a study's figures say: tables, the best, the cheapest, differences, orders, findings in words."""

from __future__ import annotations

import json
import math
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scoreflow.check import suggestion
from scoreflow.cite import references
from scoreflow.studies.metrics import METRICS
from scoreflow.studies.spec import Spec
from scoreflow.studies.stats import Difference, Interval, Slope, discoveries, interval, paired, slope, unpaired
from scoreflow.studies.store import Store

if TYPE_CHECKING:
    import pandas as pd

Blocks = dict[int, float]


class Answer(NamedTuple):
    """One line: a sampler and its figure, and who cannot be told apart from it."""

    sampler: str
    nfe: float
    figure: str
    value: Interval
    rivals: tuple[str, ...] = ()

    def __str__(self) -> str:
        others = f"; not told apart from it: {', '.join(self.rivals)}" if self.rivals else ""
        return f"{self.sampler} at {self.nfe:g} evaluations: {self.figure} {self.value}{others}"


class Failure(NamedTuple):
    """A cell that failed."""

    spec: Spec
    seed: int
    error: str


class Results:
    """The figures of a store, read when first asked for."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __repr__(self) -> str:
        cells = f"{len(self.specs)} cells of {len(self.seeds)} blocks"
        return f"{type(self).__name__}({cells}, {len(self.failures)} failed, figures {', '.join(self.figures)})"

    # -- what was run -------------------------------------------------------------------------------------------------
    @cached_property
    def _cells(self) -> list[dict[str, Any]]:
        return self.store.rows("SELECT * FROM cell ORDER BY kind, sampler, grid, nfe, steps, counted, seed")

    @cached_property
    def _blocks(self) -> dict[tuple[str, Spec, str], Blocks]:
        """Values by kind, spec and figure, then by seed."""
        spec = {c["key"]: (c["kind"], _spec(c), c["seed"]) for c in self._cells if c["error"] is None}
        found: dict[tuple[str, Spec, str], Blocks] = {}
        for row in self.store.rows("SELECT key, figure, value FROM value"):
            if row["key"] in spec and row["value"] is not None:
                kind, of, seed = spec[row["key"]]
                found.setdefault((kind, of, row["figure"]), {})[seed] = row["value"]
        return found

    @cached_property
    def specs(self) -> dict[Spec, float]:
        """Every sampler at every budget, and its evaluations as counted, the mean over samples."""
        counted: dict[Spec, list[float]] = {}
        for cell in self._cells:
            if cell["kind"] == "cell" and cell["error"] is None and cell["counted"] is not None:
                counted.setdefault(_spec(cell), []).append(cell["counted"])
        return {spec: float(np.mean(values)) for spec, values in counted.items()}

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The samplers."""
        return tuple(dict.fromkeys(spec.label for spec in self.specs))

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """Of the blocks."""
        return tuple(sorted({cell["seed"] for cell in self._cells if cell["kind"] == "cell"}))

    @cached_property
    def figures(self) -> tuple[str, ...]:
        """What was measured: a metric's name, or `name/part`."""
        return tuple(dict.fromkeys(figure for kind, _, figure in self._blocks if kind == "cell"))

    @cached_property
    def failures(self) -> tuple[Failure, ...]:
        """The cells that failed, with their errors."""
        return tuple(Failure(_spec(c), c["seed"], c["error"]) for c in self._cells if c["error"] is not None)

    @property
    def citations(self) -> str:
        """BibTeX of the works that the samplers rest on."""
        keys = dict.fromkeys(key for cell in self._cells for key in json.loads(cell["cites"] or "[]"))
        return "\n\n".join(references()[key] for key in keys if key in references())

    # -- figures ------------------------------------------------------------------------------------------------------
    def blocks(self, spec: Spec, figure: str) -> Blocks:
        """The values of a cell by seed."""
        return self._blocks.get(("cell", spec, figure), {})

    def floor(self, figure: str) -> Interval | None:
        """Data against data, as many samples; for a distance to the reference, the reference's own error."""
        values = self._beside(figure)
        return interval(values) if values else None

    def _beside(self, figure: str) -> list[float]:
        kind = "reference" if self.to_reference(figure) else "floor"
        return [v for (k, _, f), blocks in self._blocks.items() if k == kind and f == figure for v in blocks.values()]

    @staticmethod
    def to_reference(figure: str) -> bool:
        """Whether the figure is a distance to the converged reference."""
        return "reference" in _needs(figure)

    def reference(self, figure: str) -> Interval | None:
        """The converged reference's own value."""
        values = [v for (k, _, f), b in self._blocks.items() if k == "reference" and f == figure for v in b.values()]
        return interval(values) if values else None

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One line a sampler, budget and figure: value, 95 % interval over blocks, floor, reference."""
        import pandas as pd

        lines = []
        for spec, nfe in sorted(self.specs.items(), key=lambda item: (self.labels.index(item[0].label), item[1])):
            for figure in self.figures:
                if values := self.blocks(spec, figure):
                    floor, reference = self.floor(figure), self.reference(figure)
                    lines.append(
                        dict(
                            sampler=spec.label, nfe=nfe, asked=spec.nfe, steps=spec.steps, figure=figure,
                            **interval(list(values.values()))._asdict(), blocks=len(values),
                            floor=floor.value if floor else math.nan, reference=reference.value if reference else math.nan,
                        )
                    )  # fmt: skip
        columns = ["sampler", "nfe", "asked", "steps", "figure", "value", "low", "high", "blocks", "floor", "reference"]
        return pd.DataFrame(lines, columns=columns)

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One line a cell and figure, block by block, failures too; the order of the lines does not depend on the run's."""
        import pandas as pd

        values: dict[str, dict[str, float]] = {}
        for row in self.store.rows("SELECT key, figure, value FROM value ORDER BY figure"):
            values.setdefault(row["key"], {})[row["figure"]] = row["value"]
        lines = [
            {
                **{name: cell[name] for name in ("kind", "sampler", "grid", "nfe", "steps", "seed", "counted")},
                "figure": figure, "value": value, "plan": cell["plan"], "error": cell["error"], "key": cell["key"],
            }
            for cell in self._cells
            for figure, value in (values.get(cell["key"]) or {"": math.nan}).items()
        ]  # fmt: skip
        order = ["kind", "sampler", "grid", "nfe", "steps", "seed", "figure"]
        return pd.DataFrame(lines).sort_values(order, kind="stable").reset_index(drop=True)

    # -- answers ------------------------------------------------------------------------------------------------------
    def _figure(self, figure: str | None) -> str:
        if not self.figures:
            raise ValueError("this study has no finished cell")
        if figure is None:
            return self.figures[0]
        if figure not in self.figures:
            raise ValueError(f"no figure is called {figure!r}{suggestion(figure, self.figures)}")
        return figure

    def _loss(self, figure: str, value: float) -> float:
        """Lower is better."""
        better = _better(figure)
        floor = self.floor(figure) if better == "either" else None
        return -value if better == "higher" else abs(value - floor.value) if floor else value

    def best(self, nfe: float, figure: str | None = None) -> Answer:
        """The best within a budget of evaluations, and who cannot be told apart from it over these blocks.

        Raises:
            ValueError: no cell is within the budget, or no figure has that name.
        """
        figure = self._figure(figure)
        means = {s: interval(list(b.values())) for s in self.specs if self.specs[s] <= nfe and (b := self.blocks(s, figure))}
        means = {spec: mean for spec, mean in means.items() if math.isfinite(mean.value)}
        if not means:
            least = min(self.specs.values(), default=math.nan)
            raise ValueError(f"nfe={nfe}: no finished cell has so few evaluations; the least is {least:g}")
        first = min(means, key=lambda s: (self._loss(figure, means[s].value), self.specs[s]))
        others = [s for s in means if s.label != first.label]
        near = dict.fromkeys(s.label for s in others if not self._differ(s, first, figure).significant)
        return Answer(first.label, self.specs[first], figure, means[first], tuple(near))

    def cheapest(self, within: float | None = None, figure: str | None = None) -> Answer:
        """The fewest evaluations whose figure is as good as `within`, interval and all; None: no worse than the floor, as
        far as the blocks tell.

        Raises:
            ValueError: none is, or there is no floor to go by.
        """
        figure = self._figure(figure)
        floor = self.floor(figure)
        if within is None and floor is None:
            raise ValueError(f"within=None needs a floor, and {figure!r} has none: give a bound")
        for spec, nfe in sorted(self.specs.items(), key=lambda item: item[1]):
            values = list(self.blocks(spec, figure).values())
            if not values:
                continue
            mean = interval(values)
            worst = max((self._loss(figure, v) for v in mean if math.isfinite(v)), default=math.inf)
            good = self.at_floor(spec, figure) if within is None else worst <= self._bound(figure, within)
            if good:
                same = [s.label for s, k in self.specs.items() if k == nfe and s.label != spec.label and self.blocks(s, figure)]
                near = [s for s in dict.fromkeys(same) if not self._differ(self._at(s, nfe), spec, figure).significant]
                return Answer(spec.label, nfe, figure, mean, tuple(near))
        bound = f"the floor of {floor.value:.3g}" if within is None and floor else f"within={within}"
        raise ValueError(f"no cell of this study is as good as {bound} in {figure}")

    def _bound(self, figure: str, within: float) -> float:
        return -within if _better(figure) == "higher" else within

    def compare(self, a: str, b: str, nfe: float, figure: str | None = None) -> Difference:
        """The figure of sampler a minus that of b at these evaluations, block by block.

        Raises:
            ValueError: one of them has no cell there.
        """
        return self._differ(self._at(a, nfe), self._at(b, nfe), self._figure(figure))

    def _at(self, label: str, nfe: float) -> Spec:
        if label not in self.labels:
            raise ValueError(f"no sampler of this study is called {label!r}{suggestion(label, self.labels)}")
        found = [s for s, k in self.specs.items() if s.label == label and (k == nfe or s.nfe == nfe)]
        if not found:
            known = ", ".join(f"{k:g}" for s, k in self.specs.items() if s.label == label)
            raise ValueError(f"{label} has no cell at nfe={nfe:g}; it has {known}")
        return found[0]

    def _differ(self, a: Spec, b: Spec, figure: str) -> Difference:
        x, y = self.blocks(a, figure), self.blocks(b, figure)
        both = sorted(set(x) & set(y))
        return paired([x[seed] for seed in both], [y[seed] for seed in both])

    def at_floor(self, spec: Spec, figure: str) -> bool:
        """Whether the cell cannot be told to be worse than its floor."""
        values, beside = list(self.blocks(spec, figure).values()), self._beside(figure)
        if not values or not beside:
            return False
        off = unpaired(values, beside)
        worse = {"lower": off.low > 0, "higher": off.high < 0, "either": off.significant}[_better(figure)]
        return not worse and math.isfinite(off.low)

    def floor_from(self, label: str, figure: str | None = None) -> float | None:
        """The evaluations from which on the sampler is not told apart from its floor at any budget; None if never."""
        figure, start = self._figure(figure), None
        for spec, nfe in sorted(((s, k) for s, k in self.specs.items() if s.label == label), key=lambda item: -item[1]):
            if not self.at_floor(spec, figure):
                break
            start = nfe
        return start

    def order(self, label: str, figure: str = "trajectory/median") -> Slope | None:
        """The observed order, where the error falls as a power of the evaluations; None if it nowhere does.

        What is under 3 times the reference's own error is left out.
        """
        points = [
            (nfe, float(np.mean(list(values.values()))))
            for spec, nfe in self.specs.items()
            if spec.label == label and (values := self.blocks(spec, figure))
        ]
        floor = self.floor(figure)
        nfe, errors = zip(*points, strict=True) if points else ((), ())
        return slope(nfe, errors, 3 * floor.value if floor and self.to_reference(figure) else 0.0)

    def pareto(self, figure: str | None = None) -> pd.DataFrame:
        """The lines of the frame that no other beats in evaluations and figure at once."""
        figure = self._figure(figure)
        lines = self.frame[self.frame["figure"] == figure].copy()
        lines["loss"] = [self._loss(figure, v) for v in lines["value"]]
        lines = lines.sort_values(["nfe", "loss"])
        ahead = lines["loss"] < lines["loss"].cummin().shift(fill_value=math.inf)
        return lines[ahead].drop(columns="loss").reset_index(drop=True)

    def pairs(self, budget: int, figure: str | None = None) -> dict[tuple[str, str], bool]:
        """Whether the blocks tell two samplers apart at this asked budget; at most 5 % of those told apart may be false."""
        figure = self._figure(figure)
        there = [s for s in self.specs if s.asked == budget and self.blocks(s, figure)]
        pairs = [(b, a) for i, a in enumerate(there) for b in there[:i]]
        told = discoveries([self._differ(a, b, figure).p for a, b in pairs])
        return {(a.label, b.label): apart for (a, b), apart in zip(pairs, told, strict=True)}

    def findings(self, figure: str | None = None) -> list[str]:
        """What the figures say, in words."""
        figure = self._figure(figure)
        floor, said = self.floor(figure), list[str]()
        budgets = sorted({s.asked for s in self.specs} - {0})
        for budget in budgets:
            try:
                said.append(f"Within {budget} evaluations the best is {self.best(budget, figure)}.")
            except ValueError:
                continue
        if floor is not None:
            what = "the reference's own error" if self.to_reference(figure) else "data against data"
            reached = {label: self.floor_from(label, figure) for label in self.labels if self._has(label, figure)}
            at = [f"{label} from {k:g} evaluations" for label, k in reached.items() if k is not None]
            never = [label for label, k in reached.items() if k is None]
            said.append(f"The floor, {what}, is {floor}." + (f" Not told apart from it: {'; '.join(at)}." if at else ""))
            if at and never:
                said.append(f"Told apart from the floor at the largest budget: {', '.join(never)}.")
            if "reference" not in _needs(figure) and (exact := self.reference(figure)) is not None:
                said.append(self._model_error(figure, exact))
        for label in self.labels:
            if self.to_reference(figure) and (fit := self.order(label, figure)) is not None:
                said.append(f"{label}: order {fit.order:.2f}, observed from {fit.first:g} to {fit.last:g} evaluations.")
        for budget in budgets:
            said += self._told(self.pairs(budget, figure), budget)
        if self.failures:
            cells = "; ".join(dict.fromkeys(f"{f.spec}: {f.error}" for f in self.failures))
            said.append(f"{len(self.failures)} cells failed: {cells}.")
        return said

    @staticmethod
    def _told(pairs: dict[tuple[str, str], bool], budget: int) -> list[str]:
        """Which differences are significant, by the shorter of the two lists."""
        apart, same = ([f"{a} and {b}" for (a, b), told in pairs.items() if told is kept] for kept in (True, False))
        if not same:
            return [f"At {budget}, every difference between two samplers is significant."] if apart else []
        if len(apart) < len(same):
            said = f"only these differ: {'; '.join(apart)}" if apart else "no difference is significant"
            return [f"At {budget}, {said}."]
        return [f"At {budget}, not significant: {'; '.join(same)}."]

    def _has(self, label: str, figure: str) -> bool:
        return any(spec.label == label and self.blocks(spec, figure) for spec in self.specs)

    def _model_error(self, figure: str, exact: Interval) -> str:
        values = [v for (k, _, f), b in self._blocks.items() if k == "reference" and f == figure for v in b.values()]
        off = unpaired(values, self._beside(figure))
        if not off.significant:
            return f"The converged reference, {exact}, is not told apart from the floor: no model error is seen."
        side = "above" if off.value > 0 else "below"
        return (
            f"The converged reference, {exact}, is {abs(off.value):.3g} {side} the floor (p = {off.p:.2g}): an error of "
            "the model or of its prior, that no solver of the ODE removes."
        )

    # -- out ----------------------------------------------------------------------------------------------------------
    def to_csv(self, file: str | Path) -> None:
        """The frame as CSV."""
        self.frame.to_csv(file, index=False)

    def to_parquet(self, file: str | Path) -> None:
        """The frame as Parquet."""
        self.frame.to_parquet(file, index=False)


def _spec(cell: dict[str, Any]) -> Spec:
    return Spec(cell["sampler"], cell["grid"], cell["nfe"], cell["steps"])


def _needs(figure: str) -> tuple[str, ...]:
    known = METRICS.get(figure.partition("/")[0])
    return known.needs if known else ()


def _better(figure: str) -> str:
    known = METRICS.get(figure.partition("/")[0])
    return known.better if known else "lower"
