"""The samples of a study as pictures: strips by sampler and budget, and of a posterior its truths, measurements and moments."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np

from scoreflow._show.picture import Range, drawable, enlarged, most, points, sheet
from scoreflow.studies.results import Results
from scoreflow.studies.spec import Spec

SHOWN = 8
"""Samples shown of each cell, of images no more than fit in `WIDE` pixels."""
WIDE = 320
KINDS = {"truth": "truth", "measurement": "measurement", "cell": "", "reference": "converged reference", "floor": "data"}
"""What is drawn, from the top, with its label; a cell has its sampler's."""
RUNS = ("cell", "reference", "floor")
"""Of these, samples."""


def strips(results: Results) -> list[dict[str, Any]]:
    """The first samples of the first block, for every sampler and budget, as pictures by column; none where they cannot be
    drawn. What the samplers are compared to comes last, its picture under "".

    Of a posterior of images truth and measurement come first, and each sampler has the mean and the standard deviation of its
    samples too. With simulated measurements the first sample of each truth is shown, and the moments are those of a truth.
    """
    seeds: dict[str, int] = {}  # data have blocks of their own
    for cell in results.runs:
        seeds[cell["kind"]] = min(cell["seed"], seeds.get(cell["kind"], cell["seed"]))
    cells = [c for c in results.runs if c["kind"] in KINDS and c["error"] is None and c["seed"] == seeds[c["kind"]]]
    cells.sort(key=lambda cell: [*KINDS].index(cell["kind"]))
    within = _within(results, [cell for cell in cells if cell["kind"] != "cell"])
    each = int(results.store.identity.get("simulated", "1"))
    posterior = any(cell["kind"] == "measurement" for cell in cells)
    drawn = [(cell, samples) for cell in cells if (samples := results.store.samples(cell["key"])) is not None]
    moments = {cell["key"]: _moments(x, each) for cell, x in drawn if posterior and cell["kind"] in RUNS}
    darkest = min(1.0, max((float(std.max()) for _, std in moments.values()), default=0.0)) or 1.0  # pixels from −1 to 1
    found: dict[tuple[str, str], dict[str, Any]] = {}

    def put(cell: dict[str, Any], label: str, picture: bytes, points: bool) -> None:
        if picture:
            strip = found.setdefault((cell["kind"], label), dict(label=label, points=points, pictures={}))
            column = column_of(spec_of(cell)) if cell["kind"] == "cell" else ""
            strip["pictures"][column] = "data:image/png;base64," + base64.b64encode(picture).decode()

    for cell, samples in drawn:
        label = KINDS[cell["kind"]] or spec_of(cell).label
        label = "posterior" if posterior and label == "data" else label
        first = samples[::each] if cell["key"] in moments else samples
        put(cell, label, picture(first, room(samples), within), samples.ndim == 2)
        if cell["key"] in moments:
            mean, std = moments[cell["key"]]
            put(cell, f"{label}, mean", picture(mean, room(samples)), False)
            dark = picture(std, room(samples), values=(darkest, 0.0))
            put(cell, f"{label}, standard deviation, black at {darkest:.2g}", dark, False)
    return list(found.values())


def _moments(samples: np.ndarray, each: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of images (n, C, H, W), of all or of every `each`; the deviation of all channels in one."""
    count = each if each > 1 else len(samples)
    groups = samples.reshape(-1, count, *samples.shape[1:]).astype(np.float64)
    return groups.mean(1), np.sqrt(groups.var(1).mean(1, keepdims=True))


def picture(samples: np.ndarray, shown: int = SHOWN, within: float | None = None, *, values: Range | None = None) -> bytes:
    """Images side by side, at most 16 in a row, or points of the plane, as a PNG; empty for other shapes.

    One channel is ink, dark where it is 1. Points are drawn in a square from −`within` to `within`; None: all of them.
    `values` are those that are black and white in images.
    """
    if not len(samples) or not drawable(samples.shape[1:]):
        return b""
    if samples.ndim == 2:
        drawn = points(samples, within or most(samples))
    else:
        drawn = sheet(samples[:shown], values or ((1, -1) if samples.shape[1] == 1 else (-1, 1)))
    out = io.BytesIO()
    drawn.save(out, format="PNG", optimize=True)
    return out.getvalue()


def room(samples: np.ndarray) -> int:
    """How many samples a strip shows."""
    return SHOWN if samples.ndim != 4 else max(1, min(SHOWN, WIDE // ((samples.shape[3] + 1) * enlarged(samples.shape[3]))))


def _within(results: Results, cells: list[dict[str, Any]]) -> float | None:
    """The square in which points are drawn, the same for all: that of what they are compared to."""
    drawn = [samples for cell in cells if (samples := results.store.samples(cell["key"])) is not None and samples.ndim == 2]
    return max(map(most, drawn), default=None)


def column_of(spec: Spec) -> str:
    """The head over a strip: its budget."""
    return f"{spec.size} {'evaluations' if spec.nfe else 'steps'}" if spec.size else "by tolerance"


def spec_of(cell: dict[str, Any]) -> Spec:
    """Of a run of the store."""
    return Spec(cell["sampler"], cell["grid"], cell["nfe"], cell["steps"])
