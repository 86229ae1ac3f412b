"""The protocol of linear samplers with memory: warm-up, history, and a predictor whose word opens the next step."""

import itertools
import math

import numpy as np
import pytest
import torch
from problems import LINEAR, mixture, states
from runs import OTHERS, sampler

import scoreflow as sf
from scoreflow import analysis
from scoreflow._core.row import Row
from scoreflow._samplers.plan import Draw, PlannedStep, Stage, Stages
from scoreflow._samplers.step import VARIANTS

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
    assert [step.evaluates for step in plans[1].steps] == [True, *[False] * 7]
    assert [plan.peak_tensors for plan in plans] == [4, 4, 4]
    assert [sf.plan(f"unipc-{p}", PATH, steps=9).peak_tensors for p in (1, 2, 3, 4)] == [4, 5, 6, 7]
    assert "8 steps, 8 evaluations, 0 draws" in str(plans[0])


def test_a_multistep_run_to_data_ends_with_the_denoiser():
    """The landing row weighs the newest word only, whatever is remembered."""
    plan = MULTISTEP.plan(PATH, (0.9, 0.5, 0.2, 0.0))
    assert plan.steps[-1].stages[-1].row == Row(0.0, (1.0,), 0.0)


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
    from scoreflow._run.walk import Run

    for chosen in (MULTISTEP, PEC, PECE):
        run, x, memory, times = Run(DATA.model(PATH), {}, 4), states(4, 3), (), (0.9, 0.7, 0.4, 0.2, 0.1)
        for t, s in itertools.pairwise(times):
            x, memory, error = chosen.step(run, x, t, s, memory, sf.White(0).draws())
            assert (error is None) == (chosen is MULTISTEP)  # a stage at s is an embedded solution
        assert torch.equal(x, sf.solve(DATA.model(PATH), states(4, 3), chosen, grid=times).x)


# -- draws of parts of a step, steps up, the analytic first answer, names of variants -----------------------------------


def halves(path, times, s):
    """A step of pure noise, of the variance that the path adds, from the increments of its two halves."""
    t, mid = times[0], (times[0] + s) / 2
    a, b = math.sqrt(t - mid), math.sqrt(mid - s)
    first, both = Row(1.0, (0.0,), (a, 0.0)), Row(1.0, (0.0, 0.0), (a, b))
    return Stages([(mid, first), (s, both)], (Draw(t, mid), Draw(mid, s)))


HALVES = sf.Linear(name="halves", rows=halves, marginal=False)


def test_draws_of_parts_of_a_step():
    """On a Brownian path the two halves add up to the increment of the whole; each is drawn once, whoever weighs it."""
    x, times = torch.zeros(5, 3, dtype=torch.float64), (1.0, 0.6, 0.1)
    sol = sf.solve(DATA.model(PATH), x, HALVES, grid=times, noise=sf.Brownian(3))
    draws = sf.Brownian(3).draws()
    whole = sum(math.sqrt(t - s) * draws(x, t, s) for t, s in itertools.pairwise(times))
    torch.testing.assert_close(sol.x, whole, rtol=1e-6, atol=1e-6)
    plan = sol.plan
    assert (plan.noise_count, sol.noise_count, plan.nfe) == (4, 4, 4)
    assert plan.peak_tensors == 6  # the state, two words, the state being made, two draws
    assert sf.Plan.from_json(plan.to_json()) == plan
    assert "·ε1" in str(plan) and "·ε2" in str(plan)
    cov = analysis.law(plan, PATH, sf.Gaussian(torch.zeros(2), 1.0)).cov
    torch.testing.assert_close(cov, (PATH.prior_std(1.0) ** 2 + 0.9) * torch.eye(2, dtype=torch.float64))


class UpAndDown(sf.Linear):
    """DDIM whose every step begins by going up a little, by the path's own forward row."""

    def build(self, path, evaluated, t, s):
        up = (t + 1) / 2
        climb = PlannedStep(t, up, False, (Stage(up, path.forward(t, up)),), (Draw(t, up),))
        return climb, *super().build(path, (), up, s)


def test_steps_up():
    """A grid step may be several planned ones: the plan has their times, and steps by hand are the run."""
    chosen = UpAndDown(name="up", rows=lambda path, times, s: path.bridge(times[0], s), order=1)
    model, x, times = DATA.model(PATH), states(4, 3), (0.8, 0.4, 0.1)
    sol = sf.solve(model, x, chosen, grid=times, seed=1)
    assert sol.times == sol.plan.times == (0.8, 0.9, 0.4, 0.7, 0.1)
    assert (sol.nfe, sol.noise_count) == (2, 2)
    draws, model = sf.White(1).draws(), DATA.model(PATH)
    for t, s in itertools.pairwise(times):
        x, _, _ = chosen.step(model, x, t, s, (), draws)
    assert torch.equal(sol.x, x)


@pytest.mark.parametrize("v", [0.3, 1.0])
@pytest.mark.parametrize("case", [*LINEAR, *OTHERS])
def test_the_analytic_first_answer(case, v):
    """On N(0, v I) data it is the network's own, so nothing changes but the count, by one."""
    model, x, chosen = sf.Gaussian(torch.zeros(3), v).model(PATH), states(4, 3), sampler(case)
    asked, known = (sf.solve(model, x, s, steps=4, seed=0, start=0.6) for s in (chosen, chosen(analytic=v)))
    assert known.nfe == asked.nfe - 1 == (known.nfe if known.plan is None else known.plan.nfe)
    tolerance = 0.02 if known.plan is None else 1e-10  # black boxes choose their steps by what they see
    torch.testing.assert_close(known.x, asked.x, rtol=tolerance, atol=tolerance)
    # At v = 1 the flow vanishes wherever one stands; repaint goes up and down so often that it forgets.
    if known.plan is not None and v != 1 and case != "repaint":
        other = sf.solve(model, x, chosen(analytic=2 * v), steps=4, seed=0, start=0.6).x
        assert not torch.allclose(other, asked.x, rtol=1e-8, atol=1e-8)


def test_the_analytic_first_answer_in_laws_and_where_alpha_is_zero():
    """A law takes it too; and an ε-network may start at alpha = 0, since it is not asked there."""
    data, other = sf.Gaussian(torch.zeros(2), 1.0), sf.Gaussian(torch.ones(2), 0.4)
    plans = [sf.plan("ddpm", PATH, steps=4, start=0.6, analytic=a) for a in (None, True)]
    same, differ = ([analysis.law(p, PATH, g).cov for p in plans] for g in (data, other))
    torch.testing.assert_close(*same, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(*differ, rtol=1e-3)
    net = sf.ScoreModel(lambda x, t: x.tanh(), sf.VPSDE.cosine())
    with pytest.raises(ValueError, match=r"alpha=0.*analytic=1.0"):
        sf.sample(net, (2, 3), steps=4, sampler="ddim")
    assert sf.sample(net, (2, 3), steps=4, analytic=True, sampler="ddim").isfinite().all()
    for bad in (-1, math.nan, "v"):
        with pytest.raises((TypeError, ValueError), match="analytic must be"):
            sf.get_sampler("ddim", analytic=bad)
    with pytest.raises(ValueError, match="analytic has no variance output"):
        sf.sample(net, (2, 3), "ddpm", variance="learned", steps=4, analytic=1.0)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_its_sampler_with_options(name):
    """It has a name of its own, may be given further options, and is found however it is typed."""
    family, chosen = VARIANTS[name]
    made = sf.get_sampler(name)
    assert made == sf.get_sampler(family, **chosen) and made != sf.get_sampler(family, **chosen, analytic=0.5)
    assert sf.get_sampler(name.upper().replace("-", "_"), analytic=0.5) == sf.get_sampler(family, **chosen, analytic=0.5)
    assert sf.get_sampler(family, **made.options) == made
