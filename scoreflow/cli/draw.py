"""The command `sample`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import scoreflow as sf
from scoreflow.cli.many import of_seeds
from scoreflow.cli.typed import AsJson, Model, Nfe, Shape, Steps, named, options_of, sampler_of, shape_of
from scoreflow.cli.workers import PLACES


def sample(
    model: Model,
    out: Annotated[
        Path, typer.Option(help="Where the samples go: .npy, .pt, .safetensors; of images and points .png, .jpg or .gif.")
    ],
    sampler: Annotated[
        str | None,
        named("As typed: ddim(eta=0.5)@karras; or plan:file. By itself auto; with --inpaint sde-dpm-solver++.", "samplers"),
    ] = None,
    nfe: Nfe = None,
    steps: Steps = None,
    n: Annotated[int | None, typer.Option("-n", help="How many; 16.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same samples; 0.")] = None,
    condition: Annotated[
        list[str] | None, typer.Option("--condition", "-c", help="name=value: y=3, or y=[0,1,2] in turn.")
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="The scale of classifier-free guidance; 1 is none.")] = None,
    inpaint: Annotated[
        Path | None, typer.Option(help="An image, of which the samples keep what the mask leaves; needs --mask.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="An image of the same size: white is filled in, black is kept, grey is in between.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="How --inpaint conditions: mmps by itself, pigdm, tmpd, ….")] = None,
    shape: Shape = None,
    seeds: Annotated[str | None, typer.Option(help="0-49999: a sample for each, in the folder --out.")] = None,
    classes: Annotated[str | None, typer.Option(help="By seed: uniform, uniform:10, none, or a file, one a line.")] = None,
    format: Annotated[str | None, typer.Option(help="npy (the default), png, safetensors or tar.")] = None,
    batch: Annotated[int | None, typer.Option(help="Samples in a network call; 256.")] = None,
    shard: Annotated[str | None, typer.Option(help="i/n, from 0/n on: a part of the seeds, as for job arrays.")] = None,
    executor: Annotated[str | None, typer.Option(help=f"Where parts are made: {PLACES}. Under torchrun its ranks do.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Parts for the executor; of Dask as many as it has workers.")] = None,
    executor_option: Annotated[
        list[str] | None, typer.Option("--executor-option", "-x", help="Of submitit: cluster=slurm, slurm_partition=gpu, ….")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where the network runs: cuda is that of the rank under torchrun.")] = None,
    noise_device: Annotated[str | None, typer.Option(help="cpu draws the same noise for any device.")] = None,
    as_json: AsJson = False,
) -> None:
    """Draw samples and write them to a file; or with --seeds to a folder, by any number of processes."""
    single = {"-n": n, "--seed": seed, "--inpaint": inpaint, "--mask": mask, "--method": method}
    many = {
        "--classes": classes, "--format": format, "--batch": batch, "--shard": shard, "--executor": executor, "--jobs": jobs,
        "--executor-option": executor_option, "--device": device, "--noise-device": noise_device,
    }  # fmt: skip
    if wrong := [name for name, value in (many if seeds is None else single).items() if value is not None]:
        with_or_without = "goes with" if seeds is None else "does not go with"
        raise ValueError(f"{wrong[0]} {with_or_without} --seeds 0-49999, which makes a folder with a sample for each")
    if seeds is not None:
        request = {
            "model": model, "sampler": sampler or "auto", "nfe": nfe, "steps": steps, "guidance": guidance, "shape": shape,
            "condition": condition or [], "classes": classes, "seeds": seeds, "batch": 256 if batch is None else batch,
            "format": format or "npy", "device": device, "noise_device": noise_device, "out": str(out.resolve()),
        }  # fmt: skip
        of_seeds(request, as_json, shard, executor, jobs, executor_option or [])
        return
    import torch

    from scoreflow._core.check import whole
    from scoreflow._run.auto import AUTO
    from scoreflow._show.files import check_ending, read

    n, seed = 16 if n is None else n, seed or 0
    check_ending("out", out)
    what = sf.studies.load(model, shape_of(shape), compare=False)
    check_ending("out", out, what.shape)
    if (inpaint is None) != (mask is None) or (inpaint is None and method is not None):
        raise ValueError("--inpaint image.png and --mask mask.png go together, and --method goes with them")
    sampler = sampler or (AUTO if inpaint is None else "sde-dpm-solver++")
    name, options, grid = sampler_of(sampler)
    whole("n", n)
    given = {key: _in_turn(value, n) for key, value in options_of(condition or []).items()}
    own = what.conditioned(n, seed) if inpaint is None else {}  # of an image nobody knows the class
    keywords = {
        **options, **own, **given, "nfe": nfe, "steps": steps, "grid": grid, "seed": seed,
        "progress": sys.stderr.isatty(), "trajectory": out.suffix.lower() == ".gif",
    }  # fmt: skip
    net = what.model if guidance is None else sf.ClassifierFree(what.model, guidance)
    if inpaint is None or mask is None:
        like = torch.empty(n, *what.shape, dtype=what.precision)
        x_T = sf.White(seed).draws("prior")(like) * what.model.path.prior_std(what.start)
        sol = sf.solve(net, x_T, name, start=what.start, stop=what.stop, **keywords)
    else:
        image = (2 * read("--inpaint", inpaint, what.shape) - 1).to(what.precision).repeat(n, 1, 1, 1)
        hole = read("--mask", mask, (1, *what.shape[1:])).to(what.precision)
        start = None if what.start == 1 else what.start
        sol = sf.inpaint(net, image, hole, name, method=method or "mmps", start=start, **keywords)
    sol.save(out)
    tuned = sol.plan is not None and sol.plan.fit is not None
    summary = {
        "sampler": repr(sol.sampler), "tuned": tuned, "nfe": sol.nfe, "shape": list(sol.x.shape), "seed": seed,
        "file": str(out),
    }  # fmt: skip
    summary |= {"backward": sol.backward} if sol.backward else {}
    made = f"{summary['sampler']}{', a plan of tune' if tuned else ''}"
    passes = f"{sol.nfe} evaluations{f' and {sol.backward} backward passes' if sol.backward else ''}"
    typer.echo(json.dumps(summary) if as_json else f"{n} samples by {made}, {passes}: {out}")


def _in_turn(value: Any, n: int) -> Any:
    """A condition of n samples: a number for all, a list in turn."""
    import torch

    if isinstance(value, int | float | list):
        values = torch.as_tensor(value).reshape(-1)
        return values.repeat(-(-n // len(values)))[:n]
    return value
