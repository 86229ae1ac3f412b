"""Samples that lie in a folder or a file, ours and others', as a dataset of states."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from scoreflow import data
from scoreflow._core.check import whole
from scoreflow._sets.files import opened

SINGLE, SHARDS = (*data.KINDS, ".npy"), (".safetensors", ".tar")
"""Endings of files with one sample, and with many."""


class Kept(Dataset[Any]):
    """Samples in files, in the order of their seeds, or of their names where these are no numbers.

    Args:
        place: a folder of images, of arrays in .npy, one a sample, or of shards, .safetensors with a tensor `x`, or .tar of
            images or arrays, in subfolders too; or one shard.
        size: a side of the images, which are then cut square and scaled; None: as they are.
        channels: of the images, 1 for grey or 3 for colour; None: as the first has.

    Attributes:
        shape: of a sample.

    Raises:
        FileNotFoundError: nothing is there. ValueError: no samples, or several kinds of files; when an item is read, a file
            that is damaged, or a sample of another shape than the first.
    """

    def __init__(self, place: str | Path, size: int | None = None, channels: int | None = None) -> None:
        self.place = Path(place)
        if not self.place.exists():
            raise FileNotFoundError(f"no samples at {self.place}: nothing is there")
        files = [self.place] if self.place.is_file() else [*data.files_in(self.place, (*SINGLE, *SHARDS))]
        kinds = sorted({"images" if (end := file.suffix.lower()) in data.KINDS else end for file in files})
        if len(kinds) != 1 or kinds[0] not in ("images", ".npy", *SHARDS):
            raise ValueError(
                f"samples must be images, .npy, .safetensors or .tar, one kind in a folder, and {self.place} holds "
                f"{' and '.join(kinds) or 'none'}"
            )
        self.size, self.channels = None if size is None else whole("size", size), channels
        self._open: tuple[Path, Any] | None = None
        self._where = [(file, member) for file in sorted(files, key=_order) for member in self._members(file)]
        if not self._where:
            raise ValueError(f"{self.place} holds no samples")
        first = self._at(0)
        self.shape = tuple(first.shape)
        self.channels = channels or (self.shape[0] if len(self.shape) == 3 else None)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_open": None}

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, i: int) -> Tensor:
        if tuple((x := self._at(i)).shape) != self.shape:
            raise ValueError(
                f"the samples in {self.place} must have one shape, and {self._where[i][0]} has {tuple(x.shape)}, the first "
                f"{self.shape}: of images give a size"
            )
        return x

    def _members(self, file: Path) -> Iterator[Any]:
        """What stands for each sample of a file."""
        if file.suffix.lower() in SINGLE:
            yield None
        elif file.suffix.lower() == ".tar":
            with opened(file) as found:
                members = [one for one in found if one.isfile() and PurePath(one.name).suffix.lower() in SINGLE]
            yield from sorted(((one.name, one.offset_data, one.size) for one in members), key=lambda one: _order(one[0]))
        elif "x" in self._mapped(file).keys():
            yield from range(self._mapped(file).get_slice("x").get_shape()[0])

    def _mapped(self, file: Path) -> Any:
        """A safetensors file, mapped into memory; the last stays so."""
        if self._open is None or self._open[0] != file:
            self._open = file, opened(file)
        return self._open[1]

    def _at(self, i: int) -> Tensor:
        file, member = self._where[i]
        if member is None:
            return self._decoded(file, file.name, str(file))
        if isinstance(member, int):
            return self._mapped(file).get_slice("x")[member : member + 1][0]
        name, offset, size = member
        with open(file, "rb") as held:
            held.seek(offset)
            return self._decoded(io.BytesIO(held.read(size)), name, f"{name} in {file}")

    def _decoded(self, file: Path | IO[bytes], name: str, called: str) -> Tensor:
        """A file with one sample."""
        if not name.lower().endswith(".npy"):
            return data.image(file, self.channels, self.size, called)
        try:
            return torch.from_numpy(np.load(file))
        except (ValueError, EOFError) as error:
            raise ValueError(f"{called} is no whole array ({error}): take it away, and make it again") from error


def _order(name: str | Path) -> tuple[int, str]:
    """By the number that a file's name begins with, then by name."""
    first = PurePath(name).stem.partition("-")[0].partition(".")[0]
    return int(first) if first.isdecimal() else 0, str(name)
