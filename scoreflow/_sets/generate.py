"""Many samples in a folder, by any number of processes that need not know of each other."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoreflow._core.check import event_shape, flag, floating, one_of, placed, whole
from scoreflow._core.noise import White
from scoreflow._extras import needs
from scoreflow._run.auto import AUTO
from scoreflow._run.schedule import Grid, Schedule
from scoreflow._run.solve import Prepared, carry, prepare
from scoreflow._samplers.plan import Plan
from scoreflow._samplers.step import Sampler
from scoreflow._score.model import ScoreModel, check_model
from scoreflow._sets.files import Files, OneEach, Shards
from scoreflow._sets.log import Log, Progress
from scoreflow._sets.seeds import Condition, by_seed, check_seeds, check_shard, share
from scoreflow._show.picture import drawable
from scoreflow._uses.manifest import Manifest, of_run, stamp

MANIFEST = Manifest("samples.json", "samples", "generate")
FORMATS = ("npy", "png", "safetensors", "tar")


class Generated(NamedTuple):
    """What a call of `generate` did.

    Attributes:
        folder: where the samples are. sampler: what makes them. nfe: evaluations of a run, the most of any; 0 if none was made.
        made: samples that this call made. there: that it found. failed: that are not finite; the log names their seeds.
        seconds: it took.
    """

    folder: Path
    sampler: str
    nfe: int
    made: int
    there: int
    failed: int
    seconds: float


def generate(
    model: ScoreModel,
    shape: Sequence[int],
    seeds: int | Iterable[int],
    out: str | Path,
    sampler: str | Sampler | Plan = AUTO,
    *,
    steps: int | None = None,
    nfe: int | None = None,
    grid: Grid = None,
    start: float = 1.0,
    stop: float = 0.0,
    batch: int = 256,
    shard: Sequence[int] = (0, 1),
    conditions: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    format: str = "npy",
    noise_device: torch.device | str | None = None,
    progress: bool = False,
    **keywords: Any,
) -> Generated:
    """Make a sample for each seed, and keep it in the folder `out`: this process's part of them.

    The sample of seed s is that of `sf.sample(model, (1, *shape), sampler, seed=[s], ...)`: prior, noise and conditions come
    from s alone, so it does not depend on the batch, the number of processes, their order or restarts. In float32 a network may
    round otherwise in a batch of another size. Processes need no word from each other: each makes its part `shard`, skips
    what is there, and may be killed at any time, which loses the batch in memory at most; the same call goes on, with any
    batch and any number of parts. A manifest, samples.json, is written by who comes first; who was asked for something else is
    refused. Each process adds to a log of its own, `log/00000-of-00001.jsonl`.

    Args:
        shape: of one sample.
        seeds: whole numbers from 0 on, such as `range(50_000)`; more may be asked for later.
        sampler, steps, nfe, grid, start, stop: as of `solve`.
        batch: samples a run.
        shard: (i, n): every n-th batch, beginning with the i-th.
        conditions: of the network, by name, and so may be the keywords. Of a number or a tensor (n, ...) seed s gets row
            s mod n; a function is given seeds (b,) and gives their rows (b, ...); anything else belongs to all.
        dtype: of the states; by default the network's, but of 32 bits at least.
        format: "npy", or "png" of images from −1 to 1, cut and rounded to 8 bits: a file a sample, `012000/012345.npy`; or
            shards of 1000 seeds, `012000-012999.safetensors`, or ".tar" as webdataset reads it.
        noise_device: where noise is drawn, None: where the model is. With "cpu" all kinds of device have the same.
        progress: show a bar for all processes.
        keywords: options of the sampler, if it was named, and conditions.

    Raises:
        ValueError: a folder of other samples, which says what differs; seeds, a part or a format that are none; and as `solve`.
            TypeError: as `solve`. NotADirectoryError: `out` is a file. A sample that is not finite is logged, and the others go
            on.
    """
    check_model(model)
    event, dtype = event_shape(shape), floating(dtype or model.state_dtype)
    asked, batch, part = check_seeds(seeds), whole("batch", batch), check_shard(shard)
    flag("progress", progress)
    one_of("format", format, FORMATS)
    if format == "png" and not (drawable(event) and len(event) == 3):
        raise ValueError(f"format='png' is for images, (1, H, W) or (3, H, W), and samples have the shape {event}")
    if format == "png" or (format == "tar" and len(event) == 3):
        needs("data", "PIL")
    prepared = prepare(model, sampler, Schedule(steps, nfe, grid, start, stop), keywords, conditions)
    steps_by, known = prepared.sampler, prepared.sampler.evaluations(model.path, prepared.times) is not None
    if batch > 1 and getattr(steps_by, "control", "") == "batch" and not known:
        raise ValueError(
            f"{steps_by!r} sets its steps by all of a batch, and a sample must depend on its own seed only: take batch=1, or "
            "control='sample' where it has that option"
        )
    told = {name: by_seed(name, value) for name, value in sorted(prepared.conditions.items())}
    drawn_on = placed(noise_device) or model.device or torch.device("cpu")
    maker = _Maker(model, prepared, event, dtype, told, drawn_on)
    manifest = MANIFEST.whole(
        {
            **of_run(model, prepared, event, dtype),
            "files": format,
            "noise": drawn_on.type,
            "conditions": {name: one.mark for name, one in told.items()},
        }
    )
    folder = Path(out)
    MANIFEST.agree(folder, manifest, begin=True)
    files = _files(folder, format, asked, told, stamp(manifest))
    there = files.there()
    lacking = [[seed for seed in share(asked, batch, (i, part[1])) if seed not in there] for i in range(part[1])]
    mine = lacking[part[0]]
    log, most = Log(folder, part, len(mine)), 0
    bar = Progress(folder, len(asked), [len(one) for one in lacking]) if progress else None
    try:
        for first in range(0, len(mine), batch):
            chunk, begun = mine[first : first + batch], time.perf_counter()
            for some, x, taken in maker.all(chunk, log):
                files.write(some, x)
                log.made_of(some, time.perf_counter() - begun)
                most, begun = max(most, taken), time.perf_counter()
            if bar is not None:
                bar.update()
    except BaseException as error:
        log.say("stopped", error=f"{type(error).__name__}: {error}")
        raise
    finally:
        if bar is not None:
            bar.close()
    log.say("end")
    found = len(share(asked, batch, part)) - len(mine)
    return Generated(folder, repr(prepared.sampler), most, log.made, found, log.errors, log.seconds)


def _files(folder: Path, format: str, asked: Sequence[int], told: Mapping[str, Condition], mark: str) -> Files:
    if format in ("npy", "png"):
        return OneEach(folder, format)
    rows = {name: one.rows for name, one in told.items() if one.rows is not None}
    return Shards(folder, format, asked, lambda seeds: {name: of(seeds) for name, of in rows.items()}, {"manifest": mark})


@dataclass(frozen=True)
class _Maker:
    """A run that makes samples from their seeds, once all that was asked is checked."""

    model: ScoreModel
    prepared: Prepared
    event: tuple[int, ...]
    dtype: torch.dtype
    told: Mapping[str, Condition]
    noise_device: torch.device

    def run(self, seeds: list[int]) -> tuple[Tensor, int]:
        """The samples of these seeds in one batch, on the host, and the evaluations they took."""
        source, _ = self.prepared.source(None, seeds, len(seeds), self.model.path)
        assert isinstance(source, White)
        source = replace(source, device=self.noise_device)
        like = torch.empty(len(seeds), *self.event, dtype=self.dtype, device=self.model.device)
        x_T = source.draws("prior")(like) * self.model.path.prior_std(self.prepared.times[0])
        conditions = {name: one.of(seeds, like.device) for name, one in self.told.items()}
        sol = carry(self.model, x_T, replace(self.prepared, conditions=conditions), source)
        return sol.x.to("cpu"), sol.nfe

    def all(self, seeds: list[int], log: Log) -> Iterator[tuple[list[int], Tensor, int]]:
        """Seeds, samples and evaluations: all at once, or where one is not finite by halves, so that it alone fails."""
        try:
            yield seeds, *self.run(seeds)
        except FloatingPointError as error:
            if len(seeds) == 1:
                log.failed(seeds[0], error)
                return
            for half in (seeds[: len(seeds) // 2], seeds[len(seeds) // 2 :]):
                yield from self.all(half, log)
