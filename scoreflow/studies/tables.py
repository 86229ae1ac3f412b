"""The tables of a study."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from scoreflow.studies.stats import discoveries
from scoreflow.studies.store import MEASURED

if TYPE_CHECKING:
    import pandas as pd

    from scoreflow.studies.results import Results


def frame(results: Results) -> pd.DataFrame:
    """One line a sampler, budget and figure."""
    import pandas as pd

    figures = results.figures
    means = {f: [m.value if m else math.nan for m in (results.floor(f), results.reference(f))] for f in figures}
    lines = [
        dict(
            sampler=spec.label, nfe=nfe, backward=results.backward.get(spec, 0.0), asked=spec.nfe, steps=spec.steps,
            figure=figure, **results.mean(spec, figure)._asdict(), blocks=len(values),
            floor=means[figure][0], reference=means[figure][1],
        )
        for spec, nfe in sorted(results.specs.items(), key=lambda item: (results.labels.index(item[0].label), item[1]))
        for figure in figures
        if (values := results.blocks(spec, figure))
    ]  # fmt: skip
    columns = ["sampler", "nfe", "backward", "asked", "steps", "figure", "value", "low", "high", "blocks", "floor", "reference"]
    if not results.backward:
        columns.remove("backward")
    return pd.DataFrame(lines, columns=columns)


def cells(results: Results) -> pd.DataFrame:
    """One line a cell and figure, block by block, failures too."""
    import pandas as pd

    values: dict[str, dict[str, float]] = {}
    for row in results.store.rows(f"SELECT key, figure, value FROM value WHERE {MEASURED} ORDER BY figure"):
        values.setdefault(row["key"], {})[row["figure"]] = row["value"]
    lines = [
        {
            **{name: cell[name] for name in ("kind", "sampler", "grid", "nfe", "steps", "seed", "counted")},
            "figure": figure, "value": value, "plan": cell["plan"], "error": cell["error"], "key": cell["key"],
        }
        for cell in results.runs
        for figure, value in (values.get(cell["key"]) or {"": math.nan}).items()
    ]  # fmt: skip
    order = ["kind", "sampler", "grid", "nfe", "steps", "seed", "figure"]
    return pd.DataFrame(lines).sort_values(order, kind="stable").reset_index(drop=True)


def differences(results: Results, figure: str) -> pd.DataFrame:
    """Every two samplers at every budget they share: a minus b."""
    import pandas as pd

    lines = []
    there = sorted((s for s in results.specs if s.budget and results.blocks(s, figure)), key=lambda s: (s.size, s.label))
    sign = -1 if results.better(figure) == "higher" else 1
    for i, b in enumerate(there):
        for a in there[:i]:
            if a.budget == b.budget:
                off = results.differ(a, b, figure)._asdict()
                better = a.label if sign * off["value"] < 0 else b.label  # over the blocks that both have
                lines.append(dict(a=a.label, b=b.label, budget=a.size, **off, better=better))
    told = discoveries([line["p"] for line in lines])
    columns = ["a", "b", "budget", "value", "low", "high", "p", "better"]
    return pd.DataFrame(lines, columns=columns).assign(significant=told)
