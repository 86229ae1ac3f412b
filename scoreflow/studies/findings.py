"""What a study's figures say, in plain words computed from them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from scoreflow.studies.metrics import radii
from scoreflow.studies.results import Results
from scoreflow.studies.spec import Spec
from scoreflow.studies.stats import discoveries, interval, unpaired

if TYPE_CHECKING:
    import pandas as pd

DOUBT = 0.01
"""The p-value at which a second look, taken because the first told nothing, is believed."""
PAIRS = 15
"""The most pairs of samplers that are gone through one by one."""


def findings(results: Results, figure: str) -> list[str]:
    """The best at each budget, the floor and who reaches it, model error, orders, who gets worse with more evaluations, which
    differences are significant.
    """
    lines = [*_best(results, figure), *_floor(results, figure)]
    for label in results.labels:
        if results.to_reference(figure) and (fit := results.order(label, figure)) is not None:
            lines.append(f"{label}: order {fit.order:.2f}, observed from {fit.first:g} to {fit.last:g} evaluations.")
    lines += [*_rises(results, figure), *_differences(results, figure), *_front(results, figure)]
    if results.failures:
        failed = f"{len(results.failures)} runs or metrics failed; the figures are without them"
        lines.append(f"{failed}, and cells with failed blocks are not ranked.")
    return lines


def _best(results: Results, figure: str) -> list[str]:
    lines, last = [], None
    for budget in sorted({spec.size for spec in results.specs} - {0}):
        try:
            best = results.best(budget, figure)
        except ValueError:  # no cell has so few
            continue
        if (best.sampler, best.nfe) != last:
            at = "" if best.nfe == budget else f" at {best.nfe:g}"
            lines.append(f"{budget} evaluations: {best.sampler}{at}, {best.value}")
        last = best.sampler, best.nfe
    return [f"Best within {'; within '.join(lines)}."] if lines else []


def _front(results: Results, figure: str) -> list[str]:
    front = results.pareto(figure)
    points = ", ".join(f"{line.sampler} at {line.nfe:g}" for line in front.itertuples())
    return [f"Pareto front: {points}."] if len(front) > 1 else []


def _floor(results: Results, figure: str) -> list[str]:
    floor = results.floor(figure)
    if floor is None:
        return []
    own = results.to_reference(figure)
    what = "the reference's own error" if own else "data against data"
    lines = [f"The floor, {what}, is {floor}."]
    labels = [label for label in results.labels if any(s.label == label and results.blocks(s, figure) for s in results.specs)]
    reached = {label: results.floor_from(label, figure) for label in labels}
    at = [f"{label} from {k:g} evaluations" for label, k in reached.items() if k is not None]
    last = {s.label: s for s, _ in sorted(results.specs.items(), key=lambda item: item[1]) if results.blocks(s, figure)}
    worse = [label for label, k in reached.items() if k is None and results.at_floor(last[label], figure) is False]
    if at:
        no_worse = "No worse than it, as far as these blocks tell" if results.one_sided(figure) else "Not told apart from it"
        lines[0] += f" {no_worse}: {'; '.join(at)}. {_resolution(results, figure)}"
    if worse:
        lines.append(f"Told apart from the floor at the largest budget: {', '.join(worse)}.")
    exact = [] if own else results.values("reference", figure)
    if exact:
        chance = results.by_chance(figure)
        off, mean = unpaired(exact, results.floor_values(figure), chance=chance), interval(exact, chance=chance)
        if off.significant:
            side = "above" if off.value > 0 else "below"
            lines.append(
                f"The converged reference, {mean}, is {abs(off.value):.3g} {side} the floor (p = {off.p:.2g}): an error of "
                "the model or of its prior, that no solver of the ODE removes."
            )
        elif math.isfinite(off.low):
            half = (off.high - off.low) / 2
            lines.append(
                f"The converged reference, {mean}, is not told apart from the floor: an error of the model that moves {figure} "
                f"by less than about {half:.2g} is not seen in it with {len(exact)} blocks. {_second_look(results)}"
            )
    return lines


def _second_look(results: Results) -> str:
    """Whether the reference's samples lie among the data as data do, where a figure did not tell them apart."""
    from scipy.stats import fisher_exact

    if (look := among(results)) is None:
        return "Look at the samples."
    own, data = (np.mean(inside) for inside in look)
    p = float(fisher_exact([[inside.sum(), (~inside).sum()] for inside in look])[1])
    of = f"{own:.3g} of its {len(look[0])} samples lie among the data, of {len(look[1])} other data {data:.3g} (p = {p:.2g})"
    if p <= DOUBT:
        return f"But {of}: an error of the model or of its prior."
    return f"A second look tells none either: {of}. Look at the samples as well."


def among(results: Results, most: int = 1000) -> tuple[np.ndarray, np.ndarray] | None:
    """Of every sample of the reference, and of half the floor's data, whether it lies in a ball of the other half, as wide as
    the way to its 5th neighbour: precision, which sees what falls between tight clusters. None where too few are kept, or
    where measurements are simulated: the reference's truths are then among the floor's.

    What the blocks of finite data have in common counts once; at most `most` data have a ball.
    """
    from scipy.spatial.distance import cdist

    if "simulated" in results.store.identity:
        return None
    floor, own = (
        [row for x in results.kept(kind) for row in x.reshape(len(x), -1).astype(float)] for kind in ("floor", "reference")
    )
    data = list({row.tobytes(): row for row in floor}.values())
    balls, others = np.array(data[::2][:most]), np.array(data[1::2])
    if len(balls) < 7 or not own:
        return None
    wide = radii(balls, 5)

    def inside(x: np.ndarray) -> Any:
        return (cdist(x, balls) < wide).any(1)

    return inside(np.array(own)), inside(others)


def _rises(results: Results, figure: str) -> list[str]:
    """Samplers that are worse at some budget than at a smaller one, each with the two that are furthest apart.

    Every two budgets of every sampler are tested block by block to this one side, so that of those that are said to be worse
    at most 5 % are not (Benjamini & Hochberg, 1995). Cells with failed blocks are left out, and so are distances to the
    reference within its own error.
    """
    if not results.one_sided(figure):
        return []
    whole = sorted((s for s in results.whole(figure) if s.size), key=lambda s: results.specs[s])
    losses = {spec: results.loss(figure, results.mean(spec, figure).value) for spec in whole}
    pairs = [
        (a, b) for i, b in enumerate(whole) for a in whole[:i] if a.label == b.label and results.specs[a] < results.specs[b]
    ]
    told = discoveries([_worse(results, figure, a, b) if losses[b] > losses[a] else 1.0 for a, b in pairs])
    worst: dict[str, tuple[Spec, Spec]] = {}
    for (a, b), held in zip(pairs, told, strict=True):
        c, d = worst.get(b.label, (a, a))
        if held and losses[b] - losses[a] > losses[d] - losses[c]:
            worst[b.label] = a, b
    value = {spec: f"{results.mean(spec, figure).value:.3g}" for spec in whole}
    return [
        f"{label}: worse at {results.specs[b]:g} than at {results.specs[a]:g} evaluations, {value[b]} against {value[a]}."
        for label, (a, b) in sorted(worst.items(), key=lambda item: results.labels.index(item[0]))
    ]


def _worse(results: Results, figure: str, a: Spec, b: Spec) -> float:
    """The p-value, to one side, of b being no worse than a, where its mean is."""
    if results.to_reference(figure) and results.at_floor(b, figure):
        return 1.0
    off = results.differ(b, a, figure)
    return off.p / 2 if (off.value < 0) == (results.better(figure) == "higher") else 1.0


def _resolution(results: Results, figure: str) -> str:
    """How small a difference from the floor the blocks can show."""
    cells = (list(results.blocks(spec, figure).values()) for spec in results.specs)
    tests = [unpaired(values, results.floor_values(figure)) for values in cells if len(values) > 1]
    half = [(test.high - test.low) / 2 for test in tests if math.isfinite(test.high - test.low)]
    return f"With these blocks a difference under about {np.median(half):.2g} is not seen." if half else ""


def _differences(results: Results, figure: str) -> list[str]:
    """Who is better than whom, and where the blocks cannot tell."""
    table = results.differences(figure)
    if not len(table):
        return []
    unit = "steps" if any(spec.steps for spec in results.specs) else "evaluations"
    pairs = list(dict.fromkeys(zip(table["a"], table["b"], strict=True)))
    if len(pairs) > PAIRS:
        return [_at_budget(part, budget, unit) for budget, part in table.groupby("budget")]
    lines = []
    for a, b in pairs:
        part = table[(table["a"] == a) & (table["b"] == b)]
        told = part[part["significant"]]
        words = []
        for one, other in ((a, b), (b, a)):
            if len(wins := told[told["better"] == one]):
                words.append(f"{one} is better than {other} at {_listed(wins['budget'])} {unit}")
        if len(same := part[~part["significant"]]):
            who = "" if words else f"{a} and {b} are "
            words.append(f"{who}not told apart at {_listed(same['budget'])} {unit}")
        lines.append("; ".join(words) + ".")
    return lines


def _at_budget(part: pd.DataFrame, budget: int, unit: str) -> str:
    """The shorter of two lists: the pairs that differ, or those that are not told apart."""
    apart, same = (
        [f"{line.a} and {line.b}" for line in part.itertuples() if line.significant == which] for which in (True, False)
    )
    if not same:
        return f"At {budget} {unit}, every difference between two samplers is significant."
    if not apart:
        return f"At {budget} {unit}, no difference between two samplers is significant."
    few, which = (apart, "only these differ") if len(apart) < len(same) else (same, "not told apart")
    return f"At {budget} {unit}, {which}: {'; '.join(few)}."


def _listed(budgets: pd.Series) -> str:
    return ", ".join(f"{budget:g}" for budget in budgets)
