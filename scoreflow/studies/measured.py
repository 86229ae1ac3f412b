"""How good samples are that were kept: metrics of all of them, and of blocks of seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.utils.data import ConcatDataset, Dataset

from scoreflow._core.check import flag, listed, one_of, placed, whole
from scoreflow._sets.seeds import check_shard
from scoreflow.studies.features import FEATURES, Features, get_features
from scoreflow.studies.judged import PARTS, Judge, Judged, Samples, is_npz, sums
from scoreflow.studies.metrics import Metric, MetricInput, get_metric
from scoreflow.studies.moments import Moments, frechet_infinity

INFINITY = "frechet-infinity"


@dataclass(frozen=True)
class Measured:
    """What `measure` found.

    Attributes:
        n: samples. m: data; None of statistics. features: where they were judged.
        figures: of all samples, by name; of several processes only the first has them.
        blocks: the same of each block; empty where there is but one. sizes: samples in a block.
        moments: of the features of the samples; of a further process those of its own.
    """

    n: int
    m: int | None
    features: str
    figures: Mapping[str, float]
    blocks: Mapping[str, tuple[float, ...]]
    sizes: tuple[int, ...]
    moments: Moments = field(repr=False)

    def spread(self, figure: str) -> tuple[float, float]:
        """Mean and standard deviation of a figure over the blocks."""
        return float(np.mean(self.blocks[figure])), float(np.std(self.blocks[figure], ddof=1))

    def __str__(self) -> str:
        against = "statistics" if self.m is None else f"{self.m} data"
        lines = [f"{self.n} samples against {against}, features: {self.features}"]
        if self.blocks:
            sizes = " or ".join(map(str, sorted({*self.sizes})))
            lines.append(f"{'':20}{'all':>12}   mean ± standard deviation of {len(self.sizes)} blocks of {sizes}")
        for figure, value in self.figures.items():
            mean, std = self.spread(figure) if self.blocks else (0.0, 0.0)
            lines.append(f"{figure:20}{value:12.5g}" + f"   {mean:.5g} ± {std:.2g}" * bool(self.blocks))
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """All but the moments, as JSON has it."""
        figures = dict[str, Any]()
        for figure, value in self.figures.items():
            figures[figure] = {"all": value}
            if self.blocks:
                mean, std = self.spread(figure)
                figures[figure] |= {"mean": mean, "sd": std, "blocks": [*self.blocks[figure]]}
        return {"n": self.n, "m": self.m, "features": self.features, "sizes": [*self.sizes], "figures": figures}


def measure(
    samples: Samples | Sequence[Samples],
    data: Samples | None = None,
    metrics: str | Metric | Iterable[str | Metric] = "frechet",
    *,
    features: str | Features | None = None,
    part: str = "held-out",
    blocks: int = 3,
    size: int | None = None,
    batch: int = 256,
    shard: Sequence[int] = (0, 1),
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Measured:
    """Compare samples that were kept to data.

    Every metric is taken of all samples, and of each block of them: what is no mean over samples depends on how many there are,
    so compare blocks to blocks. Where `torch.distributed` runs, as under torchrun, all processes make features, and the first
    has the figures. Features are held in memory, and for metrics of states all states.

    Args:
        samples: a folder of images, of .npy, .safetensors or .tar, as `generate` writes and others do; a file with a tensor,
            .npy or .pt; a tensor, or a dataset; or moments in .npz, as `Moments.save` writes. Several are put together, and
            each is a block.
        data: the same, or a name of `sf.data`, such as "mnist"; or an .npz file with `mu` and `sigma`. None: only the moments
            are found.
        metrics: those of studies that need data and features only, such as "kid", "manifold" and "sliced-w2"; "frechet", by
            moments; and "frechet-infinity", extrapolated to infinitely many samples.
        features: a name, or a function from states to features (n, d). None: those of the data's name, and where there are
            none the states themselves.
        part: of data by name, "train", "held-out" or "all".
        blocks: equal ones that the samples are cut into, in the order of their seeds.
        size: a side of images in folders, which are then cut square and scaled. None: they are taken as they are.
        batch: states that features are made of at once.
        shard: (i, n): only the i-th of n equal parts of the samples, in that order.
        seed: of what metrics draw.
        device: where features are made.
        progress: show a bar.

    Raises:
        ValueError: metrics that need something else, states of different shapes, moments of which more than a Fréchet distance
            is asked for. FileNotFoundError: nothing is there.
    """
    chosen = [name if name == INFINITY else get_metric(name) for name in listed(metrics)] if data is not None else []
    if wrong := [m.name for m in chosen if isinstance(m, Metric) and not {*m.needs} <= {"data", "features"}]:
        raise ValueError(f"metric {wrong[0]!r} needs more than samples and data: measure it in a study")
    one_of("part", part, PARTS)
    blocks, (i, n) = whole("blocks", blocks), check_shard(shard)
    flag("progress", progress)
    if features is None and isinstance(data, str) and data in FEATURES:
        features = data
    judging = None if features is None else get_features(features)
    if isinstance(judging, nn.Module):
        judging.to(placed(device))
    judge = Judge(judging, placed(device), whole("batch", batch), None if size is None else whole("size", size), progress)
    given = [samples] if isinstance(samples, str | Path | Tensor | Dataset) else [*samples]
    if not given:
        raise ValueError("samples is empty: give one or more")
    keep = any(isinstance(m, Metric) and "features" not in m.needs for m in chosen)
    if any(map(is_npz, given)):
        if n > 1:
            raise ValueError(f"shard={(i, n)} is of samples, and moments were given")
        found = [Judged(sums=sums(one)) for one in given]
        every = Judged(sums=reduce(add, (one.moments for one in found)))
    else:
        sets = [judge.opened(one) for one in given]
        states: Any = sets[0] if len(sets) == 1 else ConcatDataset(sets)
        every = judge(states, span := range(i * len(states) // n, (i + 1) * len(states) // n), keep)
        cuts = [k * len(span) // blocks for k in range(blocks + 1)]
        if len(sets) > 1 and n == 1:
            cuts = [0, *states.cumulative_sizes]
        found = [every.part(first, last) for first, last in pairwise(cuts)]
    other = None if data is None else judge.data(data, part, keep)
    said = features if isinstance(features, str) else getattr(features, "__name__", type(features).__name__)
    if features is None:
        said = "those of the moments" if every.features is None else "the samples themselves"
    if (distributed.is_initialized() and distributed.get_rank()) or other is None:
        return Measured(every.moments.n, None, said, {}, {}, (), every.moments)
    of_all = _figures(chosen, every, other, seed)
    of_each = [_figures(chosen, one, other, seed) for one in found] if len(found) > 1 else []
    by_name = {figure: tuple(one[figure] for one in of_each) for figure in of_all} if of_each else {}
    m = None if other.features is None and not isinstance(other.sums, Moments) else other.moments.n
    return Measured(every.moments.n, m, said, of_all, by_name, tuple(one.moments.n for one in found), every.moments)


def _figures(metrics: Sequence[Any], one: Judged, data: Judged, seed: int) -> dict[str, float]:
    """Of one set against data.

    Raises:
        ValueError: a metric needs samples where there are sums only.
    """
    found = dict[str, float]()
    for metric in metrics:
        name = metric if metric == INFINITY else metric.name
        if name == "frechet":
            found[name] = one.statistics.frechet(data.statistics)
            continue
        if one.features is None or (name != INFINITY and data.features is None):
            raise ValueError(f"metric {name!r} needs samples, and there are only moments of them: those give 'frechet'")
        if name == INFINITY:
            found[name] = frechet_infinity(one.features, data.statistics, seed)
        elif "features" in metric.needs:
            assert data.features is not None
            found |= metric(MetricInput(torch.from_numpy(one.features), seed, data=torch.from_numpy(data.features)))
        else:
            assert one.states is not None and data.states is not None
            if one.states.shape[1:] != data.states.shape[1:]:
                shapes = (tuple(states.shape[1:]) for states in (one.states, data.states))
                raise ValueError("metric {!r} compares states of one shape, got {} and data {}".format(name, *shapes))
            found |= metric(MetricInput(one.states, seed, data=data.states))
    return found
