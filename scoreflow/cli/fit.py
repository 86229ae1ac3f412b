"""The command `tune`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import scoreflow as sf
from scoreflow.cli.typed import AsJson, Model, Shape, numbers, options_of, shape_of
from scoreflow.cli.workers import processes


def tune(
    model: Model,
    nfe: Annotated[str, typer.Option(help="Budgets of network evaluations, with commas between: 5,6,8.")],
    out: Annotated[Path, typer.Option(help="A folder for the plans; the same command goes on where it was stopped.")],
    shape: Shape = None,
    seeds: Annotated[str | None, typer.Option(help="How many states to fit to, to decide by and to report on.")] = None,
    seed: Annotated[int, typer.Option(help="The first of them.")] = 0,
    budget_s: Annotated[float | None, typer.Option(help="Seconds for each budget; all iterations if none are given.")] = None,
    iterations: Annotated[int | None, typer.Option(help="Of L-BFGS: 100 for a network, 400 for an oracle.")] = None,
    batch: Annotated[int | None, typer.Option(help="States in a network call that is differentiated.")] = None,
    condition: Annotated[
        list[str] | None,
        typer.Option("--condition", "-c", help="name=value: y=3, or y=[0,1,2], of which a state draws one."),
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="The scale of classifier-free guidance that the plan is for.")] = None,
    form: Annotated[str | None, typer.Option(help="noise or data: the prediction that is weighed. None: by the model.")] = None,
    noise: Annotated[
        bool, typer.Option("--noise", help="A stochastic plan instead: variances or churn by level, fitted to the data's law.")
    ] = False,
    workers: Annotated[int, typer.Option(help="Processes; 0 for this one.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Fit a plan to a model for each budget, and keep it if it beats all samplers on seeds of its own.

    With `--noise` it is a stochastic one, held to all stochastic samplers by the distance of its samples' law to the data's.

    `--sampler plan:folder` of `sample` and `study` takes it. The exit code is 0, also where no fit was kept; 130 if it was
    stopped.
    """
    what = sf.studies.load(model, shape_of(shape), compare=False)
    net = what.model if guidance is None else sf.ClassifierFree(what.model, guidance)
    given = {name: _drawn(value) for name, value in options_of(condition or []).items()}
    counts: Any = {} if seeds is None else {"seeds": tuple(numbers("seeds", seeds))}
    asked: dict[str, Any] = {
        "shape": what.shape, "conditions": {**what.conditions, **given}, "seed": seed, "start": what.start, "stop": what.stop,
        "batch": batch, "budget_s": budget_s, **counts,
    }  # fmt: skip
    found = dict[int, Any]()
    try:
        if noise:
            if form is not None or workers:
                raise ValueError("--noise takes neither --form nor --workers: it fits the noise, in this process")
            if (out / "problem.json").exists():
                raise ValueError(f"--out {out} holds plans of tune without --noise: give a folder of its own")
            more = {} if iterations is None else {"iterations": iterations}
            found |= sf.tune_noise(net, numbers("nfe", nfe), **asked, **more)
            out.mkdir(parents=True, exist_ok=True)
            for n in found:
                found[n].save(out)
        else:
            with processes(workers) as pool:
                found |= sf.tune(
                    net, numbers("nfe", nfe), **asked, form=form, iterations=iterations, out=out, executor=pool,
                    progress=sys.stderr.isatty(),
                )  # fmt: skip
    except KeyboardInterrupt:
        typer.echo(f"scoreflow: stopped; what was finished is in {out}, and the same command goes on from there", err=True)
        raise typer.Exit(130) from None
    files = {n: out / f"plan-{n}.json" for n in found}
    if as_json:
        kept = ["nfe", "accepted", "reason", "test", "validation", "candidates", "screened", "starts", "cost"]
        kept += ["judge"] if noise else []
        told = [{"plan": str(files[n]), **{name: getattr(one, name) for name in kept}} for n, one in found.items()]
        typer.echo(json.dumps({"model": repr(net), "folder": str(out), "budgets": told}, indent=1))
        return
    for n, file in files.items():
        typer.echo(f"{found[n] if noise else _told(found[n])}\n  plan: {file}")
    typer.echo(f"In sample, study and plan, --sampler plan:{out} takes the one of its budget.")


def _drawn(value: Any) -> Any:
    """A condition: of a list, or of one number, the rows that states draw from."""
    import torch

    return torch.as_tensor(value).reshape(-1) if isinstance(value, int | float | list) else value


def _told(one: sf.Tuned) -> str:
    """The decision, the figures of the test seeds, and the cost."""
    ratio, low, high = one.test["ratio"]
    figures = {name: row for name, row in one.test.items() if name != "ratio"}
    rows: list[tuple[str, ...]] = [("off the ODE", "median", "90 %", "RMS")]
    rows += [(name, *(f"{row[key]:.3g}" for key in ("median", "quantile", "rms"))) for name, row in figures.items()]
    return "\n".join(
        [
            f"{one.nfe} evaluations: {one.reason}.",
            *(f"  {name:12}" + "".join(f"{cell:>10}" for cell in cells) for name, *cells in rows),
            f"  returned/best {ratio:.3g} ({low:.3g} to {high:.3g}), medians of {figures['returned']['seeds']} test seeds",
            f"  cost: {one.screened} candidates, {len(one.starts)} fits, {one.cost['evaluations']:,.0f} evaluations, "
            f"{one.cost['seconds']:.0f} s",
        ]
    )
