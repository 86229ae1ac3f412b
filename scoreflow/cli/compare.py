"""The commands `study` and `report`."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

import scoreflow as sf
from scoreflow._extras import needs
from scoreflow.cli.typed import AsJson, Model, Shape, known, named, numbers, options_of, shape_of
from scoreflow.cli.workers import PLACES, opened, processes

REPORT = ("pandas", "matplotlib", "plotly", "jinja2")
"""Of the extra study, what a report is made with."""


def study(
    model: Model,
    samplers: Annotated[
        str, named("Names with commas between: ddpm,ddim(eta=0.5),unipc@karras; or plan:folder.", "samplers", listed=True)
    ],
    out: Annotated[Path, typer.Option(help="A folder for the cells and the report; run again to go on or add to it.")],
    nfe: Annotated[str | None, typer.Option(help="Budgets in evaluations, with commas between.")] = None,
    steps: Annotated[str | None, typer.Option(help="Budgets in steps, instead.")] = None,
    grids: Annotated[str | None, named("Grids for every sampler, with commas between.", "grids", listed=True)] = None,
    metrics: Annotated[str | None, named(f"Any of {known('metrics')}.", "metrics", listed=True)] = None,
    n: Annotated[int, typer.Option("-n", help="Samples in a block.")] = 64,
    seeds: Annotated[int, typer.Option(help="How many blocks.")] = 8,
    reference: Annotated[str | None, typer.Option(help="What converges to the ODE, as typed.")] = None,
    features: Annotated[str | None, named(f"Where images are judged: {known('features')}.", "features")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; 0, the default, for this one. Or of --executor dask.")] = None,
    executor: Annotated[str | None, typer.Option(help=f"Where cells run: {PLACES}.")] = None,
    executor_option: Annotated[
        list[str] | None, typer.Option("--executor-option", "-x", help="Of submitit: cluster=slurm, slurm_partition=gpu, ….")
    ] = None,
    shape: Shape = None,
    data: Annotated[Path | None, typer.Option(help="To compare to: .npy, .pt, or a tenth of a folder of images.")] = None,
    batch: Annotated[
        int | None, typer.Option(help="In this process: states in one network call, of cells run together.")
    ] = None,
    flow_map: Annotated[
        str | None,
        typer.Option(help="A flow map beside the model, its teacher, by name like it: flow-map and consistency run on it."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run samplers at budgets from the same seeds, measure, and write a report.

    The exit code is 0; 1 if a cell failed; 130 if it was stopped: then the same command goes on from there.
    """
    from scoreflow.studies.spec import split

    needs("study", "ot", *REPORT)
    what = sf.studies.load(model, shape_of(shape), compare=data is None)
    states = None if data is None else sf.studies.states_of(data, what.shape)
    budgets = {name: numbers(name, text) for name, text in (("nfe", nfe), ("steps", steps)) if text is not None}
    chosen = None if metrics is None else split(metrics)
    try:
        with _pool(workers, executor, options_of(executor_option or [])) as pool:
            done = sf.study(
                what, split(samplers), nfe=budgets.get("nfe"), steps=budgets.get("steps"),
                grids=split(grids) if grids else None, metrics=chosen, n=n, seeds=seeds, reference=reference,
                features=features, data=states, flow_map=flow_map, out=out, executor=pool, batch=batch,
                progress=sys.stderr.isatty(),
            )  # fmt: skip
    except KeyboardInterrupt:
        typer.echo(f"scoreflow: stopped; what was finished is in {out}, and the same command goes on from there", err=True)
        raise typer.Exit(130) from None
    _tell(done, out, out / "report.html", as_json)
    if done.failures:
        raise typer.Exit(1)


@contextmanager
def _pool(workers: int | None, executor: str | None, options: dict[str, Any]) -> Iterator[Any]:
    """Where cells run."""
    if executor is None:
        if options:
            raise ValueError(f"--executor-option goes with --executor {PLACES}")
        with processes(workers or 0) as pool:
            yield pool
        return
    from scoreflow._core.check import whole

    if workers is not None and executor != "dask":
        raise ValueError(f"--workers={workers} is of processes here or of --executor dask, and {executor!r} has its own")
    with opened(executor, None if workers is None else whole("workers", workers), options) as (pool, _):
        yield pool


def report(
    folder: Annotated[Path, typer.Argument(help="A folder that a study wrote.")],
    out: Annotated[Path | None, typer.Option(help="The HTML file; report.html in the folder.")] = None,
    csv: Annotated[Path | None, typer.Option(help="A table too, as CSV.")] = None,
    parquet: Annotated[Path | None, typer.Option(help="A table too, as Parquet.")] = None,
    light: Annotated[bool, typer.Option("--light", help="A tenth of the size: no scripts, the curves are pictures.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the report of a study again, from its file."""
    from scoreflow._core.files import check_file

    for name, file in (("out", out), ("csv", csv), ("parquet", parquet)):
        if file is not None:
            check_file(name, file)
    needs("study", *REPORT)
    done = sf.Study.open(folder)
    if csv:
        done.to_csv(csv)
    if parquet:
        done.to_parquet(parquet)
    _tell(done, folder, out or folder / "report.html", as_json, light)


def _tell(done: sf.Study, folder: Path, file: Path, as_json: bool, light: bool = False) -> None:
    """The report, and the findings on every figure that leads a metric."""
    from scoreflow.studies.draw import arrow
    from scoreflow.studies.report import of_map

    done.report(file, light=light)
    leading = list({done.metrics[figure]: figure for figure in reversed(done.figures)}.values())[::-1]
    findings = {figure: done.findings(figure) for figure in leading}
    if as_json:
        lines = [
            {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in line.items()}
            for line in done.frame.to_dict(orient="records")
        ]
        told = {"report": str(file), "findings": findings, "warnings": done.warnings, "figures": lines}
        told["failures"] = [str(failure) for failure in done.failures]
        typer.echo(json.dumps(told, indent=1))
        return
    said = (("cell", done.specs), ("block", done.seeds), ("failure", done.failures))
    cells, blocks, failures = (f"{len(some)} {what}{'s' * (len(some) != 1)}" for what, some in said)
    n = done.store.identity["n"]
    typer.echo(f"Means over {blocks} of {n} samples, with 95 % intervals in parentheses.")
    if jumps := of_map(done):
        typer.echo(f"Flow map: {jumps}.")
    for figure, sentences in findings.items():
        typer.echo(f"{figure}, {arrow(done, figure)}\n" + "\n".join(f"  {line}" for line in sentences))
    for line in done.warnings:
        typer.echo(f"not sensible: {line}")
    for failure in done.failures:
        typer.echo(f"failed: {failure}", err=True)
    typer.echo(f"{cells} of {blocks}, {failures}. Report: {file}")
