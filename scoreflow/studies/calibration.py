"""Whether samples are those of a posterior: calibration on simulated measurements, and a classifier against reference draws."""

from __future__ import annotations

import numpy as np
import torch

from scoreflow._uses.smc import smc
from scoreflow.studies.metrics import MetricInput, draws, metric
from scoreflow.studies.simulated import cumulative, off_uniform, p_value, ranks
from scoreflow.studies.subject import exact_law

LEVELS = (0.5, 0.8, 0.95)
"""Of the central intervals."""
ENTRIES = 16
"""The most entries that are tested one by one; of states with more, as many random directions are."""
TREES, FOLDS = 100, 5
"""Of the classifier that tells two sets apart."""


@metric("sbc", ("lower", "higher"), ("simulated",), parts=("distance", "p"))
def sbc(inputs: MetricInput) -> dict[str, float]:
    """Simulation-based calibration: how far ranks of the truths among their samples are from uniform, and the p-value of that.

    Ranks are taken of each entry, or above 16 entries along 16 unit directions drawn from the block's seed; and of the
    log-likelihood, if the noise has a density. `distance` is the largest difference, over these quantities and over r, between
    the share of ranks below r and r/(K + 1). `p` is its p-value, exact for discrete ranks and times the number of quantities
    (Bonferroni): an exact sampler has p ≤ 0.05 in at most 5 % of blocks.

    Floor:
        The distance is above 0 and falls as (n/K)^(−1/2); p ≤ a in at most a share a of blocks.

    Reference:
        Validating Bayesian Inference Algorithms with Simulation-Based Calibration (Talts et al., 2018).
    """
    simulated = inputs.simulated
    assert simulated is not None
    x, truths = simulated.grouped(inputs.x), simulated.truths.detach().to("cpu", torch.float64).flatten(1)
    if (d := x.shape[2]) > ENTRIES:
        normal = torch.randn(d, ENTRIES, generator=draws(inputs.seed, "quantities"), dtype=torch.float64)
        x, truths = x @ (unit := normal / normal.norm(dim=0)), truths @ unit
    if (likelihoods := simulated.log_likelihoods(inputs.x)) is not None:
        of_samples, of_truths = likelihoods
        x, truths = torch.cat([x, of_samples[..., None]], 2), torch.cat([truths, of_truths[:, None]], 1)
    distance = off_uniform(ranks(x, truths, draws(inputs.seed, "ties")), simulated.each).max()
    p = p_value(float(distance), len(truths), simulated.each)
    return {"distance": distance, "p": min(1.0, p * truths.shape[1])}


@metric(
    "tarp", ("lower", "either", "either"), ("simulated",), parts=("distance", "area", "atc"), best=(None, 0.0, 0.0),
    positive=False,
)  # fmt: skip
def tarp(inputs: MetricInput) -> dict[str, float]:
    """Expected coverage of balls about random points (TARP): its distance to the credibility level, and its signed areas.

    The ball of a truth is about a random point, another truth of the block, and reaches to the truth; the share of samples
    inside is its credibility. Expected coverage `ECP(a)` is the share of truths whose ball has a credibility below a, with
    ranks spread evenly over their steps of 1/(K + 1). `distance` is `max |ECP(a) − a|`, `area` the integral of `ECP(a) − a`
    over all levels, `atc` that over levels above 1/2: above 0 for samples that spread too far, below for too near.

    Floor:
        The distance is above 0 and falls as (n/K)^(−1/2); the areas are 0 on average.

    Reference:
        Sampling-Based Accuracy Testing of Posterior Estimators for General Inference (Lemos et al., 2023), Algorithm 2.
    """
    from scipy.integrate import trapezoid

    simulated = inputs.simulated
    assert simulated is not None
    x, truths = simulated.grouped(inputs.x), simulated.truths.detach().to("cpu", torch.float64).flatten(1)
    if len(truths) < 2:
        raise ValueError("metric 'tarp' needs two truths in a block, n ≥ 2 simulated")
    about = truths.roll(1, 0)  # a point that is independent of the truth given y
    far, own = (x - about[:, None]).norm(dim=2, keepdim=True), (truths - about).norm(dim=1, keepdim=True)
    inside = ranks(far, own, draws(inputs.seed, "ties"))
    level = np.arange(simulated.each + 2) / (simulated.each + 1)
    off = cumulative(inside, simulated.each)[:, 0] - level
    upper = np.unique([0.5, *level[level > 0.5]])
    return {
        "distance": np.abs(off).max(),
        "area": trapezoid(off, level),
        "atc": trapezoid(np.interp(upper, level, off), upper),
    }


@metric(
    "coverage", "either", ("simulated",), parts=[f"{100 * level:g}" for level in LEVELS], best=LEVELS, positive=False
)  # fmt: skip
def coverage(inputs: MetricInput) -> dict[str, float]:
    """Share of the truths inside the central 50 %, 80 % and 95 % intervals of their samples, the mean over entries.

    Good where it is the level; below it the samples are too near to each other or off, above it too far. The interval is one
    of ranks: the rank of a truth among its K samples is spread evenly over its step of 1/(K + 1), so that the share is the
    level on average for any K.

    Floor:
        The level on average.
    """
    simulated = inputs.simulated
    assert simulated is not None
    truths, each = simulated.truths.detach().to("cpu", torch.float64).flatten(1), simulated.each
    rank = ranks(simulated.grouped(inputs.x), truths, draws(inputs.seed, "ties"))
    found = {}
    for level in LEVELS:
        low, high = (each + 1) * (1 - level) / 2, (each + 1) * (1 + level) / 2
        found[f"{100 * level:g}"] = np.clip(np.minimum(rank + 1, high) - np.maximum(rank, low), 0, None).mean()
    return found


@metric("c2st", needs=("data",), parts=("accuracy", "low", "high"), positive=False)
def c2st(inputs: MetricInput) -> dict[str, float]:
    """Share of samples and data that a classifier tells apart, 1/2 if it cannot, and its 95 % interval.

    A random forest of 100 trees, by cross-validation in 5 stratified folds drawn from the block's seed, on as many data as
    samples. `low` and `high` are Wilson's interval, as if the answers were independent.

    Floor:
        1/2 on average.

    Reference:
        Revisiting Classifier Two-Sample Tests (Lopez-Paz & Oquab, 2017).
    """
    from scipy.stats import binomtest
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    x, y = inputs.pair()
    n = min(len(x), len(y))
    if n < FOLDS:
        raise ValueError(f"metric 'c2st' needs {FOLDS} samples and data or more, got {len(x)} and {len(y)}")
    points, made = np.concatenate([x[:n], y[:n]]), np.repeat([0, 1], n)
    seed = draws(inputs.seed, "classifier").initial_seed() % 2**32
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    said = cross_val_predict(RandomForestClassifier(TREES, random_state=seed), points, made, cv=folds)
    right = binomtest(int((said == made).sum()), 2 * n)
    low, high = right.proportion_ci(method="wilson")
    return {"accuracy": right.statistic, "low": low, "high": high}


@metric("evidence", "either", ("evidence",), best=(0.0,), positive=False)
def evidence(inputs: MetricInput) -> float:
    """`log p(y)` by sequential Monte Carlo along the run's steps, less the exact one, in nats.

    `sf.smc` with the sampler's steps, as many particles as the block has samples, and the method of the `Posterior` as the
    twist: a run of its own from the block's seed, at as many evaluations, that the cell's do not count. What is left as the
    particles grow many is the error of the steps, which falls as 1/steps.

    Floor:
        None: it is 0 for the data's law, but for chance.

    Reference:
        Practical and Asymptotically Exact Conditional Sampling in Diffusion Models (Wu et al., 2023), Algorithm 1.
    """
    given, plan = inputs.posterior, inputs.plan
    assert given is not None and plan is not None
    prior, (particles, *event) = exact_law(given.model), inputs.x.shape
    assert prior is not None
    options = {"kappa_max": given.kappa_max, **given.given}
    cloud = smc(
        given.model, given.observation, (1, *event), particles, plan, twist=given.name, twist_options=options,
        seed=inputs.seed, dtype=inputs.x.dtype,
    )  # fmt: skip
    return float(cloud.log_evidence) - prior.evidence(given.observation)
