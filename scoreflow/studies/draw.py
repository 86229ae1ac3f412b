"""Curves of a study with matplotlib: quality against evaluations, with intervals, floor and reference."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from scoreflow.studies.metrics import METRICS
from scoreflow.studies.results import Results
from scoreflow.studies.stats import Interval

if TYPE_CHECKING:
    import pandas as pd

# Okabe and Ito's colours, told apart by colour-blind people; markers tell lines apart in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")


def look(i: int) -> tuple[str, str, str]:
    """Colour, marker and line of the i-th sampler; no two of the first 32 are the same."""
    return COLOURS[i % 8], MARKERS[i % 8], LINES[i // 8 % 4]


def logarithmic(results: Results, figure: str) -> bool:
    """Whether its axis is logarithmic."""
    known = METRICS.get(figure.partition("/")[0])
    values = results.frame.loc[results.frame["figure"] == figure, "value"]
    return bool((known is None or known.positive) and (values > 0).all())


def lines(results: Results, figure: str) -> dict[str, pd.DataFrame]:
    """The frame of each sampler, by rising evaluations; intervals below 0 are cut where the axis is logarithmic."""
    frame = results.frame[results.frame["figure"] == figure].sort_values("nfe").copy()
    if logarithmic(results, figure):
        frame["low"] = frame["low"].where(~(frame["low"] <= 0), frame["value"] / 10)
    return {label: part for label in results.labels if len(part := frame[frame["sampler"] == label])}


def across(results: Results, figure: str) -> dict[str, Interval]:
    """The floor and the reference as lines across; not those so far below on a logarithmic axis that they would rule it."""
    least = min((float(part["value"].min()) for part in lines(results, figure).values()), default=0.0)
    beside = {"floor": results.floor(figure), "reference": results.reference(figure)}
    if results.to_reference(figure):
        beside.pop("reference")
    seen = {name: mean for name, mean in beside.items() if mean is not None and math.isfinite(mean.value)}
    return {name: mean for name, mean in seen.items() if not logarithmic(results, figure) or mean.value > least / 100}


def arrow(figure: str) -> str:
    """Which way is good, in words."""
    known = METRICS.get(figure.partition("/")[0])
    return {"lower": "lower is better", "higher": "higher is better", "either": "data's own is best"}[
        known.better if known else "lower"
    ]


def plot(results: Results, figure: str, ax: Any = None) -> Any:
    """Draw; returns the axes."""
    import matplotlib.pyplot as plt

    ax = ax or plt.subplots(figsize=(7, 4.5), layout="constrained")[1]
    for i, (label, part) in enumerate(lines(results, figure).items()):
        colour, marker, line = look(i)
        off = np.abs(part[["low", "high"]].to_numpy().T - part["value"].to_numpy())
        bars = None if np.isnan(off).all() else np.nan_to_num(off)
        ax.errorbar(
            part["nfe"], part["value"], yerr=bars, label=label, color=colour, marker=marker, linestyle=line, capsize=2, ms=4
        )
    for name, mean in across(results, figure).items():
        ax.axhline(mean.value, color="0.4", linestyle=":" if name == "floor" else "--", linewidth=1, label=name, zorder=0)
        if math.isfinite(mean.low) and name == "floor":
            ax.axhspan(mean.low, mean.high, color="0.5", alpha=0.15, linewidth=0)
    ax.set_xscale("log")
    if logarithmic(results, figure):
        ax.set_yscale("log")
    ax.set(xlabel="network evaluations", ylabel=f"{figure} ({arrow(figure)})")
    ax.grid(True, which="major", color="0.9", linewidth=0.6)
    ax.legend(fontsize="small", frameon=False)
    return ax
