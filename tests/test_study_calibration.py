"""Metrics of posteriors against closed forms and second implementations: ranks, SBC, TARP, coverage, C2ST, W2 by truth."""

import itertools
import math

import numpy as np
import pytest
import torch
from metric_inputs import figures, value
from problems import states
from scipy import integrate, special, stats

import scoreflow as sf
from scoreflow.studies.calibration import LEVELS
from scoreflow.studies.metrics import METRICS, MetricInput, metric
from scoreflow.studies.simulated import Simulated, cumulative, off_uniform, p_value, ranks


def draws(seed):
    return torch.Generator().manual_seed(seed)


def block(truths, each, d=1, scale=1.0, shift=0.0, seed=0, apart=1.0, noise=0.0):
    """Truths `c + z` and samples `c + shift + scale z'` about centres c that are drawn, all else unit normal: exact at 1 and 0.

    The observation has no part in it; without noise there is no likelihood.
    """
    g = draws(seed)
    centre = apart * torch.randn(truths, d, generator=g, dtype=torch.float64)
    true = centre + torch.randn(truths, d, generator=g, dtype=torch.float64)
    z = torch.randn(truths, each, d, generator=g, dtype=torch.float64)
    x = (centre[:, None] + shift + scale * z).flatten(0, 1)
    seen = sf.Observation(torch.eye(d), torch.zeros(truths, d, dtype=torch.float64), noise)
    return MetricInput(x, seed, simulated=Simulated(true, seen, each, None, seed))


def of(name, inputs):
    return {figure.partition("/")[2]: v for figure, v in METRICS[name](inputs).items()}


# -- ranks ----------------------------------------------------------------------------------------------------------------


def test_ranks_one_by_one():
    x, true = states(5, 7, 3, seed=1), states(5, 3, seed=2)
    counted = [[sum(float(x[j, k, q]) < float(true[j, q]) for k in range(7)) for q in range(3)] for j in range(5)]
    assert ranks(x, true, draws(0)).tolist() == counted


def test_equal_ones_are_ordered_by_chance():
    """A truth that equals two of four samples, one below: ranks 1, 2, 3 alike. Beyond 4.5 standard errors in 1 of 100 000."""
    x, true = torch.tensor([0.0, 1, 1, 2]).reshape(1, 4, 1).expand(3000, 4, 1), torch.ones(3000, 1)
    counts = np.bincount(ranks(x, true, draws(0))[:, 0], minlength=5)
    assert counts[[0, 4]].sum() == 0 and (np.abs(counts[1:4] - 1000) < 4.5 * math.sqrt(3000 * 2 / 9)).all()


@pytest.mark.parametrize("truths, each", [(1, 2), (4, 3), (5, 2), (3, 4)])
def test_p_value_by_enumeration(truths, each):
    """All (K + 1)^J outcomes are as likely; every distance that can be has the share of those as far or farther."""
    outcomes = np.array(list(itertools.product(range(each + 1), repeat=truths)))
    distances = off_uniform(outcomes.T[..., None].transpose(0, 2, 1), each)[0]
    by_hand = [max(abs(np.mean(o < r) - r / (each + 1)) for r in range(each + 2)) for o in outcomes]
    np.testing.assert_allclose(distances, by_hand, atol=1e-12)
    for distance in np.unique(distances.round(9)):
        assert p_value(distance, truths, each) == pytest.approx(np.mean(distances >= distance - 1e-6), abs=1e-12)
    assert p_value(0.0, truths, each) == 1.0


def test_p_value_tends_to_kolmogorovs():
    """With many ranks the discrete distance is the continuous one, up to a step."""
    for distance in (0.1, 0.14, 0.2):
        assert p_value(distance, 100, 2000) == pytest.approx(stats.kstwo.sf(distance, 100), rel=0.03)


# -- sbc ------------------------------------------------------------------------------------------------------------------


def test_sbc_of_the_exact_law():
    """p ≤ 0.05 in at most 5 % of blocks: of 300 more than 29 by chance in 1 of 4000. Nor is it much rarer."""
    alarms = sum(of("sbc", block(40, 9, d=3, seed=s))["p"] <= 0.05 for s in range(300))
    assert 2 <= alarms <= 29


@pytest.mark.parametrize("wrong", [{"scale": 0.5}, {"scale": 2.0}, {"shift": 0.7}], ids=str)
def test_sbc_flags(wrong):
    found = of("sbc", block(400, 15, d=3, seed=1, **wrong))
    assert found["p"] < 1e-4 < of("sbc", block(400, 15, d=3, seed=1))["p"]
    assert found["distance"] > 0.12


def test_sbc_looks_at_every_quantity():
    """One wrong entry of 12; and of 40 entries by directions, whose p-value counts 16 of them."""
    inputs = block(128, 15, d=12, seed=2)
    x = inputs.x.clone()
    x[:, 11] += 1.0
    assert of("sbc", inputs)["p"] > 0.05 and of("sbc", inputs._replace(x=x))["p"] < 1e-4
    many = block(128, 15, d=40, seed=3)
    found = of("sbc", many)
    assert found["p"] == pytest.approx(min(1.0, 16 * p_value(found["distance"], 128, 15)))
    assert of("sbc", many._replace(x=many.x + 0.5))["p"] < 1e-4
    assert of("sbc", many._replace(seed=9)) != found


def test_sbc_by_the_likelihood():
    """Draws of the prior pass for a posterior by their entries, whose ranks are uniform; not by their likelihood."""
    true = states(200, 2, seed=1)
    y = true + 0.3 * states(200, 2, seed=2)
    prior, seen = states(200 * 9, 2, seed=3), sf.Observation(torch.eye(2), y, 0.3)
    inputs = MetricInput(prior, 0, simulated=Simulated(true, seen, 9, None, 0))
    blind = inputs._replace(simulated=Simulated(true, sf.Observation(torch.eye(2), y, 0.0), 9, None, 0))
    assert of("sbc", blind)["p"] > 0.05 and of("sbc", inputs)["p"] < 1e-9
    mean, std = y / 1.09, math.sqrt(0.09 / 1.09)
    exact = mean.repeat_interleave(9, 0) + std * prior
    assert of("sbc", inputs._replace(x=exact))["p"] > 0.05


# -- tarp -----------------------------------------------------------------------------------------------------------------


def test_tarp_truth_by_truth():
    """Algorithm 2 by loops; a rank r is spread evenly over r/(K+1) to (r+1)/(K+1), and integrals are sums of 20 000 levels."""
    inputs = block(30, 6, d=2, scale=0.7, seed=4)
    true, x = inputs.simulated.truths, inputs.x.reshape(30, 6, 2)
    inside = []
    for j in range(30):
        about = true[j - 1]
        inside.append(sum(math.dist(x[j, k], about) < math.dist(true[j], about) for k in range(6)))
    level = (np.arange(20_000) + 0.5) / 20_000
    off = np.mean([np.clip(7 * level - r, 0, 1) for r in inside], axis=0) - level
    expected = {"distance": np.abs(off).max(), "area": off.mean(), "atc": off[10_000:].mean() / 2}
    assert of("tarp", inputs) == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_tarp_on_a_line(scale):
    """Points far away are all on one side or the other: `ECP(a) = Φ(s Φ⁻¹(a))`, up to the empirical law's distance, which is
    above 0.036 for 4000 truths in 1 of 15 000, and the step of K = 100."""
    found = of("tarp", block(4000, 100, scale=scale, seed=5, apart=1e6))

    def off(a):
        return special.ndtr(scale * special.ndtri(a)) - a

    top = max(off(a) for a in np.linspace(0.5, 1, 2001))
    low = min(off(a) for a in np.linspace(0.5, 1, 2001))
    assert found["distance"] == pytest.approx(max(top, -low), abs=0.045)
    assert found["atc"] == pytest.approx(integrate.quad(off, 0.5, 1)[0], abs=0.02)
    assert abs(found["area"]) < 0.03
    assert (found["atc"] > 0.03) == (scale > 1) and (found["atc"] < -0.03) == (scale < 1)


def test_tarp_needs_two_truths():
    with pytest.raises(ValueError, match="metric 'tarp' needs two truths in a block"):
        of("tarp", block(1, 5))


# -- coverage -------------------------------------------------------------------------------------------------------------


def covered(scale, each, level):
    """`Σ_r P(r) · (part of step r inside)`, P(r) the chance that r of K draws of N(0, s²) are below one of N(0, 1)."""
    total, z = 0.0, np.linspace(-9, 9, 3001)
    for r in range(each + 1):
        p = integrate.simpson(stats.norm.pdf(z) * stats.binom.pmf(r, each, stats.norm.cdf(z / scale)), x=z)
        low, high = (each + 1) * (1 - level) / 2, (each + 1) * (1 + level) / 2
        total += p * max(0.0, min(r + 1, high) - max(r, low))
    return total


@pytest.mark.parametrize("each", [2, 7, 30])
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_coverage_of_a_wrong_variance(scale, each):
    """The mean of 4000 truths, beyond 4.5 standard errors in 1 of 100 000; at scale 1 it is the level for any K."""
    found = of("coverage", block(4000, each, scale=scale, seed=6))
    for level in LEVELS:
        expected = covered(scale, each, level)
        assert found[f"{100 * level:g}"] == pytest.approx(expected, abs=4.5 * math.sqrt(expected * (1 - expected) / 4000))
        if scale == 1:
            assert expected == pytest.approx(level, abs=1e-6)


def test_coverage_of_many_samples():
    """`2 Φ(s z) − 1` of intervals ±z that are s times too wide."""
    for level in LEVELS:
        wide = 2 * special.ndtr(0.5 * special.ndtri((1 + level) / 2)) - 1
        assert covered(0.5, 400, level) == pytest.approx(wide, abs=0.005)


def test_what_is_best_of_coverage():
    """The level, whatever the floor; for areas of tarp 0."""
    known = METRICS["coverage"]
    assert [known.best_of(f) for f in known.figures] == [0.5, 0.8, 0.95]
    assert [known.better_of(f) for f in known.figures] == ["either"] * 3
    tarp = METRICS["tarp"]
    assert [tarp.best_of(f) for f in tarp.figures] == [None, 0.0, 0.0]
    assert [METRICS["sbc"].better_of(f"sbc/{part}") for part in ("distance", "p")] == ["lower", "higher"]
    assert METRICS["w2"].best_of("w2") is None and METRICS["w2"].better_of("w2") == "lower"


def test_parts_that_do_not_fit():
    for name, given in (("better", {"better": ("lower",)}), ("best", {"best": (1.0,)})):
        with pytest.raises(ValueError, match=f"{name} must have a value for each of odd/a, odd/b, got "):
            metric("odd", parts=("a", "b"), **given)(lambda inputs: {})
    assert "odd" not in METRICS


# -- c2st -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("apart", [0.0, 1.0, 3.0])
def test_c2st_is_below_the_best_classifier(apart):
    """Normals |δ| apart: no classifier is right more often than Φ(δ/2), but by chance: 4 standard errors, 1 in 30 000. A forest
    comes near."""
    x, y = states(400, 2, seed=1), states(900, 2, seed=2)
    found = figures("c2st", x + torch.tensor([apart, 0.0]), y, seed=3)
    best = special.ndtr(apart / 2)
    assert best - 0.09 < found["accuracy"] < best + 4 * math.sqrt(best * (1 - best) / 800)
    n, p, z = 800, found["accuracy"], special.ndtri(0.975)  # Wilson, 1927
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    assert (found["low"], found["high"]) == pytest.approx((middle - half, middle + half), rel=1e-9)
    assert (found["low"] <= 0.5) == (apart == 0)


def test_c2st_is_of_its_seed():
    x, y = states(40, 2, seed=1) + 0.5, states(40, 2, seed=2)
    torch.manual_seed(1)
    np.random.seed(1)
    first = figures("c2st", x, y, seed=3)
    np.random.seed(2)
    assert figures("c2st", x, y, seed=3) == first != figures("c2st", x, y, seed=4)
    assert figures("c2st", x, y.repeat(3, 1), seed=3) == first  # as many data as samples
    with pytest.raises(ValueError, match="metric 'c2st' needs 5 samples and data or more, got 4 and 40"):
        figures("c2st", x[:4], y)


# -- posterior-w2 ---------------------------------------------------------------------------------------------------------


def test_posterior_w2_is_w2_of_each_truth():
    prior, seen = sf.Gaussian(torch.zeros(2), torch.tensor([1.0, 0.3])), sf.Observation(torch.eye(2), states(4, 2, seed=7), 0.5)
    simulated = Simulated(states(4, 2, seed=1), seen, 6, prior, 5)
    x, exact = states(24, 2, seed=2), simulated.exact(200, "exact")
    apart = [value("w2", x[6 * j : 6 * j + 6], exact[j]) for j in range(4)]
    assert value("posterior-w2", x, simulated=simulated, seed=5) == pytest.approx(np.mean(apart), rel=1e-12)
    assert value("posterior-w2", x, exact[0]) == value("w2", x, exact[0])
    # Draw by draw of the posterior of its own y: mean within 4.5 standard errors, in 1 of 20 000 for one of eight.
    for j in range(4):
        law = prior.posterior(seen.given(seen.y[j]))
        off = (exact[j].mean(0) - law.mean) / (law.cov.diagonal() / 200).sqrt()
        assert float(off.abs().max()) < 4.5
    assert not torch.equal(simulated.exact(200, "floor"), exact)


def test_cumulative():
    assert cumulative(np.array([0, 2, 2, 3]), 3).tolist() == [0, 0.25, 0.25, 0.75, 1]
