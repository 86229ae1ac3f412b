"""The samples of every step, a function of the seed alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from scoreflow._core.noise import stream_key
from scoreflow.training.recipe import Recipe


def dataset(name: str, data: Any) -> Dataset[Any]:
    """What to read; raises unless it has a length, and items.

    Raises:
        TypeError: neither a tensor nor a dataset with a length and items. ValueError: it is empty.
    """
    if isinstance(data, Tensor):
        data = TensorDataset(data)
    if not all(hasattr(data, method) for method in ("__len__", "__getitem__")):
        raise TypeError(f"{name} must be a tensor or a dataset with a length and items, got {type(data).__name__}")
    if not len(data):
        raise ValueError(f"{name} must hold at least one sample")
    return data


class Batches:
    """The numbers of the samples of every step from `first` on, for one of several processes: the data in a new order each
    time through, as if all steps had been made in one go."""

    def __init__(self, n: int, recipe: Recipe, first: int, part: tuple[int, int]) -> None:
        self.n, self.recipe, self.first, self.part = n, recipe, first, part

    def __len__(self) -> int:
        return self.recipe.steps - self.first

    def __iter__(self) -> Iterator[list[int]]:
        batch, (which, parts) = self.recipe.batch, self.part
        known: dict[int, list[int]] = {}
        for step in range(self.first, self.recipe.steps):
            places = range(step * batch + which * (batch // parts), step * batch + (which + 1) * (batch // parts))
            for epoch in {place // self.n for place in places} - set(known):
                known = {e: order for e, order in known.items() if e >= places[0] // self.n}
                generator = torch.Generator().manual_seed(stream_key(self.recipe.seed, "order", epoch))
                known[epoch] = torch.randperm(self.n, generator=generator).tolist()
            yield [known[place // self.n][place % self.n] for place in places]
