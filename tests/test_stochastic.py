"""Exponential integrators of the reverse SDE against published formulas, and their two limits."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import PATHS, mixture, states
from scipy.integrate import quad
from test_exponential import EVERY, four_times, row, same

import scoreflow as sf


@EVERY
@given(at=four_times(), eta_k=st.floats(0.05, 1.0))
def test_20_2m_sde_as_published(path, at, eta_k):
    """20. k-diffusion's dpmpp_2m_sde, midpoint and heun, whose eta is our η²; its noise; diffusers' form at η = 1."""
    times, s = at
    h, last = path.lam(s) - path.lam(times[0]), path.lam(times[0]) - path.lam(times[1])
    eta_h, r, a = eta_k * h, last / h, path.alpha(s)
    x = path.sigma(s) / path.sigma(times[0]) * math.exp(-eta_h)
    first, second = -math.expm1(-h - eta_h), 0.5 * -math.expm1(-h - eta_h) / r
    ours = row("sde-dpm-solver++", path, times, s, eta=math.sqrt(eta_k))
    same(ours, (x, [a * (first + second), -a * second]))
    assert ours.z == pytest.approx(path.sigma(s) * math.sqrt(-math.expm1(-2 * eta_h)), rel=1e-10)
    second = (math.expm1(-h - eta_h) / (h + eta_h) + 1) / r
    heun = row("sde-dpm-solver++", path, times, s, method="2m-heun", eta=math.sqrt(eta_k))
    same(heun, (x, [a * (first + second), -a * second]), 1e-6)


@EVERY
@given(at=four_times(), eta=st.floats(0.05, 1.0))
def test_the_limits(path, at, eta):
    """η = 0 is the ODE's method; with one word η = 1 is DDPM; SA-Solver of one word is DDIM with noise."""
    times, s = at
    for ours, theirs in (("2m", "2m"), ("2m-heun", "2m-heun"), ("3m", "3m")):
        same(row("sde-dpm-solver++", path, times, s, method=ours, eta=0.0), row("dpm-solver++", path, times, s, method=theirs))
    one, ddpm = row("sde-dpm-solver++", path, times[:1], s, method="1"), path.bridge(times[0], s, 1.0)
    same(one, ddpm)
    assert one.z == pytest.approx(ddpm.z, rel=1e-12)
    sa = row("sa-solver", path, times[:1], s, predictor=1, corrector=0, tau=eta)
    h = path.lam(s) - path.lam(times[0])
    ddim = path.bridge(times[0], s, math.sqrt(math.expm1(-2 * eta**2 * h) / math.expm1(-2 * h)))
    same(sa, ddim)
    assert sa.z == pytest.approx(ddim.z, rel=1e-10)


@EVERY
@given(at=four_times(), tau=st.floats(0.0, 1.2))
def test_sa_solver_as_published(path, at, tau):
    """b_j = e^{−λ_s τ²} σ_s (1 + τ²) ∫ e^{(1+τ²)λ} ℓ_j dλ (Eq. 14) for the predictor and, with the word at s, the corrector."""
    times, s = at
    sampler = sf.get_sampler("sa-solver", predictor=3, corrector=2, tau=tau)
    (_, predict), (_, correct) = sampler.rows_at(path, times, s)
    lam, hi = [path.lam(u) for u in times], path.lam(s)

    def weights(knots):
        def coefficient(j):
            def integrand(u):
                basis = math.prod((u - k) / (knots[j] - k) for i, k in enumerate(knots) if i != j)
                return (1 + tau**2) * math.exp((1 + tau**2) * (u - hi)) * basis

            return path.alpha(s) * quad(integrand, lam[0], hi, epsabs=1e-13, epsrel=1e-11)[0]

        return [coefficient(j) for j in range(len(knots))]

    x = path.sigma(s) / path.sigma(times[0]) * math.exp(-(tau**2) * (hi - lam[0]))
    same(predict, (x, weights(lam)), 1e-7)
    same(correct, (x, weights([hi, *lam[:2]])), 1e-7)
    assert predict.z == correct.z == pytest.approx(path.posterior_std(times[0], s, tau), rel=1e-12)


def test_tau_may_be_a_function():
    """A function of t: inside its band the run is stochastic, outside the rows are the ODE's."""
    path = PATHS["vp"]
    plan = sf.plan("sa-solver", path, 10, tau=lambda t: float(0.3 < t < 0.7))
    noisy = [step.noise_count > 0 for step in plan.steps]
    assert noisy == [0.3 < step.t < 0.7 for step in plan.steps] and 0 < sum(noisy) < 10
    with pytest.raises(ValueError, match=r"the option tau=.* of this plan does not fit into JSON"):
        plan.to_json()
    with pytest.raises(ValueError, match=r"tau\(t\) must be a finite number ≥ 0"):
        sf.plan("sa-solver", path, 4, tau=lambda t: -1.0)


def test_evaluations():
    """n steps to data, n evaluations, with and without a corrector; the stages of a step share one draw."""
    model, x = mixture().model(PATHS["vp"]), states(2, 3)
    for name, options in (("sde-dpm-solver++", {}), ("sa-solver", {}), ("sa-solver", {"corrector": 0, "predictor": 3})):
        sol = sf.solve(model, x, name, steps=12, seed=0, **options)
        assert (sol.nfe, sol.noise_count) == (12, 11)


@pytest.mark.parametrize("name", ["cosine", "flow"])
@pytest.mark.parametrize(
    ("sampler", "options"), [("sde-dpm-solver++", {}), ("sde-dpm-solver++", {"method": "3m"}), ("sa-solver", {})]
)
def test_they_start_where_alpha_is_zero(name, sampler, options):
    """From α = 0 the first step forgets x_T; runs end on data."""
    data = mixture()
    sol = sf.solve(data.model(PATHS[name]), states(64, 3), sampler, steps=40, seed=0, **options)
    assert sol.plan.steps[0].stages[0].row.x == 0
    assert bool(sol.x.isfinite().all()) and float(data.log_prob(sol.x).median()) > -4


def test_they_share_the_limit_of_the_reverse_sde():
    """On one Brownian path they tend to Euler–Maruyama's states."""
    model, x, noise = mixture().model(PATHS["vp"]), states(64, 3), sf.Brownian(0, depth=13)
    fine = sf.solve(model, x, "euler-maruyama", steps=4096, start=0.9, stop=0.1, noise=noise).x
    for name in ("sde-dpm-solver++", "sa-solver"):
        errors = [
            (sf.solve(model, x, name, steps=n, start=0.9, stop=0.1, noise=noise).x - fine).norm(dim=1).median()
            for n in (64, 512)
        ]
        assert errors[1] < errors[0] / 3.5 and errors[1] < 0.03


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("sde-dpm-solver++", {"method": "4m"}, "method must be one of 1, 2m, 2m-heun, 3m, 2s"),
        ("sde-dpm-solver++", {"eta": -1}, "eta must be a finite number ≥ 0"),
        ("sa-solver", {"predictor": 0}, "predictor must be a whole number ≥ 1, got 0"),
        ("sa-solver", {"corrector": 5}, "corrector must be a whole number from 0 to 4, got 5"),
        ("sa-solver", {"tau": -0.5}, "tau must be a finite number ≥ 0"),
    ],
)
def test_options_that_cannot_be(name, options, match):
    with pytest.raises(ValueError, match=match):
        sf.get_sampler(name, **options)


def test_sampling_a_mixture():
    """Twenty steps of either put the mixture's weights where they belong: 4000 samples, false alarms 1e-6 a component."""
    data = mixture(std=0.15)
    model, n = data.model(PATHS["vp"]), 4000
    weights = data.log_weights.exp()
    for name in ("sde-dpm-solver++", "sa-solver"):
        x = sf.sample(model, (n, 3), name, steps=60, seed=4, dtype=torch.float64)
        nearest = torch.cdist(x, data.means).argmin(1)
        share = torch.bincount(nearest, minlength=5) / n
        spread = (weights * (1 - weights) / n).sqrt()
        reference = torch.bincount(torch.cdist(data.sample(200_000), data.means).argmin(1), minlength=5) / 200_000
        assert bool(((share - reference).abs() < 4.9 * spread).all())
