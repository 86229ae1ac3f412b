"""How good samples are: metrics by name, each with its meaning and its floor, what data give when compared to data."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoreflow._score.oracle import Gaussian
from scoreflow.analysis import Law, law
from scoreflow.studies.moments import apart, blocks
from scoreflow.studies.registry import METRICS, Better, Metric, MetricInput, Need, draws, flat, get_metric, metric, table
from scoreflow.studies.simulated import EXACT

__all__ = ["METRICS", "Better", "Metric", "Need", "MetricInput", "draws", "flat", "get_metric", "metric", "table"]

# -- to the solution from the same seeds -----------------------------------------------------------------------------------


def _distance(x: Tensor, y: Tensor) -> dict[str, float]:
    off = np.sqrt(((flat(x) - flat(y)) ** 2).mean(1))
    return {"median": np.median(off), "q90": np.quantile(off, 0.9), "rms": math.sqrt((off**2).mean())}


@metric("trajectory", needs=("reference", "deterministic"), parts=("median", "q90", "rms"))
def trajectory(inputs: MetricInput) -> dict[str, float]:
    """Distance to the converged probability-flow ODE from the same seeds, RMS an entry: median, 90 % quantile, RMS.

    For samplers without noise. It is discretisation error alone: a wrong network has none. A few trajectories that end in
    another mode rule the RMS. Of sample i it is `|x_i − y_i|/√d`, in the states' unit.

    Floor:
        The reference's own error, as stated: its distance to a coarser run.
    """
    assert inputs.reference is not None
    return _distance(inputs.x, inputs.reference)


@metric("strong", needs=("finest",), parts=("median", "q90", "rms"))
def strong(inputs: MetricInput) -> dict[str, float]:
    """Distance to the same sampler at 4 times the largest budget, along the same Brownian paths, RMS an entry.

    For samplers with noise; of sample i it is `|x_i − y_i|/√d`, in the states' unit.

    Floor:
        None: it is 0 for the sampler at that budget.
    """
    assert inputs.finest is not None
    return _distance(inputs.x, inputs.finest)


# -- to data ------------------------------------------------------------------------------------------------------------


@metric("w2", needs=("data",))
def w2(inputs: MetricInput) -> float:
    """Wasserstein-2 distance to the data by exact optimal transport, RMS an entry.

    `√(min_π Σ π_ij |x_i − y_j|²/d)` between n samples and m data, in the states' unit; a shift of all by δ gives |δ|/√d.

    Floor:
        Above 0; it falls as n and m grow, in d dimensions no faster than n^(−1/d).
    """
    return transport(*inputs.pair())


def transport(x: np.ndarray, y: np.ndarray) -> float:
    """Wasserstein-2 distance of rows (n, d) to rows (m, d), RMS an entry."""
    import ot
    from scipy.spatial.distance import cdist

    return math.sqrt(ot.emd2([], [], cdist(x, y, "sqeuclidean"), numItermax=10_000_000) / x.shape[1])


@metric("posterior-w2", needs=("posterior",))
def posterior_w2(inputs: MetricInput) -> float:
    """`w2` to draws of the posterior, the mean over truths where measurements are simulated.

    For one measurement it is `w2` itself. For simulated ones it is the mean over truths of the distance of the K samples of
    a truth to as many or 200 draws of its exact posterior.

    Floor:
        Above 0; it falls as n, or with simulated measurements K, grows, as that of `w2`.
    """
    if (simulated := inputs.simulated) is None:
        return transport(*inputs.pair())
    exact = simulated.exact(max(EXACT, simulated.each), "exact").flatten(2).numpy()
    return float(np.mean([transport(x, y) for x, y in zip(simulated.grouped(inputs.x).numpy(), exact, strict=True)]))


def directions(d: int, seed: int) -> np.ndarray:
    """Unit vectors (d, k) of a block: orthonormal bases, k = 200 or a few more; 200 orthonormal vectors above d = 200."""
    bases = math.ceil(200 / d) if d > 1 else 1
    normal = torch.randn(bases, d, min(d, 200), generator=draws(seed, "directions"), dtype=torch.float64)
    return np.concatenate(np.linalg.qr(normal.numpy())[0], axis=1)


@metric("sliced-w2", needs=("data",))
def sliced_w2(inputs: MetricInput) -> float:
    """Sliced Wasserstein-2 distance to the data, RMS over 200 or more directions drawn from the block's seed.

    `√(mean_θ W2²(θ·x, θ·y))` over unit vectors θ, in whole orthonormal bases up to d = 200, in the states' unit. As
    `mean_θ (θ·v)² = |v|²/d`, it is an RMS an entry: at most `w2`, and equal to it for a shift.

    Floor:
        Above 0; it falls as n^(−1/2) in any dimension, where modes lie apart as n^(−1/4).

    Reference:
        Sliced and Radon Wasserstein Barycenters of Measures (Bonneel et al., 2015).
    """
    import ot

    x, y = inputs.pair()
    return float(ot.sliced_wasserstein_distance(x, y, projections=directions(x.shape[1], inputs.seed)))


@metric("energy", needs=("data",), positive=False)
def energy(inputs: MetricInput) -> float:
    """Squared energy distance to the data, `2 E|X−Y| − E|X−X'| − E|Y−Y'|`, without bias.

    Means over all pairs, those of a sample with itself left out; |·| over all d entries, in the states' unit.

    Floor:
        0 on average, so below 0 at times; it spreads as 1/n.

    Reference:
        Energy statistics: A class of statistics based on distances (Székely & Rizzo, 2013).
    """
    x, y = map(torch.from_numpy, inputs.pair())
    return float(squared_energy(x, y))


def distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i − y_j| of rows (n, d) and (m, d): (n, m). By differences: by products near ones lose half their digits."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def squared_energy(x: Tensor, y: Tensor) -> Tensor:
    """`2 E|X−Y| − E|X−X'| − E|Y−Y'|` of rows (n, d) and (m, d), as of the metric `energy`; differentiable."""
    return 2 * distances(x, y).mean() - torch.pdist(x).mean() - torch.pdist(y).mean()


@metric("mmd", needs=("data",), positive=False)
def mmd(inputs: MetricInput) -> float:
    """Squared maximum mean discrepancy to the data, `E k(X, X') + E k(Y, Y') − 2 E k(X, Y)`, without bias.

    `k(x, y) = exp(−|x − y|²/(2w²))` with w the median distance of two of the block's data, the same for every sampler; no
    unit. Means over all pairs, those of a sample with itself left out.

    Floor:
        0 on average, so below 0 at times; it spreads as 1/n. Below 20 data it is off 0, as w is by chance.

    Reference:
        A Kernel Two-Sample Test (Gretton et al., 2012), Eq. 3.
    """
    from scipy.spatial.distance import cdist, pdist

    x, y = inputs.pair()
    within = pdist(y, "sqeuclidean")
    scale = -2 * float(np.median(within))
    if scale == 0:
        raise ValueError("metric 'mmd' needs data that differ: their median distance is 0")
    xx, yy, xy = (float(np.exp(a / scale).mean()) for a in (pdist(x, "sqeuclidean"), within, cdist(x, y, "sqeuclidean")))
    return xx + yy - 2 * xy


# -- in a feature space ---------------------------------------------------------------------------------------------------


@metric("kid", needs=("data", "features"), positive=False)
def kid(inputs: MetricInput) -> float:
    """Kernel distance in feature space: squared MMD with the kernel `(x·y/d + 1)³`, without bias.

    Over all samples and data at once, not over subsets of them; no unit.

    Floor:
        0 on average, so below 0 at times; it spreads as 1/n.

    Reference:
        Demystifying MMD GANs (Bińkowski et al., 2018), Section 4.
    """

    def total(a: np.ndarray, b: np.ndarray) -> float:
        return sum(float(((rows @ b.T / a.shape[1] + 1) ** 3).sum()) for rows in blocks(a))

    def within(a: np.ndarray) -> float:
        own = (((a**2).sum(1) / a.shape[1] + 1) ** 3).sum()
        return (total(a, a) - float(own)) / (len(a) * (len(a) - 1))

    x, y = inputs.featured()
    return within(x) + within(y) - 2 * total(x, y) / (len(x) * len(y))


@metric("frechet", needs=("data", "features"))
def frechet(inputs: MetricInput) -> float:
    """Fréchet distance in feature space, `|μ−μ'|² + tr(C + C' − 2 (C C')^{1/2})`.

    With centred features as rows of X = (x − μ)/√(n−1), and Y, `tr (C C')^{1/2}` is the sum of the singular values of X Yᵀ:
    exact also for singular C, as of fewer samples than features. In the features' unit, squared.

    Floor:
        Above 0; it falls as 1/n. With n below the number of features it is mostly that: compare at equal n only.

    Reference:
        GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium (Heusel et al., 2017), Eq. 6.
    """

    def root(a: np.ndarray) -> np.ndarray:
        a = (a - a.mean(0)) / math.sqrt(len(a) - 1)
        r: Any = np.linalg.qr(a, mode="r") if len(a) > a.shape[1] else a  # X = QR, and R Yᵀ has the singular values of X Yᵀ
        return np.asarray(r)

    x, y = inputs.featured()
    return apart((x.mean(0), root(x)), (y.mean(0), root(y)))


@metric(
    "manifold",
    better="higher",
    needs=("data", "features"),
    parts=("precision", "recall", "density", "coverage"),
    positive=False,
)
def manifold(inputs: MetricInput) -> dict[str, float]:
    """Precision, recall, density and coverage in feature space, by the 5 nearest neighbours.

    Each point has a ball as wide as the distance to its 5th neighbour in its own set, itself not counted. Precision: the
    share of samples in a ball of the data; recall: of data in a ball of the samples; density: balls of data a sample is in,
    over 5; coverage: the share of data with a sample in their ball. Below 6 points all the others are neighbours.

    Floor:
        Density 1 on average, the others below 1. They depend on n and m: compare at equal n only.

    Reference:
        Improved Precision and Recall (Kynkäänniemi et al., 2019); Reliable Fidelity and Diversity Metrics (Naeem et al., 2020).
    """
    from scipy.spatial.distance import cdist

    x, y = inputs.featured()
    k = min(5, len(x) - 1, len(y) - 1)
    to_x, to_y = radii(x, k), radii(y, k)
    balls, recalled, covered = np.zeros(len(x)), 0, 0
    for rows, wide in zip(blocks(y), blocks(to_y), strict=True):
        between = cdist(rows, x)
        inside = between < wide[:, None]
        balls += inside.sum(0)
        recalled += int((between < to_x).any(1).sum())
        covered += int(inside.any(1).sum())
    return {
        "precision": (balls > 0).mean(),
        "recall": recalled / len(y),
        "density": balls.mean() / k,
        "coverage": covered / len(y),
    }


def radii(x: np.ndarray, k: int) -> np.ndarray:
    """The distance of every point to its k-th neighbour among the others: (n, d) to (n,)."""
    from scipy.spatial.distance import cdist

    kth = (np.partition(cdist(rows, x), k, axis=1)[:, k] for rows in blocks(x))  # the 0th is the point itself
    return np.concatenate([column.copy() for column in kth])  # or all rows would stay


# -- to a known law -------------------------------------------------------------------------------------------------------


def _shares(inputs: MetricInput) -> tuple[Tensor, Tensor]:
    """Of the samples in each mode, and the modes' weights: (K,) and (K,)."""
    assert inputs.oracle is not None
    counts = torch.bincount(inputs.oracle.mode(inputs.x), minlength=len(inputs.oracle.weights))
    return counts.to("cpu", torch.float64) / len(inputs.x), inputs.oracle.weights


@metric("modes", needs=("mixture",))
def modes(inputs: MetricInput) -> float:
    """Total variation between the weights of the mixture's modes and the shares of samples in them.

    `Σ_k |share_k − w_k|/2`, from 0 to 1: the share of samples that would have to move. A sample is in the mode that most
    likely made it.

    Floor:
        Above 0; it falls as n^(−1/2).
    """
    share, weights = _shares(inputs)
    return float((share - weights).abs().sum() / 2)


@metric("mode-weights", better="either", needs=("mixture",), positive=False)
def mode_weights(inputs: MetricInput) -> dict[str, float]:
    """Share of the samples in each mode of the mixture, by the mode's number.

    Floor:
        The mode's weight on average, but for data that lie nearer another mode.
    """
    return {str(k): float(share) for k, share in enumerate(_shares(inputs)[0])}


@metric("log-likelihood", better="either", needs=("oracle",), positive=False)
def log_likelihood(inputs: MetricInput) -> float:
    """Mean log-density of the samples under the data's distribution, in nats; good where it is that of data.

    Floor:
        Minus the data's entropy on average.
    """
    assert inputs.oracle is not None
    return float(inputs.oracle.log_prob(inputs.x).mean())


_last_law = functools.lru_cache(maxsize=1)(law)


def _law(inputs: MetricInput) -> Law:
    assert isinstance(inputs.oracle, Gaussian) and inputs.path is not None and inputs.plan is not None
    return _last_law(inputs.plan, inputs.path, inputs.posterior or inputs.oracle)


@metric("w2-exact", needs=("gaussian", "rows"), samples=False)
def w2_exact(inputs: MetricInput) -> float:
    """Wasserstein-2 distance of the sampler's output law to Gaussian data, RMS an entry, from its rows without sampling.

    What `w2` tends to as n and m grow. Of a `Posterior` the law is that of the method, and the data the exact posterior.

    Floor:
        None: 0 for the data's law, without chance.
    """
    out = _law(inputs)
    return out.w2 / math.sqrt(len(out.mean))


@metric("kl-exact", needs=("gaussian", "rows"), samples=False)
def kl_exact(inputs: MetricInput) -> float:
    """`KL(output ‖ data)` on Gaussian data in nats, from the sampler's rows without sampling.

    Infinite where one of the two has no density.

    Floor:
        None: 0 for the data's law, without chance.
    """
    return _law(inputs).kl


# -- what it costs --------------------------------------------------------------------------------------------------------


@metric("time", needs=("timed",))
def time(inputs: MetricInput) -> float:
    """Time of the run in network evaluations: over that of one evaluation of the batch, measured beside it.

    Floor:
        None: near its evaluations for a sampler that costs nothing beside the network.
    """
    return inputs.seconds / inputs.evaluation
