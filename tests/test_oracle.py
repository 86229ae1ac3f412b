"""The oracles against torch.distributions, autograd, brute force, SciPy and the law of their own samples."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from problems import PATHS, states
from scipy import stats
from scipy.integrate import solve_ivp
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

import scoreflow as sf

RATE = 1e-6
EVENTS = [(3,), (2, 2), (1, 2, 2)]
F64 = torch.float64


def tensor(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def covariances(k: int, event: tuple[int, ...], form: str) -> tuple[float | torch.Tensor, torch.Tensor]:
    """A covariance as the oracle takes it, and the same as full matrices (k, d, d)."""
    d = math.prod(event)
    if form == "number":
        return 0.3, 0.3 * torch.eye(d, dtype=F64).expand(k, d, d)
    if form == "by component":
        var = 0.1 + tensor(k, seed=1).abs()
        return var, var[:, None, None] * torch.eye(d, dtype=F64)
    if form == "diagonal":
        var = 0.1 + tensor(k, *event, seed=2).abs()
        return var, torch.diag_embed(var.flatten(1))
    root = tensor(k, d, d, seed=3)
    full = root @ root.mT / d + 0.05 * torch.eye(d, dtype=F64)
    return full, full


def mixture(form: str, event: tuple[int, ...] = (3,), k: int = 4):
    cov, full = covariances(k, event, form)
    weights, means = tensor(k, seed=4).abs() + 0.2, tensor(k, *event, seed=5)
    return sf.GaussianMixture(weights, means, cov), weights, means.flatten(1), full


def gaussian(form: str, event: tuple[int, ...] = (3,)):
    cov, full = covariances(1, event, form)
    mean = tensor(*event, seed=6)
    given = cov if form == "number" else cov[0]
    return sf.Gaussian(mean, given), torch.ones(1, dtype=F64), mean.flatten()[None], full


def distribution(weights, means, covs, alpha: float = 1.0, sigma: float = 0.0) -> MixtureSameFamily:
    """`Σ w_k N(α μ_k, α² Σ_k + σ² I)` by torch."""
    spread = alpha**2 * covs + sigma**2 * torch.eye(means.shape[1], dtype=F64)
    return MixtureSameFamily(Categorical(weights), MultivariateNormal(alpha * means, spread))


PROBLEMS = {
    **{f"gaussian {f} {e}": (gaussian, f, e) for f in ("number", "diagonal", "full") for e in EVENTS},
    **{f"mixture {f} {e}": (mixture, f, e) for f in ("number", "by component", "diagonal", "full") for e in EVENTS},
}


@pytest.fixture(params=PROBLEMS.values(), ids=PROBLEMS.keys())
def problem(request):
    make, form, event = request.param
    return make(form, event)


def draws_at(oracle, path, t: float, n: int = 6) -> torch.Tensor:
    return path.alpha(t) * oracle.sample(n, seed=1) + path.sigma(t) * states(n, *oracle.event)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_density_and_score(problem, path):
    """log p_t by torch.distributions; the score is the gradient of both."""
    oracle, *parts = problem
    for t in (0.05, 0.3, 0.6, 0.98):
        x = draws_at(oracle, path, t).requires_grad_()
        a, s = path.alpha(t), path.sigma(t)
        ours, theirs = oracle.log_prob(x, a, s), distribution(*parts, a, s).log_prob(x.flatten(1))
        assert ours.shape == (6,)
        assert ours.dtype == F64
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
        score = oracle.model(path).score(x.detach(), t)
        for log_prob in (ours, theirs):
            (gradient,) = torch.autograd.grad(log_prob.sum(), x)
            torch.testing.assert_close(score, gradient, rtol=1e-9, atol=1e-9 * gradient.abs().max().item())


def test_density_of_the_data(problem):
    oracle, *parts = problem
    x = oracle.sample(6)
    torch.testing.assert_close(oracle.log_prob(x), distribution(*parts).log_prob(x.flatten(1)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("event", EVENTS, ids=str)
@pytest.mark.parametrize("form", ["number", "diagonal", "full"])
def test_a_gaussian_is_conditioned_by_the_textbook(form, event):
    """`E[x_0 | x] = μ + α Σ (α² Σ + σ² I)^{-1} (x − α μ)`."""
    oracle, _, means, covs = gaussian(form, event)
    a, s, x = 0.6, 0.7, states(5, *event)
    gain = a * covs[0] @ torch.linalg.inv(a**2 * covs[0] + s**2 * torch.eye(len(covs[0]), dtype=F64))
    want = means + (x.flatten(1) - a * means) @ gain.mT
    torch.testing.assert_close(oracle.denoise(x, a, s).flatten(1), want, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(oracle.mean, means[0], rtol=0, atol=0)
    torch.testing.assert_close(oracle.cov, covs[0], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("event", EVENTS, ids=str)
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_empirical(path, event):
    """Data are a mixture of points; the posterior weighs them by a softmax of distances."""
    data = tensor(7, *event, seed=8)
    oracle, points = sf.Empirical(data), sf.GaussianMixture(torch.ones(7), data, 0.0)
    assert oracle.event == event
    for t in (0.05, 0.3, 0.6, 0.98):
        x = draws_at(oracle, path, t).requires_grad_()
        a, s = path.alpha(t), path.sigma(t)
        weights = torch.stack([
            torch.stack([-((x_b - a * x_n) ** 2).sum() / (2 * s**2) for x_n in data]).softmax(0) for x_b in x.detach()
        ])  # fmt: skip
        brute = (weights @ data.flatten(1)).reshape(x.shape)
        torch.testing.assert_close(oracle.denoise(x.detach(), a, s), brute, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(points.denoise(x.detach(), a, s), brute, rtol=1e-9, atol=1e-9)
        log_prob = oracle.log_prob(x, a, s)
        torch.testing.assert_close(log_prob, points.log_prob(x, a, s), rtol=1e-9, atol=1e-9)
        parts = torch.ones(7, dtype=F64), data.flatten(1), torch.zeros(7, 1, 1)
        theirs = distribution(*parts, a, s).log_prob(x.flatten(1))
        torch.testing.assert_close(log_prob, theirs, rtol=1e-9, atol=1e-9)
        (gradient,) = torch.autograd.grad(log_prob.sum(), x)
        score = oracle.model(path).score(x.detach(), t)
        torch.testing.assert_close(score, gradient, rtol=1e-9, atol=1e-9 * gradient.abs().max().item())


def all_oracles(event=(3,)):
    return [
        gaussian("full", event)[0],
        mixture("full", event)[0],
        mixture("diagonal", event)[0],
        sf.Empirical(tensor(7, *event, seed=8)),
    ]


@pytest.mark.parametrize("oracle", all_oracles(), ids=lambda o: type(o).__name__)
def test_without_noise_the_state_tells_the_data(oracle):
    x = states(4, 3)
    assert torch.equal(oracle.denoise(x, 1.0, 0.0), x)
    torch.testing.assert_close(oracle.denoise(x, 0.7, 0.0), x / 0.7, rtol=1e-15, atol=0)
    levels = torch.tensor([0.0, 0.5, 0.0, 1.0])
    mixed = oracle.denoise(x, torch.full((4,), 0.7), levels)
    assert mixed.isfinite().all()
    torch.testing.assert_close(mixed[levels == 0], x[levels == 0] / torch.tensor(0.7).double(), rtol=1e-15, atol=0)


@pytest.mark.parametrize("oracle", all_oracles(), ids=lambda o: type(o).__name__)
def test_without_data_the_mean_remains(oracle):
    """At α = 0 the posterior is the prior of x_0."""
    want = (oracle.log_weights.exp()[:, None] * oracle.means).sum(0).expand(4, 3)
    torch.testing.assert_close(oracle.denoise(states(4, 3), 0.0, 1.0), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("oracle", all_oracles(), ids=lambda o: type(o).__name__)
def test_arithmetic_is_double_whatever_the_state(oracle, dtype):
    x = states(4, 3, dtype=dtype)
    got = oracle.denoise(x, 0.9, 0.05)
    assert got.dtype == dtype
    assert torch.equal(got, oracle.denoise(x.double(), 0.9, 0.05).to(dtype))
    assert torch.equal(oracle.log_prob(x, 0.9, 0.05), oracle.log_prob(x.double(), 0.9, 0.05))


@pytest.mark.parametrize("event", EVENTS, ids=str)
def test_batched_levels_equal_scalar_ones(event):
    alpha, sigma = torch.tensor([1.0, 0.8, 0.5, 0.0], dtype=F64), torch.tensor([0.1, 0.6, 0.2, 1.0], dtype=F64)
    x = states(4, *event)
    for oracle in all_oracles(event):
        for method in (oracle.denoise, oracle.log_prob):
            one_by_one = torch.cat([method(x[i : i + 1], float(alpha[i]), float(sigma[i])) for i in range(4)])
            torch.testing.assert_close(method(x, alpha, sigma), one_by_one, rtol=1e-12, atol=1e-12)


def assert_moments(x: np.ndarray, mean: np.ndarray, cov: np.ndarray) -> None:
    """Mean by χ², every entry of the covariance by its own standard error; all at one false-alarm rate."""
    n, d = x.shape
    r = x - mean
    tests = 1 + d * (d + 1) // 2
    assert n * r.mean(0) @ np.linalg.solve(cov, r.mean(0)) < stats.chi2.isf(RATE / tests, d)
    for i in range(d):
        for j in range(i, d):
            product = r[:, i] * r[:, j]
            z = (product.mean() - cov[i, j]) / (product.std() / math.sqrt(n))
            assert abs(z) < stats.norm.isf(RATE / tests / 2)


def test_samples_have_the_moments(problem):
    oracle, weights, means, covs = problem
    w = weights / weights.sum()
    mean = w @ means
    spread = means - mean
    cov = torch.einsum("k,kij->ij", w, covs + spread[:, :, None] * spread[:, None, :])
    x = oracle.sample(40_000, seed=3)
    assert x.shape == (40_000, *oracle.event)
    assert x.dtype == F64
    assert_moments(x.flatten(1).numpy(), mean.numpy(), cov.numpy())
    assert torch.equal(oracle.sample(5, seed=3), oracle.sample(5, seed=3))
    assert not torch.equal(oracle.sample(5, seed=3), oracle.sample(5, seed=4))


def test_samples_of_the_data_are_the_data():
    data = tensor(4, 2, seed=8)
    n = 40_000
    x = sf.Empirical(data).sample(n, seed=1)
    counts = [(x == row).all(1).sum().item() for row in data]
    assert sum(counts) == n
    assert stats.chisquare(counts).pvalue > RATE


def test_components_beyond_torchs_limit(monkeypatch):
    """`torch.multinomial` ends at 2^24; beyond, by the inverse of the distribution, with the same law. 2 s, for so many."""
    assert sf.Empirical(torch.arange(2**24 + 1.0)[:, None]).sample(2, seed=0).shape == (2, 1)
    monkeypatch.setattr("scoreflow._score.oracle.CATEGORIES", 2)
    weights, n = torch.tensor([1.0, 5.0, 2.0, 0.5], dtype=F64), 40_000
    x = sf.GaussianMixture(weights, torch.arange(4.0)[:, None], 0.0).sample(n, seed=1)
    counts = [(x == k).sum().item() for k in range(4)]
    assert stats.chisquare(counts, n * weights / weights.sum()).pvalue > RATE


# β of a chain has kinks at its nodes: a short chain, so that SciPy can stop at each.
ODES = {**PATHS, "chain": sf.VPSDE.from_betas(sf.DDPMChain.linear(20, 0.005, 0.5).beta)}


@pytest.mark.parametrize("path", ODES.values(), ids=ODES)
@pytest.mark.parametrize("form", ["number", "diagonal", "full"])
def test_flow_of_a_gaussian_solves_its_ode(form, path):
    """`dx/dt = f x − ½ g² ∇log p_t` by SciPy, down and up."""
    oracle, _, means, covs = gaussian(form)
    mean, eye = means[0].numpy(), np.eye(3)

    def rate(t, x):
        t = min(t, 1.0)  # older versions of SciPy look past the end for their first step
        r = x.reshape(-1, 3) - path.alpha(t) * mean
        score = -np.linalg.solve(path.alpha(t) ** 2 * covs[0].numpy() + path.sigma(t) ** 2 * eye, r.T).T
        return (path.f(t) * x.reshape(-1, 3) - path.g2(t) / 2 * score).ravel()

    for t, s in ((0.92, 0.06), (0.11, 0.8)):
        x = draws_at(oracle, path, t, 3)
        nodes = [i / path.T for i in range(path.T + 1) if min(s, t) < i / path.T < max(s, t)] if path.T else []
        y = x.numpy().ravel()
        for a, b in pairwise([t, *(nodes if s > t else nodes[::-1]), s]):
            y = solve_ivp(rate, (a, b), y, method="DOP853", rtol=1e-10, atol=1e-10).y[:, -1]
        want = torch.from_numpy(y.reshape(3, 3))
        torch.testing.assert_close(oracle.flow(path, x, t, s), want, rtol=1e-8, atol=1e-8 * want.abs().max().item())


def test_flow_of_a_gaussian_keeps_shape_and_dtype():
    oracle = gaussian("full", (1, 2, 2))[0]
    x = states(3, 1, 2, 2)
    single = oracle.flow(sf.VPSDE(), x.float(), 0.9, 0.0)
    assert single.dtype == torch.float32
    assert single.shape == x.shape
    torch.testing.assert_close(single.double(), oracle.flow(sf.VPSDE(), x, 0.9, 0.0), rtol=1e-5, atol=1e-5)
    back = oracle.flow(sf.VPSDE(), oracle.flow(sf.VPSDE(), x, 0.9, 0.0), 0.0, 0.9)
    torch.testing.assert_close(back, x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("a", [1.0, 0.6])
@pytest.mark.parametrize("s", [0.05, 0.8])
def test_orthogonal_equivariance(a, s):
    """Data turned by Q have the denoiser turned by Q."""
    q = torch.linalg.qr(tensor(3, 3, seed=9))[0]
    x, (full, weights, means, covs) = states(6, 3), mixture("full")
    data = tensor(7, 3, seed=8)
    pairs = [
        (full, sf.GaussianMixture(weights, means @ q.mT, q @ covs @ q.mT)),
        (sf.GaussianMixture(weights, means, 0.2), sf.GaussianMixture(weights, means @ q.mT, 0.2)),
        (sf.Empirical(data), sf.Empirical(data @ q.mT)),
        (sf.Gaussian(means[0], covs[0]), sf.Gaussian(q @ means[0], q @ covs[0] @ q.mT)),
    ]
    for oracle, turned in pairs:
        torch.testing.assert_close(turned.denoise(x @ q.mT, a, s), oracle.denoise(x, a, s) @ q.mT, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(turned.log_prob(x @ q.mT, a, s), oracle.log_prob(x, a, s), rtol=1e-9, atol=1e-9)


def test_scale_of_the_weights_does_not_matter():
    means, x = tensor(3, 2, seed=1), states(4, 2)
    a, b = (sf.GaussianMixture(c * torch.tensor([1.0, 2.0, 3.0]), means, 0.1) for c in (1, 17))
    torch.testing.assert_close(a.log_prob(x), b.log_prob(x), rtol=1e-14, atol=1e-14)


def test_a_number_for_a_mean():
    oracle = sf.Gaussian(torch.tensor(2.0), 0.25)
    assert oracle.event == (1,)
    x = torch.tensor([[1.5]], dtype=F64)
    want = -0.5 * ((1.5 - 2.0) ** 2 / 0.25 + math.log(2 * math.pi * 0.25))
    assert oracle.log_prob(x).item() == pytest.approx(want, rel=1e-13)


EYE = torch.eye(2)
ASKEW = torch.tensor([[1.0, 0.5], [0.0, 1.0]])
INDEFINITE = torch.tensor([[1.0, 2.0], [2.0, 1.0]])


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.ones(2), torch.zeros(3, 2), 1.0),
        (torch.ones(3), torch.zeros(3), 1.0),
        (torch.ones(3, 1), torch.zeros(3, 2), 1.0),
        (torch.ones(3), torch.zeros(3, 2), torch.ones(2)),
        (torch.ones(3), torch.zeros(3, 2), torch.ones(3, 3)),
        (torch.ones(3), torch.zeros(3, 2), torch.ones(1, 2, 2)),
        (torch.tensor([1.0, -1.0]), torch.zeros(2, 2), 1.0),
        (torch.tensor([1.0, 0.0]), torch.zeros(2, 2), 1.0),
        (torch.tensor([1.0, math.nan]), torch.zeros(2, 2), 1.0),
        (torch.ones(1), torch.zeros(1, 2), ASKEW[None]),
        (torch.ones(1), torch.zeros(1, 2), INDEFINITE[None]),
        (torch.ones(2), torch.zeros(2, 2), torch.stack([EYE, INDEFINITE])),
        (torch.ones(2), torch.zeros(2, 2), -1.0),
        (torch.ones(2), torch.zeros(2, 2), torch.tensor([1.0, -1.0])),
        (torch.ones(2), torch.zeros(2, 2), torch.tensor([[1.0, 1.0], [1.0, -1.0]])),
        (torch.ones(2), torch.zeros(2, 2), math.nan),
    ],
)
def test_wrong_mixtures_are_refused(arguments):
    with pytest.raises(ValueError, match=r"means|weights|cov"):
        sf.GaussianMixture(*arguments)


@pytest.mark.parametrize("cov", [torch.ones(3), ASKEW, INDEFINITE, -1.0, torch.tensor([1.0, -0.1])])
def test_wrong_gaussians_are_refused(cov):
    with pytest.raises(ValueError, match="cov"):
        sf.Gaussian(torch.zeros(2), cov)


@pytest.mark.parametrize("cov", [EYE, torch.zeros(2, 2), torch.ones(2, 2), 0.0, torch.tensor([0.0, 1.0])])
def test_covariances_may_be_singular(cov):
    """Rank one and zero are covariances; the noised density exists."""
    oracle = sf.Gaussian(torch.zeros(2), cov)
    full = cov if torch.is_tensor(cov) and cov.ndim == 2 else torch.diag(torch.as_tensor(cov).expand(2))
    x = states(3, 2)
    want = MultivariateNormal(torch.zeros(2, dtype=F64), full.double() + 0.25 * EYE.double()).log_prob(x)
    torch.testing.assert_close(oracle.log_prob(x, 1.0, 0.5), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("oracle", all_oracles(), ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("shape", [(3,), (4, 2), (4, 3, 1)])
def test_states_of_another_shape_are_refused(oracle, shape):
    with pytest.raises(ValueError, match="states must be"):
        oracle.denoise(torch.zeros(shape), 0.9, 0.1)
    with pytest.raises(ValueError, match="states must be"):
        oracle.log_prob(torch.zeros(shape), 0.9, 0.1)


TWO, NAN, INF = torch.zeros(2, 2), math.nan, math.inf


@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (lambda: sf.GaussianMixture(torch.tensor([1.0, NAN]), TWO, 1.0), ValueError, "weights must be finite, and 1 of its 2"),
        (lambda: sf.GaussianMixture(torch.tensor([1.0, INF]), TWO, 1.0), ValueError, "weights must be finite"),
        (lambda: sf.GaussianMixture(torch.ones(0), torch.zeros(0, 2), 1.0), ValueError, r"weights must not be empty.*\(0,\)"),
        (lambda: sf.GaussianMixture(torch.ones(2), torch.zeros(2, 0), 1.0), ValueError, r"means must not be empty.*\(2, 0\)"),
        (lambda: sf.GaussianMixture(torch.ones(2), TWO + NAN, 1.0), ValueError, "means must be finite, and 4 of its 4 numbers"),
        (lambda: sf.GaussianMixture(torch.ones(2), TWO, INF), ValueError, "cov must be finite"),
        (lambda: sf.GaussianMixture(torch.ones(2), TWO, "wide"), TypeError, "cov must be a tensor of real numbers, got 'wide'"),
        (lambda: sf.GaussianMixture(torch.ones(2), TWO, True), TypeError, "cov must be a tensor of real numbers, got True"),
        (lambda: sf.GaussianMixture(None, TWO, 1.0), TypeError, "weights must be a tensor of real numbers, got None"),
        (lambda: sf.GaussianMixture(torch.ones(2), TWO * 1j, 1.0), TypeError, "means must be a tensor of real numbers"),
        (lambda: sf.Gaussian(torch.tensor([0.0, NAN])), ValueError, "mean must be finite"),
        (lambda: sf.Gaussian(torch.zeros(0)), ValueError, "mean must not be empty"),
        (lambda: sf.Gaussian(torch.zeros(2), torch.full((2, 2), NAN)), ValueError, "cov must be finite, and 4 of its 4"),
        (lambda: sf.Empirical(torch.tensor([[0.0], [INF]])), ValueError, "data must be finite"),
        (lambda: sf.Empirical(torch.zeros(0, 2)), ValueError, "data must not be empty"),
        (lambda: sf.Empirical([]), ValueError, "data must not be empty"),
        (lambda: sf.Empirical(torch.zeros(3)), ValueError, r"data must be \(N, \*event\), got \(3,\)"),
        (lambda: sf.Gaussian(torch.zeros(2)).sample(-1), ValueError, "n must be a whole number ≥ 0, got -1"),
        (lambda: sf.Gaussian(torch.zeros(2)).sample(2.5), TypeError, "n must be a whole number ≥ 0, got 2.5"),
        (lambda: sf.Gaussian(torch.zeros(2)).sample(2, seed="a"), TypeError, "seed must be a whole number ≥ 0, got 'a'"),
        (lambda: sf.analysis.problem(std=-1.0), ValueError, "std must be a finite number ≥ 0, got -1"),
        (lambda: sf.analysis.problem(components=0), ValueError, "components must be a whole number ≥ 1, got 0"),
        (lambda: sf.studies.load("oracle:ring(std=-1)"), ValueError, "std must be a finite number ≥ 0, got -1"),
        (lambda: sf.studies.load("oracle:white(var=wide)"), ValueError, "var must be a finite number ≥ 0, got 'wide'"),
    ],
)
def test_what_is_no_number_is_refused_by_name(call, kind, says):
    with pytest.raises(kind, match=says):
        call()


def test_lists_are_numbers_and_no_draws_are_none():
    """What as_tensor takes; a sample of none has the event's shape."""
    oracle = sf.GaussianMixture([1, 3], [[0, 1], [2, 3]], 0.5)
    assert oracle.weights.tolist() == pytest.approx([0.25, 0.75]) and oracle.sample(0).shape == (0, 2)
    assert torch.equal(oracle.sample(5, seed=3), sf.GaussianMixture(torch.tensor([0.25, 0.75]), oracle.means, 0.5).sample(5, 3))
