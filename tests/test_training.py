"""Objectives: one loss for every prediction, its weights as published, its minimiser, its draws."""

import math
from functools import partial

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import mixture, states

import scoreflow as sf
from scoreflow._core.chain import discretised_nll, gaussian_kl
from scoreflow._core.gaussian import PREDICTIONS
from scoreflow._core.grid import inner_ends
from scoreflow._core.path import PATHS
from scoreflow.training import WEIGHTINGS, Objective, get_weighting

CHAIN = PATHS["ddpm"]()


def off(path, prediction, wrong=0.3):
    """A model that is wrong by `wrong · sin x` in ε, and says so in any prediction."""
    base = mixture(d=3).model(path)

    def net(x, t):
        eps = base.eps(x, t) + wrong * torch.sin(x)
        return sf.ScoreModel(lambda *_: eps, path, "eps")(x, t, prediction)

    return sf.ScoreModel(net, path, prediction)


def batch(n=64, d=3, seed=0):
    return mixture(d=d).sample(n, seed=seed)


def at(draw, t):
    return draw._replace(t=torch.full_like(draw.t, t))


# -- one loss -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("name", ["vp", "ddpm", "sub-vp", "ve", "flow"])
def test_all_predictions_have_one_loss(name, weighting):
    """Networks that say the same in ε, x_0, v, score or flow have the same loss, sample by sample, under every weighting."""
    path, objective, x_0 = PATHS[name](), Objective(weighting=weighting), batch()
    draw = objective.draw(off(path, "eps"), x_0, seed=1)
    draw = draw._replace(t=draw.t.clamp(*inner_ends(path)))
    losses = {kind: objective(off(path, kind), x_0, draw) for kind in PREDICTIONS}
    for kind, loss in losses.items():
        torch.testing.assert_close(loss.each, losses["eps"].each, rtol=1e-7, atol=1e-12, msg=lambda m, k=kind: f"{k}: {m}")
        torch.testing.assert_close(loss.eps, losses["eps"].eps, rtol=1e-7, atol=1e-12)


def errors(path, t, x_0, draw):
    """Plain squared errors of `off` in every prediction, an entry."""
    model, x_t = off(path, "eps"), path.alpha(t) * x_0 + path.sigma(t) * draw.eps
    exact = {
        "eps": draw.eps, "x0": x_0, "score": -draw.eps / path.sigma(t),
        "v": path.alpha(t) * draw.eps - path.sigma(t) * x_0,
        "flow": path.alpha_slope(t) * x_0 + path.sigma_slope(t) * draw.eps,
    }  # fmt: skip
    return {kind: (model(x_t, t, kind) - exact[kind]).square().mean(1) for kind in PREDICTIONS}


PUBLISHED = {
    "simple": ("eps", lambda p, t: 1.0),
    **{kind: (kind, lambda p, t: 1.0) for kind in PREDICTIONS},
    "min-snr": ("x0", lambda p, t: min(math.exp(2 * p.lam(t)), 5.0)),
    "p2": ("eps", lambda p, t: 1 / (1 + math.exp(2 * p.lam(t)))),
    "edm": ("x0", lambda p, t: (p.kappa(t) ** 2 + 0.5**2) / (p.kappa(t) * 0.5) ** 2),
    "vlb": ("eps", lambda p, t: p.g2(t) / (2 * p.sigma(t) ** 2)),
    "sigmoid": ("eps", lambda p, t: p.g2(t) / (2 * p.sigma(t) ** 2) / (1 + math.exp(2 * p.lam(t)))),
}


@pytest.mark.parametrize("weighting", PUBLISHED)
@given(t=st.floats(0.02, 0.97))
@settings(max_examples=15)
def test_weights_are_the_published_ones(weighting, t):
    """Each name is its paper's weight on its paper's error, for networks of any prediction."""
    kind, weight = PUBLISHED[weighting]
    for path in (sf.VPSDE(), sf.VESDE(), sf.Flow()):
        x_0, objective = batch(8), Objective(weighting=weighting)
        draw = at(objective.draw(off(path, "eps"), x_0, seed=2), t)
        expected = weight(path, t) * errors(path, t, x_0, draw)[kind]
        torch.testing.assert_close(objective(off(path, "v"), x_0, draw).each, expected, rtol=1e-6, atol=1e-12)


def test_min_snr_on_v():
    """On VP, min-SNR of a v-network is min(SNR, γ)/(SNR + 1) on its own error (Hang et al., 2023, Section 3.4)."""
    path, x_0 = sf.VPSDE(), batch(8)
    for t in (0.05, 0.3, 0.8):
        objective = Objective(weighting="min-snr", weighting_options={"gamma": 3})
        draw, snr = at(objective.draw(off(path, "v"), x_0, seed=0), t), math.exp(2 * path.lam(t))
        expected = min(snr, 3) / (snr + 1) * errors(path, t, x_0, draw)["v"]
        torch.testing.assert_close(objective(off(path, "v"), x_0, draw).each, expected, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("name", ["vp", "ddpm", "flow"])
def test_uniform_in_lambda(name):
    """Uniform t weighed by "uniform-lambda" is uniform λ weighed by "simple"; "vlb" is that times the range of λ.

    On N(0, v I) data the best network's ε-error at t is α²v/(α²v + σ²), and the integrals are sums over a fine grid.
    """
    path, v = PATHS[name](), 0.3
    low, high = inner_ends(path)

    t = torch.linspace(math.log(low), math.log(high), 400_001, dtype=torch.float64).exp().clamp(low, high)
    error = path.alpha(t) ** 2 * v / (path.alpha(t) ** 2 * v + path.sigma(t) ** 2)
    span = path.lam(low) - path.lam(high)
    lam = float(torch.trapezoid(error, -path.lam(t))) / span

    def over_t(weighting):
        return float(torch.trapezoid(get_weighting(weighting)(path, t) * error, t))

    assert over_t("uniform-lambda") / (high - low) == pytest.approx(lam, rel=1e-4)
    assert over_t("vlb") == pytest.approx(lam * span, rel=1e-4)


@pytest.mark.parametrize("weighting", ["simple", "x0", "v", "vlb", "min-snr", "edm"])
@pytest.mark.parametrize("times", ["uniform", "stratified", "log-normal", "logit-normal", "uniform-lambda"])
def test_the_minimiser_is_the_oracle(weighting, times):
    """On Gaussian data the gradient in every direction vanishes at the exact score, and grows to 1 as one walks away.

    The loss along `ε̂ + θ g` is quadratic; its minimum lies within 4.5 standard errors of θ = 0 (three directions of 30
    cases: a false alarm in 1 of 1600 runs; the seed is fixed).
    """
    path, data = sf.VPSDE(), sf.Gaussian(torch.tensor([0.5, -1.0]), torch.tensor([[0.3, 0.1], [0.1, 0.2]]))
    exact, x_0 = data.model(path), data.sample(20_000, seed=3)
    objective = Objective(weighting=weighting, times=times)
    draw = objective.draw(exact, x_0, seed=4)
    for direction in (lambda x, t: x, lambda x, t: torch.ones_like(x), lambda x, t: torch.sin(3 * x) * t[:, None]):
        each = [
            objective(
                sf.ScoreModel(lambda x, t, h=theta, g=direction: exact.eps(x, t) + h * g(x, t), path, "eps"), x_0, draw
            ).each
            for theta in (-1.0, 0.0, 1.0)
        ]
        slope, curvature = (each[2] - each[0]) / 2, (each[2] + each[0] - 2 * each[1])
        assert abs(slope.mean()) < 4.5 * slope.std() / len(slope) ** 0.5
        assert curvature.mean() > 0


def test_a_trained_network_is_the_oracle():
    """Trained on Gaussian data, `a_k x + c_k` in each of 10 levels comes to the oracle's coefficients."""
    path, data = sf.VPSDE(), sf.Gaussian(torch.tensor([0.8]), 0.2)
    x_0, levels = data.sample(40_000, seed=0), torch.linspace(0.1, 1.0, 10, dtype=torch.float64)
    exact = data.model(path)
    for t in levels.tolist():
        weights = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        model = sf.ScoreModel(lambda x, _, w=weights: w[0] * x + w[1], path, "eps")
        objective = Objective()
        draw = at(objective.draw(model, x_0, seed=5), t)
        hessian = torch.autograd.functional.hessian(
            lambda w, d=draw, o=objective: o(sf.ScoreModel(lambda x, _: w[0] * x + w[1], path, "eps"), x_0, d).mean, weights
        )
        (gradient,) = torch.autograd.grad(objective(model, x_0, draw).mean, weights)
        a, c = (-torch.linalg.solve(hessian, gradient)).tolist()
        grid = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
        torch.testing.assert_close(a * grid + c, exact.eps(grid, t), rtol=0, atol=0.03)


# -- the learned variance -----------------------------------------------------------------------------------------------


def speaking(x_0, word, chain=CHAIN):
    """A network that knows x_0 and says `word` of the variance."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.word = torch.nn.Parameter(torch.full(x_0.shape, word, dtype=torch.float64))
            self.shift = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, x, t):
            return torch.cat([x_0 + self.shift, self.word], dim=1)

    return sf.ScoreModel(Net(), chain, "x0", time="label")


def test_l_vlb_is_the_divergence():
    """With x̂_0 = x_0 the term is 0 at v = β̃; elsewhere it is torch's KL between the posterior and the step, in bits."""
    x_0 = states(16, 2, 3, 3)
    objective = Objective(vlb=1.0)
    for word in (-1.0, 0.2, 1.0):
        model = speaking(x_0, word)
        model.net.shift.data += 0.1
        draw = objective.draw(model, x_0, seed=0)
        draw = draw._replace(t=draw.t.clamp(min=2 / 1000))
        plain, hybrid = (Objective(vlb=v)(model, x_0, draw) for v in (0.0, 1.0))
        chain, k = sf.DDPMChain.linear(), (draw.t * 1000).round().long()
        x_t = chain.q_sample(x_0, k, draw.eps)
        truth = torch.distributions.Normal(
            chain.posterior_mean(x_t, x_0, k), chain.posterior_variance[k - 1].sqrt()[:, None, None, None]
        )
        share = torch.full(x_0.shape, (word + 1) / 2, dtype=torch.float64)
        std = chain.variance("interpolated", k, share).sqrt()
        ours = torch.distributions.Normal(chain.posterior_mean(x_t, x_0 + 0.1, k), std)
        kl = torch.distributions.kl_divergence(truth, ours).flatten(1).mean(1) / math.log(2)
        torch.testing.assert_close(hybrid.each - plain.each, 1000 * kl, rtol=1e-6, atol=1e-7)
        if word == -1.0:
            model.net.shift.data.zero_()
            assert float(Objective(vlb=1.0)(model, x_0, draw).each.abs().max()) < 1e-6


def test_l_vlb_moves_the_variance_alone():
    """Its gradient reaches the word and not the mean."""
    x_0 = states(8, 1, 2, 2)
    model = speaking(x_0, 0.3)
    model.net.shift.data += 0.2
    draw = Objective().draw(model, x_0, seed=0)
    both = {}
    for v in (0.0, 0.5):
        model.net.zero_grad()
        Objective(vlb=v)(model, x_0, draw).mean.backward()
        both[v] = (model.net.shift.grad.clone(), model.net.word.grad)
    assert torch.equal(both[0.0][0], both[0.5][0])
    assert both[0.0][1] is None or not both[0.0][1].any()
    assert bool(both[0.5][1].any())


def test_the_last_step_is_the_decoder():
    """At the first node the term is the discretised decoder's, summing to 1 over the levels of the data."""
    levels = torch.linspace(-1, 1, 256, dtype=torch.float64)
    for mean, std in ((0.3, 0.02), (-1.2, 0.3), (0.999, 1e-3), (0.0, 5.0)):
        total = (-discretised_nll(levels, torch.tensor(mean), torch.tensor(std).log())).exp().sum()
        assert float(total) == pytest.approx(1, abs=1e-6)
    x_0 = levels[torch.randint(256, (8, 1, 2, 2), generator=torch.Generator().manual_seed(0))]
    model, objective = speaking(x_0, 1.0), Objective(vlb=1.0)
    draw = at(objective.draw(model, x_0, seed=0), 1 / 1000)
    expected = (
        1000 * discretised_nll(x_0, x_0, torch.tensor(1e-4, dtype=torch.float64).log() / 2).flatten(1).mean(1) / math.log(2)
    )
    found = objective(model, x_0, draw)
    torch.testing.assert_close(found.each, expected, rtol=1e-6, atol=1e-9)


@given(x=st.integers(0, 255), mean=st.floats(-2, 2), log_std=st.floats(-6, 1))
def test_the_decoder_against_scipy(x, mean, log_std):
    """The mass of a bin is a difference of two normal distribution functions."""
    value, std = x / 127.5 - 1, math.exp(log_std)
    law = scipy.stats.norm(mean, std)
    low, high = (-math.inf if x == 0 else value - 1 / 255), (math.inf if x == 255 else value + 1 / 255)
    mass = law.sf(low) - law.sf(high) if low > mean else law.cdf(high) - law.cdf(low)
    found = float(discretised_nll(torch.tensor(value, dtype=torch.float64), torch.tensor(mean), torch.tensor(log_std)))
    if mass > 1e-300:
        assert found == pytest.approx(-math.log(mass), rel=1e-5, abs=1e-9)
    else:
        assert 600 < found < math.inf


def test_gaussian_kl_is_torchs():
    a, b, c, d = (states(20, seed=i) for i in range(4))
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(a, (b / 2).exp()), normal(c, (d / 2).exp()))
    torch.testing.assert_close(gaussian_kl(a, b, c, d), expected, rtol=1e-12, atol=1e-12)


# -- conditions dropped -------------------------------------------------------------------------------------------------


def test_dropped_conditions():
    """The share `drop` of the classes becomes the null class; whole token sequences become zeros; nothing else changes."""
    net = sf.nets.UNet(widths=(8, 16), classes=10)
    model, n = sf.ScoreModel(net, sf.VPSDE()), 4000
    objective = Objective(drop=0.25)
    draw = objective.draw(model, torch.zeros(n, 1), seed=0)
    y = torch.randint(10, (n,), generator=torch.Generator().manual_seed(0))
    out = objective.dropped(model, {"y": y, "z": 3}, draw.dropped)
    assert (
        torch.equal(out["y"] == 10, draw.dropped) and torch.equal(out["y"][~draw.dropped], y[~draw.dropped]) and out["z"] == 3
    )
    assert abs(float(draw.dropped.float().mean()) - 0.25) < 4.5 * (0.25 * 0.75 / n) ** 0.5  # false alarm 1 in 150 000
    objective, tokens = Objective(drop=0.5, null={"tokens": 0.0}), torch.ones(8, 3, 2)
    which = torch.arange(8) % 2 == 0
    assert torch.equal(objective.dropped(model, {"tokens": tokens}, which)["tokens"][:, 0, 0], (~which).float())


REFUSED = [
    (partial(Objective, times_options=3), TypeError, "times_options must be a mapping of names to values, got 3"),
    (partial(Objective, null=10), TypeError, "null must be a mapping of names to values, got 10"),
    (partial(Objective, weighting="minsnr"), ValueError, "weighting must be one of simple, .*got 'minsnr'"),
    (partial(Objective, weighting="p2", weighting_options={"g": 1.0}), TypeError, "'p2' has no option 'g'; it has gamma, k"),
    (partial(Objective, weighting="edm", weighting_options={"sigma_data": 0.0}), ValueError, "sigma_data must be .*> 0"),
    (partial(Objective, times="cosine"), ValueError, "times must be one of uniform, stratified"),
    (partial(Objective, times="log-normal", times_options={"std": 0}), ValueError, "std must be"),
    (partial(Objective, times="uniform", times_options={"std": 1}), TypeError, "times 'uniform' has no option 'std'"),
    (partial(Objective, drop=1.5), ValueError, "drop must be"),
    (partial(Objective, vlb=0.1, times="log-normal"), ValueError, r"times must be one of .* with vlb=0.1"),
    (partial(Objective, variance="beta"), ValueError, "variance must be one of interpolated, learned"),
    (partial(get_weighting, lambda p, t: t, gamma=1.0), TypeError, "go with the name of a weighting"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "says"), REFUSED)
def test_refusals(call, kind, says):
    with pytest.raises(kind, match=says):
        call()


def test_wrong_combinations():
    """A learned variance of a C-channel network, or without a chain; dropping conditions that nobody has."""
    x_0, plain = states(4, 2, 3, 3), sf.ScoreModel(lambda x, t: x, CHAIN)
    objective = Objective(vlb=0.001)
    with pytest.raises(ValueError, match=r"learned variance, and the network returned 2 channels for 2: it must return 4"):
        objective(plain, x_0, objective.draw(plain, x_0, 0))
    with pytest.raises(ValueError, match="sums over the steps of a chain"):
        objective.check(sf.ScoreModel(lambda x, t: x, sf.VPSDE()))
    with pytest.raises(ValueError, match=r"drop=0.1 drops conditions, and function has none: give null="):
        Objective(drop=0.1).check(plain)
    dropping = Objective(drop=0.1, null={"y": 10})
    with pytest.raises(ValueError, match="drops y, and the data give none"):
        dropping(plain, x_0, dropping.draw(plain, x_0, 0))
