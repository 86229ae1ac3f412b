"""The commands `train` and `pairs`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import scoreflow as sf
from scoreflow._extras import needs
from scoreflow.cli.typed import AsJson, Model, Nfe, Shape, Steps, known, named, options_of, sampler_of, shape_of


def train(
    out: Annotated[Path, typer.Option(help="A folder for the run; the same command goes on where it was cut.")],
    data: Annotated[str | None, named(f"{known('data')}, a folder of images, or pairs:folder.", "data")] = None,
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


def pairs(
    model: Model,
    out: Annotated[Path, typer.Option(help="A folder for the pairs; the same command goes on where it was cut.")],
    sampler: Annotated[
        str, named("A deterministic one, as typed: dpm-solver++(method=3m)@logsnr; or plan:file.", "samplers")
    ] = "auto",
    nfe: Nfe = None,
    steps: Steps = None,
    n: Annotated[int, typer.Option("-n", help="How many; a larger number later adds to them.")] = 5000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same pairs.")] = 0,
    batch: Annotated[int, typer.Option(help="Pairs a file, and a run.")] = 256,
    condition: Annotated[
        list[str] | None,
        typer.Option("--condition", "-c", help="name=value: y=3, or y=[0,1,2] in turn. Of the zoo's by itself at random."),
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="The scale of classifier-free guidance; 1 is none.")] = None,
    shape: Shape = None,
    as_json: AsJson = False,
) -> None:
    """Make pairs of noise and sample, for reflow: `scoreflow train --data pairs:folder` trains on them."""
    what = sf.studies.load(model, shape_of(shape), compare=False)
    name, options, grid = sampler_of(sampler)
    own = {key: _each(key, value) for key, value in what.conditions.items()}
    given = {key: _in_turn(value) for key, value in options_of(condition or []).items()}
    net = what.model if guidance is None else sf.ClassifierFree(what.model, guidance)
    try:
        made = sf.training.pairs(
            net, what.shape, n, out, name, steps=steps, nfe=nfe, grid=grid, start=what.start, stop=what.stop, seed=seed,
            batch=batch, conditions=own | given, dtype=what.precision, progress=sys.stderr.isatty(), **options,
        )  # fmt: skip
    except KeyboardInterrupt:
        typer.echo(f"scoreflow: stopped; the pairs so far are in {out}, and the same command goes on", err=True)
        raise typer.Exit(130) from None
    summary = {
        "pairs": len(made), "shape": list(made.shape), "sampler": made.manifest["sampler"], "seed": seed,
        "conditions": list(made.conditions), "folder": str(out),
    }  # fmt: skip
    typer.echo(json.dumps(summary) if as_json else f"{len(made)} pairs by {summary['sampler']}: {out}")


def _each(name: str, value: Any) -> Any:
    """A condition of a subject, which a function gives for a block of samples, by the numbers of pairs: a block each."""
    import torch

    from scoreflow._core.noise import stream_key

    if not callable(value):
        return value

    def of(numbers: Any, seed: int) -> Any:
        return torch.cat([value(1, stream_key(seed, "condition", name, i)) for i in numbers.tolist()])

    return of


def _in_turn(value: Any) -> Any:
    """A condition as typed: a number for all, a list in turn."""
    import torch

    if not isinstance(value, list):
        return value
    values = torch.as_tensor(value).reshape(-1)
    return lambda numbers, seed: values[numbers % len(values)]
