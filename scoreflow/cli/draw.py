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
    sampler: Annotated[
        str | None,
        named("As typed: ddim(eta=0.5)@karras; or plan:file. By itself auto; with --inpaint sde-dpm-solver++.", "samplers"),
    ] = None,
    nfe: Nfe = None,
    steps: Steps = None,
    n: Annotated[int, typer.Option("-n", help="How many.")] = 16,
    seed: Annotated[int, typer.Option(help="The same seed gives the same samples.")] = 0,
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
    as_json: AsJson = False,
) -> None:
    """Draw samples and write them to a file."""
    import torch

    from scoreflow._core.check import options as check_options
    from scoreflow._core.check import whole
    from scoreflow._run.auto import AUTO
    from scoreflow._run.kept import is_kept
    from scoreflow._show.files import check_ending, read
    from scoreflow.studies.spec import parse

    check_ending("out", out)
    what = sf.studies.load(model, shape_of(shape), compare=False)
    check_ending("out", out, what.shape)
    if (inpaint is None) != (mask is None) or (inpaint is None and method is not None):
        raise ValueError("--inpaint image.png and --mask mask.png go together, and --method goes with them")
    sampler = sampler or (AUTO if inpaint is None else "sde-dpm-solver++")
    name, options, grid = (sampler, {}, None) if is_kept(sampler) else parse(sampler)
    whole("n", n)
    if name == AUTO:
        check_options("sampler 'auto'", options, ("analytic",))
    elif not is_kept(name):  # options are the sampler's, and no other keyword of `solve`
        sf.get_sampler(name, **options)
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
