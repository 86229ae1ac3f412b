"""Chains whose last β is 1: x_T is noise alone, the path has α(1) = 0, and v- and x0-networks start there."""

import math

import numpy as np
import pytest
import torch
from problems import states
from refusals import NAN

import scoreflow as sf
from scoreflow.checkpoint import load_model, save_model
from scoreflow.nets import MLP
from scoreflow.training.objective import Draw, Objective
from scoreflow.training.weighting import WEIGHTINGS

CHAIN = sf.DDPMChain.scaled_linear().zero_terminal_snr()
PATH = sf.VPSDE.from_betas(CHAIN.beta)
CHAINS = [CHAIN, sf.DDPMChain.linear(50).zero_terminal_snr(), sf.DDPMChain([0.1, 0.5, 0.3, 1.0]), sf.DDPMChain([0.2, 1.0]),
          sf.DDPMChain([1.0])]  # fmt: skip
EVERY = pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: f"T={chain.T}")


def test_rescaled_as_published():
    """Algorithm 1 of Lin et al. (2024), as they print it: the last β is 1, the first step stays."""
    alphas_bar_sqrt = np.sqrt(np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2))
    first, last = alphas_bar_sqrt[0], alphas_bar_sqrt[-1]
    alphas_bar = ((alphas_bar_sqrt - last) * first / (first - last)) ** 2
    betas = 1 - np.concatenate([alphas_bar[:1], alphas_bar[1:] / alphas_bar[:-1]])
    torch.testing.assert_close(CHAIN.beta, torch.from_numpy(betas), rtol=1e-11, atol=1e-13)
    assert float(CHAIN.beta[-1]) == 1 and float(CHAIN.alpha_bar[-1]) == 0
    assert float(CHAIN.beta[0]) == pytest.approx(0.00085, rel=1e-12)
    torch.testing.assert_close(CHAIN.zero_terminal_snr().beta, CHAIN.beta, rtol=1e-11, atol=0)


def test_last_step_of_the_chain():
    """There x_T = ε, q(x_{T−1} | x_T, x_0) = q(x_{T−1} | x_0), and an ε says nothing of x_0."""
    x_0, x, last = states(3, 2), states(3, 2, seed=1), torch.tensor([2, 1000, 1000])
    assert torch.equal(CHAIN.q_sample(x_0, 1000, x), x)
    torch.testing.assert_close(CHAIN.posterior_mean(x, x_0, 1000), CHAIN.alpha_bar[-2].sqrt() * x_0, rtol=1e-12, atol=0)
    assert float(CHAIN.variance("posterior", 1000)) == pytest.approx(1 - float(CHAIN.alpha_bar[-2]), rel=1e-14)
    assert float(CHAIN.variance("beta", 1000)) == 1
    assert float(CHAIN.variance("interpolated", 1000, 0.25)) == pytest.approx(float(1 - CHAIN.alpha_bar[-2]) ** 0.75, rel=1e-13)
    for t in (1000, last):
        for mean in (CHAIN.mean_from_eps, CHAIN.mean_by_substitution):
            with pytest.raises(ValueError, match=r"ᾱ_t = 0 at t = 1000, where ε says nothing of x_0"):
                mean(x, x, t)
    torch.testing.assert_close(CHAIN.mean_from_eps(x, x_0, 999), CHAIN.mean_by_substitution(x, x_0, 999), rtol=1e-9, atol=0)


@EVERY
@pytest.mark.parametrize("kind", [sf.VPSDE, sf.SubVPSDE])
def test_path(chain, kind):
    """Exact at the nodes; strictly falling, −∞ at t = 1 alone; slopes are derivatives; `time` and `discretize` lead back."""
    path, nodes = kind.from_betas(chain.beta), torch.arange(chain.T + 1, dtype=torch.float64) / chain.T
    torch.testing.assert_close(2 * path.log_alpha(nodes[1:]), chain.log_alpha_bar, rtol=1e-15, atol=0)
    t = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    assert bool((path.log_alpha(t).diff() < 0).all()) and bool((path.lam(t).diff() < 0).all())
    assert bool(path.lam(t[1:-1]).isfinite().all()) and math.isfinite(path.lam(1 - 2**-53))
    assert (path.alpha(1.0), path.sigma(1.0), path.lam(1.0), path.time(-math.inf)) == (0.0, 1.0, -math.inf, 1.0)
    torch.testing.assert_close(path.time(path.lam(t)), t, rtol=1e-9, atol=1e-13)
    t = (torch.arange(4000, dtype=torch.float64) + 0.37) / 4000
    torch.testing.assert_close(path.f(t), sf.GaussianPath.f(path, t), rtol=1e-9, atol=0)
    torch.testing.assert_close(path.alpha_slope(t), path.f(t) * path.alpha(t), rtol=1e-9, atol=0)
    assert path.alpha_slope(1.0) == pytest.approx((path.alpha(1.0) - path.alpha(1 - 1e-7)) / 1e-7, rel=1e-4)
    torch.testing.assert_close(path.g2(nodes[1:-1] - 1e-9), path.g2(nodes[1:-1] + 1e-9), rtol=1e-4, atol=0)
    torch.testing.assert_close(path.discretize(chain.T).beta, chain.beta, rtol=1e-11, atol=1e-14)


def test_the_cosine_path_as_a_chain():
    """Where ᾱ(1) = 0 the chain of a path ends with β = 1."""
    chain = sf.VPSDE.cosine().discretize(100)
    angle = (np.arange(1, 101) / 100 + 0.008) / 1.008 * math.pi / 2
    bar = torch.from_numpy((np.cos(angle) / math.cos(0.008 / 1.008 * math.pi / 2)) ** 2)
    torch.testing.assert_close(chain.alpha_bar, bar, rtol=1e-10, atol=1e-30)
    assert float(chain.beta[-1]) == 1


@pytest.mark.parametrize("kind", [sf.VPSDE, sf.SubVPSDE])
@pytest.mark.parametrize("chain", [sf.DDPMChain.linear(), CHAIN], ids=["linear", "rescaled"])
def test_from_alphas_cumprod(kind, chain):
    """The same path as from β, of whatever makes of the numbers."""
    for given in (chain.alpha_bar, chain.alpha_bar.numpy(), chain.alpha_bar.tolist()):
        path = kind.from_alphas_cumprod(given)
        assert type(path) is kind and path.T == 1000
        nodes = torch.arange(1, 1001, dtype=torch.float64) / 1000
        torch.testing.assert_close(path.alpha(nodes) ** 2, chain.alpha_bar, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ([1.0, 0.5], ValueError, "fall strictly, from below 1 to no less than 0, got 1.0 at index 0, after 1.0"),
        ([0.9, 0.9], ValueError, "got 0.9 at index 1, after 0.9"),
        ([0.9, -0.1], ValueError, "got -0.1 at index 1"),
        ([0.9, 0.0, 0.0], ValueError, "got 0.0 at index 2"),
        ([0.9, NAN], ValueError, "got nan at index 1"),
        ([], ValueError, "one-dimensional and not empty"),
        ("abc", TypeError, "be numbers in one dimension, got 'abc'"),
        ([True, False], TypeError, "be numbers in one dimension"),
        ([0.5 + 0.1j], TypeError, "be numbers in one dimension"),
        ([[0.9], [0.5, 0.4]], TypeError, "be numbers in one dimension"),
    ],
)
@pytest.mark.parametrize("make", [sf.VPSDE.from_alphas_cumprod, sf.DDPMChain.from_alphas_cumprod])
def test_refused(make, given, error, match):
    with pytest.raises(error, match=f"alphas_cumprod must .*{match}"):
        make(given)
    if error is TypeError:
        with pytest.raises(error, match=f"betas must .*{match}"):
            sf.VPSDE.from_betas(given)


def gaussian(prediction, v=0.25, path=PATH):
    """The exact network on N(0, v I) data."""
    alpha = path.alpha

    def net(x, t):
        a, s = alpha(t)[:, None], (1 - alpha(t) ** 2).sqrt()[:, None]
        x_0, eps = (k / (a**2 * v + s**2) * x for k in (a * v, s))
        return {"x0": x_0, "eps": eps, "v": a * eps - s * x_0}[prediction].to(x)

    return sf.ScoreModel(net, path, prediction)


@pytest.mark.parametrize("prediction", ["v", "x0"])
@pytest.mark.parametrize(
    ("sampler", "nfe", "within"),
    [("auto", 50, 5e-4), ("ddim", 400, 1e-2), ("dpm-solver++-2m", 100, 2e-3), ("unipc", 50, 1e-3), ("pf-ode-heun", 100, 1e-3)],
)
def test_exact_flow(sampler, nfe, within, prediction):
    """From t = 1 the ODE carries N(0, I) to N(0, v I) by the factor √v; the last row, x̂_0, has `α √(v/(α² v + σ²))` of it."""
    x, v = states(4, 3), 0.25
    solution = sf.solve(gaussian(prediction, v), x, sampler, nfe=nfe)
    assert solution.times[0] == 1.0
    alpha, sigma = PATH.alpha(solution.times[-2]), PATH.sigma(solution.times[-2])
    torch.testing.assert_close(solution.x, v / (v + (sigma / alpha) ** 2) ** 0.5 * x, rtol=within, atol=0)


@pytest.mark.parametrize(("sampler", "options"), [("ddpm", {}), ("ddpm", {"variance": "beta"}), ("sde-dpm-solver++-2m", {}),
                                                  ("analytic-dpm", {}), ("ddim", {"eta": 1.0})])  # fmt: skip
def test_noisy_runs_have_the_law_of_the_data(sampler, options):
    """By the plan, exact: unit variance out for data of variance 1."""
    health = sf.plan(sampler, PATH, 200, **options).check()
    assert health.std == pytest.approx(1, rel=0.02) and health.amplification < 3


@pytest.mark.parametrize("sampler", ["auto", "ddim", "ddpm", "unipc", "dpm-solver++-2m", "deis", "edm", "euler-maruyama"])
def test_an_eps_network_is_told(sampler):
    for run in (lambda **k: sf.solve(gaussian("eps"), states(2, 3), **k), lambda **k: sf.sample(gaussian("eps"), (2, 3), **k)):
        with pytest.raises(ValueError, match=r"alpha=0.*a start below it"):
            run(sampler=sampler, steps=5, seed=0)
    assert sf.solve(gaussian("eps"), states(2, 3), sampler, steps=5, start=0.9, seed=0).x.isfinite().all()


def test_kept_in_a_file(tmp_path):
    """The file has the path's text; it is given again, as every path without a name."""
    model = sf.ScoreModel(MLP(2, width=8, depth=1), PATH, "v", "index")
    save_model(model, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=r"trained on VPSDE\.from_betas\(1000 betas from 0\.00085 to 1.*give path="):
        load_model(tmp_path / "m.safetensors")
    again = load_model(tmp_path / "m.safetensors", path=sf.VPSDE.from_alphas_cumprod(CHAIN.alpha_bar))
    x = states(3, 2, dtype=torch.float32)
    torch.testing.assert_close(sf.solve(again, x, steps=5).x, sf.solve(model, x, steps=5).x)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_loss_at_the_last_step(prediction, weighting):
    """Finite at t = 1, and the limit of the loss from below; the plain error of the network's own prediction is itself."""
    model, x_0, eps = gaussian(prediction), states(2, 3), states(2, 3, seed=1)

    def loss(t):
        draw = Draw(torch.full((2,), t, dtype=torch.float64), eps, torch.ones(2), torch.zeros(2, dtype=torch.bool))
        return Objective(weighting)(model, x_0, draw).each

    torch.testing.assert_close(loss(1.0), loss(1 - 1e-7), rtol=1e-3, atol=1e-4)
    if weighting == prediction:
        wrong = (0 * x_0 - x_0) if prediction == "x0" else model(eps, 1.0, "v") + x_0
        torch.testing.assert_close(loss(1.0), wrong.square().mean(1), rtol=1e-6, atol=0)
