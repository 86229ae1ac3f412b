"""Simulated measurements of a block: truths that are known, what was measured of each, and ranks among posterior samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scoreflow._core.noise import stream_key
from scoreflow._score.observation import Observation
from scoreflow._score.oracle import GaussianMixture

EXACT = 200
"""Draws of each exact posterior that samples are compared to, or as many as there are samples if these are more."""


@dataclass(frozen=True)
class Simulated:
    """J truths x*_j ~ p(x_0), measurements y_j = A x*_j + e_j, and K samples of p(x_0 | y_j) each.

    Sample i of a block belongs to truth i // K.

    Attributes:
        truths: (J, *shape).
        observation: with y one a truth, (J, *measurement).
        each: K.
        prior: the law of the truths if it is known, or None.
        seed: of the block.
    """

    truths: Tensor
    observation: Observation
    each: int
    prior: GaussianMixture | None
    seed: int

    def grouped(self, x: Tensor) -> Tensor:
        """Samples (J·K, *shape) by truth, flattened, float64 on the host: (J, K, d)."""
        return x.detach().to("cpu", torch.float64).reshape(len(self.truths), self.each, -1)

    def repeated(self) -> Observation:
        """The observation with y one a sample, (J·K, *measurement)."""
        return self.observation.given(self.observation.y.repeat_interleave(self.each, 0))

    def exact(self, count: int, stream: str) -> Tensor:
        """Draws of the exact posterior of each truth, float64: (J, count, *shape); others for another name of a stream.

        Raises:
            ValueError: the law of the truths is not known, or the posterior has no closed form.
        """
        if self.prior is None:
            raise ValueError("the law of the truths is not known, and so no exact posterior")
        found = []
        for j, y in enumerate(self.observation.y):
            law = self.prior.posterior(self.observation.given(y))
            found.append(law.sample(count, seed=stream_key(self.seed, stream, j)))
        return torch.stack(found)

    def log_likelihoods(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """`log p(y_j | x)` of samples (J·K, *shape) and of the truths: (J, K) and (J,). None if the noise is singular."""
        try:
            of_truths = self.observation.log_likelihood(self.truths.to("cpu", torch.float64))
            of_samples = self.repeated().log_likelihood(x.detach().to("cpu", torch.float64))
        except ValueError:
            return None
        return of_samples.reshape(len(self.truths), self.each), of_truths


def ranks(samples: Tensor, truths: Tensor, generator: torch.Generator) -> np.ndarray:
    """How many of K samples (J, K, Q) are below their truth (J, Q): (J, Q), from 0 to K; equal ones in an order by chance.

    If truth and samples have one law given y, each rank is as likely as the others.
    """
    below, equal = (which.sum(1) for which in (samples < truths[:, None], samples == truths[:, None]))
    lot = torch.rand(truths.shape, generator=generator, dtype=torch.float64)
    return (below + (lot * (equal + 1)).floor()).to(torch.int64).numpy()


def cumulative(ranks: np.ndarray, each: int) -> np.ndarray:
    """The share of ranks (J, ...) that are below r, r = 0, …, K + 1: (K + 2, ...), which is r/(K + 1) if they are uniform."""
    return np.stack([(ranks < r).mean(0) for r in range(each + 2)])


def off_uniform(ranks: np.ndarray, each: int) -> np.ndarray:
    """The largest distance of `cumulative` to r/(K + 1), of each quantity: (...)."""
    even = np.arange(each + 2) / (each + 1)
    return np.abs(cumulative(ranks, each) - even.reshape(-1, *[1] * (ranks.ndim - 1))).max(0)


def p_value(distance: float, truths: int, each: int) -> float:
    """The probability that ranks of J truths among K samples are this far or farther from uniform by `off_uniform`.

    Exact for discrete ranks. The counts of ranks are Poisson variables given their sum, and the probability that all sums up
    to r stay within the band is carried from r to r + 1.

    Reference:
        Graphical Test for Discrete Uniformity and Its Applications (Säilynoja et al., 2022), Section 2.
    """
    from scipy.stats import poisson

    counts = np.arange(truths + 1)
    step = poisson.pmf(counts, truths / (each + 1))
    inside = np.zeros(truths + 1)
    inside[0] = 1.0
    for r in range(1, each + 2):
        inside = np.convolve(inside, step)[: truths + 1]
        # As near as this by rounding is as far.
        inside[np.abs(counts / truths - r / (each + 1)) >= distance - 1e-9] = 0.0
    if distance <= 1e-9:
        return 1.0
    return float(np.clip(1 - inside[truths] / poisson.pmf(truths, truths), 0.0, 1.0))
