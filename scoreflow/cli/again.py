"""The command `reference`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

import scoreflow as sf
from scoreflow._catalogue import aligned
from scoreflow.cli.many import _of_rank, _ranks, _shard, handed_out
from scoreflow.cli.typed import AsJson, numbers, options_of
from scoreflow.cli.workers import PLACES

ASKED = ("nfe", "samplers", "n", "blocks", "seeds", "batch")
"""What is typed of a task."""


def reference(
    name: Annotated[str, typer.Argument(help="One of those that list shows, or a TOML file of your own.")] = "list",
    nfe: Annotated[str | None, typer.Option(help="Budgets with commas between; all that have figures.")] = None,
    samplers: Annotated[str | None, typer.Option(help="Some of its samplers, as typed, with commas between.")] = None,
    n: Annotated[int | None, typer.Option("--n", "-n", help="Samples in a block; as many as the figures are of.")] = None,
    blocks: Annotated[int | None, typer.Option(help="Blocks, whose mean and spread are told; 3.")] = None,
    seeds: Annotated[str | None, typer.Option(help="150000-299999, cut into the blocks, for those from 0 on.")] = None,
    out: Annotated[Path | None, typer.Option(help="For samples and figures; reference-NAME. Run again to go on.")] = None,
    files: Annotated[Path, typer.Option(help="Where files lie that the package does not bring.")] = Path("."),
    network: Annotated[str | None, typer.Option(help="file.py:function, your code that gives the network.")] = None,
    unpickle: Annotated[bool, typer.Option("--unpickle", help="A network's pickle may run the code that is in it.")] = False,
    batch: Annotated[int | None, typer.Option(help="Samples in a network call.")] = None,
    shard: Annotated[
        str | None, typer.Option(help="i/n: make only this part of the samples, as do ranks of torchrun, and measure nothing.")
    ] = None,
    executor: Annotated[str | None, typer.Option(help=f"Where parts of the samples are made: {PLACES}.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Parts for the executor; of Dask as many as it has workers.")] = None,
    executor_option: Annotated[
        list[str] | None, typer.Option("--executor-option", "-x", help="Of submitit: cluster=slurm, slurm_partition=gpu, ….")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where network and features run.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Run nothing; say what it takes.")] = False,
    submit: Annotated[Path | None, typer.Option(help="Write what was measured to this .json, to attach to an issue.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a network whose figures are known, and print measured against published; list shows what there is.

    The exit code is 0; 1 if a figure is off by more than its tolerance.
    """
    from scoreflow._core.files import check_file
    from scoreflow._sets.seeds import parse
    from scoreflow.studies.spec import split

    if name == "list":
        _list(as_json)
        return
    if submit is not None:
        check_file("submit", submit)
    path = Path(name).resolve() if name.endswith(".toml") else name
    words: dict[str, Any] = {
        "name": str(path), "out": str((out or Path(f"reference-{Path(name).stem}")).resolve()), "files": str(files.resolve()),
        "nfe": None if nfe is None else numbers("nfe", nfe), "samplers": None if samplers is None else split(samplers), "n": n,
        "blocks": blocks, "seeds": None if seeds is None else parse(seeds), "batch": batch, "network": network,
        "unpickle": unpickle, "device": device,
    }  # fmt: skip
    if executor is None and (jobs is not None or executor_option):
        raise ValueError(f"--jobs and --executor-option go with --executor {PLACES}")
    if executor is not None and shard is not None:
        raise ValueError("--shard makes one part, and --executor all of them: give one of the two")
    asked = _task(words)
    if dry_run:
        _costs(asked, words, as_json)
        return
    (i, parts), rank, world = _shard(shard), _ranks("RANK", 0), _ranks("WORLD_SIZE", 1)
    shown = rank == 0 and sys.stderr.isatty()
    try:
        if parts * world > 1:
            part(words, (i + parts * rank, parts * world), shown)
            done = f"part {i + parts * rank}/{parts * world} is made"
            typer.echo(f"{done}; once all are, the same command without --shard measures them")
            return
        if executor is not None:
            handed_out(partial(part, words), executor, jobs, options_of(executor_option or []), words["out"])
        report = _measured(asked, words, shown)
    except KeyboardInterrupt:
        typer.echo(f"scoreflow: stopped; the samples so far are in {asked.out}, and the same command goes on", err=True)
        raise typer.Exit(130) from None
    if submit is not None:
        submit.write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    typer.echo(json.dumps(report.to_dict()) if as_json else str(report))
    if not report.good:
        raise typer.Exit(1)


def _task(words: Mapping[str, Any]) -> sf.reference.Task:
    """What is asked of a reference."""
    chosen = sf.reference.load(words["name"])
    return sf.reference.task(chosen, words["out"], **{key: words[key] for key in ASKED})


def part(words: Mapping[str, Any], shard: tuple[int, int], progress: bool = False) -> dict[str, Any]:
    """One part of the samples, as an executor makes it: the words travel, and not the network."""
    asked = _task(words)
    asked.make(_read(asked, words, _places(asked, words, ("statistics", "features"))), shard, progress)
    return {}


def _places(asked: sf.reference.Task, words: Mapping[str, Any], but: tuple[str, ...] = ()) -> dict[str, Path]:
    """Where the files are, `but` for these."""
    from scoreflow.reference.networks import find

    return find(asked.reference, words["files"], but if words["network"] is None else (*but, "network"))


def _read(asked: sf.reference.Task, words: Mapping[str, Any], places: Mapping[str, Path]) -> sf.ScoreModel:
    """The network, once its file is known to be what is stated."""
    from scoreflow.reference.networks import hashes, read

    hashes(asked.reference, {what: place for what, place in places.items() if what == "network"})
    return read(asked.reference, places, words["network"], words["unpickle"], _of_rank(words["device"]))


def _measured(asked: sf.reference.Task, words: Mapping[str, Any], progress: bool) -> sf.reference.Report:
    """What is left of the samples made, and all measured."""
    from scoreflow.reference.networks import hashes, judge
    from scoreflow.reference.runs import made

    places = _places(asked, words)
    hashed = hashes(asked.reference, places)
    for what, found in hashed.items():
        stated = "as stated" if asked.reference.files[what].sha256 else "not checked: nobody has stated it"
        typer.echo(f"{places[what]}: sha256 {found}, {stated}", err=True)
    model = _read(asked, words, places)
    asked.make(model, progress=progress)
    return asked.measured(*judge(asked.reference, places), made(asked, model, hashed), _of_rank(words["device"]), progress)


def _list(as_json: bool) -> None:
    """What references there are."""
    found = [sf.reference.load(name) for name in sf.reference.names()]
    told = [
        {
            "name": one.name, "title": one.title, "cells": len(one.cells),
            "published": sum(cell.expected is not None for cell in one.cells),
            "measured": sum(bool(cell.measured) for cell in one.cells), "files": [*map(str, one.files.values())],
        }
        for one in found
    ]  # fmt: skip
    head = ("name", "cells", "published", "measured", "title")
    rows = [head, *(tuple(str(one[key]) for key in head) for one in told)]
    typer.echo(json.dumps(told, indent=1) if as_json else aligned(rows))


def _costs(asked: sf.reference.Task, words: Mapping[str, Any], as_json: bool) -> None:
    """What a run takes, and what is known of its cells."""
    chosen, model, why = asked.reference, None, list[str]()
    for but in ((), ("statistics", "features")):  # all that is needed is said, and what is there is timed
        try:
            model = _read(asked, words, _places(asked, words, but))
            break
        except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
            why += [] if but and isinstance(error, FileNotFoundError) else [str(error)]
    costs = asked.costs(model)
    total = [sum(getattr(one, name) for one in costs) for name in ("samples", "evaluations", "passes")]
    seconds = None if model is None else sum(one.seconds or 0.0 for one in costs)
    if as_json:
        cells = [one._asdict() | {"cell": one.cell.folder, "evaluations": one.evaluations} for one in costs]
        told = dict(zip(("samples", "evaluations", "passes"), total, strict=True))
        typer.echo(json.dumps({"reference": chosen.name, "cells": cells, **told, "seconds": seconds, "why": why}))
        return
    rows: list[tuple[str, ...]] = [("sampler", "NFE", "samples left", "evaluations", "passes", "time")]
    for one in costs:
        counts = (one.nfe, one.samples, one.evaluations, one.passes)
        rows.append((one.cell.label, *(f"{count:,}" for count in counts), _time(one.seconds)))
    rows.append(("all", "", *(f"{count:,}" for count in total), _time(seconds)))
    typer.echo(f"{sf.reference.Report(chosen, len(asked.blocks[0]), tuple(map(sf.reference.Outcome, asked.cells)), {})}")
    typer.echo(f"\n{aligned(rows)}\npasses are of {asked.batch} samples; features are not in the time")
    typer.echo("\n".join([chosen.notes.strip(), *why]))


def _time(seconds: float | None) -> str:
    """In words."""
    if seconds is None:
        return "?"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
