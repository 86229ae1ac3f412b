"""Which samples: seeds as typed, the share of a process, and conditions that are functions of a sample's seed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoreflow._core.check import listed, whole
from scoreflow._core.noise import stream_key
from scoreflow._score.conditions import Marked, each, plain, shared
from scoreflow._score.fingerprint import fingerprint

RANGE = re.compile(r"(\d+)(?:-(\d+))?")
PROBED = 64
"""Seeds at which two functions of the seed are compared."""


def parse(text: str) -> list[int]:
    """`0-49999`, or `0-9,20,30-39`, as seeds.

    Raises:
        ValueError: something else.
    """
    found = list[int]()
    for part in text.split(","):
        match = RANGE.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise ValueError(f"seeds must be whole numbers and ranges of them, as 0-49999 or 0-9,20, got {text!r}")
        found += range(first, last + 1)
    return found


def check_seeds(seeds: int | Iterable[int]) -> tuple[int, ...]:
    """The seeds in rising order, each once. Raises ValueError for none, or one below 0."""
    found = tuple(sorted({whole("seeds", seed, 0) for seed in listed(seeds)}))
    if not found:
        raise ValueError("seeds is empty: give one or more")
    return found


def check_shard(shard: Sequence[int]) -> tuple[int, int]:
    """The part i of n. Raises ValueError unless i is from 0 to n − 1."""
    i, n = shard
    n = whole("shard", n)
    return whole("shard", i, 0, n - 1), n


def share(seeds: Sequence[int], batch: int, shard: tuple[int, int]) -> list[int]:
    """The part i of n: of the batches, as they follow each other, i, i + n, i + 2n, …. Who takes which needs no word."""
    i, n = shard
    return [seed for first in range(i * batch, len(seeds), n * batch) for seed in seeds[first : first + batch]]


@dataclass(frozen=True)
class Uniform:
    """Classes at random: that of seed s is uniform on 0 … classes − 1, the first `torch.randint` of the stream (s, "classes").

    Called with seeds (b,), it gives classes (b,).
    """

    classes: int

    def __post_init__(self) -> None:
        whole("classes", self.classes)

    def __call__(self, seeds: Tensor) -> Tensor:
        generators = (torch.Generator().manual_seed(stream_key(seed, "classes")) for seed in seeds.tolist())
        return torch.cat([torch.randint(self.classes, (1,), generator=generator) for generator in generators])


def classes_in(file: str | Path) -> Tensor:
    """Classes in a file, (n,): .npy, or text with one a line.

    Raises:
        FileNotFoundError: there is none. ValueError: it holds something else.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"classes: no file {str(file)!r} is there")
    try:
        found = np.load(file) if Path(file).suffix == ".npy" else np.array(Path(file).read_text(encoding="utf-8").split(), int)
    except ValueError as error:
        raise ValueError(
            f"classes in {file} must be whole numbers, one a line, or an array of them in .npy: {error}"
        ) from error
    if found.ndim != 1 or not found.size or not np.issubdtype(found.dtype, np.integer):
        raise ValueError(f"classes in {file} must be whole numbers, one a line, got {found.dtype} of shape {found.shape}")
    return torch.from_numpy(found.astype(np.int64))


class Condition(NamedTuple):
    """A condition of the network as a function of seeds.

    Attributes:
        rows: from seeds (b,) to their rows (b, ...); None if it belongs to all. value: what then all have.
        mark: a hash that tells it from others.
    """

    rows: Callable[[Sequence[int]], Tensor] | None
    value: Any
    mark: str

    def of(self, seeds: Sequence[int], device: torch.device) -> Any:
        """What the network is given for a batch."""
        return shared(self.value) if self.rows is None else each(self.rows(seeds).to(device))


def by_seed(name: str, value: Any) -> Condition:
    """A condition as typed: of a number or a tensor (n, ...) a sample gets row `seed mod n`; a function is given seeds (b,) and
    gives rows (b, ...), each of its own seed; anything else belongs to all.

    Raises:
        ValueError, when rows are asked for: the function gives none.
    """
    rows_meant = not isinstance(value, Marked) or value.rows
    value = plain(value)
    if isinstance(value, bool | int | float) or (isinstance(value, Tensor) and value.ndim == 0):
        value = torch.as_tensor(value)[None]
    if isinstance(value, Tensor) and rows_meant:
        values = value

        def in_turn(seeds: Sequence[int]) -> Tensor:
            return values[torch.tensor(seeds) % len(values)]

        return Condition(in_turn, None, fingerprint(values))
    if not callable(value):
        return Condition(None, value, fingerprint(value))
    function: Callable[[Tensor], Any] = value

    def called(seeds: Sequence[int]) -> Tensor:
        found = function(torch.tensor(seeds))
        if not isinstance(found, Tensor) or found.ndim == 0 or len(found) != len(seeds):
            got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"condition {name!r} must give a tensor with a row for each of {len(seeds)} seeds, got {got}")
        return found

    return Condition(called, None, fingerprint(called(range(PROBED))))


def one_by_one(function: Callable[[int, int], Tensor]) -> Callable[[Tensor], Tensor]:
    """A condition of a `Subject`, which gives a block's rows from (n, seed), by seeds: each a block of one."""
    return lambda seeds: torch.cat([function(1, seed) for seed in seeds.tolist()])
