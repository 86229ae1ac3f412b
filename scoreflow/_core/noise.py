"""Noise as an argument: white, Brownian, or replayed draws, one stream a sample, keyed and never global.

A source is immutable and may be shared. A run asks it for `draws(purpose)`, a cursor that counts. Draws are made in
float32 and cast, so that runs in different dtypes see the same noise.
"""

from __future__ import annotations

import functools
import hashlib
import math
import operator
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoreflow._core.check import is_whole, placed, whole
from scoreflow._core.check import time as check_time

Purpose = Literal["prior", "step", "probe", "data", "model"]
Seeds = int | tuple[int, ...]


def check_seed(seed: int | Sequence[int] | None, batch: int | None = None) -> Seeds:
    """A seed as an int (one stream for the batch) or a tuple (one stream a sample).

    None takes a seed from torch's global generator, so that `torch.manual_seed` holds.

    Raises:
        TypeError: not an int, nor a sequence of ints. ValueError: not as many seeds as samples.
    """
    if seed is None:
        return int(torch.randint(2**62, ()))
    if isinstance(seed, Tensor | np.ndarray):
        seed = seed.tolist()
    if is_whole(seed):
        return operator.index(seed)
    seeds: tuple[Any, ...] = tuple(seed) if isinstance(seed, Sequence | np.ndarray) and not isinstance(seed, str) else (None,)
    if not all(map(is_whole, seeds)):
        raise TypeError(f"seed must be an int or a sequence of ints, got {seed!r}")
    if batch is not None and len(seeds) != batch:
        raise ValueError(f"seed has {len(seeds)} entries for a batch of {batch}: give one a sample, or one int")
    return tuple(one.__index__() for one in seeds)


@dataclass(frozen=True)
class White:
    """Independent standard normal draws.

    Args:
        seeds: an int, one stream for the whole batch; or one int a sample, so that a sample's noise depends on its
            own seed only and not on its place in the batch, its batch-mates or the process.
        device: where draws are made, before they go to that of the states; None: there. Generators of other kinds of device
            draw other numbers from a seed, so with "cpu" a run has the same noise on each.
    """

    seeds: int | Sequence[int]
    device: torch.device | str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seeds", check_seed(self.seeds))
        object.__setattr__(self, "device", placed(self.device))

    def draws(self, purpose: Purpose = "step") -> Draws:
        """A cursor over the stream of this purpose, at its beginning."""
        return Draws(self, purpose)

    def normal(self, like: Tensor, *key: object) -> Tensor:
        """Standard normals of the shape, dtype and device of `like`, the same whenever the key is the same."""
        if like.device.type == "meta":
            return torch.empty_like(like)
        device = like.device if self.device is None else self.device
        out = torch.empty(like.shape, dtype=torch.float32, device=device)
        generator = torch.Generator(device)
        if isinstance(self.seeds, int):
            out.normal_(generator=generator.manual_seed(stream_key(self.seeds, *key)))
        else:
            check_seed(self.seeds, len(out))
            for sample, seed in zip(out, self.seeds, strict=True):
                sample.normal_(generator=generator.manual_seed(stream_key(seed, *key)))
        return out.to(like)


class Draws:
    """One run's draws from a source; `count` says how many were made."""

    def __init__(self, source: White, purpose: Purpose) -> None:
        self.source, self.purpose, self.count = source, purpose, 0

    def __call__(self, like: Tensor, t: float = 1.0, s: float = 0.0, area: bool = False) -> Tensor:
        """The next standard normal, in the shape, dtype and device of `like`, for a step from time t to s.

        With `area` it is the space-time area of that step's noise, else its increment.
        """
        self.count += 1
        return self._next(like, t, s, area)

    def fork(self) -> Draws:
        """Another cursor, at the same place."""
        other = self.source.draws(self.purpose)
        other.count = self.count
        return other

    def _next(self, like: Tensor, t: float, s: float, area: bool) -> Tensor:
        return self.source.normal(like, self.purpose, self.count)


@dataclass(frozen=True)
class Brownian(White):
    """A Brownian path on [0, 1], so that runs of different step counts and solvers share their noise.

    Increment and area are halved down a dyadic tree of normals, each keyed by its place, and split at the time itself in
    its finest cells. Asked in falling order of time, as a run does, it is an exact Brownian path however small the steps;
    runs with several times in one cell of 2^−depth share it to that resolution. A draw costs about
    `2 (depth − log2(steps) + 2)` normals for each number.

    With `times`, those of a run, it is another path, of W alone, whose cells, sixteenths of [0, 1], are halved while more than
    two of these times are in one. A draw costs about 1.6 normals, a few more in runs of ten steps or fewer. Its draws are as
    exact, and every sampler with these times has the same; runs with other times share it at the ends of the cells that both
    have, so to a step or two of the coarser.

    Args:
        seeds: as for `White`; the path depends on nothing else.
        depth: the tree has 2^depth cells at most.
        times: of the run, if they are known.

    Reference:
        Virtual Brownian trees: Scalable Gradients for SDEs (Li et al., 2020), Section 4; with areas: Single-seed Generation
        of Brownian Paths and Integrals (Jelinčič et al., 2024), Section 3.
    """

    depth: int = 18
    times: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("depth", self.depth)
        if self.times is not None:
            object.__setattr__(self, "times", tuple(sorted({check_time("times", t) for t in self.times})))

    def draws(self, purpose: Purpose = "step") -> Draws:
        """A cursor; its draw for t → s is `(W_t − W_s)/√(t − s)`, or the area over its standard deviation √((t − s)³/12)."""
        if purpose != "step":
            return Draws(self, purpose)
        return BrownianDraws(self, purpose) if self.times is None else KnownDraws(self, purpose)


class Cell(NamedTuple):
    """The path over [lo, hi]: W at both ends, and the area between it and its chord, `∫ (W_u − chord) du`."""

    lo: float
    hi: float
    w_lo: Tensor
    w_hi: Tensor
    area: Tensor | None = None
    """None where W is drawn alone."""

    def split(self, at: float, normal: Callable[[str], Tensor]) -> tuple[Cell, Cell]:
        """The two parts, given standard normals by name: the law of W at `at` and of the parts' areas, given the whole.

        Over the chord, W at `at` and the two areas are independent, of variances v below, but for what they add up to:
        `½ h W + A₁ + A₂ = A`. In units of their standard deviations that fixes their share along c; the normals fill
        the plane across it.
        """
        a, b, h = at - self.lo, self.hi - at, self.hi - self.lo
        if self.area is None:
            w = torch.lerp(self.w_lo, self.w_hi, a / h).add_(normal("w"), alpha=math.sqrt(a * b / h))
            return Cell(self.lo, at, self.w_lo, w), Cell(at, self.hi, w, self.w_hi)
        on_left, on_right = normal("left"), normal("right")
        std = (math.sqrt(a * b / h), math.sqrt(a**3 / 12), math.sqrt(b**3 / 12))
        total = math.sqrt(h**3 / 12)
        c = (std[0] * h / 2 / total, std[1] / total, std[2] / total)
        across = math.hypot(c[1], c[2])
        whole = self.area / total
        w = torch.lerp(self.w_lo, self.w_hi, a / h) + std[0] * (c[0] * whole + across * on_right)
        left = std[1] * (c[1] * whole + c[2] / across * on_left - c[0] * c[1] / across * on_right)
        right = std[2] * (c[2] * whole - c[1] / across * on_left - c[0] * c[2] / across * on_right)
        return Cell(self.lo, at, self.w_lo, w, left), Cell(at, self.hi, w, self.w_hi, right)


_low = operator.attrgetter("lo")


class BrownianDraws(Draws):
    """One run along a Brownian path; keeps the cells below the upper of the last two times it was asked for."""

    source: Brownian

    def __init__(self, source: Brownian, purpose: Purpose) -> None:
        super().__init__(source, purpose)
        self._cells: list[Cell] = []

    def fork(self) -> Draws:
        """Another cursor, at the same place of the same path."""
        other = super().fork()
        assert isinstance(other, BrownianDraws)
        other._cells = list(self._cells)
        return other

    def of(self, sample: int) -> BrownianDraws:
        """The path of one sample of the batch, for runs that step each by itself: asked with states (1, ...).

        With one seed a sample it is the path that a run of the batch has; with one for all a path of its own.
        """
        seeds = self.source.seeds
        own = seeds[sample] if isinstance(seeds, tuple) else stream_key(seeds, "sample", sample)
        return BrownianDraws(replace(self.source, seeds=(own,)), self.purpose)

    def _next(self, like: Tensor, t: float, s: float, area: bool) -> Tensor:
        if t <= s:  # a draw that is no step down, such as a corrector's
            return self.source.normal(like, self.purpose, "at", t, self.count)
        if area:
            return self.area(like, t, s).div_(math.sqrt((t - s) ** 3 / 12)).to(like.dtype)
        return self.increment(like, t, s).div_(math.sqrt(t - s)).to(like.dtype)

    def increment(self, like: Tensor, t: float, s: float) -> Tensor:
        """`W_t − W_s`, of variance |t − s|, in at least float32."""
        if t < s:
            return -self.increment(like, s, t)
        between = self._between(like, t, s)
        return between[-1].w_hi - between[0].w_lo

    def area(self, like: Tensor, t: float, s: float) -> Tensor:
        """The area of the noise `W_t − W_{t−τ}`, τ from 0 to t − s, over its chord: of variance (t − s)³/12."""
        between = self._between(like, t, s)
        w_s, w_t = between[0].w_lo, between[-1].w_hi
        area = torch.zeros_like(w_s)
        for cell in between:
            ends = [w - torch.lerp(w_s, w_t, (u - s) / (t - s)) for u, w in ((cell.lo, cell.w_lo), (cell.hi, cell.w_hi))]
            area -= self._area(cell) + (cell.hi - cell.lo) / 2 * (ends[0] + ends[1])
        return area

    def _between(self, like: Tensor, t: float, s: float) -> list[Cell]:
        """The cells from s up to t; those above are let go, and a later time up there finds its way from the whole."""
        wide = like.float() if like.dtype.itemsize < 4 else like
        self._reach(wide, t, s)
        cells = self._cells
        for u in (t, s):  # make it an end of cells, so that lower times condition on it
            while (i := bisect_left(cells, u, key=_low) - 1) >= 0 and u < cells[i].hi:
                at = self._place(cells[i], u)
                cells[i : i + 1] = cells[i].split(at, functools.partial(self._node, wide, at))
            while cells[-1].hi > t:
                cells.pop()
        return cells[bisect_left(cells, s, key=_low) :]

    def _reach(self, like: Tensor, t: float, s: float) -> None:
        """Have cells from s up to t."""
        if not self._cells or self._cells[-1].hi < t:
            w, area = (self._node(like, 1.0, which) for which in ("w", "area"))
            self._cells = [Cell(0.0, 1.0, torch.zeros_like(like), w, area / math.sqrt(12))]

    def _place(self, cell: Cell, t: float) -> float:
        """Where a cell is split on the way to t: halved down to the finest, and that at t."""
        return t if (cell.hi - cell.lo) * 2**self.source.depth <= 1 else (cell.lo + cell.hi) / 2

    def _area(self, cell: Cell) -> Tensor:
        assert cell.area is not None
        return cell.area

    def _node(self, like: Tensor, t: float, which: str) -> Tensor:
        return self.source.normal(like, "brownian", t, which)


class KnownDraws(BrownianDraws):
    """One run along a path of known times: W alone, a part of [0, 1] after the other, each halved while more than two times are
    in it."""

    PARTS = 16

    def _reach(self, like: Tensor, t: float, s: float) -> None:
        if not self._cells or self._cells[-1].hi < t:
            self._cells = []
        while not self._cells or self._cells[0].lo > s:
            hi = self._cells[0].lo if self._cells else math.ceil(t * self.PARTS) / self.PARTS
            w = self._cells[0].w_lo if self._cells else like.new_zeros(()).expand_as(like)  # only differences are asked for
            below = torch.sub(w, self._node(like, hi, "w"), alpha=math.sqrt(1 / self.PARTS))
            self._cells.insert(0, Cell(hi - 1 / self.PARTS, hi, below, w))

    def _place(self, cell: Cell, t: float) -> float:
        """The highest of the known times in the cell, once there are two at most or the cell is of the finest; t, if none."""
        known = self.source.times or ()
        inside = known[bisect_right(known, cell.lo) : bisect_left(known, cell.hi)]
        first = inside[-1] if inside else t
        return super()._place(cell, first) if len(inside) > 2 else first

    def _area(self, cell: Cell) -> Tensor:
        """It is independent of W at the ends, and of all other cells."""
        return self._node(cell.w_lo, cell.lo, f"area below {cell.hi}") * math.sqrt((cell.hi - cell.lo) ** 3 / 12)


class Replay:
    """Given draws, of shape (count, *state), handed out in order; with `prior` the first is the prior's.

    Raises:
        ValueError: a draw of another shape than the state, or more draws asked for than were given.
    """

    def __init__(self, draws: Tensor, prior: bool = False) -> None:
        if not isinstance(draws, Tensor) or draws.ndim < 2:
            raise TypeError(
                f"noise must be draws of shape (count, B, ...), got {getattr(draws, 'shape', type(draws).__name__)}"
            )
        self.given, self.prior = draws, prior

    def fit(self, like: Tensor, count: int | None) -> None:
        """Raise ValueError unless there are `count` draws for the steps (None: not known yet) of the shape of `like`."""
        if self.given.shape[1:] != like.shape:
            raise ValueError(f"noise holds draws of shape {tuple(self.given.shape[1:])}, the state is {tuple(like.shape)}")
        if count is not None and count + self.prior != len(self):
            count_text = f"{count + self.prior}{', the prior’s included' if self.prior else ''}"
            raise ValueError(f"noise holds {len(self)} draws and the run makes {count_text}")

    def __repr__(self) -> str:
        return f"Replay({len(self)} draws of shape {tuple(self.given.shape[1:])})"

    def __len__(self) -> int:
        return len(self.given)

    def draws(self, purpose: Purpose = "step") -> Draws:
        """A cursor, at the first draw of that purpose."""
        return ReplayedDraws(self, purpose)


class ReplayedDraws(Draws):
    """One run's way through given draws."""

    source: Replay  # type: ignore[assignment]

    def __init__(self, source: Replay, purpose: Purpose) -> None:
        self.source, self.purpose, self.count = source, purpose, 0
        self._before = int(source.prior and purpose != "prior")

    def _next(self, like: Tensor, t: float, s: float, area: bool) -> Tensor:
        given = self.source.given
        if self.purpose == "model":
            raise ValueError("noise holds the draws of the steps, and this model draws noise of its own: give a seed instead")
        if self._before + self.count > len(given):
            raise ValueError(f"noise holds {len(given)} draws and the run asks for another")
        draw = given[self._before + self.count - 1]
        if draw.shape != like.shape:
            raise ValueError(f"noise holds draws of shape {tuple(draw.shape)}, the state is {tuple(like.shape)}")
        return draw.to(like)


Source = White | Replay


def fold_in(seeds: Seeds, *key: object) -> Seeds:
    """Seeds of streams that have nothing to do with those of these seeds, the same whenever the key is the same."""
    return stream_key(seeds, *key) if isinstance(seeds, int) else tuple(stream_key(seed, *key) for seed in seeds)


def stream_key(*key: object) -> int:
    """A 63-bit generator seed from a key."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big") >> 1
