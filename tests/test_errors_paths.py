"""Bad input gets a clear error, and nothing is half done: paths, chains, grids, ends, values that are not finite."""

import math

import numpy as np
import pytest
import torch
from refusals import CHAIN, COSINE, FLOW, INF, NAN, VP, X, run_sample, run_solve, zero_model

import scoreflow as sf
from scoreflow._samplers.step import SAMPLERS

# -- paths and chains ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [sf.DDPMChain, sf.VPSDE.from_betas, sf.SubVPSDE.from_betas])
@pytest.mark.parametrize(
    ("betas", "match"),
    [
        ([0.1, 0.0], "strictly between 0 and 1, got 0.0 at index 1"),
        ([1.0, 0.1], "strictly between 0 and 1, got 1.0 at index 0"),
        ([0.1, -0.2, 0.3], "strictly between 0 and 1, got -0.2 at index 1"),
        ([0.1, 1.5], "strictly between 0 and 1, got 1.5 at index 1"),
        ([0.1, NAN], "strictly between 0 and 1, got nan at index 1"),
        (torch.tensor([0.1, INF]), "strictly between 0 and 1, got inf at index 1"),
        ([0, 1], "strictly between 0 and 1, got 0.0 at index 0"),
        ([], "one-dimensional and not empty"),
        (torch.zeros(0), "one-dimensional and not empty"),
        (torch.full((2, 2), 0.1), r"one-dimensional.*\(2, 2\)"),
        (np.full((3, 1), 0.1), r"one-dimensional.*\(3, 1\)"),
        (0.1, r"one-dimensional.*\(\)"),
    ],
)
def test_betas(make, betas, match):
    with pytest.raises(ValueError, match=f"betas must .*{match}"):
        make(betas)


CHAIN_METHODS = [
    lambda chain, t: chain.q_sample(X, t, X),
    lambda chain, t: chain.posterior_mean(X, X, t),
    lambda chain, t: chain.mean_by_substitution(X, X, t),
    lambda chain, t: chain.mean_from_eps(X, X, t),
    lambda chain, t: chain.variance("posterior", t),
    lambda chain, t: chain.variance("interpolated", t, 0.5),
]


@pytest.mark.parametrize("method", CHAIN_METHODS)
@pytest.mark.parametrize(
    ("t", "error", "match"),
    [
        (0, ValueError, "t must lie in 1…10, got 0"),
        (11, ValueError, "t must lie in 1…10, got 11"),
        (-1, ValueError, "t must lie in 1…10, got -1"),
        (torch.tensor([1, 11]), ValueError, "t must lie in 1…10.*11"),
        (torch.tensor([0, 1]), ValueError, "t must lie in 1…10.*0"),
        (1.0, TypeError, "t must be an int.*1.0"),
        (True, TypeError, "t must be an int.*True"),
        (torch.tensor([1.0, 2.0]), TypeError, "t must be an int or an integer tensor"),
        (torch.tensor([[1, 2]]), TypeError, r"integer tensor of shape \(B,\)"),
    ],
)
def test_steps_of_a_chain(method, t, error, match):
    with pytest.raises(error, match=match):
        method(sf.DDPMChain.linear(10), t)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: sf.VPSDE(beta_min=-1), "beta_min must be a finite number > 0, got -1"),
        (lambda: sf.VPSDE(beta_min=0.0), "beta_min must be a finite number > 0, got 0.0"),
        (lambda: sf.VPSDE(beta_min=20.0, beta_max=0.1), "0 < beta_min ≤ beta_max.*beta_max=0.1"),
        (lambda: sf.VPSDE(beta_max=NAN), "beta_max must be a finite number > 0, got nan"),
        (lambda: sf.SubVPSDE(beta_max=INF), "beta_max must be a finite number > 0, got inf"),
        (lambda: sf.VPSDE.cosine(s=-0.1), "s must be a finite number ≥ 0, got -0.1"),
        (lambda: sf.VPSDE.cosine(s=NAN), "s must be a finite number ≥ 0, got nan"),
        (lambda: sf.VESDE(sigma_min=2, sigma_max=1), "0 < sigma_min < sigma_max.*sigma_min=2.*sigma_max=1"),
        (lambda: sf.VESDE(sigma_min=2.0, sigma_max=2.0), "0 < sigma_min < sigma_max.*sigma_min=2.0.*sigma_max=2.0"),
        (lambda: sf.VESDE(sigma_min=0.0), "sigma_min must be a finite number > 0, got 0.0"),
        (lambda: sf.VESDE(sigma_max=INF), "sigma_max must be a finite number > 0, got inf"),
        (lambda: VP.discretize(0), "N must be a whole number ≥ 1.*0"),
        (lambda: VP.discretize(2.5), "N must be a whole number ≥ 1.*2.5"),
        (lambda: VP.discretize(True), "N must be a whole number ≥ 1.*True"),
        (lambda: VP.convert("eps", "noise", 0.5), "target must be one of eps, x0, v, score, flow.*'noise'"),
        (lambda: VP.convert("noise", "eps", 0.5), "prediction must be one of eps, x0, v, score, flow.*'noise'"),
        (lambda: VP.bridge(0.5, 0.4, -1.0), "eta must be .*≥ 0.*-1.0"),
        (lambda: VP.bridge(0.5, 0.4, std=2.0), "std=2.0 must leave a variance ≥ 0"),
        (lambda: sf.DDPMChain.linear(10).variance("betaa", 1), "variance.*posterior, beta, interpolated, learned.*'betaa'"),
        (lambda: sf.DDPMChain.linear(10).variance("learned", 1), "variance 'learned' needs v"),
    ],
)
def test_paths(make, match):
    with pytest.raises((TypeError, ValueError), match=match):
        make()


@pytest.mark.parametrize("bad", ["a", 0.5j, None, {}, [[1]], torch.tensor(1j), 2.0, True], ids=repr)
def test_what_is_no_step_of_a_chain(bad):
    for method in CHAIN_METHODS:
        with pytest.raises(TypeError, match=r"^t must be an int or an integer tensor of shape"):
            method(sf.DDPMChain.linear(10), bad)


@pytest.mark.parametrize("bad", ["a", 0.5j, [1], True, NAN, INF, {}], ids=repr)
def test_what_is_no_state_or_share_of_a_chain(bad):
    chain = sf.DDPMChain.linear(10)
    with pytest.raises((TypeError, ValueError), match=r"^v must be a finite number, got"):
        chain.variance("interpolated", 3, bad)
    for method in (chain.posterior_mean, chain.mean_from_eps, chain.mean_by_substitution):
        with pytest.raises(TypeError, match=r"^states must be floating-point, got"):
            method(bad, X, 3)


@pytest.mark.parametrize("bad", ["vp", None, 0.5, sf.VPSDE, X], ids=lambda bad: type(bad).__name__)
@pytest.mark.parametrize("sampler", ["ddim", "auto"])
def test_what_is_no_path(sampler, bad):
    for keywords in ({"steps": 3}, {"nfe": 3}, {"grid": [1.0, 0.5, 0.0]}):
        with pytest.raises(TypeError, match=r"^path must be a GaussianPath such as VPSDE\(\), got"):
            sf.plan(sampler, bad, **keywords)


class Numberlike:
    """What converts to no number."""

    def __repr__(self):
        return "Numberlike()"


CONSTRUCTORS = {
    "VPSDE beta_min": (lambda v: sf.VPSDE(beta_min=v), "beta_min"),
    "VPSDE beta_max": (lambda v: sf.VPSDE(beta_max=v), "beta_max"),
    "SubVPSDE beta_max": (lambda v: sf.SubVPSDE(beta_max=v), "beta_max"),
    "VPSDE.cosine s": (sf.VPSDE.cosine, "s"),
    "VESDE sigma_min": (lambda v: sf.VESDE(sigma_min=v), "sigma_min"),
    "VESDE sigma_max": (lambda v: sf.VESDE(sigma_max=v), "sigma_max"),
    **{f"{kind} {name}": (lambda v, kind=kind, name=name: getattr(sf.DDPMChain, kind)(**{name: v}), name)
       for kind in ("linear", "scaled_linear") for name in ("beta_min", "beta_max")},
    "cosine beta_max": (lambda v: sf.DDPMChain.cosine(beta_max=v), "beta_max"),
    "cosine s": (lambda v: sf.DDPMChain.cosine(s=v), "s"),
    "karras rho": (lambda v: sf.grid(VP, 5, "karras", rho=v), "rho"),
    "logsnr t_min": (lambda v: sf.grid(VP, 5, "logsnr", t_min=v), "t_min"),
    "polyexponential t_min": (lambda v: sf.grid(VP, 5, "polyexponential", t_min=v), "t_min"),
    "beta a": (lambda v: sf.grid(VP, 5, "beta", a=v), "a"),
    "rectified shift": (lambda v: sf.grid(VP, 5, "rectified", shift=v), "shift"),
    "ode power": (lambda v: sf.grid(VP, 5, "ode", power=v), "power"),
    "ays nodes": (lambda v: sf.grid(VP, 5, "ays", nodes=[14.0, v, 0.1]), "nodes"),
    "bridge eta": (lambda v: VP.bridge(0.5, 0.4, v), "eta"),
}  # fmt: skip


WORDS = ["a", b"1", True, np.True_, torch.tensor(True), [1], (0.5,), {}, Numberlike(), torch.ones(2)]


@pytest.mark.parametrize(
    "bad", [*WORDS, 0.5j, np.complex64(1), torch.tensor(1j), NAN, INF, -0.5], ids=lambda bad: repr(bad)[:30]
)
@pytest.mark.parametrize(("make", "name"), CONSTRUCTORS.values(), ids=CONSTRUCTORS)
def test_what_is_no_number(make, name, bad):
    """Text, lists, booleans, complex numbers, NaN, infinity and negative numbers, by the name of the argument."""
    with pytest.raises((TypeError, ValueError), match=rf"^{name} must (be a finite number|lie between 0)"):
        make(bad)


@pytest.mark.parametrize(
    "T", ["a", 2.5, True, np.float64(3), [3], None, 0, torch.tensor(2.0), torch.tensor(True), torch.ones(2)], ids=repr
)
@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "cosine"])
def test_steps_of_a_named_chain(kind, T):
    with pytest.raises((TypeError, ValueError), match=r"^T must be a whole number ≥ 1"):
        getattr(sf.DDPMChain, kind)(T)


@pytest.mark.parametrize("ten", [np.int64(10), np.uint8(10), torch.tensor(10), np.array(10)], ids=repr)
def test_counts_and_numbers_of_other_libraries(ten):
    """NumPy's and torch's numbers are numbers."""
    assert torch.equal(sf.DDPMChain.linear(ten).beta, sf.DDPMChain.linear(10).beta)
    assert torch.equal(VP.discretize(ten).beta, VP.discretize(10).beta)
    assert sf.grid(VP, ten, "logsnr") == sf.grid(VP, 10, "logsnr")
    half = ten / 20
    assert sf.grid(VP, 5, "karras", start=half, rho=half) == sf.grid(VP, 5, "karras", start=0.5, rho=0.5)
    assert repr(sf.VPSDE(half, ten)) == repr(sf.VPSDE(0.5, 10.0)) and repr(sf.VESDE(half, ten)) == repr(sf.VESDE(0.5, 10.0))
    assert repr(sf.VPSDE.cosine(half)) == repr(sf.VPSDE.cosine(0.5))


# -- grids --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: sf.grid(VP, 5, "karras", rhoo=3), (ValueError, TypeError), "'karras'.*'rhoo'.*t_min, rho"),
        (lambda: sf.grid(VP, 5, "uniform", rho=3), (ValueError, TypeError), "'uniform'.*'rho'.*none"),
        (lambda: sf.grid(VP, 5, "karras", rho=0), ValueError, "rho must be a finite number > 0.*0"),
        (lambda: sf.grid(VP, 5, "karras", rho=NAN), ValueError, "rho must be a finite number > 0.*nan"),
        (lambda: sf.grid(VP, 5, "ode", exact="no"), TypeError, "exact must be True or False, got 'no'"),
        (lambda: sf.grid(VP, 5, "ays", nodes=None), TypeError, "nodes must be a finite number > 0, got None"),
        (lambda: sf.interpolate(X, X, []), ValueError, r"weights must be a number, numbers, or how many, got \[\]"),
        (lambda: sf.interpolate(X, X, ["a"]), TypeError, "weights must be a finite number, got 'a'"),
        (lambda: sf.interpolate(X, X, True), TypeError, "weights must be a finite number, got True"),
        (lambda: sf.grid(VP, 5, "logsnr", t_min=2.0), ValueError, "t_min must lie between 0 and start.*2.0"),
        (lambda: sf.grid(VP, 5, "logsnr", t_min=0.0), ValueError, "t_min must lie between 0 and start.*0.0"),
        (lambda: sf.grid(VP, 5, "logsnr", t_min=NAN), ValueError, "t_min must be a finite number, got nan"),
        (lambda: sf.grid(COSINE, 5, "logsnr"), ValueError, "'logsnr'.*alpha=0.*start"),
        (lambda: sf.grid(FLOW, 5, "karras"), ValueError, "'karras'.*alpha=0.*start"),
        (lambda: sf.grid(VP, 0), ValueError, "steps.*≥ 1.*0"),
        (lambda: sf.grid(VP, 2.0), TypeError, "steps.*whole number.*2.0"),
        (lambda: sf.grid(VP, 2, "karas"), ValueError, "'karas'.*did you mean karras"),
        (lambda: sf.grid(VP, 2, start=0.1, stop=0.2), ValueError, "start must lie above stop"),
    ],
)
def test_grids(make, error, match):
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize("name", ["trailing", "leading", "linspace"])
class TestChainGrids:
    @pytest.mark.parametrize("path", [VP, COSINE, FLOW, sf.VESDE()], ids=repr)
    def test_no_chain(self, name, path):
        model = zero_model(path, "x0")
        with pytest.raises(ValueError, match=r"grid needs a path made from betas.*no chain.*'uniform'"):
            sf.solve(model, X, grid=name, steps=3)
        assert model.nfe == 0

    def test_more_steps_than_the_chain_has(self, name):
        model = zero_model(CHAIN)
        with pytest.raises(ValueError, match=r"steps=1001 is more than the 1000 steps of the chain.*'uniform'"):
            sf.solve(model, X, grid=name, steps=1001)
        with pytest.raises(ValueError, match=r"steps=51 is more than the 50 steps of the chain.*'uniform'"):
            sf.solve(model, X, grid=name, steps=51, start=0.05)
        assert model.nfe == 0

    def test_start_is_no_node(self, name):
        model = zero_model(CHAIN)
        with pytest.raises(ValueError, match=r"start=0\.12345 is no node.*1000 steps.*0\.123"):
            sf.solve(model, X, grid=name, steps=7, start=0.12345)
        assert model.nfe == 0

    def test_stop_is_no_node_or_not_zero(self, name):
        model = zero_model(CHAIN)
        with pytest.raises(ValueError, match=r"stop=0\.12345"):
            sf.solve(model, X, grid=name, steps=7, stop=0.12345)
        assert model.nfe == 0


@pytest.mark.parametrize(
    ("sampler", "options"),
    [("ddim", {"start": 0.01}), ("ddim", {"start": 1.0, "stop": 0.99}), ("ddpm", {"start": 0.5}), ("ddpm", {"stop": 0.25})],
)
def test_no_error_for_steps_that_were_not_asked_for(sampler, options):
    """Without `steps` the default must fit what start and stop leave of the chain."""
    solution = sf.solve(zero_model(CHAIN), X, sampler, seed=0, **options)
    assert solution.times[0] == options.get("start", 1.0)
    assert solution.times[-1] == options.get("stop", 0.0)


# -- where alpha is 0 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("prediction", ["eps", "score"])
@pytest.mark.parametrize("path", [COSINE, FLOW], ids=["cosine", "flow"])
def test_eps_network_where_alpha_is_zero(name, prediction, path):
    model = zero_model(path, prediction)
    for run in (run_solve, run_sample):
        with pytest.raises(ValueError, match=r"alpha=0.*a start below it"):
            run(model, sampler=name, steps=3, seed=0)
    with pytest.raises(ValueError, match=r"alpha=0.*a start below it"):
        sf.solve(model, X, name, grid=[1.0, 0.6, 0.3], seed=0)
    assert model.nfe == 0


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("path", [COSINE, FLOW], ids=["cosine", "flow"])
def test_eps_network_below_alpha_zero(name, path):
    """The cure that the message names is one."""
    model = zero_model(path)
    assert sf.solve(model, X, name, grid=[0.9, 0.6, 0.3], seed=0).x.isfinite().all()


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("prediction", ["x0", "v", "flow"])
@pytest.mark.parametrize("path", [COSINE, FLOW], ids=["cosine", "flow"])
def test_ddim_accepts_the_others_where_alpha_is_zero(path, prediction, steps):
    """On one point μ of data the run lands on μ, whatever the network predicts."""
    mu = torch.tensor([0.5, -2.0, 1.0], dtype=torch.float64)

    def net(x, t):
        t = t[:, None]
        if path is FLOW:
            alpha, sigma, alpha_slope, sigma_slope = 1 - t, t, -torch.ones_like(t), torch.ones_like(t)
        else:
            rate, s = math.pi / 2 / 1.008, 0.008
            alpha = torch.sin(rate * (1 - t)) / math.cos(rate * s)
            sigma = (1 - alpha**2).sqrt()
            alpha_slope = -rate * torch.cos(rate * (1 - t)) / math.cos(rate * s)
            sigma_slope = -alpha * alpha_slope / sigma
        eps = (x - alpha * mu) / sigma
        return {"x0": mu.expand_as(x), "v": alpha * eps - sigma * mu, "flow": alpha_slope * mu + sigma_slope * eps}[prediction]

    x_T = torch.tensor([[0.3, -1.2, 0.8], [1.0, 0.0, -1.0]], dtype=torch.float64)
    x = sf.solve(sf.ScoreModel(net, path, prediction), x_T, "ddim", steps=steps).x
    torch.testing.assert_close(x, mu.expand_as(x), rtol=0, atol=1e-9)


# -- values that are not finite -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize(
    ("sampler", "where"),
    [
        (dict(sampler="ddim"), r"step 4 \(t=0\.4 → 0\.2\)"),
        (dict(sampler="ddpm"), r"step 4 \(t=0\.4 → 0\.2\)"),
        (dict(sampler="predictor-corrector"), r"step 3 \(t=0\.6 → 0\.4\)"),
        (dict(sampler="pf-ode", method="heun", grid="uniform"), r"step 3 \(t=0\.6 → 0\.4\)"),
        (dict(sampler="pf-ode", method="dopri5"), r"step 3 \(t=0\.6 → 0\.4\)"),
        (dict(sampler="pf-ode", method="RK45"), r"step 3 \(t=0\.6 → 0\.4\)"),
        (dict(sampler="scipy", control="sample"), r"step 3 \(t=0\.6 → 0\.4\)"),
        (dict(sampler="torchsde"), r"step 4 \(t=0\.4 → 0\.2\)"),
    ],
)
def test_network_that_breaks_at_one_step(sampler, where, bad):
    """The network is not finite, for one entry of one sample, from t = 0.5 down."""

    def net(x, t):
        out = x.clone()
        out[-1, -1] = torch.where(t[-1] < 0.5, bad, out[-1, -1])
        return out

    with pytest.raises(FloatingPointError, match=f"network's output at t=0.* not finite.*{where}"):
        sf.solve(sf.ScoreModel(net, VP), X, steps=5, seed=0, **sampler)


def test_the_step_that_broke_is_found_among_many():
    """Only one state in eight is looked at; the run that finds the step goes by the same draws, given or not."""

    def net(x, t):
        return torch.where((x > 1.5) & (t[0] < 0.7), NAN, x)

    model, x = sf.ScoreModel(net, VP), torch.zeros(1, 1)
    draws = torch.zeros(20, 1, 1)
    draws[7] = 5.0  # puts the state above at t = 0.6
    with pytest.raises(FloatingPointError, match=r"network's output at t=0\.6 is not finite, in step 9 \(t=0\.6 → 0\.55\)"):
        sf.solve(model, x, "ddpm", steps=20, grid="uniform", noise=draws[:19])


def test_state_that_overflows():
    """The network is finite, the state that it leads to is not."""
    model = sf.ScoreModel(lambda x, t: torch.full_like(x, 3e38), VP)
    with pytest.raises(FloatingPointError, match=r"state is not finite.*step 1 \(t=1 → 0\.5\)"):
        sf.solve(model, X, "ddim", steps=2)


@pytest.mark.parametrize("steps", [5, 16])
def test_a_state_that_breaks_in_the_last_step_alone(steps):
    """States of a plan are looked at now and then; the last always."""
    model = sf.ScoreModel(
        lambda x, t: torch.full_like(x, torch.inf) if float(t[0]) < 1.01 / steps else x, sf.VPSDE(), prediction="x0"
    )
    with pytest.raises(FloatingPointError, match=f"in step {steps} "):
        sf.solve(model, torch.ones(1, 2), "ddim", steps=steps, grid="uniform")


def test_what_helps_where_alpha_is_0():
    """For networks of noise and score a start below; elsewhere a time inside the path."""
    x = torch.ones(1, 2)
    for prediction, path, t, want, hint in (
        ("eps", sf.Flow(), 1.0, "x0", "start below it"), ("score", sf.Flow(), 1.0, "x0", "start below it"),
        ("x0", sf.Flow(), 0.0, "eps", "use a time inside the path"),
        ("eps", sf.Flow(), 0.0, "score", "use a time inside the path"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=hint):
            sf.ScoreModel(lambda x, t: x, path, prediction=prediction)(x, t, want)
