"""Likelihood by the ODE: exact on oracles, honest about its error, differentiable, sample by sample; and the way back."""

import itertools
import math

import numpy as np
import pytest
import torch
from problems import mixture, states
from scipy.integrate import solve_ivp

import scoreflow as sf
from scoreflow._uses.likelihood import DOPRI5, LOWER, LogProb, standard

PATHS = {"vp": sf.VPSDE(), "sub-vp": sf.SubVPSDE(), "ve": sf.VESDE(), "flow": sf.Flow()}
STOP = 0.05
TIGHT = {"rtol": 1e-7, "atol": 1e-7, "divergence": "exact"}
TIGHTER = {**TIGHT, "rtol": 1e-8, "atol": 1e-8}


def problem(d, kind="mixture"):
    if kind == "mixture":
        return mixture(d=d)
    root = states(d, d, seed=9) / d**0.5
    return sf.Gaussian(states(d, seed=8), root @ root.T + 0.05 * torch.eye(d, dtype=torch.float64))


def noised(oracle, path, n, t=STOP, seed=1):
    x_0 = oracle.sample(n, seed=seed)
    return path.alpha(t) * x_0 + path.sigma(t) * states(*x_0.shape, seed=seed + 1)


def exact_at(oracle, path, t):
    return lambda x: oracle.log_prob(x, path.alpha(t), path.sigma(t))


# -- exact --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "d", "kind"),
    [
        *itertools.product(["vp", "sub-vp", "ve", "flow"], [2], ["gaussian", "mixture"]), ("vp", 1, "mixture"),
        ("flow", 1, "gaussian"), ("vp", 16, "gaussian"), ("ve", 16, "mixture"),
    ],
)  # fmt: skip
def test_it_is_the_exact_density(name, d, kind):
    """With the exact prior and divergence, the density to 1e-6: Gaussians and mixtures, four paths, 1 to 16 dimensions."""
    path, oracle = PATHS[name], problem(d, kind)
    start, x = (1.0 if path.alpha(1.0) > 0 else 0.99), noised(oracle, path, 3)
    found = sf.log_prob(oracle.model(path), x, prior=exact_at(oracle, path, start), start=start, stop=STOP, **TIGHTER)
    torch.testing.assert_close(found.value, exact_at(oracle, path, STOP)(x), rtol=0, atol=1e-6)
    assert not found.error.any()


def test_it_is_the_limit_of_score_sdes():
    """One ODE in t by SciPy's RK45 over states and log-densities, as score_sde has it, tends to the same on a rough network,
    with the same probe; at a tolerance of 1e-3 ours is within 1e-3 bit an entry of the limit already."""
    path, d = PATHS["vp"], 24
    torch.manual_seed(0)
    net = (
        torch.nn.Sequential(torch.nn.Linear(d + 1, 64), torch.nn.SiLU(), torch.nn.Linear(64, d)).double().requires_grad_(False)
    )
    for weight in net.parameters():
        weight.mul_(2.0)
    model = sf.ScoreModel(lambda x, t: net(torch.cat([x, t.double().reshape(-1, 1).expand(len(x), 1)], 1)), path)
    x = states(2, d, seed=3) / 2
    v = sf.White(0).draws("probe")(x).sign()

    def slope(t, z):
        with torch.enable_grad():
            y = torch.from_numpy(z[:-2].reshape(2, d)).requires_grad_()
            drift = path.f(float(t)) * y - path.g2(float(t)) / 2 * model(y, float(t), "score")
            (back,) = torch.autograd.grad(drift, y, v)
        return np.concatenate([drift.detach().numpy().ravel(), (back * v).sum(1).numpy()])

    out = solve_ivp(slope, (1e-3, 1.0), np.concatenate([x.numpy().ravel(), np.zeros(2)]), rtol=1e-8, atol=1e-8).y[:, -1]
    limit = standard(torch.from_numpy(out[:-2].reshape(2, d)), 1.0) + torch.from_numpy(out[-2:])
    fine, coarse = (sf.log_prob(model, x, stop=1e-3, rtol=tol, atol=tol).value for tol in (1e-8, 1e-3))
    torch.testing.assert_close(fine, limit, rtol=1e-6, atol=1e-5)
    assert float((coarse - limit).abs().max()) / (d * math.log(2)) < 1e-3


def test_any_prediction_and_shape():
    """Networks of every prediction and states of any shape give one value, step by step."""
    path, oracle = PATHS["vp"], mixture(d=4)
    x, base = noised(oracle, path, 2), oracle.model(path)
    same = {"method": "rk4", "steps": 20, "divergence": "exact", "stop": STOP}
    expected = sf.log_prob(base, x, **same)
    for kind in ("eps", "v", "score", "flow"):

        def net(y, t, kind=kind):
            return base(y.reshape(len(y), 4), t, kind).reshape(y.shape)

        model = sf.ScoreModel(net, path, kind)
        found = sf.log_prob(model, x.reshape(2, 1, 2, 2), **same)
        torch.testing.assert_close(found.value, expected.value, rtol=1e-9, atol=1e-6)
        assert found.latent.shape == (2, 1, 2, 2)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
def test_fixed_steps_have_their_order(method, order):
    """The error of the density falls at the method's order; evaluations are stages times steps."""
    path, oracle = PATHS["vp"], mixture(d=2)
    x = noised(oracle, path, 8, t=0.2)
    exact, prior = exact_at(oracle, path, 0.2)(x), exact_at(oracle, path, 0.9)
    errors, counts = [], (200, 400, 800) if method == "euler" else (40, 80, 160)
    for n in counts:
        found = sf.log_prob(oracle.model(path), x, method=method, steps=n, divergence="exact", prior=prior, start=0.9, stop=0.2)
        errors.append(float((found.value - exact).abs().median()))
        assert found.nfe == n * {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}[method]
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert order - 0.3 < slope < order + 0.9, errors


def test_the_tableau():
    """Dormand and Prince: the conditions of order 5 for one solution and 4 for the other, on bushy and tall trees."""
    a = np.zeros((7, 7))
    for i, row in enumerate(DOPRI5.a):
        a[i, : len(row)] = row
    c = np.array(DOPRI5.c)
    np.testing.assert_allclose(a.sum(1), c, atol=1e-14)
    for weights, order in ((np.array(DOPRI5.b), 5), (np.array(LOWER), 4)):
        for k in range(order):
            assert weights @ c**k == pytest.approx(1 / (k + 1), abs=1e-14)
        assert weights @ a @ c == pytest.approx(1 / 6, abs=1e-14)
        assert weights @ a @ a @ c == pytest.approx(1 / 24, abs=1e-14)
        assert (weights * c) @ a @ c == pytest.approx(1 / 8, abs=1e-14)


def test_the_prior_has_a_floor():
    """N(0, I) for p_T leaves the log-ratio of the two laws at the latent, whatever the tolerance: about 1e-2 nat here."""
    path, oracle = PATHS["vp"], mixture(d=2)
    x = noised(oracle, path, 64)
    exact = exact_at(oracle, path, STOP)(x)
    found = sf.log_prob(oracle.model(path), x, stop=STOP, **TIGHT)
    floor = standard(found.latent, 1.0) - exact_at(oracle, path, 1.0)(found.latent)
    torch.testing.assert_close(found.value - exact, floor, rtol=0, atol=1e-6)
    assert 1e-4 < float(floor.abs().median()) < 5e-2


# -- Hutchinson ---------------------------------------------------------------------------------------------------------


def test_hutchinson_within_its_error():
    """With k probes the error is its stated standard error, at the rate 1/√k.

    Of 64 samples' errors over their standard error, about 95 % lie under t_{0.975}: fewer than 52 happens once in 1e5.
    """
    path, oracle = PATHS["vp"], problem(6)
    x = noised(oracle, path, 64, t=0.2)
    exact = sf.log_prob(oracle.model(path), x, start=0.9, stop=0.2, **TIGHT).value
    spread = {}
    for k in (4, 16):
        found = sf.log_prob(oracle.model(path), x, probes=k, start=0.9, stop=0.2, rtol=1e-6, atol=1e-6, seed=range(100, 164))
        limit = {4: 3.182, 16: 2.131}[k]
        assert ((found.value - exact).abs() < limit * found.error).sum() >= 52
        spread[k] = float((found.value - exact).square().mean().sqrt())
    assert 1.3 < spread[4] / spread[16] < 3.0
    alone = sf.log_prob(oracle.model(path), x[:2], start=0.9, stop=0.2)
    assert bool(alone.error.isnan().all())


def test_rademacher_probes_are_exact_for_diagonal_jacobians():
    """On N(μ, diag) data one probe is enough (identity 34)."""
    path, oracle = (
        PATHS["vp"],
        sf.GaussianMixture(torch.ones(1), torch.tensor([[0.3, -1.0, 0.5]]), torch.tensor([[0.2, 1.0, 3.0]])),
    )
    x = noised(oracle, path, 4)
    one, exact = (
        sf.log_prob(oracle.model(path), x, stop=STOP, rtol=1e-7, atol=1e-7, divergence=kind) for kind in ("hutchinson", "exact")
    )
    torch.testing.assert_close(one.value, exact.value, rtol=0, atol=1e-6)


# -- what it keeps ------------------------------------------------------------------------------------------------------


def test_a_sample_does_not_depend_on_its_batch_mates():
    """Steps and probes are a sample's own: value, latent and evaluations."""
    path, oracle = PATHS["vp"], problem(4)
    x = noised(oracle, path, 3)
    whole = sf.log_prob(oracle.model(path), x, stop=STOP, probes=2, seed=[5, 6, 7])
    for i in range(3):
        alone = sf.log_prob(oracle.model(path), x[i : i + 1], stop=STOP, probes=2, seed=[5 + i])
        torch.testing.assert_close(alone.value[0], whole.value[i], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(alone.latent[0], whole.latent[i], rtol=1e-9, atol=1e-9)


def test_score_and_divergence_share_an_evaluation():
    """As many evaluations with a divergence as without, for fixed steps."""
    path, oracle = PATHS["vp"], mixture(d=2)
    model = oracle.model(path)
    found = sf.log_prob(model, noised(oracle, path, 2), method="rk4", steps=5, divergence="exact", stop=STOP)
    assert found.nfe == 20 == model.nfe


@pytest.mark.parametrize("kind", ["exact", "hutchinson"])
def test_it_is_differentiable(kind):
    """By the states, against finite differences and, on an oracle, the score; and by the network's weights."""
    path, oracle = PATHS["vp"], mixture(d=2)
    x = noised(oracle, path, 2, t=0.2).requires_grad_()
    settings = dict(method="rk4", steps=40, divergence=kind, start=0.9, stop=0.2, seed=3)
    value = sf.log_prob(oracle.model(path), x, grad=True, prior=exact_at(oracle, path, 0.9), **settings).value
    (slope,) = torch.autograd.grad(value.sum(), x)
    step = torch.zeros_like(x)
    step[:, 0] = 1e-5
    up, down = (
        sf.log_prob(oracle.model(path), x.detach() + s * step, prior=exact_at(oracle, path, 0.9), **settings).value
        for s in (1, -1)
    )
    torch.testing.assert_close(slope[:, 0], (up - down) / 2e-5, rtol=1e-5, atol=1e-5)
    if kind == "exact":
        torch.testing.assert_close(slope, oracle.model(path).score(x.detach(), 0.2), rtol=1e-3, atol=1e-3)
    assert not sf.log_prob(oracle.model(path), x, **settings).value.requires_grad
    net = torch.nn.Linear(2, 2).double()
    model = sf.ScoreModel(Wrapped(net), path)
    sf.log_prob(model, x.detach(), grad=True, **settings).value.sum().backward()
    assert bool(net.weight.grad.any())


class Wrapped(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, t):
        return torch.tanh(self.net(x))


@pytest.mark.parametrize(("name", "method"), [("vp", {}), ("ve", {}), ("flow", {}), ("vp", {"method": "rk4", "steps": 150})])
def test_there_and_back(name, method):
    """decode(encode(x)) is x to the tolerance, and the latent is that of log_prob."""
    path, oracle = PATHS[name], mixture(d=3)
    start, x = (1.0 if path.alpha(1.0) > 0 else 0.99), noised(oracle, path, 4)
    settings = dict(start=start, stop=STOP, **(method or {"rtol": 1e-8, "atol": 1e-8}))
    model = oracle.model(path)
    z = sf.encode(model, x, **settings)
    torch.testing.assert_close(sf.decode(model, z, **settings), x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(sf.log_prob(model, x, **settings).latent, z, rtol=1e-6, atol=1e-6)


def test_bits_per_dim():
    """Of a uniform density over 256 levels, 8 bits an entry; of one level, none."""
    uniform = LogProb(torch.full((1,), -5 * math.log(256 * 2 / 255)), torch.zeros(1), torch.zeros(1, 5), 0)
    assert float(uniform.bits_per_dim()) == pytest.approx(8)
    certain = uniform._replace(value=torch.full((1,), -5 * math.log(2 / 255)))
    assert float(certain.bits_per_dim()) == pytest.approx(0, abs=1e-9)
    assert float(uniform.bits_per_dim(levels=256, low=0, high=255)) == pytest.approx(math.log2(256 * 2 / 255))


def test_float32_and_conditions():
    """A network in float32 with classes; the value is float64; wrong conditions are refused."""
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = sf.log_prob(sf.zoo.digits(), x, method="heun", steps=2, stop=0.3, y=torch.tensor([1, 2]))
    assert found.value.dtype is torch.float64 and found.latent.dtype is torch.float32 and bool(found.value.isfinite().all())
    with pytest.raises(TypeError, match="'z' is neither an argument nor a condition"):
        sf.log_prob(sf.zoo.digits(), x, z=1)


X = torch.zeros(2, 3, dtype=torch.float64)
REFUSED = [
    (dict(method="rk45"), "method must be one of dopri5, euler"),
    (dict(steps=5), "steps=5: method 'dopri5' sets its own steps: give rtol and atol"),
    (dict(method="heun"), "steps=None: method 'heun' has no error estimate: give steps"),
    (dict(divergence="none"), "divergence must be one of hutchinson, exact"),
    (dict(probes=0), "probes must be a whole number ≥ 1, got 0"),
    (dict(stop=0.0), "stop=0.0: the density of noiseless data has no score there"),
    (dict(stop=0.5, start=0.4), "start must lie above stop"),
    (dict(rtol=-1.0), "rtol must be"),
    (dict(seed=[1]), "seed has 1 entries for a batch of 2"),
]


@pytest.mark.parametrize(("options", "says"), REFUSED)
def test_refusals(options, says):
    with pytest.raises(ValueError, match=says):
        sf.log_prob(mixture(d=3).model(PATHS["vp"]), X, **options)


def test_a_network_without_gradients_is_refused():
    """Its divergence would be 0 without a word, or that of what is around it."""
    layer = torch.nn.Linear(3, 3).double()  # its weights alone make an output that has a gradient
    for kind, net in itertools.product(("eps", "x0"), (lambda x, t: x.detach() / 2, lambda x, t: layer(x.detach()))):
        model = sf.ScoreModel(net, PATHS["vp"], prediction=kind)
        with pytest.raises(RuntimeError, match="no gradient by x: it detaches x, or runs under no_grad"):
            sf.log_prob(model, X)


def test_a_prior_gives_one_number_a_sample():
    model = mixture(d=3).model(PATHS["vp"])
    for prior, got in ((torch.distributions.Normal(0.0, 1.0).log_prob, r"\(2, 3\)"), (lambda x: 0.0, "float")):
        with pytest.raises(ValueError, match=rf"prior must give .* of shape \(2,\), got {got}"):
            sf.log_prob(model, X, method="euler", steps=1, prior=prior)
    with pytest.raises(TypeError, match=r"prior must be a function .* got 'normal'"):
        sf.log_prob(model, X, prior="normal")


def test_what_is_not_finite_is_said_with_its_time():
    model = mixture(d=3).model(PATHS["vp"])
    broken = sf.ScoreModel(lambda x, t: model.eps(x, t) / (t > 0.3)[:, None], PATHS["vp"])
    with pytest.raises(FloatingPointError, match=r"output is not finite, in step 1 \(t=0.1 → 0.1\)"):
        sf.log_prob(broken, X, stop=0.1)


def test_numbers_and_none():
    """States (B,) are those of (B, 1); a batch of none has no values."""
    model = mixture(d=1).model(PATHS["vp"])
    flat = sf.ScoreModel(lambda x, t: model.eps(x[:, None], t)[:, 0], PATHS["vp"])
    x = states(3, 1)
    found, same = sf.log_prob(flat, x[:, 0], divergence="exact"), sf.log_prob(model, x, divergence="exact")
    torch.testing.assert_close(found.value, same.value)
    torch.testing.assert_close(found.bits_per_dim(), same.bits_per_dim())
    for method in ({}, {"method": "rk4", "steps": 2}):
        assert sf.log_prob(model, x[:0], **method).bits_per_dim().shape == (0,)


def test_low_precision_is_carried_in_float32():
    """A bfloat16 network's steps do not add up in bfloat16: its density is that of its own rounded answers, to 0.05 nat."""
    model = mixture(d=2).model(PATHS["vp"])

    def net(x, t):
        assert x.dtype is torch.float32
        return model.eps(x.double(), t.double()).to(torch.bfloat16)

    x = noised(mixture(d=2), PATHS["vp"], 16).to(torch.bfloat16)
    low = sf.log_prob(sf.ScoreModel(net, PATHS["vp"]), x, stop=STOP, method="rk4", steps=60, divergence="exact")
    high = sf.log_prob(model, x.double(), stop=STOP, method="rk4", steps=60, divergence="exact")
    assert low.latent.dtype is torch.bfloat16 and low.value.dtype is torch.float64
    assert float((low.value - high.value).abs().median()) < 0.05


def test_no_latent_where_alpha_is_zero():
    with pytest.raises(ValueError, match=r"start=1.0: alpha=0 there"):
        sf.log_prob(mixture(d=3).model(PATHS["flow"]), X)
