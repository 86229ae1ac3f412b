"""Moments of features: sums that add up over processes, and the Fréchet distance that they give."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scoreflow._core.files import check_file, whole_file
from scoreflow._core.noise import stream_key

POINTS = 15
"""Numbers of samples that are extrapolated from, as of the authors."""


def blocks(x: np.ndarray, rows: int = 256) -> list[np.ndarray]:
    """Some rows at a time, so that what is made of them needs little memory."""
    return [x[first : first + rows] for first in range(0, len(x), rows)]


def apart(x: tuple[np.ndarray, np.ndarray], y: tuple[np.ndarray, np.ndarray]) -> float:
    """The Fréchet distance of two means (d,) with roots X of the covariances, XᵀX = C, of any number of rows."""
    (mean, X), (other, Y) = x, y
    shared = float(np.linalg.svd(X @ Y.T, compute_uv=False).sum())
    far = float(((mean - other) ** 2).sum() + (X**2).sum() + (Y**2).sum() - 2 * shared)
    return max(far, 0.0)  # equal sets differ by rounding


class Statistics(NamedTuple):
    """Mean (d,) and covariance (d, d) of features: what the Fréchet distance is made of."""

    mean: np.ndarray
    cov: np.ndarray

    def frechet(self, other: Statistics) -> float:
        """The Fréchet distance, as of the metric of that name.

        Below as many samples as features, where a covariance has no inverse, it is right to about 1e-7 of its traces.

        Raises:
            ValueError: another number of features.
        """
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"features must be as many on both sides, got {len(self.mean)} and {len(other.mean)}")
        return apart((self.mean, _root(self.cov)), (other.mean, _root(other.cov)))


def _root(cov: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(cov)
    root: np.ndarray = np.sqrt(values.clip(0))[:, None] * vectors.T
    return root


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over n features f (d,), in float64. Those of two sets add up to those of both.

    Attributes:
        n: how many. sum: Σ f, (d,). outer: Σ f fᵀ, (d, d).
    """

    n: int
    sum: np.ndarray
    outer: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> Moments:
        """Of features (n, d)."""
        d = features.shape[1]
        sums, outer = np.zeros(d), np.zeros((d, d))
        for rows in blocks(features):
            f = rows.astype(np.float64)
            sums += f.sum(0)
            outer += f.T @ f
        return cls(len(features), sums, outer)

    def __add__(self, other: Moments) -> Moments:
        if self.sum.shape != other.sum.shape:
            raise ValueError(f"moments must be of as many features, got {len(self.sum)} and {len(other.sum)}")
        return Moments(self.n + other.n, self.sum + other.sum, self.outer + other.outer)

    @property
    def statistics(self) -> Statistics:
        """Mean and covariance, the latter with n − 1.

        Raises:
            ValueError: n is less than 2.
        """
        if self.n < 2:
            raise ValueError(f"a covariance needs 2 samples or more, got {self.n}")
        mean = self.sum / self.n
        return Statistics(mean, (self.outer - self.n * np.outer(mean, mean)) / (self.n - 1))

    def save(self, file: str | Path) -> Path:
        """Write an npz file: n, sum and outer, and `mu` and `sigma`, which other tools read.

        Raises:
            FileNotFoundError: no such folder.
        """
        path, found = check_file("file", file), self.statistics
        with whole_file(path) as part, open(part, "wb") as opened:
            np.savez(opened, n=self.n, sum=self.sum, outer=self.outer, mu=found.mean, sigma=found.cov)
        return path


def load(file: str | Path) -> Moments | Statistics:
    """An npz file that `Moments.save` wrote; or one with `mu` and `sigma` alone, as of EDM's fid.py and pytorch-fid.

    Raises:
        FileNotFoundError: no such file. ValueError: it holds neither.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"no statistics at {file}")
    try:
        with np.load(file) as held:
            found = {name: held[name] for name in held.files}
    except ValueError as error:
        raise ValueError(f"{file} is no npz file of statistics: {error}") from error
    if {"n", "sum", "outer"} <= found.keys():
        return Moments(int(found["n"]), found["sum"], found["outer"])
    if {"mu", "sigma"} <= found.keys():
        return Statistics(found["mu"].astype(np.float64), found["sigma"].astype(np.float64))
    raise ValueError(f"{file} must hold mu and sigma, or n, sum and outer; it holds {', '.join(found) or 'nothing'}")


def frechet_infinity(features: np.ndarray, data: Statistics, seed: int = 0) -> float:
    """The Fréchet distance that infinitely many samples would have: the intercept of its line in 1/n.

    Over 15 numbers n of samples, from a tenth to all, each drawn anew from the features (N, d) without replacement.

    Raises:
        ValueError: fewer than 20 samples.

    Reference:
        Effectively Unbiased FID and Inception Score and where to find them (Chong & Forsyth, 2020), Section 4.
    """
    if len(features) < 20:
        raise ValueError(f"frechet-infinity needs 20 samples or more, got {len(features)}")
    counts = np.linspace(math.ceil(len(features) / 10), len(features), POINTS).round().astype(int)
    chance = np.random.default_rng(stream_key(seed, "frechet-infinity"))
    drawn = (chance.permutation(len(features))[:n] for n in counts)
    distances = [Moments.of(features[some]).statistics.frechet(data) for some in drawn]
    return float(np.polynomial.polynomial.polyfit(1 / counts, distances, 1)[0])
