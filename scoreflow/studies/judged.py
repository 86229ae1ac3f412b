"""Samples and data as metrics need them: states, their features, the moments of these; made by all processes together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from torch.utils.data import ConcatDataset, Dataset

from scoreflow import data as registered
from scoreflow._sets.read import Kept
from scoreflow.studies.features import Features
from scoreflow.studies.moments import Moments, Statistics, load
from scoreflow.studies.named import states_of

Samples = str | Path | Tensor | Dataset[Any]
PARTS = {"train": ("train",), "held-out": ("held_out",), "all": ("train", "held_out")}
"""Of data by name."""


@dataclass(frozen=True)
class Judged:
    """What there is of a set.

    Attributes:
        features: (n, d), or None of sums alone. states: (n, ...), where metrics need them. sums: the moments, if there are no
            features; or mean and covariance, if there are no moments.
    """

    features: np.ndarray | None = None
    states: Tensor | None = None
    sums: Moments | Statistics | None = None

    @cached_property
    def moments(self) -> Moments:
        """Of the features."""
        if self.features is not None:
            return Moments.of(self.features)
        assert isinstance(self.sums, Moments)
        return self.sums

    @cached_property
    def statistics(self) -> Statistics:
        """Mean and covariance of the features."""
        return self.sums if isinstance(self.sums, Statistics) else self.moments.statistics

    def part(self, first: int, last: int) -> Judged:
        """Those from number `first` up to `last`, which is not among them."""
        assert self.features is not None
        return Judged(self.features[first:last], None if self.states is None else self.states[first:last])


@dataclass(frozen=True)
class Judge:
    """How sets are read, and features made: of a batch of states at once, on a device; for None the states themselves."""

    features: Features | None
    device: torch.device | None
    batch: int
    size: int | None
    progress: bool

    def opened(self, samples: Samples) -> Any:
        """A dataset of what was given."""
        if isinstance(samples, Tensor):
            return registered.Images(samples)
        if isinstance(samples, Dataset):
            return samples
        if Path(samples).suffix in (".npy", ".pt"):
            return registered.Images(states_of(samples))
        return Kept(samples, self.size)

    def data(self, given: Samples, part: str, keep: bool) -> Judged:
        """What samples are compared to: by name, statistics, or a set."""
        if is_npz(given):
            return Judged(sums=load(str(given)))
        if not (isinstance(given, str) and given in registered.DATA):
            return self(self.opened(given), keep=keep)
        named = registered.load(given)
        return self(ConcatDataset([getattr(named, one) for one in PARTS[part]]), keep=keep)

    def __call__(self, states: Any, span: range | None = None, keep: bool = False) -> Judged:
        """The features of some of a set, on the first process; and if they are to be kept, the states."""
        span = range(len(states)) if span is None else span
        rank, world = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
        own = span[rank * len(span) // world : (rank + 1) * len(span) // world]
        made = [self._made(_stacked(states, some)) for some in self._batches(own, rank == 0)]
        features = np.concatenate(made) if made else np.empty((0, 0))
        if world > 1:
            parts: list[Any] | None = [None] * world if rank == 0 else None
            distributed.gather_object(features, parts)
            features = np.concatenate([one for one in parts if len(one)]) if parts is not None else features
        return Judged(features, _stacked(states, span) if keep and rank == 0 else None)

    def _made(self, x: Tensor) -> np.ndarray:
        """The features of a batch.

        Raises:
            ValueError: some are not finite.
        """
        with torch.no_grad():
            found = x if self.features is None else self.features(x.to(self.device))
        flat = found.flatten(1).to("cpu")
        if wrong := int((~flat.isfinite().all(1)).sum()):
            raise ValueError(f"{wrong} of {len(x)} samples have features that are not finite")
        return (flat if flat.dtype.itemsize > 2 else flat.float()).numpy()

    def _batches(self, own: range, shown: bool) -> Any:
        batches = [own[first : first + self.batch] for first in range(0, len(own), self.batch)]
        if not (self.progress and shown):
            return batches
        from tqdm.auto import tqdm

        return tqdm(batches, unit=" batches", desc="features")


def is_npz(given: object) -> bool:
    """Whether it is a file of statistics."""
    return isinstance(given, str | Path) and Path(given).suffix == ".npz"


def sums(file: Samples) -> Moments:
    """The moments in a file.

    Raises:
        ValueError: it is none, or has mean and covariance only.
    """
    found = load(str(file)) if is_npz(file) else None
    if not isinstance(found, Moments):
        what = "holds mu and sigma, and no n: give it as data" if found else "is no .npz file, and others that were given are"
        raise ValueError(f"samples as moments must be .npz files with n, sum and outer, and {file} {what}")
    return found


def _stacked(states: Any, numbers: Sequence[int]) -> Tensor:
    return torch.stack([registered.read(states[i])[0] for i in numbers])
