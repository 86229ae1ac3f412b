"""Measurements that are drawn, given anew, and how likely they are."""

import math

import pytest
import torch
from problems import states

import scoreflow as sf

VP, D, M = sf.VPSDE(), 4, 2


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


ROOT = 0.3 * numbers(M, M, seed=5)
A, Y = numbers(M, D, seed=3), numbers(M, seed=4)
SEEN = {
    "matrix": sf.Observation(A, Y, 0.1),
    "mask": sf.Observation(torch.tensor([True, False, True, False]), Y, torch.tensor([0.1, 0.3])),
    "callable": sf.Observation(lambda x: x[:, 1:3] + x[:, :1], Y, 0.2),
    "correlated": sf.Observation(A, Y, ROOT @ ROOT.mT),
    "exact": sf.Observation(A, Y),
    "singular": sf.Observation(A, Y, torch.ones(2, 2) * 0.04),
}


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", SEEN)
def test_draws_have_the_noise(name):
    """Of one state 20 000 times: mean A x and covariance Σ_y. Beyond 5 standard errors by chance in 1 of 100 000."""
    seen, n = SEEN[name], 20_000
    x = numbers(1, D, seed=6).expand(n, D)
    off = seen.draw(x, draws()) - seen.measure(x[:1])
    noise = seen.covariance(M)
    var = noise.diagonal()
    assert bool((off.mean(0).abs() <= 5 * (var / n).sqrt() + 1e-12).all())
    spread = ((var[:, None] * var[None] + noise**2) / n).sqrt()
    assert bool(((off.mT @ off / n - noise).abs() <= 5 * spread + 1e-12).all())


def test_draws_are_the_generators_and_of_the_shape_that_is_measured():
    images = states(3, 1, 4, 4, seed=1)
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[:, 1:3, 1:3] = True
    for kind, shape in ((sf.posterior.downsample(2), (1, 2, 2)), (mask, (4,)), (torch.eye(16)[:5], (5,))):
        seen = sf.Observation(kind, torch.zeros(shape), 0.1)
        y = seen.draw(images, draws(1))
        assert y.shape == (3, *shape) and torch.equal(y, seen.draw(images, draws(1)))
        assert not torch.equal(y, seen.draw(images, draws(2)))
        assert seen.draw(images.float(), draws(1)).dtype == torch.float32
        assert torch.equal(seen.given(y).values(images), y.flatten(1))  # one a sample
    torch.testing.assert_close(SEEN["exact"].draw(states(3, D), draws()), states(3, D) @ A.mT)


def test_given_is_another():
    seen = SEEN["matrix"]
    other = seen.given(Y + 1)
    assert torch.equal(seen.y, Y) and torch.equal(other.y, Y + 1) and other.A is seen.A and other.noise is seen.noise
    with pytest.raises(TypeError, match=r"y must be a floating-point tensor that is not empty, got torch\.int64"):
        seen.given(torch.ones(2).long())
    with pytest.raises(ValueError, match="y must be finite, and 1 of its 2 numbers are not"):
        seen.given(torch.tensor([1.0, math.nan]))


@pytest.mark.parametrize("name", ["matrix", "mask", "callable", "correlated"])
def test_log_likelihood_is_torchs(name):
    seen, x = SEEN[name], states(6, D, seed=2)
    normal = torch.distributions.MultivariateNormal(seen.measure(x), seen.covariance(M))
    torch.testing.assert_close(seen.log_likelihood(x), normal.log_prob(Y), rtol=1e-9, atol=1e-9)
    each = seen.given(numbers(6, M, seed=8))
    torch.testing.assert_close(each.log_likelihood(x), normal.log_prob(each.y), rtol=1e-9, atol=1e-9)
    assert seen.log_likelihood(x.float()).dtype == torch.float64


def test_without_noise_there_is_no_likelihood():
    for name in ("exact", "singular"):
        with pytest.raises(ValueError, match="has no noise in some direction, and so no density given x_0: give noise > 0"):
            SEEN[name].log_likelihood(states(2, D))


def test_a_covariance_of_one_number():
    """(1, 1) is a variance, as (m, m) is; a number and (1,) are standard deviations."""
    x = states(5, D)
    for noise, var in ((0.2, 0.04), (torch.tensor([0.2]), 0.04), (torch.tensor([[0.2]]), 0.2)):
        assert float(sf.Observation(A[:1], Y[:1], noise).covariance(1)) == pytest.approx(var, rel=1e-6)
    with pytest.raises(ValueError, match=r"noise must be a covariance ≥ 0 in all directions, got the eigenvalue -1"):
        sf.Observation(A, Y, torch.tensor([[0.0, 1.0], [1.0, 0.0]])).draw(x, draws())


def test_a_posterior_of_another_observation():
    """The same method and options; they count together, and say in text what they see."""
    data = sf.Gaussian(numbers(D, seed=1), 0.5)
    first = sf.Posterior(data.model(VP), SEEN["matrix"], "mmps", iterations=None)
    second = first.seeing(SEEN["matrix"].given(Y + 1))
    x = states(3, D, seed=9)
    exact = data.posterior(SEEN["matrix"].given(Y + 1)).model(VP)
    torch.testing.assert_close(second.x0(x, 0.5), exact.x0(x, 0.5), rtol=1e-7, atol=1e-8)
    assert first.backward == second.backward > 0 and first.observation is SEEN["matrix"]
    assert second.options["observation"] is second.observation and second.kind == first.kind


def test_a_posterior_of_data_needs_one_measurement():
    data = sf.Empirical(states(6, D))
    with pytest.raises(ValueError, match=r"y must be \(2,\), or 1 of these"):
        data.posterior(SEEN["matrix"].given(numbers(3, M)))
