"""The protocol of linear samplers with memory: warm-up, history, and a predictor whose word opens the next step."""

import itertools
import math

import numpy as np
import pytest
import torch
from problems import mixture, states

import scoreflow as sf
from scoreflow.row import Row

PATH, DATA = sf.VPSDE(), mixture()


def two_steps(path, times, s):
    """DPM-Solver++(2M) in its midpoint form: `x_s = σ_s/σ_t x − α_s (e^{−h} − 1) [D_0 + (D_0 − D_1)/(2r)]`."""
    t, h = times[0], path.lam(s) - path.lam(times[0])
    x, m = path.sigma(s) / path.sigma(t), -path.alpha(s) * math.expm1(-h)
    if len(times) == 1:
        return Row(x, (m,))
    r = (path.lam(t) - path.lam(times[1])) / h
    return Row(x, (m * (1 + 1 / (2 * r)), -m / (2 * r)))


def trapezoid(path, times, s):
    """Predict by DDIM, ask there, correct with the mean of both words."""
    x, (m,), _ = path.bridge(times[0], s)
    return [(s, Row(x, (m,))), (s, Row(x, (m / 2, m / 2)))]


MULTISTEP = sf.Linear(name="two-steps", rows=two_steps, history=2, order=2)
PEC = sf.Linear(name="trapezoid", rows=trapezoid, reuse=True, order=2)
PECE = sf.Linear(name="trapezoid", rows=trapezoid, order=2)


def test_a_plan_knows_its_memory():
    """A multistep method asks once a step; a predictor's word that opens the next step saves one; otherwise two."""
    times = tuple(np.linspace(0.9, 0.1, 9).tolist())
    plans = [sampler.plan(PATH, times) for sampler in (MULTISTEP, PEC, PECE)]
    assert [plan.nfe for plan in plans] == [8, 9, 16]
    assert [len(step.stages[-1].row.m) for step in plans[0].steps] == [1, *[2] * 7]
    assert [step.asks for step in plans[1].steps] == [True, *[False] * 7]
    assert [plan.peak_tensors for plan in plans] == [4, 4, 4]
    assert "8 steps, 8 evaluations, 0 draws" in str(plans[0])


def test_a_multistep_run_to_data_ends_with_the_denoiser():
    """The landing row weighs the newest word only, whatever is remembered."""
    plan = MULTISTEP.plan(PATH, (0.9, 0.5, 0.2, 0.0))
    assert plan.steps[-1].stages[-1].row == Row(0.0, (1.0, 0.0), 0.0)


@pytest.mark.parametrize(("sampler", "asked"), [(MULTISTEP, 1), (PEC, 1), (PECE, 2)])
def test_second_order(sampler, asked):
    """Each is of order 2 on a mixture, with the evaluations it promises; stepping by hand is the same to the bit."""
    model, x = DATA.model(PATH), states(32, 3)
    exact = sf.solve(model, x, "scipy", method="DOP853", rtol=1e-11, atol=1e-11, grid=[0.9, 0.1]).x
    errors = []
    for n in (20, 40, 80, 160):
        grid = PATH.time(torch.linspace(PATH.lam(0.9), PATH.lam(0.1), n + 1, dtype=torch.float64))
        sol = sf.solve(model, x, sampler, grid=grid)
        assert sol.nfe == sol.plan.nfe == asked * n + (sampler is PEC)
        errors.append((sol.x - exact).norm(dim=1).median().item())
    assert 1.8 < -np.polyfit(np.log([20, 40, 80, 160]), np.log(errors), 1)[0] < 2.4


def test_stepping_with_memory_is_running_the_plan():
    """The protocol's step with its memory handed on gives the plan's states to the bit."""
    from scoreflow.run import Run

    for sampler in (MULTISTEP, PEC, PECE):
        run, x, memory, times = Run(DATA.model(PATH), {}, 4), states(4, 3), (), (0.9, 0.7, 0.4, 0.2, 0.1)
        for t, s in itertools.pairwise(times):
            x, memory, error = sampler.step(run, x, t, s, memory, sf.White(0).draws())
            assert (error is None) == (sampler is MULTISTEP)  # a stage at s is an embedded solution
        assert torch.equal(x, sf.solve(DATA.model(PATH), states(4, 3), sampler, grid=times).x)
