"""Pairs of noise and sample on disk: shards of safetensors beside a manifest, read as a dataset."""

from __future__ import annotations

import bisect
import operator
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from scoreflow._uses.manifest import Manifest, stamp

MANIFEST = Manifest("pairs.json", "pairs", "training.pairs")
NAME = re.compile(r"pairs-(\d+)-(\d+)\.safetensors")


class Shard(NamedTuple):
    """A file with the pairs from number `first` up to `stop`, which is not among them."""

    first: int
    stop: int
    file: Path


def shard(folder: Path, first: int, stop: int) -> Shard:
    """The shard of these pairs, there or not."""
    return Shard(first, stop, folder / f"pairs-{first:08d}-{stop:08d}.safetensors")


def shards(folder: Path) -> dict[int, Shard]:
    """The shards of a folder, by their first pair; of two that begin alike the longer."""
    found: dict[int, Shard] = {}
    for name in sorted(os.listdir(folder)):
        if match := NAME.fullmatch(name):
            first, stop = map(int, match.groups())
            if first < stop and (first not in found or stop > found[first].stop):
                found[first] = Shard(first, stop, folder / name)
    return found


class Pairs(Dataset[Any]):
    """Pairs that `training.pairs` wrote, as a dataset for `Objective(pairs=True)`.

    Item i is `(x_0, {"eps": ε, …})`: a sample and the noise that it was made from, each of the shape of a state, and the
    conditions it was made with. Files are mapped into memory, and a pair is read when it is asked for. It can be pickled, for
    the workers of a DataLoader.

    Args:
        folder: where they are.

    Attributes:
        manifest: how they were made: model, sampler, times, seed, ….
        shape: of one state. conditions: their names.

    Raises:
        FileNotFoundError, NotADirectoryError: no such folder. ValueError: it holds no pairs, or lacks some in the middle; when
            an item is read, a shard that is damaged or of other pairs.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = MANIFEST.read(self.folder)
        self.shape = tuple(self.manifest["shape"])
        self.conditions = tuple(self.manifest["conditions"])
        self._shards, found, n = list[Shard](), shards(self.folder), 0
        while n in found:
            self._shards.append(found[n])
            n = found[n].stop
        if later := [first for first in found if first > n]:
            raise ValueError(
                f"{self.folder} lacks the pairs from {n} to {min(later) - 1}: make them again, by the same call of pairs"
            )
        if not n:
            raise ValueError(f"{self.folder} holds no pairs yet: {MANIFEST.file} is there, and no shard")
        self._stops = [one.stop for one in self._shards]
        self._stamp = stamp(self.manifest)
        self._open: dict[int, tuple[Any, ...]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_open": {}}

    def __repr__(self) -> str:
        return f"Pairs({len(self)} of shape {self.shape} by {self.manifest['sampler']}, in {self.folder})"

    def __len__(self) -> int:
        return self._stops[-1]

    def __getitem__(self, i: int) -> tuple[Tensor, dict[str, Tensor]]:
        number = operator.index(i)
        number += len(self) if number < 0 else 0
        if not 0 <= number < len(self):
            raise IndexError(f"pair {i} of {len(self)}")
        which = bisect.bisect_right(self._stops, number)
        row = number - self._shards[which].first
        x_0, *rest = (rows[row : row + 1][0] for rows in self._opened(which))
        return x_0, dict(zip(("eps", *self.conditions), rest, strict=True))

    def condition(self, name: str) -> Tensor:
        """A condition of all pairs, (n, ...).

        Raises:
            KeyError: they have none of that name.
        """
        if name not in self.conditions:
            raise KeyError(f"no condition {name!r}: the pairs have {', '.join(self.conditions) or 'none'}")
        column = 2 + self.conditions.index(name)
        return torch.cat([self._opened(which)[column][:] for which in range(len(self._shards))])

    def _opened(self, which: int) -> tuple[Any, ...]:
        """The tensors of a shard, opened once: x_0, ε, the conditions."""
        if which not in self._open:
            found = opened(self._shards[which], self._stamp)
            self._open[which] = tuple(found.get_slice(one) for one in ("x_0", "eps", *map(stored, self.conditions)))
        return self._open[which]


def stored(name: str) -> str:
    """What the tensor of a condition is called in a shard."""
    return f"condition.{name}"


def opened(one: Shard, of: str) -> Any:
    """A shard, mapped into memory; `of` is the stamp that it must bear.

    Raises:
        ValueError: it is damaged, or its pairs are others.
    """
    from safetensors import SafetensorError, safe_open

    try:
        found: Any = safe_open(one.file, framework="pt")
        if (found.metadata() or {}).get("manifest") != of:
            raise ValueError(
                f"{one.file} holds other pairs than {MANIFEST.file} beside it says: take it away, and make them again"
            )
        if (rows := found.get_slice("eps").get_shape()[0]) != one.stop - one.first:
            raise ValueError(f"{one.file} holds {rows} pairs, and its name says {one.stop - one.first}")
    except SafetensorError as error:
        raise ValueError(
            f"{one.file} is not a whole shard of pairs ({error}): take it away, and make them again by the same call"
        ) from error
    return found
