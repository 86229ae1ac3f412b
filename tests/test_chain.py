"""The theorem: μ_θ by substitution is the closed form, on every chain, at every step; numerically and in symbols."""

import mpmath
import numpy as np
import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import states

import scoreflow as sf


@st.composite
def betas(draw, longest=4000):
    """T from 2 to 4000, β from 1e-8 to 0.999 in random order, rising, or constant; cut where ᾱ falls under 1e-300."""
    T = draw(st.integers(2, longest))
    low, high = sorted(draw(st.tuples(st.floats(-8, -0.0005), st.floats(-8, -0.0005))))
    exponents = np.random.default_rng(draw(st.integers(0, 2**32))).uniform(low, high, T)
    kind = draw(st.sampled_from(["random", "rising", "constant"]))
    beta = np.clip(
        10 ** (np.sort(exponents) if kind == "rising" else exponents if kind == "random" else exponents[:1].repeat(T)),
        1e-8,
        0.999,
    )
    keep = np.cumsum(np.log1p(-beta)) > np.log(1e-300)
    return beta[keep] if keep.sum() >= 2 else np.array([beta[0], 0.5])


@given(betas(), st.integers(0, 2**32), st.lists(st.integers(1, 3), max_size=2), st.floats(-3, 3))
def test_substitution_is_the_closed_form(beta, seed, shape, scale):
    """|difference| ≤ 1e-12 of the largest term, entry by entry, for all t at once."""
    chain = sf.DDPMChain(beta)
    t = torch.arange(1, chain.T + 1)
    g = torch.Generator().manual_seed(seed)
    x_t, eps = (torch.randn(chain.T, *shape, generator=g, dtype=torch.float64) for _ in range(2))
    x_t = x_t * 10**scale
    by_substitution, closed = chain.mean_by_substitution(x_t, eps, t), chain.mean_from_eps(x_t, eps, t)
    on_x, on_eps = chain.mean_from_eps(torch.ones_like(eps), 0 * eps, t), chain.mean_from_eps(0 * eps, torch.ones_like(eps), t)
    largest = torch.maximum((on_x * x_t).abs(), (on_eps * eps).abs())
    assert bool(((by_substitution - closed).abs() <= 1e-12 * largest).all())


def test_alpha_bar_may_fall_to_1e_300():
    """The chain that the strategy seldom reaches: 100 steps of β = 0.999 and 4000 of 0.15."""
    for beta in (np.full(100, 0.999), np.full(4000, 0.1585)):
        chain = sf.DDPMChain(beta)
        assert 1e-302 < chain.alpha_bar[-1] < 1e-298
        t, x, eps = torch.arange(1, chain.T + 1), states(chain.T, 2), states(chain.T, 2, seed=1)
        difference = chain.mean_by_substitution(x, eps, t) - chain.mean_from_eps(x, eps, t)
        scale = (1 - chain.beta).rsqrt()[:, None] * torch.maximum(x.abs(), eps.abs())
        assert float((difference.abs() / scale).max()) < 1e-12


def test_symbolic_reduction():
    """The same reduction in symbols: ᾱ_t = α_t ᾱ_{t−1}, β_t = 1 − α_t, nothing else."""
    alpha, before = sympy.symbols("alpha_t alphabar_tm1", positive=True)
    x_t, eps = sympy.symbols("x_t epsilon", real=True)
    beta, bar = 1 - alpha, alpha * before
    x_0 = (x_t - sympy.sqrt(1 - bar) * eps) / sympy.sqrt(bar)
    posterior_mean = sympy.sqrt(before) * beta / (1 - bar) * x_0 + sympy.sqrt(alpha) * (1 - before) / (1 - bar) * x_t
    closed = (x_t - beta / sympy.sqrt(1 - bar) * eps) / sympy.sqrt(alpha)
    assert sympy.simplify(posterior_mean - closed) == 0
    assert sympy.simplify(posterior_mean - closed.subs(eps, 2 * eps)) != 0


def test_symbolic_posterior():
    """Bayes: the product of q(x_t|x_{t−1}) and q(x_{t−1}|x_0) has Ho's mean and variance in x_{t−1}."""
    alpha, before = sympy.symbols("alpha_t alphabar_tm1", positive=True)
    x_0, x_t, y = sympy.symbols("x_0 x_t x_tm1", real=True)
    exponent = (x_t - sympy.sqrt(alpha) * y) ** 2 / (1 - alpha) + (y - sympy.sqrt(before) * x_0) ** 2 / (1 - before)
    a, b = (sympy.Poly(sympy.expand(exponent), y).coeff_monomial(y**k) for k in (2, 1))
    bar = alpha * before
    mean = sympy.sqrt(before) * (1 - alpha) / (1 - bar) * x_0 + sympy.sqrt(alpha) * (1 - before) / (1 - bar) * x_t
    assert sympy.simplify(1 / a - (1 - alpha) * (1 - before) / (1 - bar)) == 0
    assert sympy.simplify(-b / (2 * a) - mean) == 0


def test_symbolic_bridge_is_ho():
    """The path's bridge with η = 1, in symbols, has the chain's posterior mean and variance."""
    alpha, before = sympy.symbols("alpha_t alphabar_tm1", positive=True)
    bar = alpha * before
    lost = 1 - (bar / (1 - bar)) / (before / (1 - before))  # 1 − e^{−2h}
    std = sympy.sqrt(1 - before) * sympy.sqrt(lost)
    x = sympy.sqrt(1 - before - std**2) / sympy.sqrt(1 - bar)
    m = sympy.sqrt(before) - x * sympy.sqrt(bar)
    assert sympy.simplify(std**2 - (1 - alpha) * (1 - before) / (1 - bar)) == 0
    square = sympy.simplify(x**2 - alpha * (1 - before) ** 2 / (1 - bar) ** 2)
    assert square == 0
    m = m.subs(x, sympy.sqrt(alpha) * (1 - before) / (1 - bar))
    rational = {alpha: sympy.Rational(3, 7), before: sympy.Rational(2, 5)}
    assert sympy.simplify((m - sympy.sqrt(before) * (1 - alpha) / (1 - bar)).subs(rational)) == 0


@given(betas(longest=300))
def test_tables_against_fifty_digits(beta):
    """α, ᾱ, β̃ and the variances against arithmetic with 50 digits; the first posterior variance is 0."""
    mpmath.mp.dps = 50
    chain, bar = sf.DDPMChain(beta), mpmath.mpf(1)
    for i, b in enumerate(beta):
        before, bar = bar, bar * (1 - mpmath.mpf(float(b)))
        tilde = mpmath.mpf(float(b)) * (1 - before) / (1 - bar)
        # log ᾱ is kept to the last digit of float64: ᾱ itself to |log ᾱ| of them.
        assert abs(chain.alpha_bar[i].item() / bar - 1) < 1e-15 * (2 + abs(mpmath.log(bar)))
        assert chain.posterior_variance[i].item() == pytest.approx(float(tilde), rel=1e-13)
    assert chain.posterior_variance[0] == 0 and chain.T == len(beta) == len(chain)


def test_q_sample_is_the_marginal():
    """ᾱ weighs signal and noise: the two coefficients are √ᾱ and √(1−ᾱ), one t a sample or one for all."""
    chain = sf.DDPMChain.linear()
    t = torch.tensor([1, 400, 1000])
    one, zero = torch.ones(3, 1, 2, 2, dtype=torch.float64), torch.zeros(3, 1, 2, 2, dtype=torch.float64)
    bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[t - 1]
    torch.testing.assert_close(chain.q_sample(one, t, zero)[:, 0, 0, 0], bar.sqrt(), rtol=1e-12, atol=0)
    torch.testing.assert_close(chain.q_sample(zero, t, one)[:, 0, 0, 0], (1 - bar).sqrt(), rtol=1e-12, atol=0)
    torch.testing.assert_close(chain.q_sample(one, 400, zero)[0], chain.q_sample(one, t, zero)[1])
    assert chain.q_sample(one.bfloat16(), t, zero.bfloat16()).dtype is torch.bfloat16


def test_whole_numbers_are_no_states():
    """A coefficient cast to them would be 0; steps of any integer type are steps."""
    chain, eps = sf.DDPMChain.linear(), torch.zeros(2, 3)
    with pytest.raises(TypeError, match=r"states must be floating-point, got torch.int64"):
        chain.q_sample(torch.full((2, 3), 7), 10, eps)
    t = torch.tensor([1, 200])
    assert torch.equal(chain.q_sample(eps + 1, t.to(torch.uint8), eps), chain.q_sample(eps + 1, t, eps))


def test_variances():
    """β, β̃, exp(v log β + (1−v) log β̃) and the learned diagonal."""
    chain, t = sf.DDPMChain.linear(), torch.tensor([2, 500, 1000])
    beta, tilde = chain.beta[t - 1], chain.posterior_variance[t - 1]
    assert torch.equal(chain.variance("beta", t), beta) and torch.equal(chain.variance("posterior", t), tilde)
    v = torch.tensor([[0.0], [0.25], [1.0]])
    between = chain.variance("interpolated", t, v)
    torch.testing.assert_close(between[:, 0], beta ** v[:, 0].double() * tilde ** (1 - v[:, 0].double()), rtol=1e-13, atol=0)
    torch.testing.assert_close(chain.variance("learned", 7, v), v.double().exp(), rtol=1e-15, atol=0)
    # At t = 1 the authors' code puts β̃_2 for β̃_1 = 0.
    first = chain.variance("interpolated", 1, 0.5)
    assert float(first) == pytest.approx(float(chain.beta[0] * chain.posterior_variance[1]) ** 0.5, rel=1e-13)


@pytest.mark.parametrize(
    ("chain", "beta_1", "beta_T"),
    [
        (sf.DDPMChain.linear(), 1e-4, 0.02),
        (sf.DDPMChain.scaled_linear(), 0.00085, 0.012),
        (
            sf.DDPMChain.cosine(),
            1 - (np.cos((0.001 + 0.008) / 1.008 * np.pi / 2) / np.cos(0.008 / 1.008 * np.pi / 2)) ** 2,
            0.999,
        ),
    ],
    ids=["linear", "scaled linear", "cosine"],
)
def test_named_chains(chain, beta_1, beta_T):
    """Their ends, as published; β rises."""
    assert chain.T == 1000
    assert float(chain.beta[0]) == pytest.approx(beta_1, rel=1e-10)
    assert float(chain.beta[-1]) == pytest.approx(beta_T, rel=1e-10)
    assert bool((chain.beta.diff() >= 0).all())
