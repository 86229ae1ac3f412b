"""A study as one HTML file that needs no network: findings, curves, samples, a table that sorts, what was run, citations."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from scoreflow import _html as notebook
from scoreflow._core.files import whole_file
from scoreflow._show.picture import drawable, enlarged, most, points, sheet
from scoreflow.studies import draw
from scoreflow.studies.findings import findings
from scoreflow.studies.results import Results
from scoreflow.studies.spec import Spec
from scoreflow.studies.stats import Interval

SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "star")
DASHES = ("solid", "dash", "dashdot", "dot")
SHOWN = 8
"""Samples shown of each cell, of images no more than fit in `WIDE` pixels."""
WIDE = 320
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
        identity=results.store.identity,
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
                type="scatter", mode="lines+markers", name=escaped(label), x=part["nfe"].tolist(), y=_plain(value),
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
            type="log", title=dict(text="network evaluations"), range=[math.log10(least), math.log10(most)],
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
        f"{label}\n{r['nfe']:g} evaluations\n{figure} {Interval(r['value'], r['low'], r['high'])}\n"
        f"{r['blocks']} block{'s' if r['blocks'] > 1 else ''}"
        for r in part.to_dict("records")
    ]


def escaped(text: str, newline: str = " ") -> str:
    """Text as Plotly shows it: it reads tags of HTML, and what is between two dollars as a formula."""
    return html.escape(text, quote=False).replace("$", "&#36;").replace("\n", newline)


def _plain(values: np.ndarray) -> list[float | None]:
    return [v if math.isfinite(v) else None for v in values.tolist()]


# -- samples --------------------------------------------------------------------------------------------------------------


def strips(results: Results) -> list[dict[str, Any]]:
    """The first samples of the first block, for every sampler and budget, as pictures by column; none where they cannot be
    drawn. What the samplers are compared to comes last, its picture under "".
    """
    seeds: dict[str, int] = {}  # data have blocks of their own
    for cell in results.runs:
        seeds[cell["kind"]] = min(cell["seed"], seeds.get(cell["kind"], cell["seed"]))
    kinds = {"cell": "", "reference": "converged reference", "floor": "data"}
    cells = [c for c in results.runs if c["kind"] in kinds and c["error"] is None and c["seed"] == seeds[c["kind"]]]
    within = _within(results, [cell for cell in cells if cell["kind"] != "cell"])
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for cell in sorted(cells, key=lambda cell: [*kinds].index(cell["kind"])):
        samples = results.store.samples(cell["key"])
        if samples is None or not (drawn := picture(samples, _room(samples), within)):
            continue
        label = kinds[cell["kind"]] or _spec(cell).label
        strip = found.setdefault((cell["kind"], label), dict(label=label, points=samples.ndim == 2, pictures={}))
        column = _column(_spec(cell)) if cell["kind"] == "cell" else ""
        strip["pictures"][column] = "data:image/png;base64," + base64.b64encode(drawn).decode()
    return list(found.values())


def picture(samples: np.ndarray, shown: int = SHOWN, within: float | None = None) -> bytes:
    """Images side by side, at most 16 in a row, or points of the plane, as a PNG; empty for other shapes.

    One channel is ink, dark where it is 1. Points are drawn in a square from −`within` to `within`; None: all of them.
    """
    if not len(samples) or not drawable(samples.shape[1:]):
        return b""
    if samples.ndim == 2:
        drawn = points(samples, within or most(samples))
    else:
        drawn = sheet(samples[:shown], (1, -1) if samples.shape[1] == 1 else (-1, 1))
    out = io.BytesIO()
    drawn.save(out, format="PNG", optimize=True)
    return out.getvalue()


def _room(samples: np.ndarray) -> int:
    """How many samples a strip shows."""
    return SHOWN if samples.ndim != 4 else max(1, min(SHOWN, WIDE // ((samples.shape[3] + 1) * enlarged(samples.shape[3]))))


def _within(results: Results, cells: list[dict[str, Any]]) -> float | None:
    """The square in which points are drawn, the same for all: that of what they are compared to."""
    drawn = [samples for cell in cells if (samples := results.store.samples(cell["key"])) is not None and samples.ndim == 2]
    return max(map(most, drawn), default=None)


def _columns(results: Results) -> list[str]:
    """Heads over the strips: the budgets."""
    specs = sorted(results.specs, key=lambda spec: (spec.steps is not None, spec.size))
    return list(dict.fromkeys(map(_column, specs)))


def _budgets(results: Results) -> str:
    """The same in a sentence: 5, 10 evaluations."""
    found: dict[str, list[str]] = {}
    for column in _columns(results):
        count, _, unit = column.partition(" ")
        found.setdefault(unit, []).append(count)
    return "; ".join(f"{', '.join(counts)} {unit}" for unit, counts in found.items())


def _column(spec: Spec) -> str:
    return f"{spec.size} {'evaluations' if spec.nfe else 'steps'}" if spec.size else "by tolerance"


# -- a notebook ----------------------------------------------------------------------------------------------------------


def card(results: Results) -> str:
    """The leading figure at every budget, its chart and its findings."""
    facts: dict[str, object] = {
        "of": f"{results.store.identity['network']} on {results.store.identity['path']}",
        "cells": f"{len(results.specs)}, of {len(results.seeds)} blocks of {results.store.identity['n']} samples",
        "figures": ", ".join(results.figures),
    }
    if results.failures:
        facts["failed"] = len(results.failures)
    if results.warnings:
        facts["not sensible"] = "; ".join(results.warnings)
    if not results.figures:
        return notebook.card("Study", facts)
    figure, columns = results.figures[0], _columns(results)
    cells = {(spec.label, _column(spec)): str(results.mean(spec, figure)) for spec in results.whole(figure)}
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


def plans(results: Results) -> list[dict[str, Any]]:
    """What ran: one line a sampler and budget."""
    found: dict[tuple[str, Spec], dict[str, Any]] = {}
    for cell in results.runs:
        if cell["kind"] != "floor" and cell["error"] is None:
            line = dict(kind=cell["kind"], spec=str(_spec(cell)), counted=cell["counted"], plan=cell["plan"])
            found.setdefault((cell["kind"], _spec(cell)), line)
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


def _spec(cell: dict[str, Any]) -> Spec:
    return Spec(cell["sampler"], cell["grid"], cell["nfe"], cell["steps"])
