"""Samplers read back by symbols: ours are what their plans say, others' are what ours of the same name are."""

import math

import pytest
import torch
from problems import LINEAR, PATHS

import scoreflow as sf
from scoreflow._audit.consequences import output_variance
from scoreflow._audit.found import found
from scoreflow._audit.rows import as_plan
from scoreflow._audit.stranger import Stranger
from scoreflow._uses.optimal import word_weights
from scoreflow._uses.read_back import read_back, read_plan
from scoreflow.analysis import law

VP = PATHS["vp"]
STEPS = 6


def ours(sampler, steps=STEPS, path=VP, prediction="eps", **options):
    """As a stranger would call it."""

    def run(net, x):
        return sf.solve(sf.ScoreModel(lambda x, t: net(x, t), path, prediction), x, sampler, steps=steps, seed=0, **options).x

    return run


@pytest.mark.parametrize("case", LINEAR)
def test_a_run_is_its_plan(case):
    """Affine; asked where the plan says, with its weights of the outputs, every draw used; its law is that of its rows."""
    sampler = sf.get_sampler(case.split()[0], **LINEAR[case])
    plan = sf.plan(sampler, VP, steps=STEPS)
    if plan.analytic is not None:
        pytest.skip("its noise depends on the outputs")
    found = read_back(ours(sampler, prediction=plan.prediction))
    assert found.breaks is None and not found.unused and float(found.offsets.abs().max()) < 1e-12
    assert found.labels == pytest.approx(plan.evaluation_times, abs=1e-7) and found.nfe == plan.nfe
    times = list(plan.evaluation_times)
    expected = [w / VP.convert("x0", plan.prediction, t)[1] for t, w in word_weights(plan, VP)]
    assert found.end[1 : 1 + found.nfe].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    exact = law(plan, VP, sf.Gaussian(torch.zeros(1), 0.5)).cov
    stranger = Stranger(case, VP, plan.prediction, "unit", ours)
    assert output_variance(found, times, stranger) == pytest.approx(float(exact), rel=1e-6)


@pytest.mark.parametrize("prediction", ["eps", "x0"])
@pytest.mark.parametrize("case", LINEAR)
def test_a_reading_is_a_plan(case, prediction):
    """Whose run has the coefficients that were read, draws and stages too, whatever is known of what made it."""
    laid = sf.plan(sf.get_sampler(case.split()[0], **LINEAR[case]), VP, steps=STEPS)
    if laid.analytic is not None:
        pytest.skip("its noise depends on the outputs")
    found = read_plan(laid, VP, "eps").among(VP, "eps", prediction, laid.evaluation_times)
    made = as_plan(found, case, VP, prediction, laid.evaluation_times, laid.times[-1])
    assert made.nfe == laid.nfe and made.evaluation_times == laid.evaluation_times
    assert float((found.apart(read_plan(made, VP, prediction)) / found.every.abs().max()).max()) < 1e-9


@pytest.mark.parametrize("path", ["vp", "ve", "cosine", "flow"])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm-solver++", "sde-dpm-solver++"])
def test_levels(sampler, path):
    """The states stand at the levels that the network is told, and the end at data."""
    path = PATHS[path]
    start = 0.99 if path.alpha(1.0) == 0 else 1.0
    found = read_back(ours(sampler, path=path, start=start))
    times = list(sf.plan(sampler, path, steps=STEPS, start=start).evaluation_times)
    at = torch.tensor([*times, 0.0], dtype=torch.float64)
    levels = found.levels(path, "eps", times, start)
    torch.testing.assert_close(levels, torch.stack([path.alpha(at), path.sigma(at)], 1), rtol=1e-6, atol=1e-6)


# -- others' ---------------------------------------------------------------------------------------------------------------


SIGMAS = torch.tensor([10.0, 5.0, 2.0, 0.8, 0.3, 0.1, 0.0], dtype=torch.float64)
SAME = {
    "sample_euler": "edm-euler", "sample_heun": "edm", "sample_dpm_2": "dpm-2", "sample_euler_ancestral": "euler-ancestral",
    "sample_dpmpp_2m": "dpm-solver++-2m", "sample_dpmpp_2m_sde": "sde-dpm-solver++-2m",
    "sample_dpm_2_ancestral": "dpm-2-ancestral", "sample_dpmpp_2s_ancestral": "dpm-solver++-2s-ancestral",
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_k_diffusions_are_ours(k_diffusion, name):
    """Weight by weight at the same σ, Brownian paths too, their covariance however they are split."""

    def theirs(net, x):
        return getattr(k_diffusion, name)(lambda x, sigma, **more: net(x, sigma), x, SIGMAS, disable=True)

    def own(net, x):
        return sf.interop.k_sampler(SAME[name])(lambda x, sigma, **more: net(x, sigma), x, SIGMAS, disable=True, seed=0)

    found, expected = read_back(theirs), read_back(own)
    assert found.breaks is None and found.labels == pytest.approx(expected.labels, rel=1e-6)
    assert float(found.apart(expected).max()) < 1e-6


def test_draws_that_nothing_depends_on():
    """A scheduler of diffusers with η = 0 draws none; a loop that draws and throws away is told."""

    def wasteful(net, x):
        torch.randn_like(x)
        return x - 0.1 * net(x, 1.0) + 0.2 * torch.randn(x.shape, dtype=x.dtype)

    found = read_back(wasteful)
    assert found.draws == 2 and found.unused == (0,)
    assert found.end.tolist() == pytest.approx([1.0, -0.1, 0.0, 0.2]) and found.labels == (1.0,)
    assert torch.equal(found.covariance()[1, 1], torch.tensor(0.2**2, dtype=torch.float64))


def test_what_is_not_affine_is_told_where_it_happens():
    def clipped(net, x):
        x = x - 0.5 * net(x, 1.0)
        x = (x - 0.5 * net(x, 0.5)).clamp(-0.7, 0.7)
        return x - 0.5 * net(x, 0.2)

    def shifted(net, x):
        return x - net(x, 1.0) + 0.25

    def normed(net, x):
        return x / x.norm() + net(x, torch.tensor([0.3]))

    assert read_back(clipped).breaks == 2
    assert read_back(normed).breaks == 1 and read_back(normed).labels == (pytest.approx(0.3),)
    found = read_back(shifted)
    assert found.breaks is None and found.offsets.tolist() == [0.0, 0.25] and found.end.tolist() == [1.0, -1.0]


def test_what_cannot_be_read():
    def counting(net, x):
        for _ in range(3 if float(x.abs().sum()) > 0 else 1):
            x = net(x, 1.0)
        return x

    with pytest.raises(
        ValueError, match="depends on the states, as in an adaptive sampler: it asks 1 times and draws 0 times where they are 0"
    ):
        read_back(counting)
    with pytest.raises(
        ValueError, match=r"what the network is given must have the shape of the first state, \(1, 1, 1, 1\), got"
    ):
        read_back(lambda net, x: net(x[0], 1.0))
    with pytest.raises(ValueError, match=r"the last state must have the shape of the first state, .* got list"):
        read_back(lambda net, x: [x])
    assert math.isnan(read_back(lambda net, x: net(x, None)).labels[0])


def test_draws_outside_are_draws():
    """What is drawn after a reading, or in another shape inside one, is drawn."""

    def run(net, x):
        assert 0 < float(torch.rand(())) < 1 and torch.randn(3).unique().numel() == 3
        return x + net(x, 1.0)

    read_back(run)
    assert torch.randn(1, 1, 1, 4).unique().numel() == 4


# -- solvers of ODEs and SDEs in a function --------------------------------------------------------------------------------


def test_torchdiffeq():
    """A fixed method is a matrix, an adaptive one is told so."""
    torchdiffeq = pytest.importorskip("torchdiffeq")

    def ode(net, x, n, method="rk4"):
        def slope(t, x):
            t = max(float(t), 1e-3)  # dopri5 goes past the end
            return VP.f(t) * x + VP.g2(t) / (2 * VP.sigma(t)) * net(x, t)

        times = torch.linspace(1.0, 0.1, n + 1, dtype=torch.float64)
        return torchdiffeq.odeint(slope, x, times, method=method)[-1]

    grid = [1 - 0.9 * k / 4 for k in range(5)]
    expected = read_back(lambda net, x: sf.solve(sf.ScoreModel(net, VP), x, "pf-ode-midpoint", grid=grid).x)
    assert read_back(found(ode).build(4)).nfe == 16
    assert float(read_back(found(ode, method="midpoint").build(4)).apart(expected).max()) < 1e-6
    with pytest.raises(ValueError, match="depends on the states, as in an adaptive sampler: it asks"):
        read_back(found(ode, method="dopri5").build(4))


def noisy(net, x, n, **options):
    """The reverse SDE by torchsde, in one dimension after the batch."""
    import torchsde

    class Reverse:
        noise_type, sde_type = "additive", "ito"

        def f(self, s, y):
            t = 1 - float(s)
            return -(VP.f(t) * y + VP.g2(t) / VP.sigma(t) * net(y.reshape(x.shape), t).reshape(y.shape))

        def g(self, s, y):
            return math.sqrt(VP.g2(1 - float(s))) * torch.eye(y.shape[1], dtype=y.dtype).expand(len(y), -1, -1)

    times = torch.tensor([0.0, 0.75], dtype=torch.float64)
    return torchsde.sdeint(Reverse(), x.flatten(1), times, dt=0.75 / n, **options)[-1].reshape(x.shape)


def test_torchsde():
    """Euler's method is ours, beside a first call that looks at shapes; SRA has increments and their integrals."""
    pytest.importorskip("torchsde")
    grid = [1.0, 0.75, 0.5, 0.25]
    expected = read_back(lambda net, x: sf.solve(sf.ScoreModel(net, VP), x, "euler-maruyama", grid=grid, seed=0).x)
    reading = read_back(found(noisy, method="euler").build(3))
    assert reading.draws == 3 and reading.nfe == 4 and reading.end[1] == 0
    weights = [reading.end[0], *reading.end[2:5], *reading.end[5:].abs()]
    assert [*map(float, weights)] == pytest.approx([*expected.end[:4].tolist(), *expected.end[4:].abs().tolist()], rel=1e-7)
    higher = read_back(found(noisy, method="srk").build(3))
    assert higher.breaks is None and higher.draws == 6 and not higher.unused
    with pytest.raises(ValueError, match="depends on the states, as in an adaptive sampler: it asks"):
        read_back(found(noisy, method="srk", adaptive=True).build(3))


def test_brownian_paths():
    """`W` and `U = ∫ W` of parts that overlap have their covariance; two paths are independent; areas are no sums of draws."""
    brownian = pytest.importorskip("torchsde").BrownianInterval

    def run(net, x, integrals=True):
        size = {"size": tuple(x.shape), "dtype": x.dtype}
        one = brownian(0.0, 3.0, levy_area_approximation="space-time", **size)
        other = brownian(0.0, 3.0, **size)
        W, U = one(0.5, 2.5, return_U=True) if integrals else (one(0.5, 2.5), 0 * x)
        v = one(1.0, 3.0)
        return net(net(net(net(x + W, 0.0) * 0 + U, 0.0) * 0 + v, 0.0) * 0 + other(0.5, 2.5), 0.0) * 0

    covariance = read_back(run).covariance()[:4, :4]
    # Of [a, b] = [0.5, 2.5]: Var W = b − a, Var U = (b − a)³/3, Cov(W, U) = (b − a)²/2; Cov(U, v) = ∫ from 1 to b of b − s.
    expected = torch.tensor([[2, 2, 1.5, 0], [2, 8 / 3, 1.125, 0], [1.5, 1.125, 2, 0], [0, 0, 0, 2]], dtype=torch.float64)
    torch.testing.assert_close(covariance, expected, rtol=1e-12, atol=1e-12)
    assert read_back(run).draws == 8 and read_back(lambda net, x: run(net, x, False)).draws == 4  # three pieces, and one

    def looking(net, x):
        return x + brownian(0.0, 1.0, size=tuple(x.shape), dtype=x.dtype)(0.0, 0.25 if float(x.abs().sum()) > 0 else 0.5)

    with pytest.raises(ValueError, match=r"depends on the states, .* draws 1 times where they are 0, and 0 and 1 times"):
        read_back(looking)
    areas = {"levy_area_approximation": "davie"}
    for call, match in (
        (lambda x: brownian(0.0, 1.0, size=(1, 2), dtype=x.dtype, **areas)(0.0, 1.0, return_A=True), "are not Gaussian"),
        (lambda x: brownian(0.0, 1.0, size=(1, 99), dtype=x.dtype)(0.0, 1.0), "must be as large as the states"),
    ):
        with pytest.raises(ValueError, match=match):
            read_back(lambda net, x, call=call: x + call(x))
