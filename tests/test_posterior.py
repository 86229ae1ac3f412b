"""Conditioning by measurements: methods against exact posteriors, observations, what depends on what."""

import math

import pytest
import torch
from problems import PATHS, mixture, states

import scoreflow as sf
from scoreflow._score.observation import Observation
from scoreflow.posterior import METHODS, Posterior, crop, downsample, grayscale

VP = PATHS["vp"]
D, M = 4, 2
FULL = {"mmps": {"iterations": None, "rtol": 1e-13}, "jfps": {"rtol": 1e-13}, "pigdm": {"rtol": 1e-13}}


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(seed=0):
    root = numbers(D, D, seed=seed)
    return sf.Gaussian(numbers(D, seed=seed + 1), root @ root.mT / D + 0.05 * torch.eye(D, dtype=torch.float64))


def observations():
    """Of four numbers: a matrix, a mask, a callable, correlated noise, and no measurement to speak of."""
    A, y = numbers(M, D, seed=3), numbers(M, seed=4)
    root = 0.3 * numbers(M, M, seed=5)
    return {
        "matrix": Observation(A, y, 0.1),
        "mask": Observation(torch.tensor([True, False, True, False]), y, torch.tensor([0.1, 0.3])),
        "callable": Observation(lambda x: x[:, 1:3] + x[:, :1], y, 0.2),
        "correlated": Observation(A, y, root @ root.mT),
        "loud": Observation(A, y, 50.0),
    }


# -- exact answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", observations())
def test_the_posterior_of_a_gaussian(name):
    """Bayes' rule: log p(x | y) = log p(x) + log p(y | x) − log p(y), at any x; so for a mixture."""
    seen, x = observations()[name], states(7, D, seed=6)
    A, noise = seen.matrix((D,)), seen.covariance(M)
    likely = torch.distributions.MultivariateNormal(x @ A.mT, noise).log_prob(seen.y[:M])
    means = numbers(3, D, seed=7)
    for data in (gaussian(), sf.GaussianMixture(torch.tensor([0.2, 0.3, 0.5]), means, torch.tensor([0.1, 0.5, 1.0]))):
        after = data.posterior(seen)
        assert type(after) is type(data)
        expected = data.log_prob(x) + likely - data.evidence(seen)
        torch.testing.assert_close(after.log_prob(x), expected, rtol=1e-8, atol=1e-8)


def test_the_posterior_of_data():
    """Weights are likelihoods; also through a map that is not linear."""
    x = numbers(6, 3, seed=1)
    data, seen = sf.Empirical(x), Observation(lambda x: x.square().sum(1, keepdim=True), torch.tensor([2.0]), 0.7, linear=False)
    after = data.posterior(seen)
    likely = torch.distributions.Normal(x.square().sum(1), 0.7).log_prob(torch.tensor(2.0, dtype=torch.float64))
    torch.testing.assert_close(after.weights, likely.softmax(0))
    assert data.evidence(seen) == pytest.approx(float(likely.logsumexp(0) - math.log(6)))
    assert after.sample(5, seed=0).shape == (5, 3)
    state = numbers(4, 3, seed=2)
    weights = (after.log_weights - (state[:, None] - 0.8 * x).square().sum(2) / (2 * 0.6**2)).softmax(1)
    torch.testing.assert_close(after.denoise(state, 0.8, 0.6), weights @ x)


def test_a_far_measurement_leaves_the_components_that_can_be():
    """A weight of e^−10⁴ is none, and not an error."""
    data = sf.GaussianMixture(torch.ones(2), torch.tensor([[0.0], [100.0]]), 0.01)
    after = data.posterior(Observation(torch.ones(1, 1), torch.tensor([100.0]), 0.1))
    assert after.means.shape == (1, 1) and float(after.means) == pytest.approx(100.0)


# -- methods ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", observations())
@pytest.mark.parametrize("method", ["mmps", "jfps"])
def test_exact_on_gaussians(path, name, method):
    """x̂_0 given y of the exact posterior, at every time where α > 0."""
    path, data, seen = PATHS[path], gaussian(), observations()[name]
    options = {**FULL[method], **({"cov": data.cov} if method == "jfps" else {})}
    ours, exact = Posterior(data.model(path), seen, method, **options), data.posterior(seen).model(path)
    for t in (0.95, 0.5, 0.1, 0.01):
        x = states(5, D, seed=8) * path.prior_std(t)
        torch.testing.assert_close(ours.x0(x, t), exact.x0(x, t), rtol=1e-9, atol=1e-10)
        times = torch.full((5,), t, dtype=torch.float64)
        torch.testing.assert_close(ours.x0(x, times), exact.x0(x, times), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("sampler, steps", [("ddpm", 3), ("ddim", 10), ("dpm-solver++-2m", 6), ("heun", 4)])
def test_runs_are_those_of_the_exact_posterior(sampler, steps):
    """The same noise, any number of steps: the same samples to 1e-10."""
    data, seen, x = gaussian(), observations()["matrix"], states(6, D, seed=9)
    ours = sf.solve(Posterior(data.model(VP), seen, **FULL["mmps"]), x, sampler, steps=steps, seed=range(6))
    exact = sf.solve(data.posterior(seen).model(VP), x, sampler, steps=steps, seed=range(6))
    torch.testing.assert_close(ours.x, exact.x, rtol=1e-9, atol=1e-10)
    assert ours.nfe == exact.nfe and "rozet2024learning" in ours.cites + ours.sampler.cites + tuple(ours.citations)


@pytest.mark.parametrize("v", [1.0, 0.3])
def test_pigdm_is_exact_where_data_are_isotropic(v):
    data, seen, x = sf.Gaussian(numbers(D, seed=1), v), observations()["matrix"], states(5, D, seed=8)
    ours, exact = Posterior(data.model(VP), seen, "pigdm", v=v, rtol=1e-13), data.posterior(seen).model(VP)
    other = Posterior(data.model(VP), seen, "pigdm", v=2 * v)
    for t in (0.9, 0.5, 0.1):
        torch.testing.assert_close(ours.x0(x, t), exact.x0(x, t), rtol=1e-9, atol=1e-10)
        assert (other.x0(x, t) - exact.x0(x, t)).abs().max() > 1e-3


def test_tmpd_is_exact_where_what_is_measured_is_uncorrelated():
    data, x = sf.Gaussian(numbers(D, seed=1), torch.tensor([0.2, 1.0, 0.5, 2.0])), states(5, D, seed=8)
    for name, exact in (("mask", True), ("matrix", False)):
        seen = observations()[name]
        off = Posterior(data.model(VP), seen, "tmpd").x0(x, 0.5) - data.posterior(seen).model(VP).x0(x, 0.5)
        assert (float(off.abs().max()) < 1e-10) == exact


def test_diffpir_and_ddnm_are_their_published_steps():
    """DiffPIR's proximal problem, solved as it stands; DDNM's `A⁺y + (I − A⁺A) D`, which meets y."""
    data, seen, x, t = gaussian(), observations()["matrix"], states(5, D, seed=8), 0.4
    model, A, kappa = data.model(VP), seen.matrix((D,)), VP.kappa(0.4)
    x_0 = model.x0(x, t)
    left = A.mT @ A / 0.1**2 + torch.eye(D, dtype=torch.float64) * 8 / kappa**2
    right = seen.y @ A / 0.1**2 + x_0 * 8 / kappa**2
    found = Posterior(model, seen, "diffpir", weight=8.0, rtol=1e-13).x0(x, t)
    torch.testing.assert_close(found, torch.linalg.solve(left, right.mT).mT, rtol=1e-8, atol=1e-8)
    inverse = torch.linalg.pinv(A)
    expected = seen.y @ inverse.mT + x_0 - x_0 @ (inverse @ A).mT
    torch.testing.assert_close(Posterior(model, seen, "ddnm", rtol=1e-13).x0(x, t), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("method", [name for name, one in METHODS.items() if not one.follows])
def test_limits(method):
    """Nothing measured, or measured with endless noise: the prior. All measured, without noise: y."""
    data, x = mixture(), states(5, 3, seed=8)
    model, whole = data.model(VP), torch.ones(3, dtype=torch.bool)
    nothing = {"zero": Observation(torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2), 0.1)}
    if method != "ddnm":  # which takes every measurement as exact
        nothing["loud"] = Observation(whole, torch.zeros(3), 1e7)
    for seen in nothing.values():
        torch.testing.assert_close(Posterior(model, seen, method).x0(x, 0.5), model.x0(x, 0.5), rtol=1e-6, atol=1e-6)
    y = numbers(3, seed=2)
    seen = Observation(whole, y, 1e-6)
    options = {"iterations": None} if method == "mmps" else {}
    if method not in ("tmpd", "pigdm"):  # whose V is not C
        found = Posterior(model, seen, method, **options).x0(x, 0.5)
        torch.testing.assert_close(found, y.expand(5, 3), rtol=1e-4, atol=1e-4)


# -- what depends on what -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["ddpm", "dpm-adaptive"])
@pytest.mark.parametrize("method", ["mmps", "pigdm", "ddnm"])
def test_a_sample_depends_on_its_own_measurement_alone(sampler, method):
    """One y a sample: runs alone and among others agree; adaptive steps take samples out of the batch."""
    model, y, x = mixture().model(VP), numbers(4, 2, seed=1), states(4, 3, seed=2)
    mask = torch.tensor([True, False, True])
    options = {} if sampler == "dpm-adaptive" else {"steps": 4}
    whole = sf.solve(Posterior(model, Observation(mask, y, 0.2), method), x, sampler, seed=range(4), **options).x
    for i in range(4):
        alone = Posterior(model, Observation(mask, y[i : i + 1], 0.2), method)
        found = sf.solve(alone, x[i : i + 1], sampler, seed=[i], **options).x
        torch.testing.assert_close(found[0], whole[i], rtol=1e-6, atol=1e-8)
    one = Posterior(model, Observation(mask, y[2], 0.2), method)
    torch.testing.assert_close(sf.solve(one, x, sampler, seed=range(4), **options).x[2], whole[2], rtol=1e-6, atol=1e-8)


def test_measurements_of_samples_inside_guidance_and_among_runs():
    """Wrapped in guidance, an adaptive run asks of each sample with its own y; so do runs that share calls."""
    torch.manual_seed(0)
    model = sf.ScoreModel(Network().double().eval(), VP)
    y, x, seen = torch.tensor([0, 1, 2, 0]), states(4, 3, seed=2), numbers(4, 2, seed=1)
    mask = torch.tensor([True, False, True])

    def made(measured, worse=False):
        inner = Posterior(model, Observation(mask, measured, 0.3))
        other = Posterior(model, Observation(mask, measured - 1.0, 0.3))
        return sf.Autoguidance(model if worse else inner, other, 1.5) if worse else sf.ClassifierFree(inner, 1.5, null={"y": 0})

    for worse in (False, True):
        whole = sf.solve(made(seen, worse), x, "dpm-adaptive", y=sf.each(y)).x
        for i in range(4):
            alone = sf.solve(made(seen[i : i + 1], worse), x[i : i + 1], "dpm-adaptive", y=sf.each(y[i : i + 1])).x
            torch.testing.assert_close(alone[0], whole[i], rtol=1e-6, atol=1e-8)
    one = Posterior(model, Observation(mask, seen, 0.3))
    before = one.backward
    for found, name in zip(
        sf.solve_many([("ddim", 4), ("dpm-solver++-2m", 4)], one, x), ("ddim", "dpm-solver++-2m"), strict=True
    ):
        torch.testing.assert_close(found.x, sf.solve(one, x, name, nfe=4).x, rtol=1e-9, atol=1e-9)
    assert one.backward > before + 8


@pytest.mark.parametrize("method", ["mmps", "tmpd", "pigdm"])
def test_a_network_is_differentiated_up_to_kappa_max(method):
    """Above it C is that of N(m, I) data, sample by sample; by default for ε-networks, and not for exact models."""
    data, seen, x = gaussian(), observations()["matrix"], states(4, D, seed=8)
    exact = data.model(VP)
    learned = sf.ScoreModel(lambda x, t: exact.eps(x, t), VP)
    low, high = VP.time(-math.log(4.9)), VP.time(-math.log(5.1))
    full = Posterior(learned, seen, method, kappa_max=math.inf)
    torch.testing.assert_close(full.x0(x, high), Posterior(exact, seen, method).x0(x, high), rtol=1e-9, atol=1e-9)
    ours = Posterior(learned, seen, method)
    torch.testing.assert_close(ours.x0(x, low), full.x0(x, low))
    before = ours.backward
    off = ours.x0(x, high) - full.x0(x, high)
    assert off.abs().max() > 1e-3 and ours.backward == before
    if method == "mmps":  # then it is the formula with V = κ²/(1 + κ²) I
        same = Posterior(learned, seen, "jfps", cov=1.0, rtol=1e-12).x0(x, high)
        torch.testing.assert_close(ours.x0(x, high), same, rtol=1e-6, atol=1e-6)
    told = Posterior(learned, seen, method, kappa_max=5.05)
    times = torch.tensor([low, high, low, high], dtype=torch.float64)
    torch.testing.assert_close(told.x0(x, times)[::2], full.x0(x, low)[::2])
    torch.testing.assert_close(told.x0(x, times)[1::2], ours.x0(x, high)[1::2])
    with pytest.raises(ValueError, match="kappa_max must be a finite number ≥ 0, got -1"):
        Posterior(learned, seen, method, kappa_max=-1)


def test_an_object_with_an_adjoint():
    """As a physics of deepinv has it; and an adjoint that is given is the one that is used."""

    class Physics:
        def A(self, x):
            return x[:, :2] * 2

        def A_adjoint(self, u):
            return torch.cat([2 * u, torch.zeros(len(u), D - 2, dtype=u.dtype)], 1)

    data, x, y = gaussian(), states(3, D), numbers(2)
    matrix = 2 * torch.eye(D, dtype=torch.float64)[:2]
    expected = Posterior(data.model(VP), Observation(matrix, y, 0.1)).x0(x, 0.5)
    torch.testing.assert_close(Posterior(data.model(VP), Observation(Physics(), y, 0.1)).x0(x, 0.5), expected)
    asked = []
    seen = Observation(lambda x: x[:, :2] * 2, y, 0.1, adjoint=lambda u: asked.append(1) or Physics().A_adjoint(u))
    torch.testing.assert_close(Posterior(data.model(VP), seen).x0(x, 0.5), expected)
    assert asked


# -- networks -----------------------------------------------------------------------------------------------------------------


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(4, 3)

    def forward(self, x, t, y=None):
        shift = 0.0 if y is None else 0.1 * y[:, None].to(x)
        return torch.tanh(self.net(torch.cat([x, t[:, None].to(x)], 1))) + shift


def test_networks_conditions_guidance():
    """Float32 and bfloat16 networks, with conditions, guided inside or around; without a graph, and differentiated."""
    torch.manual_seed(0)
    net = Network().eval()
    model = sf.ScoreModel(net, PATHS["chain"], time="index")
    seen, x, y = (
        Observation(torch.tensor([True, False, True]), torch.zeros(2), 0.1),
        torch.randn(4, 3),
        torch.tensor([0, 1, 2, 0]),
    )
    guided = sf.ClassifierFree(model, 2.0, null={"y": 0})
    for one in (Posterior(model, seen), Posterior(guided, seen), sf.ClassifierFree(Posterior(model, seen), 2.0, null={"y": 0})):
        sol = sf.solve(one, x, "dpm-solver++-2m", steps=4, y=y)
        assert sol.x.dtype == torch.float32 and sol.x.isfinite().all() and sol.nfe >= 4
        assert sol.x[:, [0, 2]].abs().max() < sol.x.abs().max()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            again = sf.solve(Posterior(model, seen), x, "ddim", steps=3, y=y).x
        torch.testing.assert_close(again, sf.solve(Posterior(model, seen), x, "ddim", steps=3, y=y).x)
    whole = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(sf.solve(Posterior(model, seen), whole, "ddim", steps=2, y=y, grad=True).x[0].sum(), whole)
    assert slope[0].abs().max() > 0 and not slope[1:].any()
    coarse = sf.ScoreModel(Network().bfloat16(), PATHS["chain"], time="index")
    assert sf.solve(Posterior(coarse, seen), x, "ddim", steps=3).x.isfinite().all()
    counted = Posterior(model, seen)
    counted.x0(x, 0.5)
    assert counted.nfe == model.nfe and 2 <= counted.backward <= 3 and counted.residual.max() < 1e-3  # two numbers are measured


def test_refusals():
    model, y = mixture().model(VP), torch.zeros(2)
    mask = torch.tensor([True, False, True])
    for call, kind, match in [
        (lambda: Observation(mask, torch.zeros(0)), TypeError, "y must be a floating-point tensor that is not empty"),
        (lambda: Observation(mask, torch.tensor([1, 2])), TypeError, "y must be a floating-point tensor"),
        (lambda: Observation(mask, torch.tensor([math.nan, 1.0])), ValueError, "y must be finite, and 1 of its 2"),
        (lambda: Observation(mask, y, -0.1), ValueError, r"noise must be ≥ 0, got -0\.1"),
        (lambda: Observation(mask, y, math.inf), ValueError, "noise must be σ_y, .* finite"),
        (lambda: Observation(~mask & mask, y), ValueError, "A is a mask that measures nothing"),
        (
            lambda: Observation(torch.zeros(3), y),
            ValueError,
            r"A must be a finite matrix \(m, d\), a boolean mask or a callable",
        ),
        (lambda: Observation("mask", y), TypeError, "A must be a matrix, a boolean mask or a callable, got str"),
        (lambda: Observation(mask, y, linear=False), ValueError, "a mask is linear"),
        (lambda: Posterior(model, Observation(mask, y), "mmsp"), ValueError, "method must be one of mmps, .* got 'mmsp'.*mmps"),
        (lambda: Posterior(model, Observation(mask, y), "tmpd", rtol=1), TypeError, "tmpd has no option 'rtol'; it has none"),
        (
            lambda: Posterior(sf.Thresholding(sf.Gaussian(torch.zeros(3)).flow_map(VP)), Observation(mask, y)),
            ValueError,
            r"model is a flow map, .* give flow_map\.score_model\(\)",
        ),
        (lambda: Posterior(model, mask), TypeError, r"observation must be an Observation\(A, y, noise\), got Tensor"),
        (lambda: Posterior(model, Observation(lambda x: x**2, y, linear=False)), ValueError, "mmps needs a linear A"),
        (
            lambda: Posterior(model, Observation(mask, y, torch.ones(3))).x0(states(1, 3), 0.5),
            ValueError,
            "noise must be a number, 2",
        ),
        (
            lambda: Posterior(model, Observation(mask, torch.zeros(5))).x0(states(4, 3), 0.5),
            ValueError,
            r"y must be \(3,\) or \(2,\), or 4",
        ),
        (
            lambda: Posterior(model, Observation(mask[:2], y)).x0(states(4, 3), 0.5),
            ValueError,
            r"a mask of shape \(2,\), and states",
        ),
        (
            lambda: Posterior(model, Observation(torch.zeros(2, 4), y)).x0(states(4, 3), 0.5),
            ValueError,
            "states of shape .* have 3",
        ),
        (
            lambda: mixture().posterior(Observation(torch.ones(2, 3, dtype=torch.float64), y)),
            ValueError,
            "without variance and",
        ),
        (lambda: downsample(3)(torch.zeros(1, 1, 4, 4)), ValueError, "factor=3 must divide height and width"),
        (lambda: crop(0, 0, 5, 1)(torch.zeros(1, 1, 4, 4)), ValueError, "does not lie within images of"),
        (lambda: grayscale()(torch.zeros(1, 1, 4, 4)), ValueError, "3 weights, and images have 1 channels"),
    ]:
        with pytest.raises(kind, match=match):
            call()
    frozen = sf.ScoreModel(lambda x, t: torch.zeros_like(x), VP)
    with pytest.raises(ValueError, match="differentiates the network, and its output has no gradient"):
        Posterior(frozen, Observation(mask, y)).x0(states(2, 3), 0.5)
    flow = mixture().model(PATHS["flow"])
    with pytest.raises(ValueError, match=r"alpha=0 at t=1\.0"):
        Posterior(flow, Observation(mask, y)).x0(states(2, 3), 1.0)


@pytest.mark.parametrize("method", [name for name, one in METHODS.items() if not one.step and not one.replaces])
def test_shapes_alone(method):
    """On the meta device, by all methods."""
    model = sf.ScoreModel(sf.nets.UNet(widths=(8, 16)).to("meta"), VP)
    seen = Observation(downsample(2), torch.zeros(1, 4, 4), 0.1)
    x = torch.empty(2, 1, 8, 8, device="meta")
    assert sf.solve(Posterior(model, seen, method, kappa_max=math.inf), x, "ddpm", steps=2, seed=0).x.shape == x.shape


def test_a_run_says_its_backward_passes():
    """A solve of k iterations is k + 1 of them a call; runs that share calls have theirs each; wrappers count too."""
    seen = observations()["matrix"]
    model = Posterior(gaussian().model(VP), seen, iterations=1, rtol=0.0)
    assert sf.solve(gaussian().model(VP), numbers(3, D), "ddim", steps=4).backward == 0
    sol = sf.solve(model, numbers(3, D), "ddim", steps=4)
    assert (sol.nfe, sol.backward) == (4, 8) and "backward=8" in repr(sol)
    assert [one.backward for one in sf.solve_many([("ddim", 4), ("ddpm", 6)], model, numbers(3, D), seed=0)] == [8, 12]
    both = sf.Autoguidance(model, Posterior(gaussian(1).model(VP), seen, "pigdm"), 2.0)
    assert sf.solve(both, numbers(3, D), "ddim", steps=4).backward == 12
