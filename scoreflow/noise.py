"""Noise as an argument: white, Brownian, or replayed draws, one stream a sample, keyed and never global.

A source is immutable and may be shared. A run asks it for `draws(purpose)`, a cursor that counts. Draws are made in
float32 and cast, so that runs in different dtypes see the same noise.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Purpose = Literal["prior", "step", "probe"]
Seeds = int | tuple[int, ...]


def check_seed(seed: int | Sequence[int] | None, batch: int | None = None) -> Seeds:
    """A seed as an int (one stream for the batch) or a tuple (one stream a sample).

    None takes a seed from torch's global generator, so that `torch.manual_seed` holds.

    Raises:
        TypeError: not an int, nor a sequence of ints. ValueError: not as many seeds as samples.
    """
    if seed is None:
        return int(torch.randint(2**62, ()))
    if isinstance(seed, Tensor):
        seed = seed.tolist()
    if isinstance(seed, int | np.integer) and not isinstance(seed, bool):
        return int(seed)
    seeds: tuple[Any, ...] = tuple(seed) if isinstance(seed, Sequence | np.ndarray) and not isinstance(seed, str) else (None,)
    if not all(hasattr(one, "__index__") and not isinstance(one, bool) for one in seeds):
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
    """

    seeds: int | Sequence[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "seeds", check_seed(self.seeds))

    def draws(self, purpose: Purpose = "step") -> Draws:
        """A cursor over the stream of this purpose, at its beginning."""
        return Draws(self, purpose)

    def normal(self, like: Tensor, *key: object) -> Tensor:
        """Standard normals of the shape, dtype and device of `like`, the same whenever the key is the same."""
        if like.device.type == "meta":
            return torch.empty_like(like)
        out = torch.empty(like.shape, dtype=torch.float32, device=like.device)
        generator = torch.Generator(like.device)
        if isinstance(self.seeds, int):
            out.normal_(generator=generator.manual_seed(stream_key(self.seeds, *key)))
        else:
            check_seed(self.seeds, len(out))
            for sample, seed in zip(out, self.seeds, strict=True):
                sample.normal_(generator=generator.manual_seed(stream_key(seed, *key)))
        return out.to(like.dtype)


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

    def _next(self, like: Tensor, t: float, s: float, area: bool) -> Tensor:
        return self.source.normal(like, self.purpose, self.count)


@dataclass(frozen=True)
class Brownian(White):
    """A Brownian path on [0, 1], so that runs of different step counts and solvers share their noise.

    W is a dyadic tree of normals, each keyed by its place, and a bridge below its finest cells. Asked in falling order of
    time, as a run does, it is an exact Brownian path however small the steps; runs with several times in one cell of
    2^−depth share it to that resolution. A draw costs about `depth − log2(steps) + 2` normals for each number.

    Args:
        seeds: as for `White`; the path depends on nothing else.
        depth: the tree has 2^depth cells.

    Reference:
        Lévy's construction; virtual Brownian trees: Scalable Gradients for SDEs (Li et al., 2020), Section 4.
    """

    depth: int = 18

    def draws(self, purpose: Purpose = "step") -> Draws:
        """A cursor; its draw for t → s is `(W_t − W_s)/√(t − s)`."""
        return BrownianDraws(self, purpose) if purpose == "step" else Draws(self, purpose)


class BrownianDraws(Draws):
    """One run along a Brownian path; keeps the branch of the tree that it last walked down."""

    source: Brownian

    def __init__(self, source: Brownian, purpose: Purpose) -> None:
        super().__init__(source, purpose)
        self._branch: list[tuple[float, float, Tensor, Tensor]] = []
        self._last: tuple[float, Tensor] | None = None

    def _next(self, like: Tensor, t: float, s: float, area: bool) -> Tensor:
        if area:
            raise ValueError("this sampler asks for areas of the path: use noise='white'")
        if t <= s:  # a draw that is no step down, such as a corrector's
            return self.source.normal(like, self.purpose, "at", t, self.count)
        return (self.increment(like, t, s) / math.sqrt(abs(t - s))).to(like.dtype)

    def increment(self, like: Tensor, t: float, s: float) -> Tensor:
        """`W_t − W_s`, of variance |t − s|, in at least float32."""
        wide = like.float() if like.dtype.itemsize < 4 else like
        w_t = self._last[1] if self._last and self._last[0] == t else self._path(wide, t)
        w_s = self._path(wide, s)
        self._last = (s, w_s)
        return w_t - w_s

    def _path(self, like: Tensor, t: float) -> Tensor:
        """W_t, with W_0 = 0."""
        while self._branch and not self._branch[-1][0] <= t <= self._branch[-1][1]:
            self._branch.pop()
        if not self._branch:
            self._branch.append((0.0, 1.0, torch.zeros_like(like), self._node(like, 1.0)))
        while True:
            lo, hi, w_lo, w_hi = self._branch[-1]
            if t in (lo, hi):
                return w_lo if t == lo else w_hi
            # Halve down to a cell; inside it split at t itself, so that later, lower times condition on it.
            mid = t if (hi - lo) * 2**self.source.depth <= 1 else (lo + hi) / 2
            share = (mid - lo) / (hi - lo)
            w_mid = torch.lerp(w_lo, w_hi, share) + math.sqrt((mid - lo) * (1 - share)) * self._node(like, mid)
            self._branch.append((lo, mid, w_lo, w_mid) if t <= mid else (mid, hi, w_mid, w_hi))

    def _node(self, like: Tensor, t: float) -> Tensor:
        return self.source.normal(like, "brownian", t)


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
            asked = f"{count + self.prior}{', the prior’s included' if self.prior else ''}"
            raise ValueError(f"noise holds {len(self)} draws and the run makes {asked}")

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
        if self._before + self.count > len(given):
            raise ValueError(f"noise holds {len(given)} draws and the run asks for another")
        draw = given[self._before + self.count - 1]
        if draw.shape != like.shape:
            raise ValueError(f"noise holds draws of shape {tuple(draw.shape)}, the state is {tuple(like.shape)}")
        return draw.to(like)


Source = White | Replay


def stream_key(*key: object) -> int:
    """A 63-bit generator seed from a key."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big") >> 1
