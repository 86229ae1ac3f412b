"""Bad input gets a clear error, and nothing is half done: names, options, models and states."""

import re

import numpy as np
import pytest
import torch
from refusals import FLOW, INF, NAN, VP, X, both, zero, zero_model

import scoreflow as sf
from scoreflow._samplers.step import SAMPLERS

# -- solve and sample: names, options, counts, times -------------------------------------------------------------------

NAMES = [
    (dict(sampler="ddmi"), ValueError, "'ddmi'.*did you mean.*ddim"),
    (dict(sampler="DDMI"), ValueError, "'DDMI'.*did you mean.*ddim"),
    (dict(sampler="euler_maryama"), ValueError, "'euler_maryama'.*did you mean.*euler-maruyama"),
    (dict(sampler="pf-odes"), ValueError, "'pf-odes'.*did you mean.*pf-ode"),
    (dict(sampler="zzz"), ValueError, r"'zzz'\. sf.samplers\(\) lists all"),
    (dict(sampler=3), TypeError, "sampler must be a name or a Sampler.*int"),
    (dict(sampler=None), TypeError, "sampler must be a name or a Sampler.*NoneType"),
    (dict(grid="uniforn"), ValueError, "'uniforn'.*did you mean uniform"),
    (dict(grid="logsnnr"), ValueError, "'logsnnr'.*did you mean logsnr"),
    (dict(grid="zzz"), ValueError, r"grid.*'zzz'\. Known: ays, beta, beta57, cosine, .*uniform"),
    (dict(noise="purple"), ValueError, "noise.*white.*brownian.*'purple'"),
    (dict(noise=3), TypeError, "noise.*white.*brownian.*int"),
    (dict(noise=np.zeros((50, 2, 3))), TypeError, "noise.*white.*brownian.*ndarray"),
]

KEYWORDS = [
    (dict(sampler="ddim", etaa=0.5), "'etaa'.*ddim.*eta"),
    (dict(sampler="ddim", variance="beta"), "'variance'.*ddim.*eta"),
    (dict(sampler="pf-ode", method="dopri5", rtoll=1e-3), "'rtoll'.*pf-ode.*rtol"),
    (dict(sampler="ddpm", y=torch.zeros(2)), "'y'.*ddpm.*variance.*condition"),
    (dict(sampler="euler-maruyama", eta=0.5), "'eta'.*euler-maruyama.*analytic"),
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
        with pytest.raises(TypeError, match=f"{re.escape(name)}.*'bogus'.*{known}"):
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


@pytest.mark.parametrize("shape", [(), (3, 0), (-2, 3), (2.5, 3), (True, 3), "ab", 4, None])
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
