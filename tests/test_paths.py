"""Paths: one set of curves, everything else derived; checked once for every path."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import PATHS
from test_chain import betas

import scoreflow as sf

INSIDE = st.floats(1e-4, 0.9999)
EVERY = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


class Laplace(sf.GaussianPath):
    """A path as a user writes it: two curves, no closed forms."""

    def log_alpha(self, t):
        return -2 * torch.as_tensor(t, dtype=torch.float64) ** 1.5

    def log_sigma(self, t):
        return torch.log(torch.as_tensor(t, dtype=torch.float64)) + 0.3


@EVERY
@given(t=INSIDE)
def test_curves_agree(path, t):
    """α, σ, λ, κ are one thing; f, g² and the slopes are its derivatives, by central differences."""
    assert path.alpha(t) == pytest.approx(math.exp(path.log_alpha(t)), rel=1e-14)
    assert path.lam(t) == pytest.approx(math.log(path.alpha(t) / path.sigma(t)), rel=1e-11, abs=1e-12)
    assert path.kappa(t) == pytest.approx(path.sigma(t) / path.alpha(t), rel=1e-12)
    if not path.T and 0.01 < t < 0.99:  # between a chain's nodes the third derivative jumps
        h = 1e-4 * min(t, 1 - t)
        d = {c: (getattr(path, c)(t + h) - getattr(path, c)(t - h)) / (2 * h) for c in ("log_alpha", "lam", "alpha", "sigma")}
        assert path.f(t) == pytest.approx(d["log_alpha"], rel=1e-6, abs=1e-9)
        assert path.lam_slope(t) == pytest.approx(d["lam"], rel=1e-6)
        assert path.g2(t) == pytest.approx(-2 * path.sigma(t) ** 2 * d["lam"], rel=1e-6)
        assert path.alpha_slope(t) == pytest.approx(d["alpha"], rel=1e-6, abs=1e-9)
        assert path.sigma_slope(t) == pytest.approx(d["sigma"], rel=1e-6)


@EVERY
def test_closed_forms_are_the_derivatives(path):
    """f and g² in closed form equal forward-mode derivatives of the curves."""
    t = torch.linspace(0.003, 0.997, 331, dtype=torch.float64)
    torch.testing.assert_close(path.f(t), sf.GaussianPath.f(path, t), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(path.g2(t), sf.GaussianPath.g2(path, t), rtol=1e-10, atol=0)


@EVERY
@given(t=INSIDE)
def test_time_inverts_lam(path, t):
    """time(λ(t)) = t, for numbers and tensors; beyond the ends it is held."""
    assert path.time(path.lam(t)) == pytest.approx(t, rel=1e-9, abs=1e-13)
    tensor = torch.tensor([t, t], dtype=torch.float64)
    torch.testing.assert_close(path.time(path.lam(tensor)), tensor, rtol=1e-9, atol=1e-13)
    assert path.time(math.inf) == 0 and path.time(800.0) == pytest.approx(0, abs=1e-12)


@EVERY
def test_numbers_and_tensors_agree(path):
    """A float answers with a float, a tensor in its own dtype; the arithmetic is the same."""
    t = torch.tensor([0.05, 0.31, 0.9], dtype=torch.float64)
    for name in ("alpha", "sigma", "log_alpha", "log_sigma", "lam", "kappa", "f", "g2", "prior_std"):
        curve = getattr(path, name)
        assert isinstance(curve(0.31), float)
        torch.testing.assert_close(
            curve(t), torch.tensor([curve(u) for u in t.tolist()], dtype=torch.float64), rtol=1e-13, atol=1e-15
        )
        assert curve(t.float()).dtype is torch.float32
    s = t / 2
    for batched, rows in ((path.bridge(t, s, 0.7), [path.bridge(a, a / 2, 0.7) for a in t.tolist()]),
                          (path.forward(s, t), [path.forward(a / 2, a) for a in t.tolist()])):  # fmt: skip
        torch.testing.assert_close(batched.x, torch.tensor([r.x for r in rows], dtype=torch.float64))
        torch.testing.assert_close(batched.z, torch.tensor([r.z for r in rows], dtype=torch.float64))


@EVERY
@given(t=INSIDE)
def test_ends_are_finite(path, t):
    """At t = 0 α = 1 and σ = 0; rows to there and from t = 1 are finite, also where α_1 = 0."""
    assert (path.alpha(0.0), path.sigma(0.0), path.lam(0.0)) == (1.0, 0.0, math.inf)
    for a, b in ((t, 0.0), (1.0, t), (1.0, 0.0)):
        for eta in (0.0, 0.4, 1.0):
            row = path.bridge(a, b, eta)
            assert all(math.isfinite(c) for c in (row.x, *row.m, row.z))
            assert b > 0 or row.z == 0
        assert math.isfinite(path.posterior_std(a, b)) and math.isfinite(path.forward(b, a).z)


@EVERY
@given(a=INSIDE, b=INSIDE, c=INSIDE)
def test_transitions_compose(path, a, b, c):
    """q(x_u|x_s) after q(x_s|x_t) is q(x_u|x_t); the marginal is carried over; Bayes gives the bridge."""
    t, s, u = sorted((a, b, c))
    one, two, whole = path.forward(t, s), path.forward(s, u), path.forward(t, u)
    assert one.x * two.x == pytest.approx(whole.x, rel=1e-11)
    assert (two.x * one.z) ** 2 + two.z**2 == pytest.approx(whole.z**2, rel=1e-9, abs=1e-15)
    assert (whole.x * path.sigma(t)) ** 2 + whole.z**2 == pytest.approx(path.sigma(u) ** 2, rel=1e-11)
    if 1e-6 < s and s + 1e-6 < u:
        # Precision and mean of q(x_s|x_u, x_0) from the product of Gaussians.
        precision = two.x**2 / two.z**2 + 1 / path.sigma(s) ** 2
        row = path.bridge(u, s, eta=1.0)
        assert row.z**-2 == pytest.approx(precision, rel=1e-8)
        assert row.x == pytest.approx(two.x / two.z**2 / precision, rel=1e-8)
        assert row.m[0] == pytest.approx(path.alpha(s) / path.sigma(s) ** 2 / precision, rel=1e-8)
        assert path.posterior_std(u, s) == row.z


@given(betas(longest=400), st.integers(0, 2**32))
def test_chain_path(beta, seed):
    """Exact at the nodes, strictly monotone between them, and `discretize(T)` gives the betas back."""
    chain = sf.DDPMChain(beta)
    path = sf.VPSDE.from_betas(beta)
    nodes = torch.arange(chain.T + 1, dtype=torch.float64) / chain.T
    torch.testing.assert_close(2 * path.log_alpha(nodes[1:]), chain.log_alpha_bar, rtol=1e-15, atol=0)
    between = torch.rand(2000, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).sort().values
    assert bool((path.log_alpha(between).diff() <= 0).all()) and bool((path.g2(between) > 0).all())
    # A difference of logarithms is as good as |log ᾱ| roundings.
    torch.testing.assert_close(
        path.discretize(chain.T).beta, chain.beta, rtol=1e-12, atol=float(-chain.log_alpha_bar[-1]) * 1e-15
    )
    assert path.T == chain.T


@EVERY
def test_beta_is_continuous_between_nodes(path):
    """g² has no jump, at nodes and between them, for every path and a chain whose β jumps."""
    jumpy = sf.VPSDE.from_betas([0.1, 0.4, 0.05, 0.3, 0.3])
    for one in (path, jumpy):
        t = torch.arange(1, 5, dtype=torch.float64) / 5
        left, right = one.g2(t - 1e-9), one.g2(t + 1e-9)
        torch.testing.assert_close(left, right, rtol=1e-5, atol=0)


@pytest.mark.parametrize("N", [1, 2, 19, 1000, 4000])
def test_discretize(N):
    """β_i = 1 − ᾱ(t_i)/ᾱ(t_{i−1}) at any N, also where β(t)/N would pass 1; the chain's ᾱ is the path's."""
    path = sf.VPSDE()
    chain = path.discretize(N)
    t = torch.arange(1, N + 1, dtype=torch.float64) / N
    torch.testing.assert_close(chain.alpha_bar, path.alpha(t) ** 2, rtol=1e-12, atol=0)
    if N == 4000:
        torch.testing.assert_close(chain.beta * N, path.g2(t - 0.5 / N), rtol=3e-3, atol=0)


def test_sub_vp_and_ve_as_published():
    """g² of sub-VP is β(1 − e^{−2∫β}); of VE dσ²/dt; σ of VE is published σ(t)² − σ_min²."""
    t = 0.37
    sub, ve = sf.SubVPSDE(0.1, 20.0), sf.VESDE(0.01, 50.0)
    integral = 0.1 * t + 0.5 * 19.9 * t**2
    assert sub.g2(t) == pytest.approx((0.1 + 19.9 * t) * (1 - math.exp(-2 * integral)), rel=1e-13)
    assert sub.sigma(t) == pytest.approx(1 - math.exp(-integral), rel=1e-13)
    assert ve.sigma(t) ** 2 == pytest.approx((0.01 * 5000**t) ** 2 - 0.01**2, rel=1e-12)
    assert ve.g2(t) == pytest.approx(2 * math.log(5000) * (0.01 * 5000**t) ** 2, rel=1e-12)


def test_cosine_as_published():
    """ᾱ(t) = cos²((t+s)/(1+s)·π/2)/cos²(s/(1+s)·π/2), to the last digits on both branches; 0 at t = 1."""
    path = sf.VPSDE.cosine()
    for t in (1e-6, 0.2, 0.4999, 0.5, 0.8, 0.999):
        bar = (math.cos((t + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)) ** 2
        assert path.alpha(t) ** 2 == pytest.approx(bar, rel=1e-12)
    assert path.alpha(1.0) == 0 and path.sigma(1.0) == 1


@EVERY
def test_prior(path):
    """The prior's standard deviation is that of states whose data have variance 1."""
    assert path.prior_std(1.0) == pytest.approx(math.hypot(path.alpha(1.0), path.sigma(1.0)), rel=1e-15)
    if isinstance(path, sf.VPSDE) and not isinstance(path, sf.SubVPSDE):
        assert path.prior_std(0.3) == pytest.approx(1, abs=1e-15)


@given(t=st.floats(0.05, 0.95), s=st.floats(0.01, 0.9))
def test_a_path_of_two_curves(t, s):
    """A user's path needs log α and log σ only: slopes, inverse and transitions follow."""
    path = Laplace()
    assert float(path.f(t)) == pytest.approx(-3 * t**0.5, rel=1e-12)
    assert float(path.time(float(path.lam(t)))) == pytest.approx(t, rel=1e-10)
    assert float(path.lam_slope(t)) == pytest.approx(-3 * t**0.5 - 1 / t, rel=1e-10)
    s = min(s, 0.9 * t)
    row = path.bridge(t, s, 1.0)
    assert row.x * float(path.alpha(t)) + row.m[0] == pytest.approx(float(path.alpha(s)), rel=1e-12)


RESCALED = sf.VPSDE.from_betas(sf.DDPMChain.linear().zero_terminal_snr().beta)


@pytest.mark.parametrize("path", [*PATHS.values(), RESCALED, Laplace()], ids=[*PATHS, "rescaled", "laplace"])
def test_time_has_a_gradient(path):
    """dt/dλ = 1/λ'(t), also by differences of `time` itself; 0 beyond the ends, where t is held, as on closed forms."""
    t = (torch.arange(40, dtype=torch.float64) + 0.631) / 41
    lam = path.lam(t).clone().requires_grad_()
    (slope,) = torch.autograd.grad(path.time(lam).sum(), lam)
    forward = torch.func.jvp(path.time, (lam.detach(),), (torch.ones_like(lam),))[1]
    torch.testing.assert_close(forward, slope, rtol=1e-12, atol=0)
    torch.testing.assert_close(slope, 1 / path.lam_slope(t), rtol=1e-9, atol=0)
    h = 1e-5
    differences = (path.time(lam.detach() + h) - path.time(lam.detach() - h)) / (2 * h)
    torch.testing.assert_close(slope, differences, rtol=1e-3 if path.T else 1e-6, atol=1e-10)
    ends = torch.tensor(
        [math.inf, 300.0, -300.0 if float(path.alpha(1.0)) > 0 else 300.0], dtype=torch.float64
    ).requires_grad_()
    (slope,) = torch.autograd.grad(path.time(ends).sum(), ends)
    assert slope.abs().max() < 1e-12


@pytest.mark.parametrize("path", [*PATHS.values(), sf.VPSDE.from_betas(sf.DDPMChain.cosine().beta)], ids=[*PATHS, "cosine"])
def test_time_is_a_number_at_the_end_under_a_graph(path):
    """At λ(1) the time is 1 with a graph as without one, its slope 1/λ'(1), and the slope of log α that of the path."""
    if float(path.alpha(1.0)) == 0:
        return
    lam = torch.tensor([path.lam(1.0)], dtype=torch.float64, requires_grad=True)
    t = path.time(lam)
    (slope,) = torch.autograd.grad(t.sum(), lam)
    assert float(t.detach()) == pytest.approx(1.0, abs=1e-12)
    # A closed form may place λ(1) a rounding beyond the end, where t is held.
    assert float(slope) == pytest.approx(1 / path.lam_slope(1.0), rel=1e-6) or (float(slope) == 0 and path.T is None)
    end = torch.ones(1, dtype=torch.float64)
    rate = float(torch.func.jvp(path.log_alpha, (end,), (end,))[1])
    assert rate == pytest.approx(path.alpha_slope(1.0) / path.alpha(1.0), rel=1e-9)


def test_time_has_the_gradient_of_a_closed_form():
    """The linear β by bisection, against its own closed form; of a parameter of the path too."""
    lam = torch.linspace(-3, 5, 17, dtype=torch.float64).requires_grad_()
    (closed,) = torch.autograd.grad(sf.VPSDE().time(lam).sum(), lam)
    (bisected,) = torch.autograd.grad(sf.GaussianPath.time(sf.VPSDE(), lam).sum(), lam)
    torch.testing.assert_close(bisected, closed, rtol=1e-10, atol=0)

    class Power(Laplace):
        rate = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)

        def log_alpha(self, t):
            return self.rate * t**1.5

    path = Power()
    (slope,) = torch.autograd.grad(path.time(torch.tensor(0.1, dtype=torch.float64)), path.rate)
    t = sf.GaussianPath.time(Laplace(), 0.1)
    assert float(slope) == pytest.approx(-(t**1.5) / float(Laplace().lam_slope(t)), rel=1e-9)


@pytest.mark.parametrize("path", [*PATHS.values(), RESCALED], ids=[*PATHS, "rescaled"])
@pytest.mark.parametrize("v", [0.0, 0.01, 0.6, 1.0, 4.0])
def test_the_exact_predictions_of_gaussian_data(path, v):
    """On N(0, v I), of variance `V = α² v + σ²` at t: `x̂_0 = α v x/V`, `ε̂ = σ x/V`, the score −x/V, `v = α ε̂ − σ x̂_0`, the
    flow `α' x̂_0 + σ' ε̂`; as numbers, as tensors, and where α = 0."""
    for t in (0.05, 0.4, 0.93, 1.0):
        a, s = path.alpha(t), path.sigma(t)
        total = a**2 * v + s**2
        x_0, eps = a * v / total, s / total
        want = {"x0": x_0, "eps": eps, "score": -1 / total, "v": a * eps - s * x_0,
                "flow": path.alpha_slope(t) * x_0 + path.sigma_slope(t) * eps}  # fmt: skip
        for prediction, value in want.items():
            if prediction == "flow" and not math.isfinite(value):
                continue
            assert path.gaussian(t, prediction, v) == pytest.approx(value, rel=1e-9, abs=1e-11), (t, prediction)
            batch = path.gaussian(torch.tensor([t, t], dtype=torch.float64), prediction, v)
            torch.testing.assert_close(batch, torch.full((2,), value, dtype=torch.float64), rtol=1e-9, atol=1e-11)
        assert path.posterior_variance(t, v) == pytest.approx(v * (1 - a * x_0), rel=1e-7, abs=1e-12)


CURVES = ("alpha", "sigma", "log_alpha", "log_sigma", "lam", "kappa", "f", "g2", "alpha_slope", "sigma_slope", "lam_slope")


@EVERY
@pytest.mark.parametrize("name", CURVES)
def test_numbers_outside_are_refused(path, name):
    """The ends are times, what lies beyond is none; a tensor is not looked at, and not moved to the ends."""
    curve = getattr(path, name)
    for t in (-1e-9, 1 + 1e-9, -3.0, 7.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"^t must lie between 0 \(data\) and 1 \(prior\), got "):
            curve(t)
    for t in (0.0, 1.0):
        curve(t)
    if name == "log_alpha" and isinstance(path, sf.VPSDE | sf.SubVPSDE) and path.T is None and path.alpha(1.0) > 0:
        beyond = torch.tensor([-0.1, 1.1], dtype=torch.float64)
        torch.testing.assert_close(curve(beyond), -beyond * (0.05 + beyond / 4 * 19.9), rtol=1e-12, atol=0)
