"""torchdiffeq, SciPy and torchsde as steps: every method they have, against ours on the same problem and noise."""

import pytest
import torch
from problems import PATHS, mixture, states
from torchdiffeq._impl.odeint import SOLVERS

import scoreflow as sf
from scoreflow._samplers.blackbox import SCIPY, TORCHDIFFEQ, TORCHDIFFEQ_ADAPTIVE, TORCHSDE, Field

DATA, X = mixture(), states(6, 3)
MODEL = DATA.model(sf.VPSDE())


@pytest.fixture(scope="module")
def reference():
    return sf.solve(MODEL, X, "pf-ode", method="rk4", steps=500, start=0.9, stop=0.05).x


def test_every_method_of_torchdiffeq_is_known():
    assert set(TORCHDIFFEQ) == set(SOLVERS)


@pytest.mark.parametrize("variable", ["t", "lambda"])
@pytest.mark.parametrize("method", TORCHDIFFEQ)
def test_torchdiffeq(method, variable, reference):
    """Each converges to the one solution: adaptive ones by tolerance, fixed ones by 200 substeps at their order."""
    adaptive = method in TORCHDIFFEQ_ADAPTIVE or method == "scipy_solver"
    tolerance = 1e-5 if method == "adaptive_heun" else 1e-6  # of order 2, it takes steps with the root of its tolerance
    options = dict(rtol=tolerance, atol=tolerance / 10) if adaptive else dict(substeps=200)
    sol = sf.solve(MODEL, X, "torchdiffeq", method=method, variable=variable, grid=[0.9, 0.05], **options)
    error = float((sol.x - reference).abs().max())
    order = {"euler": 1, "midpoint": 2, "heun2": 2, "fehlberg2": 2}.get(method, 3)
    assert error < {1: 0.1, 2: 2e-3, 3: 5e-5}[order], error
    assert sol.nfe > 10 and sol.noise_count == 0 and sol.plan is None


@pytest.mark.parametrize("variable", ["t", "lambda"])
@pytest.mark.parametrize("method", SCIPY)
def test_scipy(method, variable, reference):
    """The same for SciPy's six."""
    sol = sf.solve(MODEL, X, "scipy", method=method, variable=variable, rtol=1e-7, atol=1e-8, grid=[0.9, 0.05])
    assert float((sol.x - reference).abs().max()) < 5e-5


@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4"])
@pytest.mark.parametrize("variable", ["t", "lambda"])
def test_fixed_steps_are_ours(method, variable):
    """torchdiffeq's Euler and midpoint, one step an interval, are our rows to rounding; its rk4 is the 3/8 rule."""
    grid = [0.9, 0.6, 0.3, 0.1, 0.0]
    ours = sf.solve(MODEL, X, "pf-ode", method=method, variable=variable, grid=grid)
    theirs = sf.solve(MODEL, X, "pf-ode", method=method, variable=variable, grid=grid, solver="torchdiffeq")
    assert ours.nfe == theirs.nfe
    if method == "rk4":
        assert 1e-8 < float((ours.x - theirs.x).abs().max()) < 0.2
    else:
        torch.testing.assert_close(ours.x, theirs.x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", PATHS)
def test_adaptive_solvers_on_every_path(name):
    """At their defaults they run from t = 1, or just below where α = 0, to data: no NaN at the ends, no step past them."""
    start = 1.0 if PATHS[name].alpha(1.0) > 0 else 0.999
    model = DATA.model(PATHS[name])
    for sampler, options in (
        ("pf-ode", {"method": "dopri5"}),
        ("scipy", {}),
        ("pf-ode", {"method": "dopri5", "variable": "lambda"}),
    ):
        sol = sf.solve(model, X * PATHS[name].prior_std(start), sampler, start=start, **options)
        assert sol.times == (start, 0.001, 0.0)
        assert bool(sol.x.isfinite().all()) and float(DATA.log_prob(sol.x).min()) > -12


def test_the_times_asked_stay_inside():
    """No solver asks the network past the ends of its interval (torchdiffeq's own default does)."""
    asked = []

    def net(x, t):
        asked.append(float(t[0]))
        return DATA.denoise(x, sf.VPSDE().alpha(t), sf.VPSDE().sigma(t))

    model = sf.ScoreModel(net, sf.VPSDE(), prediction="x0")
    for method in (*TORCHDIFFEQ_ADAPTIVE, "RK45", "LSODA", "Radau"):
        sf.solve(model, X, "pf-ode", method=method, grid=[0.8, 1e-4], rtol=1e-3, atol=1e-3)
    assert max(asked) <= 0.8 and min(asked) >= 1e-4


@pytest.mark.parametrize("sampler", ["torchdiffeq", "scipy"])
def test_control_by_sample(sampler):
    """With control="sample" a sample's run is its own: the same alone, and its evaluations are counted for it."""
    model = DATA.model(sf.VPSDE())
    wide = torch.cat([X[:2] * 3, X[2:]])
    whole = sf.solve(model, wide, sampler, control="sample", rtol=1e-4, atol=1e-4, grid=[0.9, 0.05])
    alone = [sf.solve(model, wide[i : i + 1], sampler, rtol=1e-4, atol=1e-4, grid=[0.9, 0.05]) for i in range(6)]
    assert torch.equal(whole.x, torch.cat([one.x for one in alone]))
    assert whole.nfe_per_sample == tuple(one.nfe for one in alone) and whole.nfe == max(one.nfe for one in alone)
    batch = sf.solve(model, wide, sampler, rtol=1e-4, atol=1e-4, grid=[0.9, 0.05])
    assert not torch.equal(batch.x, whole.x)


def test_the_worst_sample_rules_the_batch():
    """torchdiffeq's batch norm is the largest of the samples' RMS: 500 easy samples do not average a hard one away."""
    options = dict(sampler="torchdiffeq", rtol=1e-5, atol=1e-5, grid=[0.9, 0.02])
    alone = sf.solve(MODEL, states(32, 3), control="sample", **options).nfe_per_sample
    hard, easy = (states(32, 3)[alone.index(pick)] for pick in (max(alone), min(alone)))
    assert max(alone) > 1.5 * min(alone)
    together = sf.solve(MODEL, torch.cat([hard[None], easy.expand(500, 3)]), **options).nfe
    assert together >= 0.95 * max(alone)  # an RMS over the batch asks a third less


@pytest.mark.parametrize("method", TORCHDIFFEQ_ADAPTIVE)
def test_adaptive_steps_land_on_the_end(method, monkeypatch):
    """The last step ends at the interval's end instead of passing it and interpolating back."""
    asked, call = [], Field.__call__
    monkeypatch.setattr(Field, "__call__", lambda self, u, y: (asked.append(u), call(self, u, y))[1])
    sf.solve(MODEL, X, "torchdiffeq", method=method, grid=[0.8, 0.05], rtol=1e-3, atol=1e-3)
    assert 0.05 - 1e-9 < min(asked) < 0.05 + 1e-9 and max(asked) < 0.8 + 1e-9


@pytest.mark.parametrize("eta", [1.0, 0.5])
@pytest.mark.parametrize("seed", [3, (1, 2, 3, 4, 5, 6)])
def test_torchsdes_euler_is_ours(eta, seed):
    """On the same Brownian path torchsde's Euler and our Euler–Maruyama are one, to rounding; so are their evaluations."""
    noise = sf.Brownian(seed)
    ours = sf.solve(MODEL, X, "reverse-sde", method="euler", eta=eta, steps=50, noise=noise)
    theirs = sf.solve(MODEL, X, "torchsde", eta=eta, steps=50, noise=noise)
    torch.testing.assert_close(ours.x, theirs.x, rtol=1e-9, atol=1e-9)
    assert ours.nfe == theirs.nfe == 50 and ours.noise_count == theirs.noise_count


@pytest.mark.parametrize("method", TORCHSDE)
def test_every_method_of_torchsde(method):
    """Each one's samples have the mixture's means: 300 of them, within 5 standard errors, by both substeps and seeds."""
    x = states(300, 3, seed=9)
    sol = sf.solve(MODEL, x, "torchsde", method=method, steps=60, seed=5, start=1.0)
    data = DATA.sample(20_000, seed=1)
    error = data.std(0) / 300**0.5
    assert bool(((sol.x.mean(0) - data.mean(0)).abs() < 5 * error).all())
    assert bool((DATA.log_prob(sol.x) > -14).all())


@pytest.mark.parametrize("method", ["euler", "srk", "milstein"])
def test_adaptive_torchsde(method):
    """Adaptive steps run at the default, land on data and ask more when the tolerance is tight."""
    runs = [sf.solve(MODEL, X, "torchsde", method=method, adaptive=True, rtol=r, atol=r, seed=2) for r in (3e-2, 3e-3)]
    assert runs[1].nfe > runs[0].nfe
    assert all(float(DATA.log_prob(run.x).min()) > -14 for run in runs)


def test_torchsde_converges_on_our_path():
    """Refining substeps on one Brownian path converges to the limit of our samplers, at order 1."""
    fine = sf.solve(MODEL, X, "sra3", steps=512, start=0.9, stop=0.1, noise=sf.Brownian(0, depth=13)).x
    errors = [
        float((sf.solve(MODEL, X, "torchsde", substeps=n, grid=[0.9, 0.1], noise=sf.Brownian(0, depth=13)).x - fine).norm())
        for n in (64, 512)
    ]
    assert errors[1] < errors[0] / 4
