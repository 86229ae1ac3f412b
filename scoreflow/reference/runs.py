"""Reference runs: samples by seeds, measured block by block against figures that are known."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Subset

from scoreflow._catalogue import aligned
from scoreflow._core.check import whole
from scoreflow._core.files import whole_file
from scoreflow._core.noise import White
from scoreflow._run.schedule import Schedule
from scoreflow._run.solve import prepare
from scoreflow._score.fingerprint import digest, fingerprint, identity
from scoreflow._score.model import ScoreModel
from scoreflow._sets.files import PARTS, OneEach, seeds_of, shards
from scoreflow._sets.generate import MANIFEST, generate
from scoreflow._sets.read import Kept
from scoreflow._sets.seeds import by_seed, check_seeds
from scoreflow._uses.manifest import stamp
from scoreflow.guidance import Thresholding
from scoreflow.reference.manifest import Cell, Reference, load
from scoreflow.reference.networks import find, hashes, judge, read
from scoreflow.studies.features import Features
from scoreflow.studies.measured import measure
from scoreflow.studies.work import machine

METRIC = "frechet"
FIGURES = "figures.json"


class Cost(NamedTuple):
    """What a cell still takes.

    Attributes:
        cell: which. nfe: evaluations of a sample. samples: that are not there yet. passes: of batches through the network.
        seconds: estimated from a batch that was timed, without the features; None where there was no network to time.
    """

    cell: Cell
    nfe: int
    samples: int
    passes: int
    seconds: float | None

    @property
    def evaluations(self) -> int:
        """Of the network, of all samples."""
        return self.samples * self.nfe


class Outcome(NamedTuple):
    """What was measured of a cell: a figure a block; none where nothing was run."""

    cell: Cell
    blocks: tuple[float, ...] = ()

    def __str__(self) -> str:
        return "" if not self.blocks else f"{self.mean:.4g}" + ("" if math.isnan(self.sd) else f" ± {self.sd:.2g}")

    @property
    def mean(self) -> float:
        """Over blocks."""
        return float(np.mean(self.blocks))

    @property
    def sd(self) -> float:
        """Over blocks; NaN of one."""
        return float(np.std(self.blocks, ddof=1)) if len(self.blocks) > 1 else math.nan


@dataclass(frozen=True)
class Report:
    """Measured against published.

    Attributes:
        reference: what was run. n: samples in a block. outcomes: of its cells. made: how: seeds, files, device, versions.
    """

    reference: Reference
    n: int
    outcomes: tuple[Outcome, ...]
    made: Mapping[str, Any]

    def verdict(self, one: Outcome) -> str:
        """Of a cell, in words: "within" its tolerance, "off", or why it cannot be said."""
        cell = one.cell
        if not one.blocks:
            return "not run here" if cell.measured else "nobody has run this"
        if cell.figure is None:
            return "no figure to compare to"
        if self.n != self.reference.n:
            return f"not compared: blocks of {self.n}, the figure is of {self.reference.n}"
        off = one.mean - cell.figure
        if abs(off) <= cell.tolerance * cell.figure:
            return "within"
        return f"off by {off:+.2g}" + (f", where {cell.differs}" if cell.differs else "")

    @property
    def good(self) -> bool:
        """Whether no cell is off that ran as the published one did."""
        return not any(self.verdict(one).startswith("off") and not one.cell.differs for one in self.outcomes)

    def __str__(self) -> str:
        rows = [("sampler", "NFE", "measured", "expected", "±", "verdict", "source")]
        for one in self.outcomes:
            cell = one.cell
            expected = "" if cell.figure is None else f"{cell.figure:.4g}"
            tolerance = "" if cell.figure is None else f"{cell.tolerance * cell.figure:.2g}"
            rows.append(
                (
                    cell.label,
                    str(cell.nfe),
                    str(one if one.blocks else Outcome(cell, cell.measured)),
                    expected,
                    tolerance,
                    self.verdict(one),
                    cell.source,
                )
            )
        judged = f"{METRIC}, features {self.reference.features}"
        return f"{self.reference.title}: {judged}, mean ± sd of blocks of {self.n}\n{aligned(rows)}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        cells = []
        for one in self.outcomes:
            cell = one.cell
            named = {"sampler": cell.sampler, "grid": cell.grid, "ends_at": cell.ends_at, "limit": cell.limit, "nfe": cell.nfe}
            figures = {"mean": one.mean, "sd": None if math.isnan(one.sd) else one.sd} if one.blocks else {}
            known = {"expected": cell.expected, "tolerance": cell.tolerance, "source": cell.source}
            cells.append({**named, **figures, "blocks": [*one.blocks], **known, "verdict": self.verdict(one)})
        judged = {"metric": METRIC, "features": self.reference.features, "data": self.reference.data or "statistics"}
        return {"reference": self.reference.name, **judged, "n": self.n, **self.made, "cells": cells}


@dataclass(frozen=True)
class Task:
    """Cells of a reference on seeds, with samples in a folder.

    Attributes:
        out: the folder, with one of each cell in it. blocks: the seeds of each, as many in all.
        batch: samples in a network call.
    """

    reference: Reference
    cells: tuple[Cell, ...]
    out: Path
    blocks: tuple[tuple[int, ...], ...]
    batch: int

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of all blocks."""
        return tuple(seed for block in self.blocks for seed in block)

    @cached_property
    def conditions(self) -> dict[str, Any]:
        """What the network is told: seed s gets the row s mod the number of rows."""
        return {"y": torch.arange(self.reference.classes)} if self.reference.classes else {}

    def costs(self, model: ScoreModel | None = None) -> list[Cost]:
        """What is still to be done, cell by cell; with the model how long it takes."""
        each = None if model is None else self._pass(model)
        found = []
        for cell in self.cells:
            nfe = cell.nfe if model is None else _evaluations(cell, model)
            there = _there(self.out / cell.folder)
            lacking = len(set(self.seeds) - there)
            passes = -(-lacking // self.batch) * nfe
            found.append(Cost(cell, nfe, lacking, passes, None if each is None else passes * each))
        return found

    def _pass(self, model: ScoreModel) -> float:
        """Seconds of one batch through the network: the least of three."""
        batch, spent = min(self.batch, len(self.seeds)), []
        like = torch.empty(batch, *self.reference.shape, dtype=model.state_dtype, device=model.device)
        x = White(0).draws("prior")(like) * model.path.prior_std(0.5)
        told = {name: by_seed(name, rows).of(range(batch), x.device) for name, rows in self.conditions.items()}
        with torch.no_grad():
            for _ in range(3):
                begun = time.perf_counter()
                float(model(x, 0.5, model.prediction, **told).sum())  # read, so that a device has done it
                spent.append(time.perf_counter() - begun)
        return min(spent)

    def make(self, model: ScoreModel, shard: Sequence[int] = (0, 1), progress: bool = False) -> None:
        """The samples of all cells that are not there yet, or a part of them.

        Raises:
            ValueError: the folder has samples of another network or plan; says what differs. ArithmeticError: samples that
                are not finite.
        """
        failed = 0
        for cell in self.cells:
            held = model if cell.limit is None else Thresholding(model, cell.limit, percentile=cell.percentile)
            made = generate(
                held, self.reference.shape, self.seeds, self.out / cell.folder, batch=self.batch, shard=shard,
                conditions=self.conditions, format=self.reference.format, progress=progress, **cell.asked(model.path),
            )  # fmt: skip
            failed += made.failed
        if failed:
            raise ArithmeticError(f"{failed} samples are not finite: the logs in {self.out} name their seeds")

    def measured(
        self, data: str, features: Features, made: Mapping[str, Any], device: Any = None, progress: bool = False
    ) -> Report:
        """Every block of every cell, against data; what was measured before is read.

        Raises:
            ValueError: samples of a block are not there.
        """
        source = made["files"].get("statistics", data)  # a file by its content

        def measured(folder: Path, block: tuple[int, ...]) -> float:
            places = {seed: place for place, seed in enumerate(seed for file in shards(folder) for seed in seeds_of(file))}
            if lacking := [seed for seed in block if seed not in places]:
                raise ValueError(
                    f"{folder} lacks {len(lacking)} of the {len(block)} samples of a block, first of seed {lacking[0]}"
                )
            key = digest(stamp(MANIFEST.read(folder)), repr(block), METRIC, source, fingerprint(features))
            file = folder / FIGURES
            known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            if key not in known:
                chosen: Any = Subset(Kept(folder), [places[seed] for seed in block])
                found = measure(chosen, data, METRIC, features=features, blocks=1, device=device, progress=progress)
                known[key] = found.figures[METRIC]
                with whole_file(file) as part:
                    part.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
            return float(known[key])

        outcomes = tuple(
            Outcome(cell, tuple(measured(self.out / cell.folder, block) for block in self.blocks)) for cell in self.cells
        )
        return Report(self.reference, len(self.blocks[0]), outcomes, made)


def task(
    reference: Reference,
    out: str | Path,
    *,
    nfe: Sequence[int] | None = None,
    samplers: Sequence[str] | None = None,
    n: int | None = None,
    blocks: int | None = None,
    seeds: Sequence[int] | None = None,
    batch: int | None = None,
) -> Task:
    """What is asked of a reference.

    Args:
        out: the folder for samples; the same call goes on with what is there.
        nfe, samplers: some of its cells; None: all.
        n: samples in a block; None: as many as the figures are of, and only then are they compared.
        blocks: how many, on the seeds from 0 on. seeds: others, cut into the blocks; then n follows.
        batch: samples in a network call.

    Raises:
        ValueError: no such sampler; seeds that cannot be cut into equal blocks.
    """
    count = whole("blocks", reference.blocks if blocks is None else blocks)
    if seeds is None:
        seeds = range(count * whole("n", reference.n if n is None else n, 2))
    elif n is not None:
        raise ValueError(f"n={n} and seeds exclude each other: give one")
    found = check_seeds(seeds)
    if len(found) % count or len(found) < 2 * count:
        raise ValueError(f"{len(found)} seeds cannot be cut into {count} equal blocks of 2 or more")
    size = len(found) // count
    cut = tuple(found[first : first + size] for first in range(0, len(found), size))
    batch = whole("batch", reference.batch if batch is None else batch)
    return Task(reference, reference.chosen(nfe, samplers), Path(out), cut, batch)


def made(asked: Task, model: ScoreModel, files: Mapping[str, str]) -> dict[str, Any]:
    """How a report came about, for whoever reads it elsewhere."""
    device = model.device or torch.device("cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "seeds": [asked.seeds[0], asked.seeds[-1]], "batch": asked.batch, "weights": identity(model), "files": dict(files),
        "device": f"{device.type}, {name}", "machine": machine(), "python": platform.python_version(),
        "torch": str(torch.__version__), "scoreflow": version("scoreflow"),
    }  # fmt: skip


def _there(folder: Path) -> set[int]:
    """The seeds whose samples are kept."""
    return OneEach(folder / PARTS, "npy").there() | {seed for file in shards(folder) for seed in seeds_of(file)}


def _evaluations(cell: Cell, model: ScoreModel) -> int:
    """Of a sample, by the plan; the budget where only the run can tell."""
    asked = cell.asked(model.path)
    times = Schedule(**{name: asked.pop(name) for name in ("nfe", "grid", "stop") if name in asked})
    prepared = prepare(model, asked.pop("sampler"), times, asked)
    if prepared.plan is not None:
        return sum(int(model.evaluations(t)) for t in prepared.plan.evaluation_times)
    return prepared.sampler.evaluations(model.path, prepared.times) or cell.nfe


def run(
    name: str | Path,
    out: str | Path,
    *,
    nfe: Sequence[int] | None = None,
    samplers: Sequence[str] | None = None,
    n: int | None = None,
    blocks: int | None = None,
    seeds: Sequence[int] | None = None,
    batch: int | None = None,
    files: str | Path = ".",
    network: str | None = None,
    unpickle: bool = False,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Report:
    """Run a reference, and compare what it gives to the figures that are known.

    Args:
        name: one of `names()`, or a TOML file of your own.
        out, nfe, samplers, n, blocks, seeds, batch: as of `task`.
        files: the folder where files lie that the package does not bring.
        network, unpickle: as of `networks.read`.
        device: where network and features run.
        progress: show bars.

    Raises:
        FileNotFoundError: files that are nowhere; says which to put where. ValueError: wrong names; samples of something else
            in the folder. ArithmeticError: samples that are not finite.
    """
    reference = load(name)
    asked = task(reference, out, nfe=nfe, samplers=samplers, n=n, blocks=blocks, seeds=seeds, batch=batch)
    places = find(reference, files, but=() if network is None else ("network",))
    hashed = hashes(reference, places)
    model = read(reference, places, network, unpickle, device)
    asked.make(model, progress=progress)
    return asked.measured(*judge(reference, places), made(asked, model, hashed), device, progress)
