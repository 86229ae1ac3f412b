"""What a study's figures say: tables, the best, the cheapest, differences, orders."""

from __future__ import annotations

import json
import math
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scoreflow._core.check import number, suggestion
from scoreflow._core.deprecated import renamed
from scoreflow._extras import named
from scoreflow._run.kept import names
from scoreflow._samplers.health import Health
from scoreflow._samplers.works import references
from scoreflow.studies import tables
from scoreflow.studies.answers import Answer, Failure
from scoreflow.studies.metrics import METRICS, Better, Metric
from scoreflow.studies.spec import Spec
from scoreflow.studies.stats import LEVEL, Difference, Interval, Slope, interval, paired, slope, unpaired
from scoreflow.studies.store import BACKWARD, HEALTH, MEASURED, Store

if TYPE_CHECKING:
    import pandas as pd

Blocks = dict[int, float]


class Results:
    """The figures of a store, read when first asked for."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __repr__(self) -> str:
        cells = f"{len(self.specs)} cells of {len(self.seeds)} blocks"
        return f"{type(self).__name__}({cells}, {len(self.failures)} failed, figures {', '.join(self.figures)})"

    # -- what was run -------------------------------------------------------------------------------------------------
    @cached_property
    def runs(self) -> list[dict[str, Any]]:
        """A line for every run of the store, without its samples. Of the path of a plan the last name stands for it."""
        columns = "key, kind, sampler, grid, nfe, steps, seed, counted, seconds, plan, cites, error, machine"
        found = self.store.rows(f"SELECT {columns} FROM cell ORDER BY kind, sampler, grid, nfe, steps, counted, seed")
        called = names({run["sampler"] for run in found})
        return [{**run, "sampler": called[run["sampler"]]} for run in found]

    @cached_property
    def _blocks(self) -> dict[tuple[str, Spec, str], Blocks]:
        """Values by kind, spec and figure, then by seed."""
        spec = {c["key"]: (c["kind"], _spec(c), c["seed"]) for c in self.runs if c["error"] is None}
        found: dict[tuple[str, Spec, str], Blocks] = {}
        for row in self.store.rows(f"SELECT key, figure, value FROM value WHERE error IS NULL AND {MEASURED}"):
            if row["key"] in spec:
                kind, of, seed = spec[row["key"]]
                found.setdefault((kind, of, row["figure"]), {})[seed] = row["value"]
        # By seed, so that not even the last digit of a mean depends on who was done first.
        return {which: dict(sorted(blocks.items())) for which, blocks in found.items()}

    @cached_property
    def specs(self) -> dict[Spec, float]:
        """Every sampler at every budget, and its evaluations as counted, the mean over samples."""
        counted: dict[Spec, list[float]] = {}
        for cell in self.runs:
            if cell["kind"] == "cell" and cell["error"] is None and cell["counted"] is not None:
                counted.setdefault(_spec(cell), []).append(cell["counted"])
        return {spec: float(np.mean(values)) for spec, values in counted.items()}

    @cached_property
    def backward(self) -> dict[Spec, float]:
        """Backward passes of every sampler at every budget, the mean over blocks; empty if no run has any."""
        keys = {cell["key"]: _spec(cell) for cell in self.runs if cell["kind"] == "cell" and cell["error"] is None}
        found: dict[Spec, list[float]] = {}
        for row in self.store.rows("SELECT key, value FROM value WHERE metric = ?", BACKWARD):
            if row["key"] in keys:
                found.setdefault(keys[row["key"]], []).append(row["value"])
        return {spec: float(np.mean(values)) for spec, values in found.items()}

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The samplers."""
        return tuple(dict.fromkeys(spec.label for spec in self.specs))

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """Of the blocks."""
        return tuple(sorted({cell["seed"] for cell in self.runs if cell["kind"] == "cell"}))

    @cached_property
    def figures(self) -> tuple[str, ...]:
        """What was measured: a metric's name, or `name/part`."""
        return tuple(sorted({figure for kind, _, figure in self._blocks if kind == "cell"}, key=self._place))

    @cached_property
    def metrics(self) -> dict[str, str]:
        """The name of the metric that each figure is of."""
        rows = self.store.rows(f"SELECT DISTINCT figure, metric FROM value WHERE error IS NULL AND {MEASURED}")
        return {row["figure"]: row["metric"] for row in rows}

    def metric(self, figure: str) -> Metric | None:
        """The metric of a figure, if it is registered here."""
        return METRICS.get(self.metrics.get(figure, figure))

    def _place(self, figure: str) -> tuple[int, int, str]:
        """Metrics as they were registered, their parts as declared; then the rest, by name."""
        known = self.metric(figure)
        if known is None:
            return len(METRICS), 0, figure
        return (
            list(METRICS).index(known.name),
            known.figures.index(figure) if figure in known.figures else len(known.figures),
            figure,
        )

    def one_sided(self, figure: str) -> bool:
        """Whether a cell can be better than its floor, and not only at it."""
        return self.better(figure) != "either"

    def better(self, figure: str) -> Better:
        """Which way is good."""
        known = self.metric(figure)
        return known.better_of(figure) if known else "lower"

    def target(self, figure: str) -> float | None:
        """Of a figure that is good at a value that value, as it is known or the floor's."""
        known = self.metric(figure)
        best = known.best_of(figure) if known else None
        return best if best is not None else floor.value if (floor := self.floor(figure)) else None

    def _sure(self, figure: str, values: list[float]) -> list[float]:
        """One value of a figure without chance is as good as two: its interval has no width."""
        known = self.metric(figure)
        return values * 2 if known and not known.samples and len(values) == 1 else values

    @cached_property
    def failures(self) -> tuple[Failure, ...]:
        """What failed, with the errors: runs, and metrics on runs."""
        metrics: dict[str, list[str]] = {}
        for row in self.store.rows("SELECT key, error FROM value WHERE error IS NOT NULL ORDER BY figure"):
            metrics.setdefault(row["key"], []).append(row["error"])
        found = [(c, e) for c in self.runs for e in ([c["error"]] if c["error"] else metrics.get(c["key"], []))]
        return tuple(Failure(cell["kind"], _spec(cell), cell["seed"], error) for cell, error in found)

    @cached_property
    def health(self) -> dict[Spec, Health]:
        """What the plan of each cell says of itself, `Plan.check`; of samplers made of rows."""
        found: dict[str, dict[str, float]] = {}
        for row in self.store.rows("SELECT key, figure, value FROM value WHERE metric = ?", HEALTH):
            found.setdefault(row["key"], {})[row["figure"]] = row["value"]
        known = {_spec(c): Health(**found[c["key"]]) for c in self.runs if c["kind"] == "cell" and c["key"] in found}
        return {spec: known[spec] for spec in sorted(known, key=lambda s: (self.labels.index(s.label), s.size))}

    @property
    def warnings(self) -> list[str]:
        """The cells whose plans are not sensible, and why."""
        return [f"{spec}: {', '.join(health.warnings)}" for spec, health in self.health.items() if health.warnings]

    @property
    def citations(self) -> str:
        """BibTeX of the works that the samplers rest on."""
        keys = dict.fromkeys(key for cell in self.runs for key in json.loads(cell["cites"] or "[]"))
        return "\n\n".join(references()[key] for key in keys if key in references())

    # -- figures ------------------------------------------------------------------------------------------------------
    def blocks(self, spec: Spec, figure: str) -> Blocks:
        """The values of a cell by seed."""
        return self._blocks.get(("cell", spec, figure), {})

    def mean(self, spec: Spec, figure: str) -> Interval:
        """The mean of a cell over its blocks."""
        return interval(self._sure(figure, list(self.blocks(spec, figure).values())), chance=self.by_chance(figure))

    def floor(self, figure: str) -> Interval | None:
        """Data against data, as many samples; for a distance to the reference, the reference's own error."""
        values = self.floor_values(figure)
        return interval(values, chance=self.by_chance(figure)) if values else None

    def by_chance(self, figure: str) -> bool:
        """Whether its values are of draws, so that equal ones may be so by chance."""
        known = self.metric(figure)
        return known is None or known.samples

    beside = renamed("beside", "floor_values")

    def floor_values(self, figure: str) -> list[float]:
        """The values of the floor's blocks."""
        return self.values("reference" if self.to_reference(figure) else "floor", figure)

    def to_reference(self, figure: str) -> bool:
        """Whether the figure is a distance to the converged reference."""
        known = self.metric(figure)
        return known is not None and "reference" in known.needs

    def reference(self, figure: str) -> Interval | None:
        """The converged reference's own value."""
        values = self.values("reference", figure)
        return interval(values, chance=self.by_chance(figure)) if values else None

    def values(self, kind: str, figure: str) -> list[float]:
        """All blocks' values of what cells are compared to: a floor or a reference."""
        return [v for (k, _, f), blocks in self._blocks.items() if (k, f) == (kind, figure) for v in blocks.values()]

    def kept(self, kind: str) -> list[np.ndarray]:
        """The samples of every block of a floor or a reference, as far as they are kept and finite."""
        keys = [cell["key"] for cell in self.runs if cell["kind"] == kind and cell["error"] is None]
        found = [x for key in keys if (x := self.store.samples(key)) is not None]
        return [x for x in found if len(x) and np.isfinite(x).all()]

    @cached_property
    @named()
    def frame(self) -> pd.DataFrame:
        """One line a sampler, budget and figure: value, 95 % interval over blocks, floor, reference; evaluations `nfe`, and
        where a run has any, `backward` passes.
        """
        return tables.frame(self)

    @cached_property
    @named()
    def cells(self) -> pd.DataFrame:
        """One line a cell and figure, block by block, failures too; the order of the lines does not depend on the run's."""
        return tables.cells(self)

    # -- answers ------------------------------------------------------------------------------------------------------
    def _figure(self, figure: str | None) -> str:
        if not self.figures:
            raise ValueError("this study has no finished cell")
        if figure is None:
            return self.figures[0]
        if figure not in self.figures:
            raise ValueError(f"no figure is called {figure!r}{suggestion(figure, self.figures)}")
        return figure

    def loss(self, figure: str, value: float) -> float:
        """Lower is better."""
        better = self.better(figure)
        best = self.target(figure) if better == "either" else None
        return -value if better == "higher" else value if best is None else abs(value - best)

    def passes(self, spec: Spec) -> float:
        """Forward and backward passes of a cell, each counted once: its evaluations where nothing is differentiated."""
        return self.specs[spec] + self.backward.get(spec, 0.0)

    def best(self, nfe: float = math.inf, figure: str | None = None, *, passes: float = math.inf) -> Answer:
        """The best within a budget, of evaluations or of passes, and who cannot be told apart from it over these blocks.

        `nfe` counts forward passes through the network, `passes` forward and backward ones.

        Cells with failed blocks are not ranked: others may have failed on harder ones. A rival is a sampler whose own best
        cell is not told apart from the winner's when all pairs of samplers are tested at once (Bonferroni), for the winner was
        chosen by these data.

        Raises:
            ValueError: no cell is within the budget, or no figure has that name. TypeError: no budget.
        """
        given = {name: value for name, value in (("nfe", nfe), ("passes", passes)) if value != math.inf}
        if not given:
            raise TypeError("give a budget: nfe, evaluations, or passes, forward and backward")
        for name, value in given.items():
            number(name, value, least=0)
        figure = self._figure(figure)
        ranked = {s: self.mean(s, figure) for s in self.whole(figure)}
        ranked = {spec: mean for spec, mean in ranked.items() if math.isfinite(mean.value)}
        means = {spec: mean for spec, mean in ranked.items() if self.specs[spec] <= nfe and self.passes(spec) <= passes}
        if not means:
            asked = ", ".join(f"{name}={value}" for name, value in given.items())
            few, fewest = (min(map(count, ranked), default=math.nan) for count in (self.specs.__getitem__, self.passes))
            raise ValueError(f"{asked}: no finished cell of {figure} has so few; the least is nfe={few:g}, passes={fewest:g}")

        def rank(spec: Spec) -> tuple[float, float]:
            return self.loss(figure, means[spec].value), self.passes(spec)

        first = min(means, key=rank)
        own = [min((s for s in means if s.label == label), key=rank) for label in dict.fromkeys(s.label for s in means)]
        level = (1 - LEVEL) / max(1, len(own) * (len(own) - 1) // 2)
        near = [s.label for s in own if s != first and not self.differ(s, first, figure).p <= level]
        return Answer(first.label, self.specs[first], figure, means[first], tuple(near), self.backward.get(first, 0.0))

    def whole(self, figure: str) -> list[Spec]:
        """The cells that have a value of every block that any has."""
        blocks = {spec: len(self.blocks(spec, figure)) for spec in self.specs}
        most = max(blocks.values(), default=0)
        return [spec for spec, n in blocks.items() if n == most > 0]

    def cheapest(self, within: float | None = None, figure: str | None = None) -> Answer:
        """The fewest passes, forward and backward, whose figure is as good as `within`, interval and all; None: no worse than
        the floor, as far as the blocks tell.

        Raises:
            ValueError: none is, or there is no floor to go by.
        """
        if within is not None:
            number("within", within)
        figure = self._figure(figure)
        floor = self.floor(figure)
        if within is None and floor is None:
            raise ValueError(f"within=None needs a floor, and {figure!r} has none: give a bound")
        for spec in sorted(self.specs, key=self.passes):
            if not self.blocks(spec, figure):
                continue
            nfe = self.specs[spec]
            mean = self.mean(spec, figure)
            worst = max(self.loss(figure, v) for v in mean) if all(map(math.isfinite, mean)) else math.inf
            good = self.at_floor(spec, figure) if within is None else worst <= self._bound(figure, within)
            if good:
                same = [s.label for s, k in self.specs.items() if k == nfe and s.label != spec.label and self.blocks(s, figure)]
                near = [s for s in dict.fromkeys(same) if not self.differ(self._at(s, nfe), spec, figure).significant]
                return Answer(spec.label, nfe, figure, mean, tuple(near), self.backward.get(spec, 0.0))
        bound = f"the floor of {floor.value:.3g}" if within is None and floor else f"within={within}"
        raise ValueError(f"no cell of this study is as good as {bound} in {figure}")

    def _bound(self, figure: str, within: float) -> float:
        return -within if self.better(figure) == "higher" else within

    def compare(self, a: str, b: str, nfe: float, figure: str | None = None) -> Difference:
        """The figure of sampler a minus that of b at these evaluations, block by block; for a metric that is best at its floor,
        the distances from it.

        Raises:
            ValueError: one of them has no cell there.
        """
        return self.differ(self._at(a, nfe), self._at(b, nfe), self._figure(figure))

    def _at(self, label: str, nfe: float) -> Spec:
        if label not in self.labels:
            raise ValueError(f"no sampler of this study is called {label!r}{suggestion(label, self.labels)}")
        own = [(s, k) for s, k in self.specs.items() if s.label == label]
        found = [s for s, k in own if k == nfe] or [s for s, _ in own if s.nfe == nfe]
        if not found:
            known = ", ".join(f"{k:g}" for s, k in self.specs.items() if s.label == label)
            raise ValueError(f"{label} has no cell at nfe={nfe:g}; it has {known}")
        return found[0]

    def differ(self, a: Spec, b: Spec, figure: str) -> Difference:
        """a − b, block by block; of a figure that is best at a value, the distances from it."""
        x, y = self.blocks(a, figure), self.blocks(b, figure)
        both = sorted(set(x) & set(y))
        if self.better(figure) == "either":  # off its floor to one side or the other
            x, y = ({seed: self.loss(figure, values[seed]) for seed in both} for values in (x, y))
        one, other = (self._sure(figure, [values[seed] for seed in both]) for values in (x, y))
        return paired(one, other, chance=self.by_chance(figure))

    def at_floor(self, spec: Spec, figure: str) -> bool | None:
        """Whether the cell cannot be told to be worse than its floor; None where these blocks say nothing."""
        values, beside = list(self.blocks(spec, figure).values()), self.floor_values(figure)
        if not values or not beside:
            return None
        off = unpaired(values, beside, chance=self.by_chance(figure))
        if not math.isfinite(off.low):
            return None
        return not {"lower": off.low > 0, "higher": off.high < 0, "either": off.significant}[self.better(figure)]

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
        """The lines of the frame that no other beats in passes, forward and backward, and in the figure at once."""
        figure = self._figure(figure)
        lines = self.frame[self.frame["figure"] == figure].copy()
        lines = lines[lines["blocks"] == lines["blocks"].max()]  # as in `best`
        cost = lines["nfe"] + lines.get("backward", 0.0)
        lines = lines.assign(loss=[self.loss(figure, v) for v in lines["value"]], cost=cost).sort_values(["cost", "loss"])
        ahead = lines["loss"] < lines["loss"].cummin().shift(fill_value=math.inf)
        return lines[ahead].drop(columns=["loss", "cost"]).reset_index(drop=True)

    def differences(self, figure: str | None = None) -> pd.DataFrame:
        """Every two samplers at every budget they share: a minus b, block by block, with its 95 % interval and p-value.

        `significant` tells two apart so that of all said to differ in this figure at most 5 % are not (Benjamini &
        Hochberg, 1995).
        """
        return tables.differences(self, self._figure(figure))

    # -- out ----------------------------------------------------------------------------------------------------------
    def to_csv(self, file: str | Path) -> None:
        """The frame as CSV."""
        self.frame.to_csv(file, index=False)

    def to_parquet(self, file: str | Path) -> None:
        """The frame as Parquet."""
        self.frame.to_parquet(file, index=False)


def _spec(cell: dict[str, Any]) -> Spec:
    return Spec(cell["sampler"], cell["grid"], cell["nfe"], cell["steps"])
