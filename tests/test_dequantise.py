"""Bits per dimension: a bound on the mass of a bin, for noise of any kind within it."""

import math

import pytest
import scipy.stats
import torch
from problems import states

import scoreflow as sf

PATH, V, T = sf.VPSDE(), 0.3, 0.02
GAUSSIAN = sf.Gaussian(torch.zeros(1), V)
MODEL = GAUSSIAN.model(PATH)
LEVELS = 9
WIDTH = 2 / (LEVELS - 1)
X = torch.linspace(-1, 1, LEVELS, dtype=torch.float64)[:, None]
SETTINGS = dict(levels=LEVELS, stop=T, divergence="exact", rtol=1e-6, atol=1e-6, prior=lambda x: GAUSSIAN.log_prob(x, *ENDS))
ENDS = PATH.alpha(1.0), PATH.sigma(1.0)


def mass(scale):
    """−log₂ of what N(0, scale²) puts into each bin."""
    law = scipy.stats.norm(0, scale)
    return torch.tensor([-math.log2(law.cdf(x + WIDTH / 2) - law.cdf(x - WIDTH / 2)) for x in X[:, 0].tolist()])


def bits(x_0, repeats, model=MODEL, **options):
    """The mean over `repeats` of each, its standard error, and what was found."""
    found = sf.bits_per_dim(model, x_0.repeat(repeats, 1), **{**SETTINGS, **options})
    each = found.value.reshape(repeats, len(x_0))
    return each.mean(0), each.std(0) / math.sqrt(repeats), found


def test_uniform_noise_is_a_bound_and_nearly_tight():
    """On a Gaussian it is `E[log q − log p]` by quadrature, which lies above the bin's mass."""
    value, error, found = bits(X, 50, draws=4)
    std = math.sqrt(PATH.alpha(T) ** 2 * V + PATH.sigma(T) ** 2)
    u = WIDTH * (torch.linspace(0, 1, 2001, dtype=torch.float64) - 0.5)
    exact = (-math.log(WIDTH) - torch.distributions.Normal(0.0, std).log_prob(X + u)).mean(1) / math.log(2)
    assert bool(((value - exact).abs() < 4.5 * error).all()) and bool((error < 0.03).all())
    assert bool((0 < exact - mass(std)).all()) and bool((exact - mass(std) < 0.05).all())
    # The error that is stated is that of a mean of 4 draws: χ² with 150 · 9 degrees of freedom, at 5 standard deviations.
    assert float(found.error.square().mean() / (50 * error.square()).mean()) == pytest.approx(1, abs=0.2)


def test_the_paths_own_noise_is_a_bound():
    """It is `E[log q(x_t) − log p_t(x_t) − log P(x_0∣x_t)]` by quadrature; over data of that law it bounds −log P."""
    law = (-mass(math.sqrt(V)) * math.log(2)).exp()
    nodes = torch.linspace(-6, 6, 601, dtype=torch.float64)
    weights = (-nodes.square() / 2).exp()
    a, s = PATH.alpha(T), PATH.sigma(T)
    x_t = a * X + s * nodes
    mean, std = a * V / (a**2 * V + s**2) * x_t, PATH.forward(0.0, T).z
    low, high = (X - WIDTH / 2 - mean) / std, (X + WIDTH / 2 - mean) / std
    low[0], high[-1] = -math.inf, math.inf
    flip = low + high > 0  # where Φ(high) − Φ(low) would cancel
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    decoder = (torch.special.ndtr(high) - torch.special.ndtr(low)).log()
    log_q = torch.distributions.Normal(a * X, s).log_prob(x_t)
    log_p = torch.distributions.Normal(0.0, math.sqrt(a**2 * V + s**2)).log_prob(x_t)
    exact = (log_q - log_p - decoder) @ weights / weights.sum() / math.log(2)
    value, error, found = bits(X, 200, dequantise="forward")
    assert bool(((value - exact).abs() < 4.5 * error).all()) and bool((error < 0.1).all())
    assert found.nfe > 1 and bool(found.error.isnan().all())
    average = float((law * (value - mass(math.sqrt(V)))).sum() / law.sum())
    assert average > -4.5 * float((law * error).square().sum().sqrt() / law.sum())


def test_probes_have_nothing_to_do_with_the_noise():
    """With Hutchinson's trace in two dimensions the mean is that of the exact trace, the stated error that of the value."""
    law = sf.GaussianMixture(torch.ones(2), torch.tensor([[-0.35, -0.35], [0.35, 0.35]]), 0.02)
    how = dict(levels=3, stop=T, method="rk4", steps=20, draws=4, prior=lambda x: law.log_prob(x, *ENDS))
    x_0 = torch.zeros(1000, 2, dtype=torch.float64)
    exact, found = (sf.bits_per_dim(law.model(PATH), x_0, divergence=kind, **how) for kind in ("exact", "hutchinson"))
    gap = found.value - exact.value
    assert abs(float(gap.mean())) < 4.5 * float(gap.std()) / 1000**0.5 < 0.3
    assert float(found.error.square().mean().sqrt() / found.value.std()) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("how", ["uniform", "forward", "trained"])
def test_gradients_are_those_of_the_value(how):
    """By a weight of the network, and of the dequantiser: differences agree; without `grad` there is none of them."""
    weight = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    net = torch.nn.Conv1d(1, 2, 1).double()
    dequantiser = sf.Dequantiser(net, WIDTH)
    model = sf.ScoreModel(lambda x, t: weight * MODEL.eps(x[:, 0], t)[:, None], PATH)
    kind = dequantiser if how == "trained" else how
    options = dict(levels=LEVELS, stop=T, method="rk4", steps=5, divergence="exact", dequantise=kind, seed=1)

    def value(**more):
        return sf.bits_per_dim(model, X[:, None], **options, **more).value.sum()

    assert not value().requires_grad
    leaf = [weight, *net.parameters()] if how == "trained" else [weight]
    for parameter, slope in zip(leaf, torch.autograd.grad(value(grad=True), leaf), strict=True):
        at, h = (0,) * parameter.ndim, 1e-5
        with torch.no_grad():
            parameter[at] += h
            up = value()
            parameter[at] -= 2 * h
            down = value()
            parameter[at] += h
        assert float(slope[at]) == pytest.approx(float(up - down) / (2 * h), rel=1e-5, abs=1e-7)


def test_a_dequantiser_knows_its_density():
    """The noise stays in its bin, and its density integrates to 1: E[1/q] over its draws is the bin's volume."""
    torch.manual_seed(0)
    net = torch.nn.Conv2d(1, 2, 1)
    torch.nn.init.normal_(net.weight, std=0.3)
    dequantiser = sf.Dequantiser(net, WIDTH).double()
    x_0 = torch.full((200_000, 1, 1, 1), 0.25, dtype=torch.float64)
    with torch.no_grad():
        x, log_q = dequantiser(x_0, states(200_000, 1, 1, 1))
    assert float((x - x_0).abs().max()) <= WIDTH / 2
    inverse = (-log_q).exp()
    assert float(inverse.mean()) == pytest.approx(WIDTH, abs=5 * float(inverse.std()) / 200_000**0.5)
    # The density is that of the draws: a histogram of them, at p > 1e-4 with a fixed seed.
    order = x.flatten().argsort()
    u, q = x.flatten()[order], log_q.exp()[order]
    cumulative = torch.cumulative_trapezoid(q, u)
    uniform = torch.linspace(0, 1, len(u), dtype=torch.float64)[1:]
    assert float((cumulative - uniform).abs().max()) < 0.006


def test_a_dequantiser_that_is_trained_is_better():
    """Noise fitted to the density gives fewer bits than uniform noise, and no fewer than the mass."""

    class Shape(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.slope, self.scale = (torch.nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (0.0, 0.5))

        def forward(self, x):
            return torch.cat([self.slope * x, self.scale.expand_as(x)], dim=1)

    narrow = sf.Gaussian(torch.zeros(1), 0.02)
    std = math.sqrt(PATH.alpha(T) ** 2 * 0.02 + PATH.sigma(T) ** 2)
    dequantiser = sf.Dequantiser(Shape(), WIDTH)
    optimizer = torch.optim.Adam(dequantiser.parameters(), lr=0.05)
    x_0, law = X[1:-1].repeat(50, 1), torch.distributions.Normal(0.0, std)
    for step in range(100):
        x, log_q = dequantiser(x_0, states(len(x_0), 1, seed=step))
        loss = (log_q - law.log_prob(x)[:, 0]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    how = {"model": narrow.model(PATH), "prior": lambda x: narrow.log_prob(x, *ENDS)}
    with torch.no_grad():
        (fitted, error, _), (uniform, *_) = (bits(X[1:-1], 50, dequantise=kind, **how) for kind in (dequantiser, "uniform"))
    assert float(fitted.mean()) < float(uniform.mean()) - 0.2
    assert bool((fitted > mass(std)[1:-1] - 4.5 * error).all())


def test_a_sample_does_not_depend_on_its_batch_mates():
    for how in ("uniform", "forward"):
        whole = sf.bits_per_dim(MODEL, X[:3], dequantise=how, seed=[4, 5, 6], **SETTINGS)
        alone = sf.bits_per_dim(MODEL, X[1:2], dequantise=how, seed=[5], **SETTINGS)
        torch.testing.assert_close(alone.value[0], whole.value[1], rtol=1e-9, atol=1e-9)


def test_an_unknown_condition_is_refused():
    for how in ("uniform", "forward"):
        with pytest.raises(TypeError, match="'step' is neither an argument nor a condition"):
            sf.bits_per_dim(MODEL, X, levels=LEVELS, dequantise=how, step=3)


def test_conditions_reach_the_network():
    """Of the ODE and of the decoder alike."""
    seen = []

    def net(x, t, y):
        seen.append(y)
        return 0.5 * x

    found = sf.bits_per_dim(
        sf.ScoreModel(net, PATH), X, levels=LEVELS, dequantise="forward", method="euler", steps=2, y=torch.arange(9)
    )
    assert len(seen) == found.nfe == 3 and all(len(y) == 9 for y in seen)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            dict(dequantise=lambda x, eps: (x, x)),
            r"dequantise must give states \(9, 1\) and log-densities \(9,\), got \(9, 1\) and",
        ),
        (dict(dequantise="gaussian"), "dequantise must be one of uniform, forward"),
        (dict(levels=1), "levels must be a whole number ≥ 2, got 1"),
        (dict(draws=0), "draws must be a whole number ≥ 1, got 0"),
        (dict(low=1.0, high=-1.0), "high must be a finite number > 1"),
        (dict(low=0.0, dequantise="forward"), "has its levels from -1 to 1; scale the data"),
    ],
)
def test_refusals(options, says):
    with pytest.raises(ValueError, match=says):
        sf.bits_per_dim(MODEL, X, **{"stop": T, **options})
