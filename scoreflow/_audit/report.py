"""Audits as one HTML file that needs no network: what was found, charts, the rows beside the registered ones."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from scoreflow._core.files import whole_file

SURE, WRONG, RIGHT, GREY = "#00527f", "#a00000", "#2f7d32", "#666666"
MOST = 60
"""Rows that are shown."""


class Section(NamedTuple):
    """One audit.

    Attributes:
        head: what was read. passed: whether all checks hold. says: what it is and what comes of it.
        checks: name, whether it holds, what was found, call. right: the nearest registered sampler; empty if there is none.
        levels: (σ/α told, σ/α where the state stands) by call.
        apart: the largest relative difference from the nearest, by call and at the end.
        law: by steps, the variance over the data's. limit: what it tends to.
        distances: by steps, to the ODE, its and the nearest's.
        rows: (call, its row, the nearest's), as text.
        data: all of it, JSON.
    """

    head: str
    passed: bool
    says: Sequence[str]
    checks: Sequence[tuple[str, bool, str, int | None]]
    right: str
    levels: Sequence[tuple[float, float]]
    apart: Sequence[float]
    law: dict[int, float]
    limit: float | None
    distances: dict[int, tuple[float, float]]
    rows: Sequence[tuple[int, str, str]]
    data: str


def write(sections: Sequence[Section], file: Path) -> Path:
    """Write the page; the file stands whole or not at all."""
    import jinja2

    env = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = env.from_string(files("scoreflow._audit").joinpath("report.html").read_text(encoding="utf-8")).render(
        sections=[(one, charts(one)) for one in sections], most=MOST
    )
    with whole_file(file) as part:
        part.write_text(page, encoding="utf-8")
    return file


def charts(one: Section) -> list[tuple[str, str]]:
    """(What is drawn, the address of an SVG) of each chart there is something for."""
    drawn = []
    if one.levels:
        drawn.append(("Levels: what the network is told, and where its state stands", _svg(_levels, one)))
    if one.right:
        drawn.append((f"Difference from {one.right}, state by state", _svg(_apart, one)))
    if one.law:
        drawn.append(("Variance of the outputs over the data's, on N(0, ½) data with the exact network", _svg(_law, one)))
    if one.distances:
        drawn.append(("Distance to the probability-flow ODE on a mixture", _svg(_distances, one)))
    return drawn


def _levels(ax: Any, one: Section) -> None:
    told, stands = zip(*one.levels, strict=True)
    ax.plot(range(len(told)), told, "o", color=GREY, fillstyle="none", markersize=8, label="told")
    ax.plot(range(len(stands)), stands, ".", color=SURE, label="stands")
    ax.set(xlabel="call", ylabel="σ/α", yscale="log")
    ax.legend()


def _apart(ax: Any, one: Section) -> None:
    floor = 1e-17
    ax.bar(range(len(one.apart)), [max(gap, floor) for gap in one.apart], bottom=0, color=SURE)
    ax.axhline(1e-6, color=GREY, linestyle=":", label="10⁻⁶: the same")
    ax.set(xlabel="call; the last is the end", ylabel="relative", yscale="log", ylim=(floor, max(10.0, *one.apart)))
    ax.legend()


def _law(ax: Any, one: Section) -> None:
    ax.plot(list(one.law), list(one.law.values()), "o-", color=SURE, label="its outputs")
    ax.axhline(1.0, color=RIGHT, label="data")
    if one.limit is not None:
        wrong = abs(one.limit - 1) > 0.03
        ax.axhline(one.limit, color=WRONG if wrong else GREY, linestyle=":", label=f"tends to {one.limit:.3g}")
    ax.set(xlabel="steps", ylabel="variance over the data's", xscale="log")
    ax.set_ylim(0, min(4.0, 1.1 * max(1.2, *one.law.values())))
    ax.legend()


def _distances(ax: Any, one: Section) -> None:
    steps = list(one.distances)
    ax.plot(steps, [pair[0] for pair in one.distances.values()], "o-", color=SURE, label="it")
    ours = [pair[1] for pair in one.distances.values()]
    if any(gap == gap for gap in ours):
        ax.plot(steps, ours, "s--", color=RIGHT, label=one.right)
    ax.set(xlabel="steps", ylabel="distance", xscale="log", yscale="log")
    ax.legend()


def _svg(draw: Any, one: Section) -> str:
    """A chart as the address of an SVG, the same for the same numbers."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "scoreflow", "font.size": 9}):
        figure = Figure(figsize=(5.4, 3.2), layout="constrained")
        ax = figure.subplots()
        ax.grid(color="#e5e5e5")
        ax.set_axisbelow(True)
        draw(ax, one)
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode()
