"""The command `train`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

import scoreflow as sf
from scoreflow._extras import needs
from scoreflow.cli.typed import AsJson, known, named


def train(
    out: Annotated[Path, typer.Option(help="A folder for the run; the same command goes on where it was cut.")],
    data: Annotated[str | None, named(f"{known('data')}, or a folder of images.", "data")] = None,
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
