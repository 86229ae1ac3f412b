"""A study as one HTML file that needs no network: curves, a table that sorts, samples, findings, what was run, citations."""

from __future__ import annotations

import base64
import io
import json
import math
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from scoreflow.studies.draw import COLOURS, across, arrow, lines, logarithmic
from scoreflow.studies.metrics import METRICS
from scoreflow.studies.results import Results
from scoreflow.studies.spec import Spec

SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "star")
DASHES = ("solid", "dash", "dashdot", "dot")
SHOWN = 8
"""Samples shown of each cell."""


def write(results: Results, file: Path, figures: list[str]) -> Path:
    """Write the report; the file stands whole or not at all."""
    import jinja2
    from plotly.offline import get_plotlyjs

    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        files("scoreflow.studies").joinpath("report.html").read_text(encoding="utf-8")
    )
    page = template.render(
        plotly=get_plotlyjs(),
        figures=[
            dict(
                name=figure, id=f"curve-{i}", meaning=_meaning(figure), arrow=arrow(figure),
                chart=json.dumps(chart(results, figure)).replace("</", "<\\/"), findings=results.findings(figure),
            )
            for i, figure in enumerate(figures)
        ],
        rows=results.frame[results.frame["figure"].isin(figures)].to_dict("records"),
        strips=strips(results),
        budgets=sorted({spec.asked for spec in results.specs}),
        failures=results.failures,
        plans=_plans(results),
        identity=results.store.identity,
        machines=sorted({cell["machine"] for cell in results._cells if cell["machine"]}),
        seeds=results.seeds,
        citations=results.citations,
        number=_number,
    )  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    part.write_text(page, encoding="utf-8")
    part.replace(file)
    return file


def chart(results: Results, figure: str) -> dict[str, Any]:
    """A Plotly figure as plain data: one line a sampler, with intervals; floor and reference across."""
    traces: list[dict[str, Any]] = []
    drawn = lines(results, figure)
    for i, (label, part) in enumerate(drawn.items()):
        value, low, high = (part[name].to_numpy(dtype=float) for name in ("value", "low", "high"))
        traces.append(
            dict(
                type="scatter", mode="lines+markers", name=label, x=part["nfe"].tolist(), y=_plain(value),
                error_y=dict(type="data", symmetric=False, array=_plain(high - value), arrayminus=_plain(value - low), width=3),
                line=dict(color=COLOURS[i % 8], dash=DASHES[i // 8 % 4]), marker=dict(symbol=SYMBOLS[i % 8], size=7),
            )
        )  # fmt: skip
    evaluations = [nfe for part in drawn.values() for nfe in part["nfe"]]
    ends = [min(evaluations, default=1), max(evaluations, default=1)]
    for name, mean in across(results, figure).items():
        line = dict(color="#666666", dash="dot" if name == "floor" else "dash", width=1.5)
        traces.append(dict(type="scatter", mode="lines", name=name, x=ends, y=[mean.value] * 2, line=line))
    kind = "log" if logarithmic(results, figure) else "linear"
    layout = dict(
        xaxis=dict(
            type="log", title=dict(text="network evaluations"), gridcolor="#e5e5e5",
            tickvals=sorted({spec.asked for spec in results.specs} - {0}) or None,
        ),
        yaxis=dict(type=kind, title=dict(text=figure), gridcolor="#e5e5e5", exponentformat="power"),
        plot_bgcolor="white", margin=dict(l=70, r=20, t=20, b=50), height=460, hovermode="closest",
    )  # fmt: skip
    return dict(data=traces, layout=layout, config=dict(responsive=True, displaylogo=False))


def strips(results: Results) -> list[dict[str, Any]]:
    """The first samples of the first block, for every sampler and budget, as pictures; none where they cannot be drawn."""
    found: dict[str, dict[int, str]] = {}
    first = min(results.seeds, default=0)
    for cell in results._cells:
        if cell["kind"] in ("cell", "floor", "reference") and cell["seed"] == first and cell["error"] is None:
            samples = results.store.samples(cell["key"])
            if samples is not None and (drawn := picture(samples)):
                label = {"floor": "data", "reference": "converged reference"}.get(cell["kind"]) or _spec(cell).label
                url = "data:image/png;base64," + base64.b64encode(drawn).decode()
                found.setdefault(label, {})[_spec(cell).asked if cell["kind"] == "cell" else 0] = url
    ends = ("converged reference", "data")
    order = [*(label for label in found if label not in ends), *(label for label in ends if label in found)]
    return [dict(label=label, pictures=found[label]) for label in order]


def picture(samples: np.ndarray, shown: int = SHOWN) -> bytes:
    """Images side by side, at most 16 in a row, or points of the plane, as a PNG; empty for other shapes."""
    import matplotlib.image
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    out, shape = io.BytesIO(), samples.shape[1:]
    if len(shape) == 3 and shape[0] in (1, 3):
        white = -1.0 if shape[0] == 1 else 1.0
        images = np.pad(samples[:shown], ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=white).clip(-1, 1)
        wide = min(16, len(images))
        rows = -(-len(images) // wide)
        full = np.full((rows * wide, *images.shape[1:]), white)
        full[: len(images)] = images
        sheet = (
            full.reshape(rows, wide, *images.shape[1:]).transpose(0, 3, 1, 4, 2).reshape(rows * images.shape[2], -1, shape[0])
        )
        level = (1 - sheet) / 2 if shape[0] == 1 else (sheet + 1) / 2  # ink is dark
        scale = max(1, round(24 / shape[1]))
        pixels = np.repeat(level, 3 // shape[0], axis=2).repeat(scale, axis=0).repeat(scale, axis=1)
        matplotlib.image.imsave(out, pixels.astype(np.float64), format="png")
    elif shape == (2,):
        figure = Figure(figsize=(1.2, 1.2), layout="constrained")
        FigureCanvasAgg(figure)
        ax = figure.add_subplot()
        ax.plot(*samples.T, ".", markersize=2, color="#0072B2")
        ax.set(xticks=[], yticks=[], xlim=(-2.2, 2.2), ylim=(-2.2, 2.2))
        figure.savefig(out, format="png", dpi=90)
    return out.getvalue()


def _plans(results: Results) -> list[dict[str, Any]]:
    """What ran: one line a sampler and budget."""
    shown: dict[tuple[str, Spec], dict[str, Any]] = {}
    for cell in results._cells:
        if cell["kind"] != "floor" and cell["error"] is None:
            line = dict(kind=cell["kind"], spec=str(_spec(cell)), counted=cell["counted"], plan=cell["plan"])
            shown.setdefault((cell["kind"], _spec(cell)), line)
    return list(shown.values())


def _spec(cell: dict[str, Any]) -> Spec:
    return Spec(cell["sampler"], cell["grid"], cell["nfe"], cell["steps"])


def _meaning(figure: str) -> str:
    known = METRICS.get(figure.partition("/")[0])
    return known.meaning if known else ""


def _plain(values: np.ndarray) -> list[float | None]:
    return [v if math.isfinite(v) else None for v in values.tolist()]


def _number(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return f"{value:.4g}"
