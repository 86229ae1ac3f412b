"""The commands for many samples: `sample --seeds`, on any number of machines, and `measure`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import scoreflow as sf
from scoreflow.cli.typed import AsJson, known, named, options_of, sampler_of, shape_of
from scoreflow.cli.workers import PLACES, opened, place_of

if TYPE_CHECKING:
    from scoreflow._sets.log import Progress


def of_seeds(
    request: dict[str, Any], as_json: bool, shard: str | None, executor: str | None, jobs: int | None, options: list[str]
) -> None:
    """`sample --seeds`: the part of this process, or all parts by an executor."""
    if executor is None and (jobs is not None or options):
        raise ValueError(f"--jobs and --executor-option go with --executor {PLACES}")
    if executor is not None and shard is not None:
        raise ValueError("--shard makes one part, and --executor all of them: give one of the two")
    try:
        if executor is not None:
            made_of = partial(part, request)
            parts = handed_out(made_of, executor, jobs, options_of(options), request["out"], partial(_shares, request))
        else:
            (i, n), rank, world = _shard(shard), _ranks("RANK", 0), _ranks("WORLD_SIZE", 1)
            parts = [part(request, (i + n * rank, n * world), progress=rank == 0 and sys.stderr.isatty())]
    except KeyboardInterrupt:
        typer.echo(f"scoreflow: stopped; the samples so far are in {request['out']}, and the same command goes on", err=True)
        raise typer.Exit(130) from None
    made, there, failed = (sum(one[name] for one in parts) for name in ("made", "there", "failed"))
    rate = made / max(one["seconds"] for one in parts)
    told = {**parts[0], "made": made, "there": there, "failed": failed, "samples_a_second": rate, "parts": len(parts)}
    counts = f"{there} were there, {failed} failed"
    summary = f"{made} samples by {told['sampler']}, {rate:.3g} a second; {counts}: {request['out']}"
    typer.echo(json.dumps(told) if as_json else summary)
    if failed:
        raise typer.Exit(1)


def part(request: Mapping[str, Any], shard: Sequence[int], progress: bool = False) -> dict[str, Any]:
    """One part of what was asked, as an executor runs it: the words travel, and not the model."""
    from scoreflow._sets.seeds import parse

    what = sf.studies.load(request["model"], shape_of(request["shape"]), compare=False)
    net = what.model if request["guidance"] is None else sf.ClassifierFree(what.model, request["guidance"])
    _move(net, request["device"])
    name, options, grid = sampler_of(request["sampler"])
    made = sf.generate(
        net, what.shape, parse(request["seeds"]), request["out"], name, steps=request["steps"], nfe=request["nfe"], grid=grid,
        start=what.start, stop=what.stop, batch=request["batch"], shard=shard, format=request["format"], dtype=what.precision,
        conditions=_conditions(what, request["classes"], request["condition"]), noise_device=request["noise_device"],
        progress=progress, **options,
    )  # fmt: skip
    return {**made._asdict(), "folder": str(made.folder)}


def _conditions(what: sf.Subject, classes: str | None, typed: list[str]) -> dict[str, Any]:
    """The subject's own, by seed, with what was typed in their place."""
    import torch

    from scoreflow._sets.seeds import Uniform, classes_in, one_by_one

    own = {name: one_by_one(value) if callable(value) else value for name, value in what.conditions.items()}
    given = {name: torch.tensor(v) if isinstance(v, list) else v for name, v in options_of(typed).items()}
    if classes is not None and "y" in given:
        raise ValueError("--classes and -c y=… both say the classes: give one of the two")
    if classes == "none":
        own.pop("y", None)
    elif classes == "uniform" and "y" not in own:
        raise ValueError("--classes uniform: this model does not say how many classes it has; say it, as in uniform:10")
    elif classes is not None and classes.startswith("uniform:"):
        count = classes.removeprefix("uniform:")
        if not count.isdecimal():
            raise ValueError(f"--classes must be uniform, uniform:10, none or a file, got {classes!r}")
        own["y"] = Uniform(int(count))
    elif classes is not None and classes != "uniform":
        own["y"] = classes_in(classes)
    return own | given


def _move(model: sf.ScoreModel, device: str | None) -> None:
    """Its networks to a device; of several, as under torchrun, to that of the rank."""
    from torch import nn

    from scoreflow._core.check import placed
    from scoreflow._score.fingerprint import networks

    if device is None:
        return
    found = [net for net in networks(model, set()) if isinstance(net, nn.Module)]
    if not found:
        raise ValueError(f"--device {device}: the model has no network that could be moved")
    for net in found:
        net.to(placed(_of_rank(device)))


def _of_rank(device: str | None) -> str | None:
    """`cuda` of a rank under torchrun."""
    local = os.environ.get("LOCAL_RANK")
    return device if device is None or local is None or ":" in device or device == "cpu" else f"{device}:{local}"


def _ranks(name: str, default: int) -> int:
    """What torchrun says."""
    return int(os.environ.get(name, default))


def _shard(text: str | None) -> tuple[int, int]:
    """`i/n` as typed."""
    from scoreflow._sets.seeds import check_shard

    parts = (text or "0/1").split("/")
    if len(parts) != 2 or not all(one.isdecimal() for one in parts):
        raise ValueError(f"--shard must be i/n, as 0/8 to 7/8, got {text!r}")
    return check_shard([int(one) for one in parts])


def _shares(request: Mapping[str, Any], n: int) -> Progress:
    """A bar over the parts of samples."""
    from scoreflow._sets.log import Progress
    from scoreflow._sets.seeds import check_seeds, parse, share

    seeds = check_seeds(parse(request["seeds"]))
    return Progress(Path(request["out"]), len(seeds), [len(share(seeds, request["batch"], (i, n))) for i in range(n)])


def handed_out(
    part: Callable[[tuple[int, int]], dict[str, Any]], executor: str, jobs: int | None, options: dict[str, Any], out: str,
    bar: Callable[[int], Progress] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """What all parts (i, n) give, made by an executor.

    Raises:
        RuntimeError: some failed; what was made is in `out`.
    """
    from scoreflow._core.check import whole

    count = None if jobs is None else whole("jobs", jobs)
    if place_of(executor)[0] == "submitit" and count is None:
        raise ValueError("--executor submitit needs --jobs, how many parts the array has")
    with opened(executor, count, options) as (pool, n):
        n = count or n
        with pool.batch() if hasattr(pool, "batch") else nullcontext():  # of submitit one job array
            running = [pool.submit(partial(part, (i, n))) for i in range(n)]
        shown = bar(n) if bar is not None and sys.stderr.isatty() else None
        while not all(one.done() for one in running):
            time.sleep(0.1)
            if shown is not None:
                shown.update()
        if shown is not None:
            shown.close()
        found, wrong = list[dict[str, Any]](), list[str]()
        for i, one in enumerate(running):
            try:
                found.append(one.result())
            except Exception as error:
                wrong.append(f"part {i}/{n}: {type(error).__name__}: {error}")
    if wrong:
        raise RuntimeError(
            f"{len(wrong)} of {n} parts failed; what was made is in {out}, and the same command goes on. {wrong[0]}"
        )
    return found


def measure(
    samples: Annotated[
        list[str], typer.Argument(help="A folder of samples, images, .npy or .pt; or moments in .npz. Several are blocks.")
    ],
    data: Annotated[
        str | None, named(f"To compare to: {known('data')}, a folder or file, or statistics in .npz.", "data")
    ] = None,
    metrics: Annotated[
        str, named("With commas: frechet, frechet-infinity, kid, manifold, sliced-w2, ….", "metrics", listed=True)
    ] = "frechet",
    features: Annotated[
        str | None,
        named(f"Where images are judged: {known('features')}, or file.py:function; by the data.", "features"),
    ] = None,
    part: Annotated[str, typer.Option(help="Of data by name: train, held-out or all.")] = "held-out",
    blocks: Annotated[int, typer.Option(help="Equal parts, by seed, whose mean and spread are told.")] = 3,
    size: Annotated[int | None, typer.Option(help="Of images in folders: cut square and scale them.")] = None,
    batch: Annotated[int, typer.Option(help="States that features are made of at once.")] = 256,
    shard: Annotated[str | None, typer.Option(help="i/n: of one part only, as for job arrays; keep it with --save.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write the moments to this .npz, with mu and sigma.")] = None,
    device: Annotated[str | None, typer.Option(help="Where features are made.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a folder of samples against data; under torchrun all ranks make features.

    By seeds the samples are cut into blocks, whose figures are told as mean and standard deviation.
    """
    from torch import distributed

    from scoreflow._core.files import check_file
    from scoreflow.studies.named import imported
    from scoreflow.studies.spec import split

    if save is not None:
        check_file("save", save)
        if save.suffix != ".npz":
            raise ValueError(f"--save must end in .npz, got {str(save)!r}")
    elif data is None:
        raise ValueError("give --data to compare to, or --save for the moments alone")
    judge: Any = features
    if features is not None and ":" in features:
        module, name = features.rsplit(":", 1)
        judge = imported(module, name, "features")
    rank, world = _ranks("RANK", 0), _ranks("WORLD_SIZE", 1)
    if world > 1:
        distributed.init_process_group("gloo")
    try:
        found = sf.measure(
            samples, data, split(metrics), features=judge, part=part, blocks=blocks, size=size, batch=batch,
            shard=_shard(shard), device=_of_rank(device), progress=sys.stderr.isatty(),
        )  # fmt: skip
    finally:
        if world > 1:
            distributed.destroy_process_group()
    if rank:
        return
    if save is not None:
        found.moments.save(save)
    typer.echo(json.dumps(found.to_dict() | {"saved": None if save is None else str(save)}) if as_json else str(found))
