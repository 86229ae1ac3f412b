"""Commands that run no network: `samplers`, `show`, `plan`, `cite`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

import scoreflow as sf
from scoreflow._catalogue import catalogue
from scoreflow.cli.typed import AsJson, Nfe, Shape, Steps, known, named, options_of, shape_of

if TYPE_CHECKING:
    from torch import Tensor


def samplers(
    as_json: AsJson = False, markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False
) -> None:
    """Every sampler: order, evaluations a step, noise, memory, options, reference."""
    lines = catalogue()["samplers"]
    printed = lines.markdown if markdown else str(lines)
    typer.echo(json.dumps([line._asdict() for line in lines], indent=1) if as_json else printed)


def show(
    sampler: Annotated[str, named("A sampler as typed: unipc, or ddim(eta=0.5).", "samplers", of=typer.Argument)],
) -> None:
    """A sampler's page: formula, options, order, cost, citation, file and tests."""
    from scoreflow._run.kept import is_kept
    from scoreflow.studies.spec import parse

    if is_kept(sampler):
        raise ValueError(f"{sampler!r} is no sampler that has a page: scoreflow plan {sampler} prints its rows")
    name, options, _ = parse(sampler)
    typer.echo(sf.get_sampler(name, **options).doc)


def plan(
    sampler: Annotated[str, named("A sampler's name, auto, plan:file or plan:folder.", "samplers", of=typer.Argument)],
    path: Annotated[str | None, named(f"One of {known('paths')}; ddpm, or that of a plan.", "paths")] = None,
    nfe: Nfe = None,
    steps: Steps = None,
    grid: Annotated[str | None, named("A grid's name.", "grids")] = None,
    start: Annotated[float, typer.Option(help="The first time.")] = 1.0,
    stop: Annotated[float, typer.Option(help="The last time.")] = 0.0,
    option: Annotated[list[str] | None, typer.Option("--option", "-o", help="name=value, an option of the sampler.")] = None,
    model: Annotated[str | None, typer.Option(help="The path, the ends and the oracle of this model, not of --path.")] = None,
    shape: Shape = None,
    guidance: Annotated[float | None, typer.Option(help="Of a guided run, whose budget pays for two branches.")] = None,
    as_json: AsJson = False,
) -> None:
    """Every coefficient of a run, before it runs, and what it does to Gaussian data and to an error of the network."""
    from scoreflow._core.check import one_of
    from scoreflow._core.path import PATHS
    from scoreflow._run.kept import is_kept, kept
    from scoreflow._run.schedule import Schedule
    from scoreflow._run.solve import prepare

    read = is_kept(sampler)
    if read and path is None and model is None:
        made, _ = kept(sampler, Schedule(steps, nfe, grid, start, stop))
        path = next((name for name, curve in PATHS.items() if repr(curve()) == made.path), None)
        if path is None:
            raise ValueError(f"the plan was made for {made.path}, which has no name: give the model")
    path = path or "ddpm"
    one_of("path", path, PATHS)
    net = sf.ScoreModel(_unused, PATHS[path]())
    if model is not None:
        what = sf.studies.load(model, shape_of(shape), compare=False)
        net, start, stop = what.model, what.start if start == 1.0 else start, what.stop if stop == 0.0 else stop
    if guidance is not None and read and model is not None:  # a plan of this model, or not
        net = sf.ClassifierFree(net, guidance)
    elif guidance is not None:
        net = sf.ClassifierFree(sf.ScoreModel(_unused, net.path, net.prediction, net.time), guidance, null={"y": 0})
    if model is None and (read or guidance is None):
        rows = sf.plan(sampler, net.path, steps, nfe=nfe, grid=grid, start=start, stop=stop, **options_of(option or []))
    else:
        prepared = prepare(net, sampler, Schedule(steps, nfe, grid, start, stop), options_of(option or []))
        if prepared.plan is None:
            raise ValueError(f"{prepared.sampler!r} is not made of rows and has no plan")
        rows = prepared.plan
    typer.echo(rows.to_json() if as_json else f"{rows}\n{rows.check()}")
    if guidance is not None and not as_json:
        calls = sum(int(net.evaluations(t)) for t in rows.evaluation_times)
        typer.echo(f"under guidance {guidance:g} the network is evaluated {calls} times, both branches counted")


def cite(names: Annotated[list[str], named("Samplers, or keys of works.", "samplers", of=typer.Argument)]) -> None:
    """BibTeX of the works that samplers rest on."""
    typer.echo(sf.cite(*names))


def _unused(x: Tensor, t: Tensor, y: object = None) -> Tensor:
    """The network of a plan, which calls none."""
    raise AssertionError
