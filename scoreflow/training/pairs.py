"""Pairs of noise and sample for reflow, made by a sampler and kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoreflow import checkpoint
from scoreflow._core.check import event_shape, flag, floating, whole
from scoreflow._core.noise import White
from scoreflow._run.auto import AUTO
from scoreflow._run.schedule import Grid, Schedule
from scoreflow._run.solve import Prepared, carry, prepare
from scoreflow._samplers.plan import Plan
from scoreflow._samplers.step import Sampler
from scoreflow._score.conditions import Marked, each, plain
from scoreflow._score.fingerprint import fingerprint
from scoreflow._score.model import ScoreModel, check_model
from scoreflow._uses.manifest import of_run, stamp
from scoreflow._uses.shards import MANIFEST, Pairs, Shard, opened, shard, shards, stored

Rows = Callable[[int, int], Tensor]
"""From the numbers of the first pair and of the one after the last to their rows of a condition."""


def pairs(
    model: ScoreModel,
    shape: Sequence[int],
    n: int,
    out: str | Path,
    sampler: str | Sampler | Plan = AUTO,
    *,
    steps: int | None = None,
    nfe: int | None = None,
    grid: Grid = None,
    start: float = 1.0,
    stop: float = 0.0,
    seed: int = 0,
    batch: int = 256,
    conditions: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = False,
    **keywords: Any,
) -> Pairs:
    """Make n pairs of noise ε ~ N(0, I) and sample x_0, and keep them in the folder `out`: what reflow trains on.

    x_0 is where `solve` leads from `x_T = prior_std · ε` at `start`, as in `sample`. Pair i is a function of the seed and
    of i, whatever n is; how the pairs are split into batches changes its rounding at most. They are written in shards of
    `batch`, each whole or not at all. A call that was cut, kill −9 included, goes on when it is made again, and one with
    a larger n adds to what is there. Two processes may make the same pairs at once.

    Args:
        model: guided ones too; the scale is then part of what is learned.
        shape: of one sample.
        sampler: a deterministic one, so that x_0 is a function of ε; "auto" with no budget is 30 evaluations.
        steps, nfe, grid, start, stop: as of `solve`.
        batch: pairs a shard, and a run.
        conditions: of the network, by name, and so may be the keywords. Each is kept beside the pairs with a row a pair: a
            number or a tensor with one row (1, ...) is that of all; a tensor with n rows or more has a pair's at its number;
            a function `(numbers, seed)` gives the rows of the pairs of these numbers, a tensor (b,), and is to be a function
            of each number and the seed.
        dtype: of the states; by default the network's, but of 32 bits at least.
        progress: show a bar.
        keywords: options of the sampler, if it was named, and conditions.

    Raises:
        ValueError: a sampler or a model that draws noise; a folder with other pairs, which says what differs; conditions that
            do not fit; and as `solve`. TypeError: arguments or conditions that are none. NotADirectoryError: `out` is a file.

    Reference:
        Flow Straight and Fast (Liu et al., 2023), Algorithm 1.
    """
    check_model(model)
    event = event_shape(shape)
    n, batch, seed = whole("n", n), whole("batch", batch), whole("seed", seed, 0)
    flag("progress", progress)
    dtype = floating(dtype or model.state_dtype)
    prepared = prepare(model, sampler, Schedule(steps, nfe, grid, start, stop), keywords, conditions)
    if prepared.sampler.stochastic_on(model.path) if prepared.plan is None else prepared.plan.noise_count:
        raise ValueError(
            f"{prepared.sampler!r} draws noise on its way, and x_0 must be a function of ε: take a deterministic one, as ddim"
        )
    told = {name: _rows(name, value, n, seed) for name, value in sorted(prepared.conditions.items())}
    folder = Path(out)
    kinds = {name: _kind(of(0, 1)) for name, of in told.items()}
    manifest = MANIFEST.whole({**of_run(model, prepared, event, dtype), "seed": seed, "batch": batch, "conditions": kinds})
    _agree(folder, manifest)
    there, mark, first = shards(folder) if folder.exists() else {}, stamp(manifest), 0
    bar = _bar(n) if progress else None
    while first < n:
        if first in there:
            one = there[first]
            _check_conditions(one, mark, told, n)
        else:
            one = shard(folder, first, min(n, (first // batch + 1) * batch))
            tensors = _made(model, prepared, one, event, dtype, seed, {name: of(first, one.stop) for name, of in told.items()})
            _agree(folder, manifest, begin=True)
            checkpoint.write(tensors, one.file, {"manifest": mark})
        first = one.stop
        if bar is not None:
            bar.update(min(first, n) - bar.n)
    if bar is not None:
        bar.close()
    return Pairs(folder)


def _made(
    model: ScoreModel, prepared: Prepared, one: Shard, event: tuple[int, ...], dtype: torch.dtype, seed: int,
    told: Mapping[str, Tensor],
) -> dict[str, Tensor]:  # fmt: skip
    """The tensors of a shard."""
    numbers = range(one.first, one.stop)
    like = torch.empty(len(numbers), *event, dtype=dtype)  # drawn on the host, so that the noise is that of every device
    eps = White(numbers).normal(like, "pairs", seed)
    x_T = eps.to(device=model.device) * model.path.prior_std(prepared.times[0])
    given = {name: each(value.to(x_T.device)) for name, value in told.items()}
    x_0 = carry(model, x_T, replace(prepared, conditions=given), Silent(0)).x
    kept = {"x_0": x_0, "eps": eps, **{stored(name): value for name, value in told.items()}}
    return {name: value.detach().to("cpu").contiguous() for name, value in kept.items()}


class Silent(White):
    """The noise of a run that has none.

    Raises:
        ValueError: when a draw is made.
    """

    def normal(self, like: Tensor, *key: object) -> Tensor:
        raise ValueError("the model draws noise of its own in a run, and x_0 must be a function of ε")


def _rows(name: str, value: Any, n: int, seed: int) -> Rows:
    """The rows of a condition by the numbers of the pairs.

    Raises:
        ValueError, TypeError: it has none.
    """
    if name == "eps":
        raise ValueError("the condition 'eps' would be taken for the noise of the pairs: give the network's another name")
    if isinstance(value, Marked) and not value.rows:
        raise ValueError(f"condition {name!r} belongs to all pairs alike, and is kept with a row each: give one row, (1, ...)")
    value = plain(value)
    if isinstance(value, bool | int | float) or (isinstance(value, Tensor) and value.ndim == 0):
        value = torch.as_tensor(value)[None]
    if isinstance(value, Tensor):
        if len(value) != 1 and len(value) < n:
            raise ValueError(
                f"condition {name!r} has {len(value)} rows for n={n} pairs: give one a pair, or one row for all, (1, ...)"
            )
        given: Tensor = value
        return lambda first, stop: given.expand(stop, *given.shape[1:])[first:] if len(given) == 1 else given[first:stop]
    if not callable(value):
        raise TypeError(
            f"condition {name!r} must be a number, a tensor or a function of (numbers, seed), got {type(value).__name__}: "
            "pairs are kept as tensors, texts as what encodes them"
        )
    function: Callable[[Tensor, int], Any] = value

    def called(first: int, stop: int) -> Tensor:
        found = function(torch.arange(first, stop), seed)
        if not isinstance(found, Tensor) or found.ndim == 0 or len(found) != stop - first:
            got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"condition {name!r} must give a tensor with a row for each of {stop - first} numbers, got {got}")
        return found

    return called


def _kind(rows: Tensor) -> list[Any]:
    """The dtype and shape of a row."""
    return [str(rows.dtype).removeprefix("torch."), list(rows.shape[1:])]


def _agree(folder: Path, manifest: dict[str, Any], begin: bool = False) -> None:
    """Raise ValueError unless the manifest of the folder says the same, or there is none, and no pairs; to `begin` is to write
    it then."""
    if not MANIFEST.agree(folder, manifest, begin) and folder.exists() and shards(folder):
        raise ValueError(f"{folder} holds shards of pairs, and no {MANIFEST.file} that says of what: give another out")


def _check_conditions(one: Shard, mark: str, told: Mapping[str, Rows], n: int) -> None:
    """Raise ValueError unless a shard that is there was made with these conditions, and for this manifest."""
    found, stop = opened(one, mark), min(one.stop, n)
    for name, of in told.items():
        there = found.get_slice(stored(name))[: stop - one.first]
        if fingerprint(of(one.first, stop)) != fingerprint(there):
            raise ValueError(f"condition {name!r} is another than that of the pairs {one.first} to {stop - 1} in {one.file}")


def _bar(n: int) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=n, desc="pairs", unit=" pairs")
