"""The commands `audit` and `conform`."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import scoreflow as sf
from scoreflow.cli.typed import AsJson, known, named


def audit(
    sampler: Annotated[
        str,
        typer.Argument(
            help="file.py:name or package.module:name of a function or a class, with options as in name(order=2), or a sampler "
            "of ours."
        ),
    ],
    steps: Annotated[str, typer.Option(help="Numbers of steps, with commas between.")] = "20",
    path: Annotated[str | None, named(f"Of a function: one of {known('paths')}; vp.", "paths")] = None,
    prediction: Annotated[str | None, typer.Option(help="Of a function's network: eps, x0, v, score, flow.")] = None,
    time: Annotated[str | None, typer.Option(help="What a function tells its network: unit, index, sigma, log-snr.")] = None,
    most: Annotated[int, typer.Option(help="Steps up to which runs are looked at; fewer take less time.")] = 1000,
    waive: Annotated[list[str] | None, typer.Option(help="A check to leave out; may be given again.")] = None,
    out: Annotated[Path | None, typer.Option(help="A page with charts, .html; or .json.")] = None,
    as_json: AsJson = False,
) -> None:
    """Read anyone's sampler back as coefficients: which one is it, and where does it slip? Exit code 1 if a check fails."""
    from scoreflow._audit.result import as_json as as_json_text
    from scoreflow._audit.result import check_out, save
    from scoreflow._core.check import one_of
    from scoreflow._core.path import PATHS
    from scoreflow.studies.named import imported
    from scoreflow.studies.spec import parse

    if path is not None:
        one_of("path", path, PATHS)
    if out is not None:
        check_out(out)
    thing: Any
    thing, options, _ = parse(sampler)
    if ":" in thing:
        module, name = thing.rsplit(":", 1)
        thing = imported(module, name, "sampler")
    on = None if path is None else PATHS[path]()
    counts = [_number(text) for text in steps.split(",")]
    with contextlib.redirect_stdout(sys.stderr):  # for those that print
        found = [
            sf.audit(thing, n, path=on, prediction=prediction, time=time, waive=waive or (), most=most, **options)  # type: ignore[arg-type]
            for n in counts
        ]
    if out is not None:
        save(found, out)
    typer.echo(as_json_text(found) if as_json else "\n\n".join(map(str, found)))
    if not all(one.passed for one in found):
        raise typer.Exit(1)


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"steps must be whole numbers with commas between, got {text!r}") from None


def conform(out: Annotated[Path, typer.Option(help="A JSON file.")]) -> None:
    """Write the coefficients of every registered sampler on stated paths and grids, for projects in other languages."""
    from scoreflow._audit.conform import write

    file = write(out)
    runs = json.loads(file.read_text(encoding="utf-8"))["runs"]
    typer.echo(f"{len(runs)} runs of {len({run['sampler'] for run in runs})} samplers: {file}")
