"""Samples in files by their seeds: a file each, or shards of a thousand; each stands whole or not at all."""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from scoreflow import checkpoint
from scoreflow._core.files import whole_file
from scoreflow._show.files import host
from scoreflow._show.picture import sheet
from scoreflow._uses.shards import stored

PER = 1000
"""Seeds in a subfolder, or a shard; both begin at multiples of it."""
PARTS = ".parts"
SHARD = re.compile(r"(\d+)-(\d+)\.(?:safetensors|tar)")

Told = Callable[[Sequence[int]], dict[str, Tensor]]
"""From seeds to their rows of conditions."""


class Files(Protocol):
    """Where samples go."""

    def there(self) -> set[int]:
        """The seeds whose samples are kept."""

    def write(self, seeds: Sequence[int], x: Tensor) -> None:
        """Keep the samples (b, ...) of these seeds."""


def encoded(x: Tensor, ending: str) -> bytes:
    """A sample as the bytes of a file: an image from −1 to 1 as 8 bits in png, any state in npy."""
    held = io.BytesIO()
    if ending == "png":
        sheet(host(x)[None], size=1).save(held, format="PNG")
    else:
        np.save(held, host(x))
    return held.getvalue()


class OneEach:
    """A file a sample, such as `012000/012345.png`, as EDM's generate.py names them.

    They are not forced to the disk one by one: kill −9 leaves whole files, a loss of power may leave empty ones.
    """

    def __init__(self, folder: Path, ending: str) -> None:
        self.folder, self.ending = folder, ending

    def file(self, seed: int) -> Path:
        """Of the sample of this seed."""
        return self.folder / f"{seed - seed % PER:06d}" / f"{seed:06d}.{self.ending}"

    def there(self) -> set[int]:
        """The seeds whose samples are kept."""
        return {seed for first in _numbered(self.folder) for seed in self.within(first)}

    def within(self, first: int) -> set[int]:
        """Those of the subfolder that begins at this seed."""
        return set(_numbered(self.file(first).parent, f".{self.ending}"))

    def write(self, seeds: Sequence[int], x: Tensor) -> None:
        """Keep the samples (b, ...) of these seeds."""
        for seed, one in zip(seeds, x, strict=True):
            file = self.file(seed)
            file.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(file, sync=False) as part:
                part.write_bytes(encoded(one, self.ending))


class Shards:
    """Files of up to 1000 samples, such as `012000-012999.tar`, named by the first and the last seed in them.

    Samples wait in a hidden folder, a file each, until all that are wanted of a thousand are there; whoever writes the last of
    them makes the shard, the same bytes whoever it is. So who is killed loses what it had in memory, and no more.

    Args:
        ending: safetensors, with `x`, `seeds` and a tensor a condition; or tar, as webdataset reads it: of seed 12345
            `012345.png`, or `.npy` of samples that are no images, and `012345.cls` with its class, if it has one.
        wanted: seeds that are asked for. told: their conditions. metadata: kept in every safetensors file.
    """

    def __init__(self, folder: Path, ending: str, wanted: Iterable[int], told: Told, metadata: dict[str, str]) -> None:
        self.folder, self.ending, self.told, self.metadata = folder, ending, told, metadata
        self.parts = OneEach(folder / PARTS, "npy")
        self.wanted = dict[int, set[int]]()
        for seed in wanted:
            self.wanted.setdefault(seed - seed % PER, set()).add(seed)
        waiting = self.parts.there()  # before shards are looked at: what goes from the one is in the other by then
        self.packed = {seed for file in shards(folder) for seed in seeds_of(file)}
        self._remove(waiting & self.packed)
        for first in {seed - seed % PER for seed in waiting - self.packed}:
            self._pack(first)

    def there(self) -> set[int]:
        """The seeds whose samples are kept."""
        return self.parts.there() | self.packed

    def write(self, seeds: Sequence[int], x: Tensor) -> None:
        """Keep the samples (b, ...) of these seeds."""
        self.parts.write(seeds, x)
        for first in sorted({seed - seed % PER for seed in seeds}):
            self._pack(first)

    def _pack(self, first: int) -> None:
        """Make the shard that begins here, if all that it is to hold is there."""
        seeds = sorted(self.wanted.get(first, set()) - self.packed)
        if not seeds or not self.parts.within(first).issuperset(seeds):
            return
        file = self.folder / f"{seeds[0]:06d}-{seeds[-1]:06d}.{self.ending}"
        try:
            x = [np.load(self.parts.file(seed)) for seed in seeds]
        except FileNotFoundError:
            if not file.exists():
                raise
        else:  # nobody else was quicker
            told = {name: rows for name, rows in self.told(seeds).items()}
            _tar(file, seeds, x, told.get("y")) if self.ending == "tar" else self._tensors(file, seeds, x, told)
        self.packed.update(seeds)
        self._remove(seeds)

    def _tensors(self, file: Path, seeds: list[int], x: list[np.ndarray], told: dict[str, Tensor]) -> None:
        rows = {"x": torch.from_numpy(np.stack(x)), "seeds": torch.tensor(seeds)}
        rows |= {stored(name): row.contiguous() for name, row in told.items()}
        checkpoint.write(rows, file, self.metadata)

    def _remove(self, seeds: Iterable[int]) -> None:
        files = [self.parts.file(seed) for seed in seeds]
        for file in files:
            file.unlink(missing_ok=True)
        for folder in {file.parent for file in files}:
            with suppress(OSError):  # not empty
                folder.rmdir()


def _tar(file: Path, seeds: list[int], x: list[np.ndarray], classes: Tensor | None) -> None:
    """A tar file of samples and their classes, the same bytes at any time."""
    ending = "png" if x[0].ndim == 3 and x[0].shape[0] in (1, 3) else "npy"
    with whole_file(file) as part, tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as written:
        for k, seed in enumerate(seeds):
            held = {ending: encoded(torch.from_numpy(x[k]), ending)}
            if classes is not None and classes.ndim == 1 and not classes.is_floating_point():
                held["cls"] = str(int(classes[k])).encode()
            for name, data in held.items():
                info = tarfile.TarInfo(f"{seed:06d}.{name}")
                info.size = len(data)
                written.addfile(info, io.BytesIO(data))


def shards(folder: Path) -> list[Path]:
    """The shards of a folder, in the order of their first seeds."""
    names = (match for one in sorted(os.listdir(folder)) if (match := SHARD.fullmatch(one))) if folder.is_dir() else ()
    return [folder / match[0] for match in sorted(names, key=lambda match: int(match[1]))]


def opened(file: Path) -> Any:
    """A shard, for its members to be read.

    Raises:
        ValueError: it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        return tarfile.open(file) if file.suffix == ".tar" else safe_open(file, framework="pt")
    except (SafetensorError, tarfile.TarError) as error:
        raise ValueError(f"{file} is not a whole shard of samples ({error}): take it away, and make them again") from error


def seeds_of(file: Path) -> list[int]:
    """Of the samples in a shard.

    Raises:
        ValueError: it is damaged.
    """
    found = opened(file)
    if file.suffix != ".tar":
        return [*found.get_tensor("seeds").tolist()]
    with found:
        return [int(name.partition(".")[0]) for name in found.getnames() if not name.endswith(".cls")]


def _numbered(folder: Path, ending: str = "") -> list[int]:
    """The numbers that names in a folder are, before this ending."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    stems = (name.removesuffix(ending) for name in names if name.endswith(ending))
    return [int(stem) for stem in stems if stem.isdecimal()]
