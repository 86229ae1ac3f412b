"""The command `reference`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

import scoreflow as sf
from scoreflow._catalogue import aligned
from scoreflow.cli.many import _of_rank, _ranks, _shard
from scoreflow.cli.typed import AsJson, numbers


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
    from scoreflow.reference.networks import find, hashes, judge, read
    from scoreflow.reference.runs import made
    from scoreflow.studies.spec import split

    if name == "list":
        _list(as_json)
        return
    if submit is not None:
        check_file("submit", submit)
    chosen = sf.reference.load(name)
    asked = sf.reference.task(
        chosen, out or f"reference-{chosen.name}", nfe=None if nfe is None else numbers("nfe", nfe),
        samplers=None if samplers is None else split(samplers), n=n, blocks=blocks,
        seeds=None if seeds is None else parse(seeds), batch=batch,
    )  # fmt: skip
    given = () if network is None else ("network",)
    if dry_run:
        _costs(asked, files, given, network, unpickle, device, as_json)
        return
    (i, parts), rank, world = _shard(shard), _ranks("RANK", 0), _ranks("WORLD_SIZE", 1)
    part, alone = (i + parts * rank, parts * world), parts * world == 1
    places = find(chosen, files, but=given if alone else (*given, "statistics", "features"))
    hashed = hashes(chosen, places)
    for what, found in hashed.items():
        stated = "as stated" if chosen.files[what].sha256 else "not checked: nobody has stated it"
        typer.echo(f"{places[what]}: sha256 {found}, {stated}", err=True)
    model = read(chosen, places, network, unpickle, _of_rank(device))
    shown = rank == 0 and sys.stderr.isatty()
    try:
        failed = asked.make(model, part, shown)
    except KeyboardInterrupt:
        typer.echo(f"scoreflow: stopped; the samples so far are in {asked.out}, and the same command goes on", err=True)
        raise typer.Exit(130) from None
    if failed:
        raise ArithmeticError(f"{failed} samples are not finite: the logs in {asked.out} name their seeds")
    if not alone:
        typer.echo(f"part {part[0]}/{part[1]} is made; once all are, the same command without --shard measures them")
        return
    report = asked.measured(*judge(chosen, places), made(asked, model, hashed), _of_rank(device), shown)
    if submit is not None:
        submit.write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    typer.echo(json.dumps(report.to_dict()) if as_json else str(report))
    if not report.good:
        raise typer.Exit(1)


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


def _costs(
    asked: sf.reference.Task, files: Path, given: tuple[str, ...], network: str | None, unpickle: bool, device: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """What a run takes, and what is known of its cells."""
    from scoreflow.reference.networks import find, read, there

    chosen, model, why = asked.reference, None, list[str]()
    try:
        find(chosen, files, given)
    except FileNotFoundError as error:
        why.append(str(error))
    places = there(chosen, files)
    if network is not None or "network" in places or "network" not in chosen.files:
        try:
            model = read(chosen, places, network, unpickle, _of_rank(device))
        except (ModuleNotFoundError, ValueError) as error:
            why.append(f"no time: {error}")
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
