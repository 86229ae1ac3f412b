"""Exact laws of posterior methods on Gaussian data: no samples are drawn, but to check the laws."""

import math

import pytest
import torch
from problems import PATHS

import scoreflow as sf
from scoreflow.posterior import METHODS, Observation, Posterior

PATH, D = PATHS["vp"], 4


def numbers(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def data(event=(D,)):
    root = numbers(D, D, seed=0)
    return sf.Gaussian(numbers(D, seed=1).reshape(event), root @ root.mT / D + 0.05 * torch.eye(D, dtype=torch.float64))


SEEN = Observation(numbers(2, D, seed=3), numbers(2, seed=4), 0.1)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("sampler", ["ddpm", "dpm-solver++-2m", "edm", "seeds", "unipc", "edm-churn"])
def test_the_full_solve_has_the_law_of_the_exact_posterior(sampler, path):
    """Moment matching: at any number of steps, noise of stages and multistep memory included."""
    path, start = PATHS[path], {} if PATHS[path].alpha(1.0) else {"start": 0.98}
    ours = sf.analysis.law(sampler, path, Posterior(data().model(path), SEEN, iterations=None, rtol=1e-13), 5, **start)
    exact = sf.analysis.law(sampler, path, data().posterior(SEEN), 5, **start)
    torch.testing.assert_close(ours.mean, exact.mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.cov, exact.cov, rtol=1e-9, atol=1e-9)
    assert ours.w2 == pytest.approx(exact.w2, rel=1e-6) and ours.kl == pytest.approx(exact.kl, rel=1e-6, abs=1e-9)


LINEAR = [name for name in METHODS if name not in ("dps", "mcg")]


@pytest.mark.parametrize("method", LINEAR)
def test_laws_are_those_of_samples(method):
    """Of 40 000 samples the mean and covariance are within 5 standard errors: each of 20 figures is off once in 10⁶ seeds."""
    sampler, options = "ddim" if method == "ddrm" else "ddpm", {"iterations": None} if method == "mmps" else {}
    model, n = Posterior(data((2, 2)).model(PATH), SEEN, method, **options), 40_000
    law = sf.analysis.law(sampler, PATH, model, 6)
    x = sf.sample(model, (n, 2, 2), sampler, steps=6, seed=0, dtype=torch.float64).flatten(1)
    var = law.cov.diagonal()
    assert ((x.mean(0) - law.mean).abs() < 5 * (var / n).sqrt()).all()
    error = ((var[:, None] * var + law.cov**2) / n).sqrt()
    assert ((x.mT.cov() - law.cov).abs() < 5 * error).all()


def test_w2_between_gaussians_that_do_not_commute():
    """By the textbook's formula, `|μ − μ'|² + tr(C + C' − 2 (C'^{1/2} C C'^{1/2})^{1/2})`."""
    law = sf.analysis.law("ddpm", PATH, Posterior(data().model(PATH), SEEN, "diffpir"), 8)

    def root(cov):
        var, vectors = torch.linalg.eigh(cov)
        return (vectors * var.clamp(min=0).sqrt()) @ vectors.mT

    C, other = law.cov, law.target.cov
    cross = root(root(other) @ C @ root(other))
    far = (law.mean - law.target.mean).square().sum() + (C + other - 2 * cross).trace()
    assert (C @ other - other @ C).norm() > 1e-3
    assert law.w2 == pytest.approx(float(far.sqrt()), rel=1e-8)


@pytest.mark.parametrize("a", [0.3, 0.7, 0.95])
def test_noise_in_proportion_to_the_level_does_not_lead_to_the_posterior(a):
    """With c = q σ_s at every step the variance tends to (1 + √(1−q²))/2 of the truth, for any posterior: the mean is right.

    A step holds `V = ((α²v + √(1−q²) σ²)/P)² V + q² σ²`, P = α²v + σ², so that V/P → (1 + √(1−q²))/2 as σ²/P → 0.
    """
    limit = (1 + math.cos(a * math.pi / 2)) / 2
    model = Posterior(data().model(PATH), SEEN, "jfps", cov=data().cov, rtol=1e-12)
    off = []
    for steps in (50, 200, 800):
        law = sf.analysis.law("cps", PATH, model, steps, a=a, grid="logsnr", start=0.999, stop=1e-4)
        ratio = torch.linalg.solve(law.target.cov + 1e-8 * torch.eye(D), law.cov).diagonal().mean()
        off.append((float((law.mean - law.target.mean).norm()), abs(float(ratio) - limit)))
    assert off[2][0] < 0.02 and off[2][1] < 0.02 and off[2][1] < off[1][1] < off[0][1]
    right = sf.analysis.law("ddim", PATH, model, 800, eta=1.0)
    assert (right.cov - right.target.cov).norm() < 0.02 * right.target.cov.norm()


def test_refusals():
    for method, options in (("dps", {}), ("mmps", {"iterations": 1})):
        with pytest.raises(ValueError, match="is not affine in the state, so that its samples are not Gaussian"):
            sf.analysis.law("ddpm", PATH, Posterior(data().model(PATH), SEEN, method, **options), 4)
    mixture = sf.GaussianMixture(torch.ones(2), torch.tensor([[0.0], [1.0]]), 0.1).model(PATH)
    with pytest.raises(ValueError, match="gaussian must be a Gaussian, or a Posterior of a Gaussian's model"):
        sf.analysis.law("ddpm", PATH, Posterior(mixture, Observation(torch.ones(1, 1), torch.ones(1), 0.1)), 4)
    with pytest.raises(ValueError, match=r"the plan was made for .*, and the model stands on"):
        sf.analysis.law("ddpm", PATHS["ve"], Posterior(data().model(PATH), SEEN), 4)
