"""The command `sample`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import scoreflow as sf
from scoreflow.cli.typed import AsJson, Model, Nfe, Shape, Steps, named, options_of, shape_of


def sample(
    model: Model,
    out: Annotated[
        Path, typer.Option(help="Where the samples go: .npy, .pt, .safetensors; of images and points .png, .jpg or .gif.")
    ],
    sampler: Annotated[str, named("A sampler as typed: ddim(eta=0.5)@karras; or plan:file, plan:folder.", "samplers")] = "auto",
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
    from scoreflow._run.kept import is_kept
    from scoreflow._show.files import check_ending
    from scoreflow.studies.spec import parse

    check_ending("out", out)
    what = sf.studies.load(model, shape_of(shape), compare=False)
    check_ending("out", out, what.shape)
    name, options, grid = (sampler, {}, None) if is_kept(sampler) else parse(sampler)
    whole("n", n)
    if name == AUTO:
        check_options("sampler 'auto'", options, ("analytic",))
    elif not is_kept(name):  # options are the sampler's, and no other keyword of `solve`
        sf.get_sampler(name, **options)
    x_T = sf.White(seed).draws("prior")(torch.empty(n, *what.shape, dtype=what.precision)) * what.model.path.prior_std(
        what.start
    )
    given = {key: _in_turn(value, n) for key, value in options_of(condition or []).items()}
    keywords = {**options, **what.conditioned(n, seed), **given, "start": what.start, "stop": what.stop}
    net = what.model if guidance is None else sf.ClassifierFree(what.model, guidance)
    sol = sf.solve(
        net, x_T, name, nfe=nfe, steps=steps, grid=grid, seed=seed, progress=sys.stderr.isatty(),
        trajectory=out.suffix.lower() == ".gif", **keywords,
    )  # fmt: skip
    sol.save(out)
    tuned = sol.plan is not None and sol.plan.fit is not None
    summary = {
        "sampler": repr(sol.sampler), "tuned": tuned, "nfe": sol.nfe, "shape": list(sol.x.shape), "seed": seed,
        "file": str(out),
    }  # fmt: skip
    made = f"{summary['sampler']}{', a plan of tune' if tuned else ''}"
    typer.echo(json.dumps(summary) if as_json else f"{n} samples by {made}, {sol.nfe} evaluations: {out}")


def _in_turn(value: Any, n: int) -> Any:
    """A condition of n samples: a number for all, a list in turn."""
    import torch

    if isinstance(value, int | float | list):
        values = torch.as_tensor(value).reshape(-1)
        return values.repeat(-(-n // len(values)))[:n]
    return value
