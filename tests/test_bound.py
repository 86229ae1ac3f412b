"""The variational bound: its terms by the textbook, its place above −log p, its limit in continuous time."""

import dataclasses
import itertools
import math

import pytest
import torch
from problems import mixture, states

import scoreflow as sf
from scoreflow import analysis
from scoreflow._core.chain import discretised_nll
from scoreflow._run.walk import FiniteCheck
from scoreflow._score.variance import Levels
from scoreflow._uses import bound

CHAIN = sf.DDPMChain.linear(T=50, beta_min=1e-3, beta_max=0.2)
PATH = sf.VPSDE.from_betas(CHAIN.beta)
DATA = sf.Gaussian(torch.tensor([0.4, -0.2]), torch.tensor([[0.5, 0.2], [0.2, 0.3]]))
MODEL = DATA.model(PATH)


@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_terms_are_the_textbooks_divergences(variance):
    """Every L_{t−1} is torch's KL between the chain's posterior and N(μ_θ, σ_t²), L_T and L_0 their closed forms, to 1e-10."""
    x_0 = DATA.sample(4, seed=0)
    found = sf.vlb(MODEL, x_0, variance=variance, decoder="gaussian", seed=3)
    noise = sf.White(3).draws("probe")
    normal, kl = torch.distributions.Normal, torch.distributions.kl_divergence
    for k, t in enumerate(range(50, 1, -1)):
        eps = noise(x_0)
        x_t = CHAIN.q_sample(x_0, t, eps)
        said = MODEL.eps(x_t, t / 50)
        q = normal(CHAIN.posterior_mean(x_t, x_0, t), CHAIN.posterior_variance[t - 1].sqrt())
        p = normal(CHAIN.mean_from_eps(x_t, said, t), CHAIN.variance(variance, t).sqrt())
        torch.testing.assert_close(found.terms[k], kl(q, p).sum(1), rtol=1e-8, atol=1e-10)
    eps = noise(x_0)
    x_1 = CHAIN.q_sample(x_0, 1, eps)
    decoder = normal(CHAIN.mean_from_eps(x_1, MODEL.eps(x_1, 1 / 50), 1), CHAIN.beta[0].sqrt())
    torch.testing.assert_close(found.decoder, -decoder.log_prob(x_0).sum(1), rtol=1e-10, atol=1e-10)
    bar = CHAIN.alpha_bar[-1]
    prior = kl(normal(bar.sqrt() * x_0, (1 - bar).sqrt()), normal(torch.zeros(()).double(), 1.0)).sum(1)
    torch.testing.assert_close(found.prior, prior, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found.value, found.prior + found.terms.sum(0) + found.decoder, rtol=1e-12, atol=1e-12)
    assert found.nfe == 50 and found.times[0] == 1 and found.times[-1] == 0 and bool(found.error.isnan().all())


def test_the_discrete_decoder_is_the_mass_of_the_bin():
    """L_0 by the normal distribution function, of the last step with the standard deviation √β_1."""
    x_0 = torch.tensor([[-1.0, -0.25], [0.5, 1.0]], dtype=torch.float64)
    found = sf.vlb(MODEL, x_0, bins=9, grid=[0.3, 0.2, 0.0], variance="beta", seed=3)
    noise = sf.White(3).draws("probe")
    noise(x_0)
    x_t = PATH.q_sample(x_0, 0.2, noise(x_0))
    law = torch.distributions.Normal(MODEL.x0(x_t, 0.2), PATH.forward(0.0, 0.2).z)
    above, below = law.cdf(x_0 + 1 / 8), law.cdf(x_0 - 1 / 8)
    above[x_0 == 1], below[x_0 == -1] = 1.0, 0.0
    torch.testing.assert_close(found.decoder, -(above - below).log().sum(1), rtol=1e-7, atol=1e-9)


def expected(model, x_0, path, times):
    """L_T + Σ L_{t−1} + L_0 with β̃ and a Gaussian decoder, expectations exact: in one dimension a mean over ε = ±1 is one over
    a normal for anything quadratic."""
    total = bound.prior_term(path, x_0, times[0])
    for t, s in itertools.pairwise(times):
        for sign in (1.0, -1.0):
            eps = torch.full_like(x_0, sign)
            total = (
                total + bound._term(model, x_0, eps, t, s, "posterior", {}, finite_check=FiniteCheck(), decoder="gaussian") / 2
            )
    return total


def marginal(path, times, v, mean):
    """−log p(x_0) of the chain of `ddpm` steps on N(mean, v) data in one dimension, its last step as wide as √β."""
    model = sf.Gaussian(torch.tensor([mean]), v)
    law = analysis.law("ddpm", path, model, grid=[*times[:-1]])
    t = times[-2]
    a, s = path.alpha(t), path.sigma(t)
    gain = a * v / (a**2 * v + s**2)
    m = mean + gain * (float(law.mean[0]) - a * mean)
    var = gain**2 * float(law.cov[0, 0]) + path.forward(0.0, t).z ** 2
    return lambda x: 0.5 * ((x[:, 0] - m) ** 2 / var + math.log(2 * math.pi * var))


@pytest.mark.parametrize("steps", [2, 10, 100])
def test_it_lies_above_the_chains_own_density(steps):
    """−log p ≤ bound for every x_0, p the exact law of the chain; for linear-Gaussian steps the gap is small and not zero."""
    path, v, mean = sf.VPSDE(), 0.4, 0.7
    model, x_0 = sf.Gaussian(torch.tensor([mean]), v).model(path), torch.linspace(-2, 3, 11, dtype=torch.float64)[:, None]
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()
    gap = expected(model, x_0, path, times) - marginal(path, times, v, mean)(x_0)
    assert bool((gap > -1e-9).all()) and bool((gap > 1e-9).any())


def test_more_steps_tend_to_the_continuous_bound():
    """The discrete sum of divergences falls to `∫ ‖ε − ε̂‖² dλ` at rate 1/N, from above."""
    path, v = sf.VPSDE(), 0.4
    model, x_0 = sf.Gaussian(torch.zeros(1), v).model(path), torch.tensor([[0.9]], dtype=torch.float64)
    high, low = 1.0, 0.05
    lam = torch.linspace(path.lam(high), path.lam(low), 20_001, dtype=torch.float64)
    t = path.time(lam)
    alpha, sigma = path.alpha(t), path.sigma(t)
    # ε̂ − ε at x_t = α x_0 + σ ε, squared and averaged over ε.
    gain = sigma / (alpha**2 * v + sigma**2)
    off = (gain * alpha * 0.9) ** 2 + (gain * sigma - 1) ** 2
    limit = float(torch.trapezoid(off, lam))
    gaps = []
    for n in (40, 80, 160):
        times = torch.linspace(high, low, n + 1, dtype=torch.float64).tolist()
        total = 0.0
        for a, b in itertools.pairwise(times):
            for sign in (1.0, -1.0):
                total += (
                    float(
                        bound._term(model, x_0, torch.full_like(x_0, sign), a, b, "posterior", {}, finite_check=FiniteCheck())
                    )
                    / 2
                )
        gaps.append(total - limit)
    assert all(g > 0 for g in gaps)
    assert 1.8 < gaps[0] / gaps[1] < 2.2 and 1.9 < gaps[1] / gaps[2] < 2.1


def test_the_continuous_bound_is_its_integral():
    """Within 4.5 standard errors of the integral by quadrature, prior and decoder as of the chain."""
    path, v = sf.VPSDE(), 0.4
    model, x_0 = sf.Gaussian(torch.zeros(1), v).model(path), torch.linspace(-1, 1, 4000, dtype=torch.float64)[:, None]
    found = sf.continuous_bound(model, x_0, points=16, repeats=16, decoder="gaussian", seed=1)
    lam = torch.linspace(path.lam(1.0), path.lam(1e-3), 2001, dtype=torch.float64)
    t = path.time(lam)
    alpha, sigma = path.alpha(t), path.sigma(t)
    gain = sigma / (alpha**2 * v + sigma**2)
    off = (gain * alpha * x_0) ** 2 + (gain * sigma - 1) ** 2
    exact = torch.trapezoid(off, lam, dim=1)
    error = float((found.diffusion - exact).std()) / 4000**0.5
    assert abs(float((found.diffusion - exact).mean())) < 4.5 * error < 0.02 * float(exact.mean())
    decoded = sum(
        bound._term(model, x_0, torch.full_like(x_0, e), 1e-3, 0.0, "beta", {}, finite_check=FiniteCheck(), decoder="gaussian")
        for e in (1.0, -1.0)
    )
    gap = found.decoder - decoded / 2
    assert abs(float(gap.mean())) < 4.5 * float(gap.std()) / 4000**0.5
    end = torch.distributions.Normal(path.alpha(1.0) * x_0, path.sigma(1.0)), torch.distributions.Normal(0.0, 1.0)
    torch.testing.assert_close(found.prior, torch.distributions.kl_divergence(*end)[:, 0], rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(found.value, found.prior + found.diffusion + found.decoder)
    assert found.terms is None and found.nfe == 16 * (16 + 1) and bool((found.error > 0).all())


def test_minus_log_p_lies_below():
    """Averages over mixture data: the exact −log p lies below both bounds, and so does the ODE's."""
    path, oracle = sf.VPSDE(), mixture(d=2)
    x_0 = oracle.sample(200, seed=5)
    nats = -oracle.log_prob(x_0)
    chain = sf.vlb(oracle.model(path), x_0, steps=100, decoder="gaussian", draws=2)
    limit = sf.continuous_bound(oracle.model(path), x_0, points=64, decoder="gaussian")
    ode = -sf.log_prob(oracle.model(path), x_0, method="rk4", steps=60, divergence="exact").value
    for found, known in itertools.product((chain, limit), (nats, ode)):
        gap = found.value - known
        assert float(gap.mean()) > -4.5 * float(gap.std()) / 200**0.5
    assert float(limit.value.mean()) < float(chain.value.mean())


def test_analytic_variances_are_better():
    """With the best step variance the bound is lower than with β̃ and β, at few steps."""
    x_0 = DATA.sample(100, seed=2)
    levels = sf.estimate_variance(MODEL, DATA.sample(2000, seed=3), by="error")
    values = {
        kind: float(sf.vlb(MODEL, x_0, steps=5, variance=kind, decoder="gaussian", draws=4, **more).value.mean())
        for kind, more in {"posterior": {}, "beta": {}, "analytic": {"levels": levels}}.items()
    }
    assert values["analytic"] < min(values["posterior"], values["beta"])


def test_with_the_analytic_variance_the_bound_is_tight():
    """On N(0, 1) data a step with the best variance is the exact reverse of the chain, so the bound is −log p(x_0) itself."""
    path, x_0 = sf.VPSDE(), torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    model, times = sf.Gaussian(torch.zeros(1), 1.0).model(path), (1.0, 0.6, 0.3, 0.0)
    levels = sf.estimate_variance(model, x_0, times[:-1])
    levels = dataclasses.replace(levels, values=tuple(path.posterior_variance(t) for t in levels.times))
    total = bound.prior_term(path, x_0, 1.0)
    for t, s in itertools.pairwise(times):
        for sign in (1.0, -1.0):
            eps = torch.full_like(x_0, sign)
            total += (
                bound._term(
                    model, x_0, eps, t, s, "analytic", {}, finite_check=FiniteCheck(), decoder="gaussian", levels=levels
                )
                / 2
            )
    torch.testing.assert_close(total, 0.5 * (x_0[:, 0] ** 2 + math.log(2 * math.pi)), rtol=1e-9, atol=1e-9)


def last_draw(x_0, n):
    """Of the n that `vlb` makes with seed 1."""
    noise = sf.White(1).draws("probe")
    return [noise(x_0) for _ in range(n)][-1]


def test_learned_variances():
    """A word of −1 is β̃, of 1 is β; "learned" takes the logarithm as it is; a network without a word is refused."""
    x_0 = DATA.sample(5, seed=0)

    def speaking(word):
        def net(x, t):
            said = MODEL.eps(x, t)
            return torch.cat([said, torch.full_like(said, word)], dim=1)

        return sf.ScoreModel(net, PATH)

    for word, kind in ((-1.0, "posterior"), (1.0, "beta")):
        a = sf.vlb(speaking(word), x_0, variance="interpolated", decoder="gaussian", seed=1)
        b = sf.vlb(MODEL, x_0, variance=kind, decoder="gaussian", seed=1)
        torch.testing.assert_close(a.terms, b.terms, rtol=1e-9, atol=1e-9)
        # At s = 0 the chain has β̃_2 for β̃_1 = 0, and a single step, which has no other, β_1.
        low = sf.vlb(speaking(word), x_0, variance="interpolated", decoder="gaussian", seed=1).decoder
        x_1 = CHAIN.q_sample(x_0, 1, last_draw(x_0, 50))
        var = CHAIN.posterior_variance[1] if word < 0 else CHAIN.beta[0]
        law = torch.distributions.Normal(CHAIN.mean_from_eps(x_1, MODEL.eps(x_1, 1 / 50), 1), var.sqrt())
        torch.testing.assert_close(low, -law.log_prob(x_0).sum(1), rtol=1e-7, atol=1e-9)
        one = [sf.vlb(m, x_0, variance=v, grid=[0.5, 0.0]) for m, v in ((speaking(word), "interpolated"), (MODEL, "beta"))]
        torch.testing.assert_close(one[0].decoder, one[1].decoder, rtol=1e-9, atol=1e-9)
    flat = sf.vlb(speaking(math.log(0.5)), x_0, variance="learned", grid=[1.0, 0.5, 0.0], decoder="gaussian", seed=1)
    x_t = PATH.q_sample(x_0, 1.0, sf.White(1).draws("probe")(x_0))
    row, normal = PATH.bridge(1.0, 0.5, 1.0), torch.distributions.Normal
    means = (row.x * x_t + row.m[0] * x for x in (x_0, MODEL.x0(x_t, 1.0)))
    q, p = (normal(mean, std) for mean, std in zip(means, (row.z, 0.5**0.5), strict=True))
    torch.testing.assert_close(flat.terms[0], torch.distributions.kl_divergence(q, p).sum(1), rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="variance='learned' needs a network with twice the channels"):
        sf.vlb(MODEL, x_0, variance="learned")


def test_bits_and_the_discrete_decoder():
    """With the discrete decoder the bound is of the levels: never below 0, and bits are nats over d log 2."""
    x_0 = (torch.randint(17, (6, 4), generator=torch.Generator().manual_seed(0)) / 8 - 1).double()
    oracle = sf.Empirical(x_0)
    found = sf.vlb(oracle.model(sf.VPSDE()), x_0, steps=20, bins=17, draws=2)
    assert bool((found.decoder >= 0).all()) and bool((found.value > 0).all())
    torch.testing.assert_close(found.bits_per_dim(), found.value / (4 * math.log(2)))
    one = discretised_nll(x_0, x_0, torch.tensor(-9.0), 17)
    assert float(one.abs().max()) < 1e-9


def test_a_bar_changes_nothing(capsys):
    """`progress` shows the steps on standard error, and the numbers are the same."""
    x_0 = DATA.sample(3, seed=0)
    calls = (
        lambda **k: sf.vlb(MODEL, x_0, steps=4, **k),
        lambda **k: sf.continuous_bound(MODEL, x_0, points=4, repeats=1, **k),
    )
    for call in calls:
        torch.testing.assert_close(call(progress=True).value, call().value, rtol=0, atol=0)
        assert "4/4" in capsys.readouterr().err


REFUSED = [
    (lambda x: sf.vlb(MODEL, x, variance="fixed"), "variance must be one of posterior, beta"),
    (lambda x: sf.vlb(MODEL, x, variance="analytic"), "analytic takes levels=estimate_variance"),
    (lambda x: sf.vlb(MODEL, x, grid=[1.0, 0.5]), "the chain must end at the data, t=0, got 0.5"),
    (lambda x: sf.vlb(mixture(d=2).model(sf.VPSDE()), x), "steps=None: VPSDE.* has no chain of its own; give steps"),
    (lambda x: sf.vlb(MODEL, x, decoder="none"), "decoder must be one of discrete, gaussian"),
    (lambda x: sf.vlb(MODEL, x, steps=10, grid=[1.0, 0.5, 0.0]), "steps=10 and explicit times in grid exclude each other"),
    (lambda x: sf.vlb(MODEL, x, bins=1), "bins must be a whole number ≥ 2, got 1"),
    (
        lambda x: sf.vlb(
            MODEL, x, variance="analytic", levels=Levels(repr(PATH), (1.0, 0.0), (0.0, 0.0), (0.0, 0.0)), grid=[1, 0]
        ),
        r"levels has variance 0 at t=1.0, and a decoder needs a width",
    ),
    (lambda x: sf.continuous_bound(MODEL, x, points=0), "points must be a whole number ≥ 1, got 0"),
    (lambda x: sf.continuous_bound(MODEL, x, start=0.3, stop=0.7), "start must lie above stop"),
    (lambda x: sf.continuous_bound(MODEL, x, stop=0.0), "stop=0.0: lambda is infinite at an end"),
    (lambda x: sf.continuous_bound(mixture(d=2).model(sf.Flow()), x, start=1.0), "start=1.0, .* lambda is infinite"),
]


def test_what_is_not_finite_is_said_with_its_place():
    """Where a network breaks down, both bounds say so, with the step or the part of the path."""
    model = sf.ScoreModel(lambda x, t: MODEL.eps(x, t) / (t > 0.3)[:, None], PATH)
    with pytest.raises(FloatingPointError, match=r"output is not finite, in step 36 \(t=0.3 → 0.28\)"):
        sf.vlb(model, DATA.sample(2, seed=0))
    with pytest.raises(FloatingPointError, match=r"output is not finite, in step .* \(t=1 → 0.02\)"):
        sf.continuous_bound(model, DATA.sample(2, seed=0), points=8)


def test_conditions_are_checked():
    for call in (sf.vlb, sf.continuous_bound):
        with pytest.raises(TypeError, match=r"'z' is neither an argument nor a condition that the network .* takes"):
            call(MODEL, DATA.sample(2, seed=0), z=1)
    x = torch.zeros(2, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"levels=None: variance='analytic' takes estimate_variance"):
        bound.step_term(PATH, x, x, x, 0.5, 0.3, "analytic")


def test_a_batch_of_none_and_of_numbers():
    """No samples give no values; states (B,) are those of (B, 1)."""
    model = sf.Gaussian(torch.zeros(1), 0.4).model(sf.VPSDE())
    flat = sf.ScoreModel(lambda x, t: model.eps(x[:, None], t)[:, 0], sf.VPSDE())
    x_0 = states(4, 1)
    for call in (lambda *a: sf.vlb(*a, steps=5), lambda *a: sf.continuous_bound(*a, points=4)):
        assert call(model, x_0[:0]).bits_per_dim().shape == (0,)
        torch.testing.assert_close(call(flat, x_0[:, 0]).bits_per_dim(), call(model, x_0).bits_per_dim())


def test_the_stated_error_is_that_of_the_value():
    """Over 4000 samples of one x_0, the spread of the value is the error that each states, to 10 %."""
    model, x_0 = sf.Gaussian(torch.zeros(1), 0.4).model(sf.VPSDE()), torch.full((4000, 1), 0.6, dtype=torch.float64)
    for found in (sf.vlb(model, x_0, steps=5, draws=4), sf.continuous_bound(model, x_0, points=4, repeats=4)):
        assert float(found.error.square().mean().sqrt() / found.value.std()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("call", "says"), REFUSED)
def test_refusals(call, says):
    with pytest.raises(ValueError, match=says):
        call(torch.zeros(2, 2, dtype=torch.float64))
