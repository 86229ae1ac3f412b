"""Rows without a network: the invariants of every registered sampler on every path, and DDPM row by row."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import PATHS, ROWS, linear
from test_chain import betas

import scoreflow as sf
from scoreflow._core.gaussian import PREDICTIONS
from scoreflow._core.row import Row
from scoreflow._samplers.ancestral import ddpm_row
from scoreflow._samplers.plan import Stage

CASES = [pytest.param(case, path, id=f"{case}-{name}") for case in ROWS for name, path in PATHS.items()]
EVERY = pytest.mark.parametrize(("case", "path"), CASES)
MEAN = pytest.mark.parametrize(
    ("case", "path"), [c for c in CASES if linear(c.values[0]).marginal or c.values[0].startswith("ddpm")]
)
OTHER = pytest.mark.parametrize(("case", "path"), [c for c in CASES if not linear(c.values[0]).marginal])


def effect(case, path, t, s):
    """What one step does when x̂_0 stays put: the weights of (x_t, x_0) and the noise's variance in x_s.

    The step's rows are run on symbols (x_t, x_0, ε_1, …); the network answers with the true x_0 in the prediction wanted.
    """
    sampler = linear(case)
    (step,) = sampler.plan(path, (t, s)).steps
    x_t, x_0, *eps = torch.eye(3 + len(step.draws), dtype=torch.float64)

    def speak(x, u):
        weight, m = path.convert("x0", sampler.prediction, u)
        return weight * x + m * x_0

    outputs = [speak(x_t, t)]
    for u, row in step.stages[:-1]:
        outputs.insert(0, speak(row(x_t, outputs, eps.__getitem__), u))
    x_s = step.stages[-1].row(x_t, outputs, eps.__getitem__)
    return x_s[0].item(), x_s[1].item(), x_s[2:].square().sum().item()


def rounding(case, path, t, s):
    """How much of the weight of x_t in x_s rounding may take.

    Every sum is good to 1e-15 of its terms, as coefficients are, and every word passes on what its state has lost. In ε a
    word is its state over σ_u, so a long step with a stage near s magnifies by (κ_t/κ_s)².
    """
    sampler = linear(case)
    (step,) = sampler.plan(path, (t, s)).steps
    size, lost, words = 1.0, 0.0, []
    for u, row in (Stage(t, Row(1.0)), *step.stages):
        if words:
            size = abs(row.x) + sum(abs(m) * word for m, (word, _) in zip(row.m, words, strict=True))
            lost = size * 1e-15 + sum(abs(m) * gone for m, (_, gone) in zip(row.m, words, strict=True))
        weight = abs(path.convert("x0", sampler.prediction, u)[0])
        words.insert(0, (weight * size, weight * (lost + size * 1e-15)))
    return lost


@MEAN
@settings(max_examples=20)
@given(t=st.floats(0.02, 0.98), ratio=st.floats(0.05, 0.98))
def test_exact_rows_carry_the_marginal(case, path, t, ratio):
    """x·α_t + Σm = α_s and x²σ_t² + z² = σ_s², for rows that say so; the mean for all of the ddpm family."""
    sampler, s = linear(case), t * ratio
    x, m, var = effect(case, path, t, s)
    lost = rounding(case, path, t, s)
    assert x * path.alpha(t) + m == pytest.approx(path.alpha(s), rel=1e-11, abs=path.alpha(t) * lost)
    if sampler.marginal:
        gone = 2 * path.sigma(t) * path.sigma(s) * lost
        assert (x * path.sigma(t)) ** 2 + var == pytest.approx(path.sigma(s) ** 2, rel=1e-10, abs=gone)


@MEAN
def test_every_row_of_a_run_keeps_the_invariants(case, path):
    """With all they remember and all their stages: x0 rows have x α_t + Σm = α_u and x² σ_t² + z² = σ_u², ε rows
    x α_t = α_u and (x σ_t + Σm)² + z² = σ_u²; without a network."""
    sampler = linear(case)
    for step in sampler.plan(path, (0.95, 0.8, 0.6, 0.45, 0.3, 0.1, 0.02)).steps:
        for u, row in step.stages:
            x, m, (alpha, sigma) = row.x, sum(row.m), (path.alpha(step.t), path.sigma(step.t))
            size = sum(map(abs, row.m))
            if sampler.prediction == "x0":
                assert x * alpha + m == pytest.approx(path.alpha(u), rel=1e-11, abs=1e-13 * size)
                if sampler.marginal:
                    assert (x * sigma) ** 2 + sum(z**2 for _, z in row.draws) == pytest.approx(path.sigma(u) ** 2, rel=1e-10)
            else:
                assert sampler.prediction == "eps"
                assert x * alpha == pytest.approx(path.alpha(u), rel=1e-11)
                std = math.hypot(x * sigma + m, *(z for _, z in row.draws))
                assert std == pytest.approx(path.sigma(u), rel=1e-10, abs=1e-13 * size)


@OTHER
@pytest.mark.parametrize("t", [0.3, 0.8])
def test_other_rows_miss_the_marginal_by_their_order(case, path, t):
    """For the rest the mean is missed by O(h^{p+1}) and the variance by at least O(h²), by halving h."""
    sampler = linear(case)
    defects = []
    for k in range(3):
        s = t - 0.0009 / 2**k  # within one cell of the chain, where its path is smooth
        x, m, var = effect(case, path, t, s)
        mean = abs(x * path.alpha(t) + m - path.alpha(s))
        defects.append((mean, abs((x * path.sigma(t)) ** 2 + var - path.sigma(s) ** 2)))
    order = 1 if sampler.stochastic or sampler.history > 1 else sampler.order  # a first step has one output
    for (mean, var), (mean_half, var_half) in itertools.pairwise(defects):
        assert mean < 1e-13 or mean_half < mean / 2 ** (order + 0.8) or mean_half < 1e-14
        assert var < 1e-13 or var_half < var / 2**1.8 or var_half < 1e-14


@EVERY
def test_the_last_row_is_the_denoiser(case, path):
    """From any t to σ = 0 every sampler gives x̂_0 of its last evaluation, without noise."""
    for t in (0.001, 0.3, 0.9):
        sampler = linear(case)
        (step,) = sampler.plan(path, (t, 0.0)).steps
        ((_, row),) = step.stages
        weight, m = path.convert(sampler.prediction, "x0", t)
        assert row.z == 0
        assert (row.x, row.m[0]) == pytest.approx((weight, m), rel=1e-12, abs=1e-14)


@given(betas(longest=60))
def test_ddpm_is_hos_posterior(beta):
    """On a chain, at every t: the row's mean is μ̃_t and its variance β̃_t; said in ε it is μ_θ; `beta` has β_t."""
    chain, path = sf.DDPMChain(beta), sf.VPSDE.from_betas(beta)
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for t in range(1, chain.T + 1):
        now, then = t / chain.T, (t - 1) / chain.T
        row = ddpm_row(path, (now,), then)
        # A path knows β_t as a difference of λ: so many digits of it there are.
        digits = 1e-12 + 1e-15 * (1 + abs(path.lam(now))) / beta[t - 1]
        assert row.x == pytest.approx(chain.posterior_mean(one, zero, t).item(), rel=1e-11, abs=1e-15)
        assert row.m[0] == pytest.approx(chain.posterior_mean(zero, one, t).item(), rel=digits)
        assert row.z**2 == pytest.approx(chain.posterior_variance[t - 1].item(), rel=digits, abs=1e-300)
        in_eps = row.through(*path.convert("eps", "x0", now))
        closed = chain.mean_from_eps(one, zero, t).item(), chain.mean_from_eps(zero, one, t).item()
        # x̂_0 of a long step is a difference of terms as large as 1/√ᾱ_t.
        tolerance = 1e-12 / chain.alpha_bar[t - 1].sqrt().item()
        assert (in_eps.x, in_eps.m[0]) == pytest.approx(closed, rel=1e-11, abs=max(tolerance, 1e-13))
        if t > 1:
            assert ddpm_row(path, (now,), then, variance="beta").z ** 2 == pytest.approx(beta[t - 1], rel=digits)


def test_ddpm_on_the_published_chain():
    """The same on Ho's own chain of 1000 steps, at every t, to 1e-12."""
    chain = sf.DDPMChain.linear()
    path = sf.VPSDE.from_betas(chain.beta)
    plan = sf.plan("ddpm", path, steps=1000)
    rows = [step.stages[0].row for step in reversed(plan.steps)]
    one, zero = torch.ones(1000, dtype=torch.float64), torch.zeros(1000, dtype=torch.float64)
    t = torch.arange(1, 1001)
    on_x, on_x_0 = chain.posterior_mean(one, zero, t), chain.posterior_mean(zero, one, t)
    ours_and_hos = (
        ([r.x for r in rows], on_x),
        ([r.m[0] for r in rows], on_x_0),
        ([r.z**2 for r in rows], chain.posterior_variance),
    )
    for ours, ho in ours_and_hos:
        torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), ho, rtol=1e-12, atol=1e-16)
    assert plan.noise_count == 999 and plan.nfe == 1000


@given(st.integers(2, 50), st.integers(0, 2**32))
def test_a_stride_uses_the_posterior_of_the_stride(k, seed):
    """On k of 1000 steps, the posterior of the strided chain, whose β are 1 − ᾱ_i/ᾱ_{i−1}."""
    fine = sf.DDPMChain.linear()
    path = sf.VPSDE.from_betas(fine.beta)
    plan = sf.plan("ddpm", path, steps=k)
    nodes = [round(t * 1000) for t in plan.times]
    bar = [1.0, *fine.alpha_bar.tolist()]
    strided = sf.DDPMChain([1 - bar[a] / bar[b] for a, b in itertools.pairwise(nodes)][::-1])
    for i, step in enumerate(plan.steps):
        variance = strided.posterior_variance[k - 1 - i].item()
        assert step.stages[0].row.z ** 2 == pytest.approx(variance, rel=1e-10, abs=1e-18)


@pytest.mark.parametrize("name", ["vp", "sub-vp", "flow", "ve"])
def test_interpolated_variance(name):
    """exp(v log β + (1−v) log β̃) between its two ends."""
    path, t, s = PATHS[name], 0.6, 0.4
    beta, tilde = (ddpm_row(path, (t,), s, variance=v).z ** 2 for v in ("beta", "posterior"))
    for v in (0.0, 0.3, 1.0):
        z = ddpm_row(path, (t,), s, variance="interpolated", v=v).z
        assert z**2 == pytest.approx(math.exp(v * math.log(beta) + (1 - v) * math.log(tilde)), rel=1e-13)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("source", PREDICTIONS)
@pytest.mark.parametrize("target", PREDICTIONS)
def test_a_row_says_the_same_in_every_prediction(name, source, target):
    """`Row.through` and `Path.convert`: a round trip is the identity, and the step does not change."""
    path, t = PATHS[name], 0.4
    a, b = path.convert(source, target, t)
    c, d = path.convert(target, source, t)
    assert b * d == pytest.approx(1, rel=1e-12) and a * d + c == pytest.approx(0, abs=1e-11 * max(1, abs(c)))
    row = path.bridge(t, 0.2, 0.5).through(*path.convert(source, "x0", t)).through(*path.convert(target, source, t))
    direct = path.bridge(t, 0.2, 0.5).through(*path.convert(target, "x0", t))
    assert (row.x, row.m[0], row.z) == pytest.approx((direct.x, direct.m[0], direct.z), rel=1e-10)
