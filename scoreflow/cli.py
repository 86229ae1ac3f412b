"""The command line: what samplers there are, what a run would do, samples, studies, reports, citations."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import scoreflow as sf
from scoreflow._catalogue import catalogue
from scoreflow._extras import named, needs

if TYPE_CHECKING:
    from torch import Tensor

# torch takes a second or more to load. Help, completion and `samplers` do without; what needs it is imported by the commands.

app = typer.Typer(
    help="Samplers of diffusion models, swapped by name.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _named(text: str, kind: str, listed: bool = False, of: Callable[..., Any] = typer.Option) -> Any:
    """An option, or an argument, that takes a name, or several with commas between; the shell completes it, or the last."""

    def begun(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",") if listed else ("", "", incomplete)
        known = ["auto", *(line.name for line in catalogue()["samplers"])] if kind == "samplers" else catalogue()[kind]
        return [before + comma + name for name in known if name.startswith(last)]

    return of(help=text, autocompletion=begun)


def _known(kind: str) -> str:
    return ", ".join(catalogue()[kind])


Model = Annotated[str, typer.Option(help="zoo:digits, oracle:ring, run:folder, file.py:function or package.module:function.")]
Shape = Annotated[str | None, typer.Option(help="Of one sample, if the function gives a ScoreModel: 2, or 1,8,8.")]
Nfe = Annotated[int | None, typer.Option(help="A budget of network evaluations.")]
Steps = Annotated[int | None, typer.Option(help="Steps, instead of a budget.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]


@app.command()
def samplers(
    as_json: AsJson = False, markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False
) -> None:
    """Every sampler: order, evaluations a step, noise, memory, options, reference."""
    lines = catalogue()["samplers"]
    printed = lines.markdown if markdown else str(lines)
    typer.echo(json.dumps([line._asdict() for line in lines], indent=1) if as_json else printed)


@app.command()
def show(
    sampler: Annotated[str, _named("A sampler as typed: unipc, or ddim(eta=0.5).", "samplers", of=typer.Argument)],
) -> None:
    """A sampler's page: formula, options, order, cost, citation, file and tests."""
    from scoreflow.studies.spec import parse

    name, options, _ = parse(sampler)
    typer.echo(sf.get_sampler(name, **options).doc)


@app.command()
def plan(
    sampler: Annotated[str, _named("A sampler's name, or auto.", "samplers", of=typer.Argument)],
    path: Annotated[str, _named(f"One of {_known('paths')}.", "paths")] = "ddpm",
    nfe: Nfe = None,
    steps: Steps = None,
    grid: Annotated[str | None, _named("A grid's name.", "grids")] = None,
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
    from scoreflow._run.schedule import Schedule
    from scoreflow._run.solve import prepare

    one_of("path", path, PATHS)
    net = sf.ScoreModel(_unused, PATHS[path]())
    if model is None and guidance is None:
        rows = sf.plan(sampler, net.path, steps, nfe=nfe, grid=grid, start=start, stop=stop, **_options(option or []))
    else:
        if model is not None:
            what = sf.studies.load(model, _shape(shape), compare=False)
            net, start, stop = what.model, what.start if start == 1.0 else start, what.stop if stop == 0.0 else stop
        if guidance is not None:
            net = sf.ClassifierFree(sf.ScoreModel(_unused, net.path, net.prediction, net.time), guidance, null={"y": 0})
        prepared = prepare(net, sampler, Schedule(steps, nfe, grid, start, stop), _options(option or []))
        if prepared.plan is None:
            raise ValueError(f"{prepared.sampler!r} is not made of rows and has no plan")
        rows = prepared.plan
    typer.echo(rows.to_json() if as_json else f"{rows}\n{rows.check()}")
    if guidance is not None and not as_json:
        calls = sum(int(net.evaluations(t)) for t in rows.evaluation_times)
        typer.echo(f"under guidance {guidance:g} the network is evaluated {calls} times, both branches counted")


@app.command()
def cite(names: Annotated[list[str], _named("Samplers, or keys of works.", "samplers", of=typer.Argument)]) -> None:
    """BibTeX of the works that samplers rest on."""
    typer.echo(sf.cite(*names))


def _unused(x: Tensor, t: Tensor, y: object = None) -> Tensor:
    """The network of a plan, which calls none."""
    raise AssertionError


def _shape(text: str | None) -> tuple[int, ...] | None:
    """`1,8,8` as a shape."""
    return None if text is None else tuple(_numbers("shape", text))


def _options(pairs: list[str]) -> dict[str, Any]:
    """`name=value` as keywords; a value is a number, true, false or null as in JSON, else text."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"option must be name=value, got {pair!r}")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return options


@app.command()
def sample(
    model: Model,
    out: Annotated[
        Path, typer.Option(help="Where the samples go: .npy, .pt, .safetensors; of images and points .png, .jpg or .gif.")
    ],
    sampler: Annotated[str, _named("A sampler as typed: ddim(eta=0.5)@karras.", "samplers")] = "auto",
    nfe: Nfe = None,
    steps: Steps = None,
    n: Annotated[int, typer.Option("-n", help="How many.")] = 16,
    seed: Annotated[int, typer.Option(help="The same seed gives the same samples.")] = 0,
    condition: Annotated[
        list[str] | None, typer.Option("--condition", "-c", help="name=value: y=3, or y=[0,1,2] in turn.")
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="The scale of classifier-free guidance; 1 is none.")] = None,
    shape: Shape = None,
    as_json: AsJson = False,
) -> None:
    """Draw samples and write them to a file."""
    import torch

    from scoreflow._core.check import options as check_options
    from scoreflow._core.check import whole
    from scoreflow._run.auto import AUTO
    from scoreflow._show.files import check_ending
    from scoreflow.studies.spec import parse

    check_ending("out", out)
    what = sf.studies.load(model, _shape(shape), compare=False)
    check_ending("out", out, what.shape)
    name, options, grid = parse(sampler)
    whole("n", n)
    if name != AUTO:  # options are the sampler's, and no other keyword of `solve`
        sf.get_sampler(name, **options)
    else:
        check_options("sampler 'auto'", options, ("analytic",))
    x_T = sf.White(seed).draws("prior")(torch.empty(n, *what.shape, dtype=what.precision)) * what.model.path.prior_std(
        what.start
    )
    given = {key: _in_turn(value, n) for key, value in _options(condition or []).items()}
    keywords = {**options, **what.conditioned(n, seed), **given, "start": what.start, "stop": what.stop}
    net = what.model if guidance is None else sf.ClassifierFree(what.model, guidance)
    sol = sf.solve(
        net, x_T, name, nfe=nfe, steps=steps, grid=grid, seed=seed, progress=sys.stderr.isatty(),
        trajectory=out.suffix.lower() == ".gif", **keywords,
    )  # fmt: skip
    sol.save(out)
    summary = {"sampler": repr(sol.sampler), "nfe": sol.nfe, "shape": list(sol.x.shape), "seed": seed, "file": str(out)}
    typer.echo(json.dumps(summary) if as_json else f"{n} samples by {summary['sampler']}, {sol.nfe} evaluations: {out}")


def _in_turn(value: Any, n: int) -> Any:
    """A condition of n samples: a number for all, a list in turn."""
    import torch

    if isinstance(value, int | float | list):
        values = torch.as_tensor(value).reshape(-1)
        return values.repeat(-(-n // len(values)))[:n]
    return value


@app.command()
def study(
    model: Model,
    samplers: Annotated[str, _named("Names with commas between: ddpm,ddim(eta=0.5),unipc@karras.", "samplers", listed=True)],
    out: Annotated[Path, typer.Option(help="A folder for the cells and the report; run again to go on or add to it.")],
    nfe: Annotated[str | None, typer.Option(help="Budgets in evaluations, with commas between.")] = None,
    steps: Annotated[str | None, typer.Option(help="Budgets in steps, instead.")] = None,
    grids: Annotated[str | None, _named("Grids for every sampler, with commas between.", "grids", listed=True)] = None,
    metrics: Annotated[str | None, _named(f"Any of {_known('metrics')}.", "metrics", listed=True)] = None,
    n: Annotated[int, typer.Option("-n", help="Samples in a block.")] = 64,
    seeds: Annotated[int, typer.Option(help="How many blocks.")] = 8,
    reference: Annotated[str | None, typer.Option(help="What converges to the ODE, as typed.")] = None,
    features: Annotated[str | None, _named(f"Where images are judged: {_known('features')}.", "features")] = None,
    workers: Annotated[int, typer.Option(help="Processes; 0 for this one.")] = 0,
    shape: Shape = None,
    data: Annotated[Path | None, typer.Option(help="To compare to: .npy, .pt, or a tenth of a folder of images.")] = None,
    batch: Annotated[
        int | None, typer.Option(help="In this process: states in one network call, of cells run together.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run samplers at budgets from the same seeds, measure, and write a report.

    The exit code is 0; 1 if a cell failed; 130 if it was stopped: then the same command goes on from there.
    """
    from scoreflow.studies.spec import split

    needs("study", "ot", *REPORT)
    what = sf.studies.load(model, _shape(shape), compare=data is None)
    states = None if data is None else sf.studies.states_of(data, what.shape)
    budgets = {name: _numbers(name, text) for name, text in (("nfe", nfe), ("steps", steps)) if text is not None}
    chosen = None if metrics is None else split(metrics)
    try:
        with _pool(workers) as pool:
            done = sf.study(
                what, split(samplers), nfe=budgets.get("nfe"), steps=budgets.get("steps"),
                grids=split(grids) if grids else None, metrics=chosen, n=n, seeds=seeds, reference=reference,
                features=features, data=states, out=out, executor=pool, batch=batch, progress=sys.stderr.isatty(),
            )  # fmt: skip
    except KeyboardInterrupt:
        typer.echo(f"scoreflow: stopped; what was finished is in {out}, and the same command goes on from there", err=True)
        raise typer.Exit(130) from None
    _tell(done, out, out / "report.html", as_json)
    if done.failures:
        raise typer.Exit(1)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes that leave Ctrl-C to this one, and end with it."""
    from scoreflow._core.check import whole

    if not whole("workers", workers, 0):
        yield None
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
    try:
        yield pool
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            sys.excepthook = lambda *_: None  # the thread that hands tensors to workers complains of those that end
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="A folder for the run; the same command goes on where it was cut.")],
    data: Annotated[str | None, _named(f"{_known('data')}, or a folder of images.", "data")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML: data, network, model, objective, recipe.")] = None,
    change: Annotated[list[str] | None, typer.Option("--set", help="table.name=value, such as recipe.steps=2000.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train a score network; under torchrun, on all its processes.

    The folder holds the log, the state to go on from, the model, curves and sample sheets. `--model run:folder` uses it.
    """
    needs("train", "lightning_fabric", "matplotlib")
    run = sf.training.setup(data, config, sf.training.parse(change or []))
    try:
        run.run(out, progress=sys.stderr.isatty())
    except KeyboardInterrupt:
        kept = (
            "the same command goes on from its last state" if (out / "state.safetensors").is_file() else "no state was kept yet"
        )
        typer.echo(f"scoreflow: stopped; the run is in {out}, and {kept} (every {run.recipe.save_every} steps)", err=True)
        raise typer.Exit(130) from None
    if int(os.environ.get("RANK", 0)):
        return
    last = json.loads((out / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    summary = (
        f"{last['step']} steps, loss {last['loss']:.4g}, held out {last['held_out']:.4g}. Model: {out / 'model.safetensors'}"
    )
    typer.echo(json.dumps({**last, "folder": str(out)}) if as_json else summary)


@app.command()
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
    for figure, sentences in findings.items():
        typer.echo(f"{figure}, {arrow(done, figure)}\n" + "\n".join(f"  {line}" for line in sentences))
    for line in done.warnings:
        typer.echo(f"not sensible: {line}")
    for failure in done.failures:
        typer.echo(f"failed: {failure}", err=True)
    typer.echo(f"{cells} of {blocks}, {failures}. Report: {file}")


def _numbers(name: str, text: str) -> list[int]:
    from scoreflow.studies.spec import split

    try:
        return [int(part) for part in split(text)]
    except ValueError:
        raise ValueError(f"{name} must be whole numbers with commas between, got {text!r}") from None


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"scoreflow {version('scoreflow')}, torch {version('torch')}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the versions.")
    ] = False,
) -> None:
    """Samplers of diffusion models, swapped by name."""


REPORT = ("pandas", "matplotlib", "plotly", "jinja2")
"""Of the extra study, what a report is made with."""


MISTAKES = ValueError, TypeError, FileNotFoundError, NotADirectoryError, IsADirectoryError


def main() -> None:
    """Run the command line; a mistake in what was typed is one line and exit code 2, anything else that fails 1."""
    try:
        with named():
            app()
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        typer.echo(f"scoreflow: {error}", err=True)
        sys.exit(2 if isinstance(error, MISTAKES) else 1)
