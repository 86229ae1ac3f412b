"""Sequential Monte Carlo: against the exact laws of the steps that it takes, which tend to the posterior and the evidence."""

import itertools
import math

import pytest
import torch
from problems import PATHS

import scoreflow as sf
from scoreflow._uses.smc import systematic

PATH, D = PATHS["vp"], 4


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def data():
    root = numbers(D, D)
    return sf.Gaussian(numbers(D, seed=1), root @ root.mT / D + 0.05 * torch.eye(D, dtype=torch.float64))


A = numbers(2, D, seed=3)
SEEN = sf.Observation(A, data().mean @ A.mT + 0.4, 0.3)
TWISTS = {"mmps": {}, "pigdm": {"v": 0.7}, "jfps": {"cov": 0.8}, "diffpir": {"weight": 4.0}}


def of_steps(sampler, n, path=PATH, **options):
    """The exact law of n steps, as data: what SMC tends to is its posterior and its evidence."""
    law = sf.analysis.law(sampler, path, data(), n, **options)
    return sf.Gaussian(law.mean, (law.cov + law.cov.mT) / 2)


@pytest.mark.parametrize("sampler, options", [("ddpm", {}), ("ddim", {"eta": 0.6}), ("reverse-sde", {"method": "euler"})])
@pytest.mark.parametrize("twist", TWISTS)
def test_evidence_and_posterior_of_the_steps(twist, sampler, options):
    """Of 300 groups the mean of Ẑ/Z is 1, within 4.5 of its standard errors; and so are the weighted means of x_0, Z-weighted.

    Both are without bias at any number of particles; a wrong alarm in one of 10⁵ seeds for each of five figures.
    """
    truth = of_steps(sampler, 12, **options)
    found = sf.smc(
        data().model(PATH), SEEN, (300, D), 16, sampler, steps=12, twist=twist, twist_options=TWISTS[twist], seed=0, **options
    )
    ratio = (found.log_evidence - truth.evidence(SEEN)).exp()
    assert abs(float(ratio.mean()) - 1) < 4.5 * float(ratio.std()) / math.sqrt(300)
    assert float(ratio.std()) / math.sqrt(300) < 0.12
    off = ratio[:, None] * (found.mean - truth.posterior(SEEN).mean)
    assert (off.mean(0).abs() < 4.5 * off.std(0) / math.sqrt(300)).all()


def test_the_evidence_of_the_steps_tends_to_the_datas_at_order_1():
    exact = data().evidence(SEEN)
    off = [abs(of_steps("ddpm", n, grid="logsnr").evidence(SEEN) - exact) for n in (100, 200, 400, 800)]
    ratios = [a / b for a, b in itertools.pairwise(off)]
    assert all(1.7 < ratio < 2.3 for ratio in ratios)


@pytest.mark.parametrize("path", ["ve", "cosine", "flow"])
def test_other_paths(path):
    start = 1.0 if PATHS[path].alpha(1.0) else 0.98
    truth = of_steps("ddpm", 12, PATHS[path], start=start)
    found = sf.smc(data().model(PATHS[path]), SEEN, (300, D), 16, steps=12, start=start, seed=1)
    ratio = (found.log_evidence - truth.evidence(SEEN)).exp()
    assert abs(float(ratio.mean()) - 1) < 4.5 * float(ratio.std()) / math.sqrt(300) < 0.6


def test_its_error_is_the_spread_of_groups():
    """Root mean square of the errors that 400 groups state, beside their standard deviation: within a fifth of it."""
    found = sf.smc(data().model(PATH), SEEN, (400, D), 64, steps=20, twist="diffpir", seed=2)
    assert bool((found.resampled > 0).all())
    stated = float(found.log_evidence_error.square().mean().sqrt())
    assert 0.8 < stated / float(found.log_evidence.std()) < 1.25


def test_weights_of_modes():
    """Where moment matching gets them wrong; 4 groups of 1000, within 5 standard errors of the effective number."""
    means = torch.tensor([[0.0, 0.0], [0.0, 2.0], [1.0, -2.0]])
    mixture = sf.GaussianMixture(torch.tensor([0.6, 0.3, 0.1]), means, 0.05)
    seen = sf.Observation(torch.tensor([[1.0, 0.0]]), torch.tensor([0.3]), 0.3)
    truth, n = mixture.posterior(seen), 4000
    found = sf.smc(mixture.model(PATH), seen, (4, 2), 1000, steps=100, seed=0, dtype=torch.float64)
    mode = truth.mode(found.x.flatten(0, 1)).reshape(4, -1)
    alone = sf.sample(sf.Posterior(mixture.model(PATH), seen), (n, 2), "ddpm", steps=100, seed=0, dtype=torch.float64)
    shares = torch.bincount(truth.mode(alone), minlength=3) / n
    off = 0.0
    for k, weight in enumerate(truth.weights):
        share = float((found.weights * (mode == k)).sum(1).mean())
        assert abs(share - float(weight)) < 5 * math.sqrt(float(weight * (1 - weight) / found.ess[-1].sum()))
        off += abs(float(shares[k] - weight)) / 2
    assert off > 0.04  # total variation, where chance makes 0.01


def test_a_group_is_its_own():
    """Its seed, y and condition; whatever the batch. The same seed, the same result."""
    torch.manual_seed(0)
    weight = torch.randn(3, 3, dtype=torch.float64)
    model = sf.ScoreModel(lambda x, t, y: torch.tanh(x @ weight + y[:, None]), PATH, "x0")
    y, seeds, told = numbers(4, 2, seed=5), [3, 1, 4, 1], torch.tensor([0.1, 0.5, -0.3, 0.5], dtype=torch.float64)
    mask = torch.tensor([True, False, True])

    def run(groups, **more):
        seen = sf.Observation(mask, y[groups], 0.3)
        more |= {"seed": [seeds[i] for i in groups], "y": sf.each(told[groups])}
        return sf.smc(model, seen, (len(groups), 3), 8, steps=6, dtype=torch.float64, **more)

    whole = run([0, 1, 2, 3])
    for more in ({}, {"batch": 5}):
        again = run([0, 1, 2, 3], **more)
        torch.testing.assert_close(again.x, whole.x, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(again.log_weights, whole.log_weights, rtol=1e-9, atol=1e-9)
    for i in range(4):
        alone = run([i])
        torch.testing.assert_close(alone.x[0], whole.x[i], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(alone.log_evidence[0], whole.log_evidence[i])
    assert whole.nfe == 6 and whole.backward == 6 * 3 and run([0, 1, 2, 3], batch=5).backward == 6 * 3 * 7
    assert not torch.allclose(whole.x[1], whole.x[3])
    torch.testing.assert_close(whole.weights.sum(1), torch.ones(4, dtype=torch.float64))
    assert whole.ess.shape == (7, 4) and "wu2023tds" in whole.citations and "4 × 8 of (3,)" in repr(whole)


def test_systematic_resampling():
    """A particle of weight w is kept ⌊K w⌋ or ⌈K w⌉ times, K w on average over u; one of weight 0 never."""
    weights = torch.tensor([[0.5, 0.0, 0.31, 0.19], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)
    counts = []
    for u in torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1] + 0.0005:
        kept = systematic(weights, u.repeat(2))
        counts.append(torch.stack([torch.bincount(row, minlength=4) for row in kept]))
        assert ((counts[-1] - 4 * weights).abs() < 1).all()
    torch.testing.assert_close(torch.stack(counts).double().mean(0), 4 * weights, rtol=1e-2, atol=1e-2)
    assert systematic(weights, torch.tensor([0.3, 0.3]), 10).shape == (2, 10)


def test_draws_with_equal_weights():
    found = sf.smc(data().model(PATH), SEEN, (2, D), 400, steps=20, seed=0)
    x = found.draw(2000, seed=1)
    assert x.shape == (2, 2000, D) and torch.equal(x, found.draw(2000, seed=1))
    assert (x.mean(1) - found.mean).abs().max() < 0.01  # systematic: nearly the weighted mean itself
    torch.testing.assert_close(x.std(1), found.std, rtol=0.02, atol=0.02)
    assert not torch.equal(x[:, :-1], x[:, 1:])


def test_networks():
    """Float32, guided, without a graph; and images whose noise differs from pixel to pixel."""
    model = sf.zoo.digits()
    guided = sf.ClassifierFree(model, 2.0)
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, :1, :3] = True
    seen = sf.Observation(mask, torch.full((3,), -1.0), torch.tensor([0.1, 0.2, 0.3]))
    with torch.inference_mode():
        found = sf.smc(guided, seen, (2, 1, 8, 8), 4, steps=3, seed=0, y=torch.tensor([3, 8]))
    assert found.x.shape == (2, 4, 1, 8, 8) and found.x.dtype == torch.float32 and found.log_evidence.isfinite().all()


def test_refusals():
    model = data().model(PATH)
    for call, match in [
        (lambda: sf.smc(model, SEEN, (1, D), twist="ddnm"), "twist must be a method with a V, mmps, .*, got 'ddnm'"),
        (lambda: sf.smc(model, SEEN, (1, D), twist="mmp"), "method must be one of .*, got 'mmp'"),
        (lambda: sf.smc(model, SEEN, (1, D), sampler="ddim", steps=3), "smc needs a sampler with noise, and ddim.* draws none"),
        (lambda: sf.smc(model, SEEN, (1, D), sampler="heun", steps=3), "smc stands on steps of one evaluation and one row"),
        (lambda: sf.smc(model, SEEN, (1, D), sampler="repaint", steps=3), "smc goes down, an evaluation a step, and repaint"),
        (lambda: sf.smc(model, SEEN, (1, D), grid=[1.0, 0.5, 0.1]), r"smc weighs data, and this run ends at t=0\.1"),
        (
            lambda: sf.smc(model, sf.Observation(A, SEEN.y), (1, D), steps=3),
            "has no noise in some direction",
        ),
        (lambda: sf.smc(model, SEEN, (1, D), particles=1), "particles must be a whole number ≥ 2, got 1"),
        (lambda: sf.smc(model, SEEN, (1, D), threshold=2.0), "threshold must be .*, got 2.0"),
        (lambda: sf.smc(model, SEEN, (2, D), seed=[1]), "seed has 1 entries for a batch of 2"),
    ]:
        with pytest.raises(ValueError, match=match):
            call()
    for other in (sf.APG(sf.ScoreModel(lambda x, t, y: x, PATH), 2.0, null={"y": 0}, momentum=0.5), data().flow_map(PATH)):
        with pytest.raises(ValueError, match=r"depends on the run|give flow_map\.score_model"):
            sf.smc(other, SEEN, (1, D), steps=3, **({"y": torch.ones(1)} if other.oracle is None else {}))
    told = sf.ScoreModel(lambda x, t, y: 0 * x * y.sum(), PATH, "x0")
    with pytest.raises(ValueError, match=r"conditions: say which belong to groups .* sf\.each and sf\.shared"):
        sf.smc(told, SEEN, (2, D), steps=3, y=torch.zeros(2))
