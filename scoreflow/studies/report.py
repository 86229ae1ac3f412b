"""A study as one HTML file that needs no network: findings, curves, samples, a table that sorts, what was run, citations."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from scoreflow import _html as notebook
from scoreflow._core.files import whole_file
from scoreflow.studies import draw
from scoreflow.studies.findings import findings
from scoreflow.studies.results import Results
from scoreflow.studies.spec import Spec
from scoreflow.studies.stats import Interval
from scoreflow.studies.strips import column_of, spec_of, strips

SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "star")
DASHES = ("solid", "dash", "dashdot", "dot")
HEADLINES = 2
"""How many findings on the leading figure of a metric stand in the summary: the first ones."""


def write(results: Results, file: Path, figures: list[str], light: bool = False) -> Path:
    """Write the report; the file stands whole or not at all. A light one has charts of matplotlib and no script."""
    import jinja2

    if not light:
        from plotly.offline import get_plotlyjs

    env = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    env.policies["json.dumps_kwargs"] = {"allow_nan": False}
    env.filters["number"] = number
    page = env.from_string(files("scoreflow.studies").joinpath("report.html").read_text(encoding="utf-8")).render(
        plotly="" if light else get_plotlyjs(),
        metrics=metrics(results, figures, still if light else chart),
        light=light,
        headlines=HEADLINES,
        rows=results.frame[results.frame["figure"].isin(figures)].to_dict("records"),
        strips=strips(results),
        columns=_columns(results),
        budgets=_budgets(results),
        failures=failures(results),
        plans=plans(results),
        health=[(str(spec), health) for spec, health in results.health.items()],
        warnings=results.warnings,
        backward=bool(results.backward),
        passes=draw.passes(results),
        identity=results.store.identity,
        flow_map=of_map(results),
        machines=sorted({cell["machine"] for cell in results.runs if cell["machine"]}),
        labels=results.labels,
        seeds=results.seeds,
        citations=results.citations,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as part:
        part.write_text(page, encoding="utf-8")
    return file


def metrics(
    results: Results, figures: list[str], drawn: Callable[[Results, str], dict[str, Any] | str]
) -> list[dict[str, Any]]:
    """The figures by metric, with charts and findings; the first of a metric leads it."""
    found: dict[str, dict[str, Any]] = {}
    for i, figure in enumerate(figures):
        name, known = results.metrics[figure], results.metric(figure)
        entry = found.setdefault(name, dict(name=name, meaning=known.meaning if known else "", parts=[]))
        entry["parts"].append(
            dict(
                name=figure, id=f"curve-{i}", arrow=draw.arrow(results, figure), findings=findings(results, figure),
                chart=drawn(results, figure),
            )
        )  # fmt: skip
    return list(found.values())


# -- curves ---------------------------------------------------------------------------------------------------------------


def chart(results: Results, figure: str) -> dict[str, Any]:
    """A Plotly figure as plain data: one line a sampler, with intervals; floor and reference across."""
    log, look, drawn = draw.logarithmic(results, figure), draw.looks(results), draw.lines(results, figure)
    (least, most), ticks = draw.span(results), draw.budgets(results)
    below: list[dict[str, Any]] = []
    above: list[dict[str, Any]] = []
    for level in draw.across(results, figure):
        name, height = escaped(level.name), level.mean.value
        line = dict(color=draw.GREY, dash="dot" if level.floor else "8px,2px", width=1.5)
        common = dict(type="scatter", mode="lines", name=name, legendgroup=name)
        hover = dict(hoverinfo="text", hovertext=f"{name}<br>{escaped(f'{figure} {level.mean}')}")
        above.append({**common, **hover, "x": [least, most], "y": [height, height], "line": line})
        if level.banded:
            corners = dict(x=[least, most, most, least], y=[level.low] * 2 + [level.mean.high] * 2, fill="toself")
            shade = dict(fillcolor="rgba(102, 102, 102, 0.18)", line=dict(width=0), hoverinfo="skip", showlegend=False)
            below.append({**common, **corners, **shade})
    curves = []
    for label, part in drawn.items():
        (value, low, high), (colour, marker, dash) = draw.ends(part, log), look[label]
        curves.append(
            dict(
                type="scatter", mode="lines+markers", name=escaped(label), x=part["cost"].tolist(), y=_plain(value),
                error_y=dict(
                    type="data", symmetric=False, array=_plain(high - value), arrayminus=_plain(value - low), width=3,
                    thickness=1.2,
                ),
                line=dict(color=draw.COLOURS[colour], dash=DASHES[dash], width=1.8),
                marker=dict(symbol=SYMBOLS[marker], size=8), hoverinfo="text",
                hovertext=[escaped(text, "<br>") for text in _hover(label, figure, part)],
            )
        )  # fmt: skip
    axis = dict(gridcolor="#e5e5e5", linecolor="#888888", ticks="outside", zeroline=False)
    vertical: dict[str, Any] = axis | dict(title=dict(text=escaped(figure)), type="log" if log else "linear", tickformat=".6~g")
    if log:
        vertical["dtick"] = draw.spacing(*draw.extent(results, figure))
    layout = dict(
        xaxis=axis | dict(
            type="log", title=dict(text=draw.passes(results)), range=[math.log10(least), math.log10(most)],
            tickvals=ticks, ticktext=[f"{n}" for n in ticks],
        ),
        yaxis=vertical | dict(automargin=True),
        legend=dict(orientation="h", x=0, xanchor="left", y=1.02, yanchor="bottom"),
        font=dict(family="system-ui, sans-serif", size=13, color="#1a1a1a"), paper_bgcolor="white", plot_bgcolor="white",
        margin=dict(l=60, r=15, t=20, b=50), height=400 + 20 * (len(drawn) // 5), hovermode="closest",
    )  # fmt: skip
    config = dict(responsive=True, displaylogo=False, modeBarButtonsToRemove=["select2d", "lasso2d"])
    return dict(data=[*below, *curves, *above], layout=layout, config=config)


def still(results: Results, figure: str) -> str:
    """The chart that does not move, as the address of an SVG."""
    return "data:image/svg+xml;base64," + base64.b64encode(draw.saved(results, figure, "svg")).decode()


def _hover(label: str, figure: str, part: Any) -> list[str]:
    return [
        f"{label}\n{r['nfe']:g} evaluations{_and_back(r)}\n{figure} {Interval(r['value'], r['low'], r['high'])}\n"
        f"{r['blocks']} block{'s' if r['blocks'] > 1 else ''}"
        for r in part.to_dict("records")
    ]


def _and_back(line: dict[str, Any]) -> str:
    return f" and {line['backward']:g} backward passes" if line.get("backward") else ""


def escaped(text: str, newline: str = " ") -> str:
    """Text as Plotly shows it: it reads tags of HTML, and what is between two dollars as a formula."""
    return html.escape(text, quote=False).replace("$", "&#36;").replace("\n", newline)


def _plain(values: np.ndarray) -> list[float | None]:
    return [v if math.isfinite(v) else None for v in values.tolist()]


def _columns(results: Results) -> list[str]:
    """Heads over the strips: the budgets."""
    specs = sorted(results.specs, key=lambda spec: (spec.steps is not None, spec.size))
    return list(dict.fromkeys(map(column_of, specs)))


def _budgets(results: Results) -> str:
    """The same in a sentence: 5, 10 evaluations."""
    found: dict[str, list[str]] = {}
    for column in _columns(results):
        count, _, unit = column.partition(" ")
        found.setdefault(unit, []).append(count)
    return "; ".join(f"{', '.join(counts)} {unit}" for unit, counts in found.items())


# -- a notebook ----------------------------------------------------------------------------------------------------------


def card(results: Results) -> str:
    """The leading figure at every budget, its chart and its findings."""
    facts: dict[str, object] = {
        "of": f"{results.store.identity['network']} on {results.store.identity['path']}",
        "cells": f"{len(results.specs)}, of {len(results.seeds)} blocks of {results.store.identity['n']} samples",
        "figures": ", ".join(results.figures),
    }
    if said := of_map(results):
        facts["flow map"] = said
    if results.failures:
        facts["failed"] = len(results.failures)
    if results.warnings:
        facts["not sensible"] = "; ".join(results.warnings)
    if not results.figures:
        return notebook.card("Study", facts)
    figure, columns = results.figures[0], _columns(results)
    cells = {(spec.label, column_of(spec)): str(results.mean(spec, figure)) for spec in results.whole(figure)}
    rows = [(label, *(cells.get((label, column), "") for column in columns)) for label in results.labels]
    if (floor := results.floor(figure)) is not None:
        rows.append(("floor", str(floor), *[""] * (len(columns) - 1)))
    parts = [
        notebook.note(f"{figure} ({draw.arrow(results, figure)}), mean and 95 % interval over blocks"),
        notebook.table(("sampler", *columns), rows, most=20),
        *map(notebook.note, findings(results, figure)[:HEADLINES]),
    ]
    return notebook.card("Study", facts, *parts)


# -- text -----------------------------------------------------------------------------------------------------------------


def of_map(results: Results) -> str:
    """What the flow map of a study is and who runs it; empty where there is none."""
    if (given := results.store.identity.get("flow_map")) is None:
        return ""
    specs = (spec_of(run) for run in results.runs if run["kind"] == "cell")
    on_map = dict.fromkeys(spec.label for spec in specs if spec.mapped)
    return f"{given}, run by {', '.join(on_map)}; the model by the other samplers and by the reference"


def plans(results: Results) -> list[dict[str, Any]]:
    """What ran: one line a sampler and budget."""
    found: dict[tuple[str, Spec], dict[str, Any]] = {}
    for cell in results.runs:
        if cell["kind"] in ("cell", "reference", "finest") and cell["error"] is None:
            line = dict(kind=cell["kind"], spec=str(spec_of(cell)), counted=cell["counted"], plan=cell["plan"])
            found.setdefault((cell["kind"], spec_of(cell)), line)
    return list(found.values())


def failures(results: Results) -> list[dict[str, Any]]:
    """What failed, one line for all blocks with the same error."""
    found: dict[tuple[str, str], list[int]] = {}
    for kind, spec, seed, error in results.failures:
        found.setdefault((f"{spec}{'' if kind == 'cell' else f' ({kind})'}", error), []).append(seed)
    return [dict(cell=cell, error=error, seeds=sorted(seeds)) for (cell, error), seeds in found.items()]


def number(value: float | None, digits: int = 4) -> str:
    """A figure in few digits; empty if there is none."""
    if value is None or math.isnan(value):
        return ""
    return f"{value:.{digits}g}" if math.isfinite(value) else f"{'−' if value < 0 else ''}∞"
