"""Bad input gets a clear error, which names the argument or its value and what is allowed, and nothing is half done."""

import dataclasses
import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import scoreflow as sf
from scoreflow.step import SAMPLERS

VP, FLOW, COSINE = sf.VPSDE(), sf.Flow(), sf.VPSDE.cosine()
BETAS = sf.DDPMChain.linear().beta
CHAIN = sf.VPSDE.from_betas(BETAS)
X = torch.zeros(2, 3)
NAN, INF = math.nan, math.inf


def zero(x, t):
    return torch.zeros_like(x)


def zero_model(path=VP, prediction="eps", time="unit"):
    return sf.ScoreModel(zero, path, prediction, time)


def run_solve(model, **keywords):
    return sf.solve(model, X, **keywords)


def run_sample(model, **keywords):
    return sf.sample(model, X.shape, **keywords)


both = pytest.mark.parametrize("run", [run_solve, run_sample], ids=["solve", "sample"])


# -- solve and sample: names, options, counts, times -------------------------------------------------------------------

NAMES = [
    (dict(sampler="ddmi"), ValueError, "'ddmi'.*did you mean.*ddim"),
    (dict(sampler="DDMI"), ValueError, "'DDMI'.*did you mean.*ddim"),
    (dict(sampler="euler_maryama"), ValueError, "'euler_maryama'.*did you mean.*euler-maruyama"),
    (dict(sampler="pf-odes"), ValueError, "'pf-odes'.*did you mean.*pf-ode"),
    (dict(sampler="zzz"), ValueError, "'zzz'.*Known: .*ddim.*ddpm"),
    (dict(sampler=3), TypeError, "sampler must be a name or a Sampler.*int"),
    (dict(sampler=None), TypeError, "sampler must be a name or a Sampler.*NoneType"),
    (dict(grid="uniforn"), ValueError, "'uniforn'.*did you mean uniform"),
    (dict(grid="log-snr"), ValueError, "'log-snr'.*did you mean logsnr"),
    (dict(grid="zzz"), ValueError, r"grid.*'zzz'\. Known: cosine, karras.*uniform"),
    (dict(noise="purple"), ValueError, "noise.*white.*brownian.*'purple'"),
    (dict(noise=3), TypeError, "noise.*white.*brownian.*int"),
    (dict(noise=np.zeros((50, 2, 3))), TypeError, "noise.*white.*brownian.*ndarray"),
]

KEYWORDS = [
    (dict(sampler="ddim", etaa=0.5), "'etaa'.*ddim.*eta"),
    (dict(sampler="ddim", variance="beta"), "'variance'.*ddim.*eta"),
    (dict(sampler="pf-ode", method="dopri5", rtoll=1e-3), "'rtoll'.*pf-ode.*rtol"),
    (dict(sampler="ddpm", y=torch.zeros(2)), "'y'.*ddpm.*variance.*condition"),
    (dict(sampler="euler-maruyama", eta=0.5), "'eta'.*euler-maruyama.*none"),
]

OPTIONS = [
    ("ddim", dict(eta=-1.0), "eta must be .*≥ 0.*-1.0"),
    ("ddim", dict(eta=NAN), "eta must be .*≥ 0.*nan"),
    ("ddim", dict(eta=5.0), "eta.*5.0"),
    ("ddim", dict(eta="much"), "eta.*'much'"),
    ("ddim", dict(eta=None), "eta.*None"),
    ("ddpm", dict(variance="foo"), "variance.*posterior, beta, interpolated, learned.*'foo'"),
    ("ddpm", dict(variance=3), "variance.*posterior, beta, interpolated, learned.*3"),
    ("ddpm", dict(v=0.5), "v belongs to variance='interpolated'.*0.5"),
    ("ddpm", dict(variance="beta", v=0.5), "v belongs to variance='interpolated'.*'beta'"),
    ("ddpm", dict(variance="interpolated", v=NAN), r"\bv\b.*nan"),
    ("ddpm", dict(variance="interpolated", v="a"), r"\bv\b.*'a'"),
    ("pf-ode", dict(method="foo"), "method 'foo'.*heun.*dopri5.*RK45"),
    ("pf-ode", dict(method="dopri5", solver="scipy"), "method 'dopri5'.*scipy.*RK45"),
    ("pf-ode", dict(solver="mine"), "solver.*scoreflow, torchdiffeq, scipy.*'mine'"),
    ("pf-ode", dict(variable="s"), "variable must be one of t, lambda, got 's'"),
    ("pf-ode", dict(method="dopri5", variable="s"), "variable.*t, lambda.*'s'"),
    ("pf-ode", dict(rtol=1e-3), "rtol=0.001 belongs to other solvers.*heun"),
    ("pf-ode", dict(method="RK45", substeps=2), "substeps=2.*RK45.*rtol"),
    ("pf-ode", dict(method="dopri5", rtol=0), "rtol must be a finite number > 0.*0"),
    ("pf-ode", dict(method="dopri5", rtol="small"), "rtol.*'small'"),
    ("torchdiffeq", dict(method="RK45"), "method.*dopri5.*'RK45'"),
    ("torchdiffeq", dict(substeps=0), "substeps.*≥ 1.*0"),
    ("torchdiffeq", dict(substeps=1.5), "substeps.*whole number.*1.5"),
    ("scipy", dict(method="dopri5"), "method.*RK45.*'dopri5'"),
    ("scipy", dict(atol=NAN), "atol must be a finite number > 0.*nan"),
    ("scipy", dict(control="x"), "control.*batch, sample.*'x'"),
    ("reverse-sde", dict(method="foo"), "method 'foo'.*heun.*srk"),
    ("reverse-sde", dict(method="dopri5"), "method 'dopri5'.*heun.*srk"),
    ("reverse-sde", dict(method="srk", variable="lambda"), "variable='lambda'.*torchsde"),
    ("reverse-sde", dict(solver="scipy"), "solver.*scoreflow, torchsde.*'scipy'"),
    ("reverse-sde", dict(eta=0), "eta must be a finite number > 0.*0"),
    ("reverse-sde", dict(eta=INF), "eta.*inf"),
    ("reverse-sde", dict(eta="a"), "eta.*'a'"),
    ("torchsde", dict(method="rk4"), "method.*srk.*'rk4'"),
    ("torchsde", dict(eta=-1), "eta must be a finite number > 0.*-1"),
    ("torchsde", dict(eta=INF), "eta.*inf"),
    ("predictor-corrector", dict(corrector="x"), "corrector must be one of langevin, bridge, got 'x'"),
    ("predictor-corrector", dict(n=0), "n must be.*≥ 1.*0"),
    ("predictor-corrector", dict(n=True), "n must be a whole number.*True"),
    ("predictor-corrector", dict(snr=0), "snr must be a finite number > 0.*0"),
    ("predictor-corrector", dict(snr=NAN), "snr must be a finite number > 0.*nan"),
    ("predictor-corrector", dict(snr="loud"), "snr.*'loud'"),
    ("predictor-corrector", dict(delta=2), "delta must be a finite number > 0 and ≤ 1, got 2"),
    ("predictor-corrector", dict(delta=0), "delta must be a finite number > 0 and ≤ 1, got 0"),
    ("predictor-corrector", dict(delta="a"), "delta.*'a'"),
    ("predictor-corrector", dict(predictor="ddimm"), "'ddimm'.*did you mean.*ddim"),
    ("predictor-corrector", dict(predictor="predictor-corrector"), "predictor.*raise n"),
]

COUNTS = [
    (dict(steps=0), ValueError, "steps.*≥ 1.*0"),
    (dict(steps=-3), ValueError, "steps.*≥ 1.*-3"),
    (dict(steps=2.5), TypeError, "steps.*whole number.*2.5"),
    (dict(steps=2.0), TypeError, "steps.*whole number.*2.0"),
    (dict(steps=True), TypeError, "steps.*whole number.*True"),
    (dict(steps="3"), TypeError, "steps.*whole number.*'3'"),
    (dict(steps=3, nfe=3), ValueError, "steps=3.*nfe=3.*exclude"),
    (dict(nfe=0), ValueError, "nfe must be a whole number ≥ 1, got 0"),
    (dict(nfe=-1), ValueError, "nfe must be a whole number ≥ 1, got -1"),
    (dict(nfe=2.5), TypeError, "nfe.*whole number.*2.5"),
    (dict(nfe=True), TypeError, "nfe.*whole number.*True"),
    (dict(nfe=3, sampler="pf-ode", method="rk4", stop=0.1), ValueError, "nfe=3.*less than the 4 evaluations"),
    (dict(nfe=1, sampler="predictor-corrector", stop=0.1, n=2), ValueError, "nfe=1.*less than the 3 evaluations"),
    (dict(nfe=50, sampler="pf-ode", method="dopri5"), ValueError, "nfe=50.*tolerance"),
    (dict(nfe=50, sampler="torchdiffeq"), ValueError, "nfe=50.*tolerance"),
    (dict(nfe=50, sampler="scipy"), ValueError, "nfe=50.*tolerance"),
    (dict(nfe=50, sampler="torchsde", adaptive=True), ValueError, "nfe=50.*tolerance"),
    (dict(start=0.2, stop=0.5), ValueError, "start must lie above stop.*0.2.*0.5"),
    (dict(start=0.5, stop=0.5), ValueError, "start must lie above stop.*0.5"),
    (dict(start=0.0), ValueError, "start must lie above stop"),
    (dict(start=1.5), ValueError, "start.*between 0.*1.*1.5"),
    (dict(start=NAN), ValueError, "start.*between 0.*1.*nan"),
    (dict(start="late"), TypeError, "start.*number.*'late'"),
    (dict(stop=-0.1), ValueError, "stop.*between 0.*1.*-0.1"),
    (dict(stop=None), TypeError, "stop.*number.*None"),
]

TIMES = [
    (dict(grid=[1.2, 0.5, 0.0]), ValueError, "time 0 of the grid.*between 0.*1.*1.2"),
    (dict(grid=[1.0, 0.5, -0.1]), ValueError, "time 2 of the grid.*between 0.*1.*-0.1"),
    (dict(grid=[1.0, NAN, 0.0]), ValueError, "time 1 of the grid.*nan"),
    (dict(grid=torch.tensor([NAN, 0.0])), ValueError, "time 0 of the grid.*nan"),
    (dict(grid=[1.0, 0.5, 0.5, 0.0]), ValueError, "grid must decrease.*0.5 then 0.5.*2"),
    (dict(grid=(0.0, 0.5, 1.0)), ValueError, "grid must decrease.*0.0 then 0.5"),
    (dict(grid=[1.0]), ValueError, "grid.*at least two times.*1"),
    (dict(grid=[]), ValueError, "grid.*at least two times.*0"),
    (dict(grid=torch.zeros(2, 2)), (TypeError, ValueError), "grid"),
    (dict(grid=["a", "b"]), (TypeError, ValueError), "grid.*'a'"),
    (dict(grid=[1.0, None]), (TypeError, ValueError), "grid.*None"),
    (dict(grid=3), (TypeError, ValueError), "grid.*3"),
    (dict(grid=[1.0, 0.0], steps=1), ValueError, "steps=1.*grid exclude"),
    (dict(grid=[1.0, 0.0], nfe=1), ValueError, "nfe=1.*grid exclude"),
    (dict(grid=[1.0, 0.0], start=0.5), ValueError, "start=0.5.*grid exclude"),
    (dict(grid=[1.0, 0.0], stop=0.5), ValueError, "stop=0.5.*grid exclude"),
    (dict(grid=torch.tensor([1.0, 0.0]), steps=1), ValueError, "steps=1.*grid exclude"),
]


@both
@pytest.mark.parametrize(("keywords", "error", "match"), [*NAMES, *COUNTS, *TIMES])
def test_front_door(run, keywords, error, match):
    model = zero_model()
    with pytest.raises(error, match=match):
        run(model, **keywords)
    assert model.nfe == 0


@both
@pytest.mark.parametrize(("keywords", "match"), KEYWORDS)
def test_a_keyword_that_nobody_takes(run, keywords, match):
    model = zero_model()
    with pytest.raises(TypeError, match=match):
        run(model, **keywords)
    assert model.nfe == 0


@pytest.mark.parametrize(("sampler", "options", "match"), OPTIONS)
def test_option_values(sampler, options, match):
    model = zero_model()
    with pytest.raises((ValueError, TypeError), match=match):
        sf.solve(model, X, sampler, steps=4, seed=0, **options)
    assert model.nfe == 0


@pytest.mark.parametrize("name", SAMPLERS)
def test_unknown_option_names_the_sampler_and_its_options(name):
    known = ", ".join(SAMPLERS[name].options) or "none"
    for call in (lambda: sf.get_sampler(name, bogus=1), lambda: sf.plan(name, VP, steps=2, bogus=1)):
        with pytest.raises(TypeError, match=f"{name}.*'bogus'.*{known}"):
            call()


def test_option_beside_a_made_sampler_or_a_plan():
    """`eta` is an option of ddim, so the answer must not be that it is none: it belongs where the sampler was made."""
    for made in (sf.get_sampler("ddim"), sf.plan("ddim", VP, steps=3)):
        model = zero_model()
        with pytest.raises((TypeError, ValueError), match="eta") as caught:
            sf.solve(model, X, made, eta=0.5)
        assert "nor an option" not in str(caught.value)
        assert model.nfe == 0


# -- the model and the states -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: sf.ScoreModel(3, VP), TypeError, "net must be a module or a callable.*int"),
        (lambda: sf.ScoreModel(zero, "vp"), TypeError, "path must be a GaussianPath.*str"),
        (lambda: sf.ScoreModel(zero, sf.VPSDE), TypeError, "path must be a GaussianPath.*type"),
        (lambda: sf.ScoreModel(zero, sf.DDPMChain.linear()), TypeError, "path must be a GaussianPath.*DDPMChain"),
        (lambda: sf.ScoreModel(zero, VP, "epsilon"), ValueError, "prediction.*eps, x0, v, score, flow.*'epsilon'"),
        (lambda: sf.ScoreModel(zero, VP, time="unitt"), ValueError, "time.*unit, index, label, log-snr, sigma.*'unitt'"),
        (lambda: sf.ScoreModel(zero, VP, time=1000), ValueError, "time.*unit, index.*1000"),
        (lambda: sf.ScoreModel(zero, VP, time="index"), ValueError, "time='index'.*chain.*from_betas"),
        (lambda: sf.ScoreModel(zero, FLOW, time="label"), ValueError, "time='label'.*chain.*from_betas"),
        (lambda: sf.plan("ddim", "vp", steps=3), TypeError, "path.*GaussianPath.*str"),
        (lambda: sf.grid("vp", 3), TypeError, "path.*GaussianPath.*str"),
        (lambda: sf.plan("scipy", VP, steps=3), ValueError, "scipy.*not made of rows.*no plan"),
    ],
)
def test_making_a_model_or_a_plan(make, error, match):
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize("not_a_model", [zero, torch.nn.Linear(3, 3), None])
def test_no_score_model(not_a_model):
    with pytest.raises(TypeError, match=r"model must be a ScoreModel.*wrap"):
        sf.solve(not_a_model, X)
    with pytest.raises(TypeError, match=r"model must be a ScoreModel.*wrap"):
        sf.sample(not_a_model, X.shape)


@pytest.mark.parametrize(
    "x_T", [X.int(), X.bool(), X.to(torch.complex64), torch.tensor(1.0), X.numpy(), None], ids=lambda x: str(type(x))
)
def test_states_that_are_none(x_T):
    model = zero_model()
    with pytest.raises(TypeError, match=r"x_T must be a floating-point tensor of shape \(B"):
        sf.solve(model, x_T)
    assert model.nfe == 0


@pytest.mark.parametrize("shape", [(), (0, 3), (-2, 3), (2.5, 3), (True, 3), "ab", 4, None])
def test_shapes(shape):
    model = zero_model()
    with pytest.raises((ValueError, TypeError), match=r"shape must be a (sequence of )?whole number"):
        sf.sample(model, shape, seed=0)
    assert model.nfe == 0


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, "float32"])
def test_dtypes(dtype):
    model = zero_model()
    with pytest.raises(TypeError, match=r"dtype|x_T must be a floating-point tensor"):
        sf.sample(model, (2, 3), seed=0, steps=2, dtype=dtype)
    assert model.nfe == 0


@both
@pytest.mark.parametrize(
    ("net", "got"),
    [
        (lambda x, t: x[:, :1], r"\(2, 1\)"),
        (lambda x, t: x[:1], r"\(1, 3\)"),
        (lambda x, t: x.repeat(1, 3), r"\(2, 9\)"),
        (lambda x, t: x.mean(), r"\(\)"),
    ],
)
def test_output_of_another_shape(run, net, got):
    with pytest.raises(ValueError, match=rf"network returned shape {got}.*\(2, 3\).*twice its channels"):
        run(sf.ScoreModel(net, VP), steps=2, seed=0)


@both
@pytest.mark.parametrize("output", [None, 0.0, (X, X), {"sample": X}, np.zeros((2, 3))], ids=lambda o: type(o).__name__)
def test_output_that_is_no_tensor(run, output):
    with pytest.raises(TypeError, match=f"network must return a tensor, got {type(output).__name__}"):
        run(sf.ScoreModel(lambda x, t: output, VP), steps=2, seed=0)


@pytest.mark.parametrize(
    ("t", "error", "match"),
    [
        (1.5, ValueError, "t must lie between 0.*1.*1.5"),
        (NAN, ValueError, "t must lie between 0.*1.*nan"),
        ("late", TypeError, "t must be a number.*'late'"),
        (torch.tensor([0.5, 1.5]), ValueError, "t must lie between 0.*1.*1.5"),
        (torch.tensor([0.5, NAN]), ValueError, "t must lie between 0.*1.*nan"),
        (torch.tensor([0.5, 0.5, 0.5]), ValueError, r"t must be.*shape \(2,\).*\(3,\)"),
        (torch.tensor([1, 0]), TypeError, "t must be.*floating-point.*int64"),
    ],
)
def test_times_of_a_model(t, error, match):
    model = zero_model()
    with pytest.raises(error, match=match):
        model(X, t)
    assert model.nfe == 0


def test_unknown_wanted_prediction():
    model = zero_model()
    with pytest.raises(ValueError, match=r"eps, x0, v, score, flow.*'noise'"):
        model(X, 0.5, "noise")
    assert model.nfe == 0


def test_callable_time_of_the_wrong_shape():
    model = sf.ScoreModel(zero, VP, time=lambda t: t[:1])
    with pytest.raises(ValueError, match=r"time\(t\) must give shape \(2,\), got \(1,\)"):
        sf.solve(model, X, steps=2)
    assert model.nfe == 0


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
        (lambda: sf.VPSDE(beta_min=-1), "0 < beta_min ≤ beta_max.*beta_min=-1"),
        (lambda: sf.VPSDE(beta_min=0.0), "0 < beta_min ≤ beta_max.*beta_min=0.0"),
        (lambda: sf.VPSDE(beta_min=20.0, beta_max=0.1), "0 < beta_min ≤ beta_max.*beta_max=0.1"),
        (lambda: sf.VPSDE(beta_max=NAN), "0 < beta_min ≤ beta_max.*beta_max=nan"),
        (lambda: sf.SubVPSDE(beta_max=INF), "0 < beta_min ≤ beta_max.*beta_max=inf"),
        (lambda: sf.VPSDE.cosine(s=-0.1), "s must be ≥ 0.*-0.1"),
        (lambda: sf.VPSDE.cosine(s=NAN), "s must be ≥ 0.*nan"),
        (lambda: sf.VESDE(sigma_min=2, sigma_max=1), "0 < sigma_min < sigma_max.*sigma_min=2.*sigma_max=1"),
        (lambda: sf.VESDE(sigma_min=0.0), "0 < sigma_min < sigma_max.*sigma_min=0.0"),
        (lambda: sf.VESDE(sigma_max=INF), "0 < sigma_min < sigma_max.*sigma_max=inf"),
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


# -- grids --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: sf.grid(VP, 5, "karras", rhoo=3), (ValueError, TypeError), "'karras'.*'rhoo'.*t_min, rho"),
        (lambda: sf.grid(VP, 5, "uniform", rho=3), (ValueError, TypeError), "'uniform'.*'rho'.*none"),
        (lambda: sf.grid(VP, 5, "karras", rho=0), ValueError, "rho must be a finite number > 0.*0"),
        (lambda: sf.grid(VP, 5, "karras", rho=NAN), ValueError, "rho must be a finite number > 0.*nan"),
        (lambda: sf.grid(VP, 5, "logsnr", t_min=2.0), ValueError, "t_min must lie between 0 and start.*2.0"),
        (lambda: sf.grid(VP, 5, "logsnr", t_min=0.0), ValueError, "t_min must lie between 0 and start.*0.0"),
        (lambda: sf.grid(VP, 5, "logsnr", t_min=NAN), ValueError, "t_min must lie between 0 and start.*nan"),
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
        (dict(sampler="pf-ode", method="heun"), r"step 3 \(t=0\.6 → 0\.4\)"),
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


def test_state_that_overflows():
    """The network is finite, the state that it leads to is not."""
    model = sf.ScoreModel(lambda x, t: torch.full_like(x, 3e38), VP)
    with pytest.raises(FloatingPointError, match=r"state is not finite.*step 1 \(t=1 → 0\.5\)"):
        sf.solve(model, X, "ddim", steps=2)


# -- noise and seeds ----------------------------------------------------------------------------------------------------


def draws(count, *shape):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("sampler", "right"),
    [
        (dict(sampler="ddim"), 0),
        (dict(sampler="ddim", eta=0.5), 4),
        (dict(sampler="ddpm"), 4),
        (dict(sampler="ddpm", stop=0.1), 5),
        (dict(sampler="reverse-sde"), 4),
    ],
)
@pytest.mark.parametrize("off", [-2, -1, 1, 3])
@both
def test_count_of_draws_of_linear_samplers(run, sampler, right, off):
    """Told at the front door, in numbers of the draws that were given. For `sample` the first is the prior's."""
    right += run is run_sample
    if right + off < 0:
        return  # there is no such count
    model = zero_model()
    with pytest.raises(ValueError, match=f"noise holds {right + off} draws"):
        run(model, steps=5, noise=draws(right + off, 2, 3), **sampler)
    assert model.nfe == 0
    run(model, steps=5, noise=draws(right, 2, 3), **sampler)
    assert model.nfe >= 5


@pytest.mark.parametrize("off", [-2, -1, 1, 3])
@both
def test_count_of_draws_of_other_samplers(run, off):
    """Predictor-corrector on 3 steps: 2 draws of the predictor, 2 of the corrector; the landing has none."""
    right = 4 + (run is run_sample)
    model = zero_model(prediction="x0")
    with pytest.raises(ValueError, match=f"noise holds {right + off} draws"):
        run(model, sampler="predictor-corrector", steps=3, noise=draws(right + off, 2, 3))
    run(model, sampler="predictor-corrector", steps=3, noise=draws(right, 2, 3))


@both
@pytest.mark.parametrize("shape", [(2, 2), (3, 3), (3,), (2, 3, 1), (1, 3)])
@pytest.mark.parametrize("sampler", ["ddpm", "predictor-corrector"])
def test_shape_of_draws(run, shape, sampler):
    model = zero_model(prediction="x0")
    count = {"ddpm": 2, "predictor-corrector": 4}[sampler] + (run is run_sample)
    got = ", ".join(map(str, shape))
    with pytest.raises(ValueError, match=rf"noise.*shape \({got},?\).*\(2, 3\)"):
        run(model, sampler=sampler, steps=3, noise=draws(count, *shape))
    assert model.nfe == 0


@both
def test_draws_without_a_count(run):
    model = zero_model()
    with pytest.raises((TypeError, ValueError), match="noise"):
        run(model, sampler="ddpm", steps=2, noise=torch.tensor(1.0))
    assert model.nfe == 0


@both
@pytest.mark.parametrize(
    ("seed", "error", "match"),
    [
        ([1], ValueError, "seed has 1 entries for a batch of 2"),
        ([1, 2, 3], ValueError, "seed has 3 entries for a batch of 2"),
        (range(5), ValueError, "seed has 5 entries for a batch of 2"),
        ([], ValueError, "seed has 0 entries for a batch of 2"),
        (torch.tensor([1, 2, 3]), ValueError, "seed has 3 entries for a batch of 2"),
        (1.0, TypeError, "seed must be an int or a sequence of ints.*1.0"),
        ("12", TypeError, "seed must be an int or a sequence of ints.*'12'"),
        (True, TypeError, "seed must be an int or a sequence of ints.*True"),
        ([1.0, 2.0], TypeError, "seed must be an int or a sequence of ints.*1.0"),
        ([True, False], TypeError, "seed must be an int or a sequence of ints.*True"),
        (["1", "2"], TypeError, "seed must be an int or a sequence of ints.*'1'"),
        (torch.tensor([1.0, 2.0]), TypeError, "seed must be an int or a sequence of ints.*1.0"),
    ],
)
def test_seeds(run, seed, error, match):
    for sampler in ("ddim", "ddpm"):
        model = zero_model()
        with pytest.raises(error, match=match):
            run(model, sampler=sampler, steps=3, seed=seed)
        assert model.nfe == 0


@both
@pytest.mark.parametrize("source", [sf.White, sf.Brownian])
def test_seeds_of_a_source(run, source):
    model = zero_model()
    with pytest.raises(ValueError, match="seed has 3 entries for a batch of 2"):
        run(model, sampler="ddpm", steps=3, noise=source([1, 2, 3]))
    with pytest.raises(TypeError, match=r"seed must be an int or a sequence of ints.*1\.5"):
        source(1.5)
    assert model.nfe == 0


@both
@pytest.mark.parametrize("noise", [sf.White(1), sf.Brownian(1), draws(2, 2, 3), sf.Replay(draws(2, 2, 3))], ids=repr)
def test_seed_beside_a_source(run, noise):
    model = zero_model()
    with pytest.raises(ValueError, match="seed=0 and noise exclude each other"):
        run(model, sampler="ddpm", steps=3, seed=0, noise=noise)
    assert model.nfe == 0


@both
@pytest.mark.parametrize("noise", [draws(9, 2, 3), sf.White(1), "white"], ids=["draws", "White", "white"])
@pytest.mark.parametrize("sampler", [dict(sampler="torchsde"), dict(sampler="reverse-sde", method="srk")])
def test_torchsde_needs_a_brownian_path(run, noise, sampler):
    model = zero_model()
    with pytest.raises(ValueError, match=r"torchsde needs a Brownian path.*seed.*Brownian"):
        run(model, steps=4, noise=noise, **sampler)
    assert model.nfe == 0


# -- whole labels -------------------------------------------------------------------------------------------------------


def label_model(path=CHAIN):
    """A network with a table of embeddings, and the labels it was told."""
    table, told = torch.arange(path.T, dtype=torch.float32), []

    def net(x, label):
        told.extend(label[:1].tolist())
        return 0.0 * table[label][:, None] + 0.1 * x

    return sf.ScoreModel(net, path, time="label"), told


@pytest.mark.parametrize(
    "keywords",
    [
        dict(sampler="ddim", grid="uniform", steps=7),
        dict(sampler="ddim", grid=[1.0, 0.5004, 0.0]),
        dict(sampler="ddim", grid="logsnr", steps=10),
        dict(sampler="pf-ode", method="dopri5"),
        dict(sampler="pf-ode", method="RK45"),
        dict(sampler="pf-ode", method="midpoint", steps=1000),
        dict(sampler="torchsde", method="srk", steps=1000),
    ],
)
def test_labels_that_are_not_whole(keywords):
    model, told = label_model()
    with pytest.raises(ValueError, match=r"whole labels 0…999.*t=0\.\d+ has the label \d+\.\d+.*'trailing'"):
        sf.solve(model, X, seed=0, **keywords)
    assert set(told) <= {999, 998}  # not a label was told that was not meant


@pytest.mark.parametrize(
    ("keywords", "labels"),
    [
        (dict(sampler="ddim", steps=10), range(999, 0, -100)),
        (dict(sampler="ddim", grid="uniform", steps=8), range(999, 0, -125)),
        (dict(sampler="ddim", grid="leading", steps=4), [750, 500, 250, 0]),
        (dict(sampler="ddim", grid="linspace", steps=4), [999, 666, 333, 0]),
        (dict(sampler="ddim", steps=3), [999, 666, 332]),
        (dict(sampler="ddpm", start=0.02, steps=20), range(19, -1, -1)),
        (dict(sampler="pf-ode", method="heun", steps=2), [999, 499, 499]),
        (dict(sampler="pf-ode", method="midpoint", steps=2), [999, 749, 499]),
        (dict(sampler="torchsde", steps=4), [999, 749, 499, 249]),
    ],
)
def test_labels_that_are(keywords, labels):
    model, told = label_model()
    sf.solve(model, X, seed=0, **keywords)
    assert told == list(labels)


# -- networks that say a variance, or do not ----------------------------------------------------------------------------


@pytest.mark.parametrize("variance", ["learned", "interpolated"])
def test_learned_variance_of_a_plain_network(variance):
    with pytest.raises(ValueError, match=f"variance='{variance}' needs a network with twice the channels.*'posterior'"):
        sf.solve(zero_model(CHAIN), X, "ddpm", steps=3, seed=0, variance=variance)


# -- plans --------------------------------------------------------------------------------------------------------------


def plan_json(**changes):
    return json.dumps({**json.loads(sf.plan("ddim", VP, steps=2).to_json()), **changes})


def without(name):
    data = json.loads(plan_json())
    del data[name]
    return json.dumps(data)


@pytest.mark.parametrize(
    "text",
    [
        "", "rubbish", "[]", "{}", "null", "42", '"ddim"', "[1, 2]", plan_json()[:-10], plan_json() + "x", 5, None,
        without("steps"), without("sampler"), without("path"), without("wants"), without("options"),
        plan_json(steps=3), plan_json(steps=[]), plan_json(steps=[[1.0, 0.5]]), plan_json(steps=[[1.0, 0.0, True, []]]),
        plan_json(steps=[[1.0, 0.0, True, [[0.0, [1.0]]]]]), plan_json(steps=[["a", 0, True, [[0, ["b", [1], 0]]]]]),
        plan_json(wants="banana"), plan_json(options=3), plan_json(rows=[]),
    ],
)  # fmt: skip
def test_text_that_is_no_plan(text):
    with pytest.raises(ValueError, match="no plan"):
        sf.Plan.from_json(text)


def test_text_that_is_a_plan():
    plan = sf.plan("ddim", VP, steps=2)
    assert sf.Plan.from_json(plan_json()) == plan


ENDS = np.linspace(1e-4, 0.02, 1000)
OTHER_BETAS = np.concatenate([ENDS[:1], np.full(998, 0.001), ENDS[-1:]])
"""Of the same length and with the same ends as `BETAS`, and yet another chain."""


@both
@pytest.mark.parametrize(
    ("path", "other"),
    [
        (VP, sf.VPSDE(beta_max=19.0)),
        (VP, sf.SubVPSDE()),
        (VP, COSINE),
        (CHAIN, VP),
        (CHAIN, sf.VPSDE.from_betas(BETAS[:500])),
        (CHAIN, sf.VPSDE.from_betas(OTHER_BETAS)),
        (sf.VESDE(), sf.VESDE(sigma_max=51.0)),
    ],
    ids=repr,
)
def test_a_plan_for_another_path(run, path, other):
    plan, model = sf.plan("ddim", path, grid=[1.0, 0.5, 0.0]), zero_model(other)
    with pytest.raises(ValueError, match="plan was made for"):
        run(model, sampler=plan, seed=0)
    assert model.nfe == 0


@both
@pytest.mark.parametrize(
    "keywords", [dict(steps=3), dict(nfe=3), dict(grid="uniform"), dict(start=0.5), dict(stop=0.1), dict(denoise=True)]
)
def test_a_plan_has_its_times(run, keywords):
    model, (name,) = zero_model(), keywords
    with pytest.raises(ValueError, match=f"plan has its times.*{name}="):
        run(model, sampler=sf.plan("ddim", VP, steps=3), seed=0, **keywords)
    assert model.nfe == 0


def test_a_plan_of_a_sampler_that_is_not_there():
    model = zero_model()
    plan = dataclasses.replace(sf.plan("ddim", VP, steps=2), sampler="ddmi")
    with pytest.raises(ValueError, match=r"'ddmi'.*did you mean.*ddim"):
        sf.solve(model, X, plan)
    assert model.nfe == 0


# -- checkpoints --------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    file = tmp_path / "tiny.safetensors"
    sf.zoo.save(sf.nets.UNet(widths=(8, 16)), file)
    return file


def rewrite(file, change=lambda weights: None, **metadata):
    """The checkpoint with other weights or metadata; None takes an entry of the metadata away."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    weights = load_file(file)
    with safe_open(file, framework="pt") as opened:
        metadata = {**opened.metadata(), **metadata}
    change(weights)
    save_file(weights, file, metadata={k: v for k, v in metadata.items() if v is not None})


def test_a_checkpoint_that_is_whole(checkpoint):
    net = sf.zoo.load(checkpoint)
    assert not net.training
    assert net.config["widths"] == [8, 16]


def test_a_checkpoint_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*nothing\.safetensors"):
        sf.zoo.load(tmp_path / "nothing.safetensors")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        sf.zoo.load(tmp_path)


@pytest.mark.parametrize("kept", [0, 4, 100, -1000, -1])
def test_a_checkpoint_that_is_cut_short(checkpoint, kept):
    checkpoint.write_bytes(checkpoint.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"tiny\.safetensors is not a whole safetensors file"):
        sf.zoo.load(checkpoint)


def test_a_checkpoint_of_torch_save(checkpoint):
    torch.save(sf.nets.UNet(widths=(8, 16)).state_dict(), checkpoint)
    with pytest.raises(ValueError, match=r"tiny\.safetensors is not a whole safetensors file"):
        sf.zoo.load(checkpoint)


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return open, (self.file, "w")


def test_a_pickle_is_not_unpickled(checkpoint):
    sprung = checkpoint.with_name("sprung")
    checkpoint.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        sf.zoo.load(checkpoint)
    assert not sprung.exists()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda w: w.update({"first.wait": w.pop("first.weight")}), "1 weights missing, 1 unknown.*first.wait"),
        (lambda w: w.pop("last.2.bias"), r"1 weights missing, 0 unknown.*last.2.bias.*\(1,\)"),
        (lambda w: w.update(more=torch.zeros(2)), r"0 weights missing, 1 unknown.*more.*\(2,\)"),
        (lambda w: w.update({"last.2.bias": torch.zeros(5)}), r"1 of another shape.*last.2.bias.*\(1,\).*\(5,\)"),
    ],
)
def test_a_checkpoint_of_other_weights(checkpoint, change, match):
    rewrite(checkpoint, change)
    with pytest.raises(ValueError, match=f"does not fit UNet: .*{match}"):
        sf.zoo.load(checkpoint)


@pytest.mark.parametrize(
    ("metadata", "match"),
    [
        (dict(network="VNet"), r"tiny.*network 'VNet'; known are UNet"),
        (dict(network=None), r"tiny.*network None; known are UNet"),
        (dict(config=None), r"tiny.*config"),
        (dict(config="rubbish"), r"tiny.*config"),
        (dict(config='{"wids": [8, 16]}'), r"tiny.*wids"),
    ],
)
def test_a_checkpoint_of_another_network(checkpoint, metadata, match):
    rewrite(checkpoint, **metadata)
    with pytest.raises(ValueError, match=match):
        sf.zoo.load(Path(checkpoint))


# -- what was cited -----------------------------------------------------------------------------------------------------


def test_nothing_to_cite():
    with pytest.raises(ValueError, match=r"'ddmi'.*ddim.*song2021ddim"):
        sf.cite("ddmi")
