"""Curves of a study: how a sampler looks in every chart, what is drawn, and the charts of matplotlib."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scoreflow.studies.results import Results
from scoreflow.studies.stats import Interval

if TYPE_CHECKING:
    import pandas as pd

# Okabe and Ito's colours, told apart by colour-blind people; markers and dashes tell lines apart in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")
GREY = "#666666"
WORDS = {"lower": "lower is better", "higher": "higher is better", "either": "data's own is best"}


class Look(NamedTuple):
    """Of a line, by index into `COLOURS`, `MARKERS` and `LINES`."""

    colour: int
    marker: int
    line: int


class Level(NamedTuple):
    """A line across: what it is called, its value, the lower end of its band as drawn, and whether it is the floor."""

    name: str
    mean: Interval
    low: float
    floor: bool

    @property
    def banded(self) -> bool:
        """Whether its interval is shaded: the floor's, if it has one."""
        return self.floor and math.isfinite(self.low)


def looks(results: Results) -> dict[str, Look]:
    """How each sampler looks, in every chart of the study; no two of the first 32 look the same."""
    return {label: Look(i % 8, i % 8, (i + i // 8) % 4) for i, label in enumerate(results.labels)}


# -- what is drawn --------------------------------------------------------------------------------------------------------


def arrow(results: Results, figure: str) -> str:
    """Which way is good, in words."""
    known = results.metric(figure)
    best = known.best_of(figure) if known else None
    return WORDS[results.better(figure)] if best is None else f"{best:g} is best"


def passes(results: Results) -> str:
    """What the axis of costs counts: network evaluations; or these and backward passes, where a run has any."""
    return "network evaluations + backward passes" if results.backward else "network evaluations"


def costs(results: Results) -> list[float]:
    """Of every cell, the passes that `passes` names."""
    return [results.passes(spec) for spec in results.specs]


def logarithmic(results: Results, figure: str) -> bool:
    """Whether its axis is logarithmic: a positive metric, and every value above 0; the reference's own distance to itself, 0,
    is left out.
    """
    known = results.metric(figure)
    values = results.frame.loc[results.frame["figure"] == figure, "value"].to_numpy(dtype=float)
    values = values[np.isfinite(values)]
    if results.to_reference(figure):
        values = values[values != 0]
    return (known is None or known.positive) and len(values) > 0 and bool((values > 0).all())


def lines(results: Results, figure: str) -> dict[str, pd.DataFrame]:
    """The frame of each sampler that has the figure, by rising `cost`: evaluations, and backward passes where a run has any."""
    frame = results.frame[results.frame["figure"] == figure]
    frame = frame.assign(cost=frame["nfe"] + (frame["backward"] if results.backward else 0)).sort_values("cost")
    return {label: part for label in results.labels if len(part := frame[frame["sampler"] == label])}


def ends(part: pd.DataFrame, log: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values and the ends of their intervals as drawn; what is not finite is NaN.

    On a logarithmic axis no lower end is under a tenth of the value, or an interval that reaches 0 would rule the axis.
    """
    value, low, high = (part[name].to_numpy(dtype=float) for name in ("value", "low", "high"))
    value, low, high = (np.where(np.isfinite(v), v, np.nan) for v in (value, low, high))
    if not log:
        return value, low, high
    value = np.where(value > 0, value, np.nan)
    return value, np.maximum(low, value / 10), np.where(np.isnan(value), np.nan, high)


def across(results: Results, figure: str) -> list[Level]:
    """The floor and the converged reference; not those so far below on a logarithmic axis that they would rule it. A distance
    to the reference has no line for it: its floor is the reference's own error.
    """
    own = results.to_reference(figure)
    floor = f"floor: {'own error of the reference' if own else 'data against data'}"
    found = [(floor, results.floor(figure), True)]
    if not own:
        found.append(("converged reference", results.reference(figure), False))
    seen = [Level(name, mean, mean.low, floor) for name, mean, floor in found if mean is not None and math.isfinite(mean.value)]
    if not logarithmic(results, figure):
        return seen
    least = np.nanmin(np.concatenate([ends(part, True)[0] for part in lines(results, figure).values()]))
    return [level._replace(low=max(level.low, level.mean.value / 10)) for level in seen if level.mean.value > least / 100]


def extent(results: Results, figure: str) -> tuple[float, float]:
    """The least and the largest that is drawn."""
    log = logarithmic(results, figure)
    drawn = [np.concatenate(ends(part, log)) for part in lines(results, figure).values()]
    drawn += [np.array([level.low, level.mean.value, level.mean.high]) for level in across(results, figure)]
    every = np.concatenate(drawn or [np.ones(1)])
    every = every[np.isfinite(every)]
    return (float(every.min()), float(every.max())) if len(every) else (1.0, 1.0)


def span(results: Results) -> tuple[float, float]:
    """The ends of the axis of costs, the same in every chart."""
    cost = costs(results)
    return min(cost, default=1.0) / 1.15, max(cost, default=1.0) * 1.15


def budgets(results: Results) -> list[int]:
    """The ticks of that axis: the budgets; where steps were asked for, or passes back are counted too, what the runs took.
    Those too near to the one before to be read are left out.
    """
    low, high = span(results)
    asked = set() if results.backward else {spec.nfe for spec in results.specs if spec.nfe is not None}
    kept: list[int] = []
    for n in sorted(asked or {round(cost) for cost in costs(results)}):
        if low <= n <= high and (not kept or math.log(n / kept[-1]) >= math.log(high / low) / 14):
            kept.append(n)
    return kept


def spacing(low: float, high: float) -> int | str:
    """The ticks of a logarithmic axis, in Plotly's words: k every k-th power of ten, "D2" 1, 2 and 5 of each power, "Lx" the
    multiples of x.
    """
    powers = math.floor(math.log10(high)) - math.ceil(math.log10(low)) + 1
    if powers >= 4:
        return -(-powers // 8)
    first = math.floor(math.log10(low))
    if sum(low <= digit * 10.0**k <= high for k in range(first, first + powers + 3) for digit in (1, 2, 5)) >= 3:
        return "D2"
    rough = max(high - low, 0.1 * low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    return f"L{power * next(digit for digit in (1, 2, 5, 10) if digit * power >= rough):.6g}"


# -- matplotlib -----------------------------------------------------------------------------------------------------------


def plot(results: Results, figure: str, ax: Any = None) -> Any:
    """Draw; returns the axes. The legend stands at their right, so axes of your own need `layout="constrained"`."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, NullLocator

    ax = ax or plt.subplots(figsize=(8, 4.5), layout="constrained")[1]
    log, look = logarithmic(results, figure), looks(results)
    handles = []
    for label, part in lines(results, figure).items():
        (value, low, high), (colour, marker, line) = ends(part, log), look[label]
        drawn = ax.errorbar(
            part["cost"], value, yerr=np.stack([value - low, high - value]), label=_text(label), color=COLOURS[colour],
            marker=MARKERS[marker], linestyle=LINES[line], capsize=2.5, markersize=5, linewidth=1.3, elinewidth=0.9,
        )  # fmt: skip
        handles.append(drawn)
    for level in across(results, figure):
        dash = (0, (1, 1)) if level.floor else (0, (8, 2))
        handles.append(
            ax.axhline(level.mean.value, color=GREY, linestyle=dash, linewidth=1.2, zorder=0, label=_text(level.name))
        )
        if level.banded:
            ax.axhspan(level.low, level.mean.high, color=GREY, alpha=0.2, linewidth=0, zorder=0)
    at = budgets(results)
    ax.set_xscale("log")
    ax.set_xlim(*span(results))
    ax.set_xticks(at, [f"{n}" for n in at])
    ax.xaxis.set_minor_locator(NullLocator())
    if log:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(_locator(spacing(*extent(results, figure))))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.6g}"))
    ax.set(xlabel=passes(results), ylabel=_text(f"{figure} ({arrow(results, figure)})"))
    ax.grid(True, which="major", color="0.9", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.legend(
        handles=handles, fontsize="small", frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0,
        handlelength=3.2,
    )  # fmt: skip
    return ax


def saved(results: Results, figure: str, kind: str) -> bytes:
    """The chart in a file of that kind, the same bytes each time."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    page, out = Figure(figsize=(8.6, 4.5), layout="constrained"), io.BytesIO()
    FigureCanvasAgg(page)
    plot(results, figure, page.add_subplot())
    with matplotlib.rc_context({"svg.hashsalt": figure}):
        page.savefig(out, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return out.getvalue()


def _locator(ticks: int | str) -> Any:
    """`spacing` in matplotlib's words."""
    from matplotlib.ticker import LogLocator, MultipleLocator

    if isinstance(ticks, int):
        return LogLocator(10.0**ticks, numticks=30)
    return LogLocator(subs=(1, 2, 5), numticks=30) if ticks == "D2" else MultipleLocator(float(ticks[1:]))


def _text(label: str) -> str:
    """What is between two dollars is a formula to matplotlib; names are none."""
    return label.replace("$", r"\$")
