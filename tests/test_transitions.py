"""The density of trajectories: against the joint Gaussian in closed form, as importance weights, and its gradients."""

import copy
import dataclasses
import math

import pytest
import torch
from problems import PATHS, ROWS, linear, mixture, states
from runs import Toy
from scipy.stats import norm
from torch.distributions import MultivariateNormal

import scoreflow as sf
from scoreflow import analysis
from scoreflow._core.noise import White
from scoreflow._samplers.plan import Draw, PlannedStep, Stage, Stages, advance, drive

PATH, DATA = sf.VPSDE(), mixture()


def gaussian_in_closed_form(case):
    """Whether no draw goes through the network."""
    return all(not row.draws for step in linear(case).plan(PATH, (0.9, 0.5, 0.2)).steps for _, row in step.stages[:-1])


STOCHASTIC = [case for case in ROWS if linear(case).stochastic]
CLOSED = [case for case in STOCHASTIC if gaussian_in_closed_form(case)]


@pytest.mark.parametrize("case", CLOSED)
def test_the_joint_gaussian(case):
    """On Gaussian data the states after x_T are jointly Gaussian. Its mean and covariance come from running the plan on
    symbols, an independent way; its density is the path's, 1e-10, with memory and several draws."""
    data = sf.Gaussian(torch.tensor([0.4]), 0.3)
    sol = sf.solve(data.model(PATH), states(6, 1), linear(case), grid=(0.9, 0.7, 0.5, 0.3, 0.2), seed=1, trajectory=True)
    out, plan = sf.step_log_prob(data.model(PATH), sol), sol.plan
    symbols = analysis.Symbolic(PATH, data.mean, torch.tensor([0.3], dtype=torch.float64), plan.noise_count + 2)
    x, memory, draws, weights = torch.zeros(1, plan.noise_count + 2, dtype=torch.float64), (), analysis.UnitVectors(), []
    x[:, 1] = 1.0
    for step in plan.steps:
        x, memory, _ = drive(advance(step, plan, symbols, x, memory, draws), symbols)
        weights.append(x[0])
    w = torch.stack(weights)
    for b in range(6):
        joint = MultivariateNormal(w[:, 0] + w[:, 1] * sol.states[0, b, 0], w[:, 2:] @ w[:, 2:].mT)
        torch.testing.assert_close(out.total[b], joint.log_prob(sol.states[1:, b, 0]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", CLOSED)
def test_means_and_draws_give_the_states(case):
    """x_{i+1} − mean is std times the very draws of the run, on any network."""
    model, x = sf.ScoreModel(Toy(torch.float64), PATH), states(3, 2, 4)
    sol = sf.solve(model, x, linear(case), steps=5, seed=4, trajectory=True)
    out, draws = sf.step_log_prob(model, sol.plan, sol.states), White(4).draws()
    assert out.mean.shape == (5, 3, 2, 4) and out.log_prob.shape == (5, 3)
    for i, step in enumerate(sol.plan.steps):
        if not step.noise_count:
            assert out.std[i] == 0 and out.log_prob[i].isnan().all()
            torch.testing.assert_close(out.mean[i], sol.states[i + 1], rtol=1e-12, atol=1e-12)
        elif step.noise_count == 1:
            noise = draws(x)
            torch.testing.assert_close(sol.states[i + 1] - out.mean[i], out.std[i] * noise, rtol=1e-10, atol=1e-10)
            density = -noise.square().sum((1, 2)) / 2 - 8 * math.log(out.std[i] * math.sqrt(2 * math.pi))
            torch.testing.assert_close(out.log_prob[i], density, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(out.total, out.log_prob.nansum(0))
    assert out.total.isfinite().all()


def test_importance_weights_have_mean_one():
    """E[p(path)/q(path)] = 1 over paths of q: 40 000 paths, within 4.9 standard errors (false alarms 1e-6), p ≠ q."""
    n = 40_000
    q, p = (sf.Gaussian(torch.tensor([m]), v).model(PATH) for m, v in ((0.0, 0.5), (0.05, 0.55)))
    sol = sf.solve(q, states(n, 1), "ddpm", steps=5, stop=0.1, seed=0, trajectory=True)
    log_weight = sf.step_log_prob(p, sol).total - sf.step_log_prob(q, sol).total
    weight = log_weight.exp()
    error = float(weight.std()) / math.sqrt(n)
    assert error < 0.01 and float(weight.std()) > 0.05
    assert abs(float(weight.mean()) - 1) < norm.isf(5e-7) * error
    # The weighted paths of q are paths of p: their mean at the end.
    end = analysis.law(sol.plan, PATH, sf.Gaussian(torch.tensor([0.05]), 0.55)).mean.item()
    weighted = weight * (sol.x[:, 0] - end)
    assert abs(float(weighted.mean())) < norm.isf(5e-7) * float(weighted.std()) / math.sqrt(n)


def test_gradients_are_those_by_hand():
    """d log p/dθ against the sum written out with autograd: `−‖x_s − (x x_t + m x̂_0)‖²/(2z²)`, rows read off the plan."""
    model = sf.ScoreModel(Toy(torch.float64), PATH, "x0")
    sol = sf.solve(model, states(4, 3), "ddpm", steps=6, seed=2, trajectory=True)
    total = sf.step_log_prob(model, sol, grad=True).total
    (found,) = torch.autograd.grad(total.sum(), model.net.weight)
    by_hand = torch.zeros(4, dtype=torch.float64)
    for i, step in enumerate(sol.plan.steps[:-1]):
        (_, (x, (m,), z)), x_t = step.stages[0], sol.states[i]
        said = torch.tanh(x_t * model.net.weight) * step.t
        by_hand = by_hand - (sol.states[i + 1] - x * x_t - m * said).square().sum(1) / (2 * z**2)
    (expected,) = torch.autograd.grad(by_hand.sum(), model.net.weight)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert abs(float(found)) > 1e-3
    assert not sf.step_log_prob(model, sol).total.requires_grad


def test_the_score_function_has_mean_zero():
    """E[d log p(path)/dθ] = 0 under the model's own paths: 20 000 of them, within 4.9 standard errors (false alarms 1e-6)."""
    n = 20_000
    model = sf.ScoreModel(Toy(torch.float64), PATH, "x0")
    sol = sf.solve(model, states(n, 1), "ddim", eta=0.7, steps=4, stop=0.2, seed=3, trajectory=True)
    weight = model.net.weight.detach().expand(n, 1).clone().requires_grad_()  # one parameter a sample
    own = sf.ScoreModel(lambda x, t: torch.tanh(x * weight) * t[:, None], PATH, "x0")
    (score,) = torch.autograd.grad(sf.step_log_prob(own, sol, grad=True).total.sum(), weight)
    error = float(score.std()) / math.sqrt(n)
    assert error > 0 and abs(float(score.mean())) < norm.isf(5e-7) * error


def test_several_draws_add_up():
    """A step with two draws, of weights a and b, has the standard deviation √(a² + b²)."""
    draws = (Draw(0.9, 0.7), Draw(0.7, 0.5))
    two = sf.Linear(name="ddpm", rows=lambda path, times, s: Stages([(s, sf.Row(1.0, (0.0,), (0.3, 0.4)))], draws))
    x = states(2, 4, 3)
    out = sf.step_log_prob(DATA.model(PATH), two.plan(PATH, (0.9, 0.5)), x)
    assert out.std == (0.5,)
    exact = torch.from_numpy(norm.logpdf(x[1], x[0], 0.5)).sum(1)
    torch.testing.assert_close(out.total, exact, rtol=1e-12, atol=1e-12)


def test_conditions_and_dtypes():
    def net(x, t, y):
        return torch.tanh(x) * y

    model = sf.ScoreModel(net, PATHS["ve"])
    sol = sf.solve(model, states(3, 2, dtype=torch.bfloat16), "ddpm", steps=4, seed=0, trajectory=True, y=0.5)
    a, b = (sf.step_log_prob(model, sol, y=y) for y in (0.5, 0.9))
    assert a.log_prob.dtype == torch.float64 and a.mean.dtype == torch.bfloat16
    assert not torch.equal(a.total, b.total)


def test_the_difference_of_two_models_keeps_its_digits():
    """Log-densities of large states are large; an importance weight is their difference, to 1e-6 even of a float32 run."""
    a, b = (sf.ScoreModel(lambda x, t, scale=scale: scale * x, PATH) for scale in (0.5, 0.50001))
    sol = sf.solve(a, states(2, 50_000, dtype=torch.float32), "ddpm", steps=3, stop=0.2, seed=0, trajectory=True)
    assert float(sf.step_log_prob(a, sol).total.abs().min()) > 1e4
    weights = [sf.step_log_prob(a, s).total - sf.step_log_prob(b, s).total for s in (sol, replaced(sol))]
    torch.testing.assert_close(weights[0], weights[1], rtol=0.02, atol=1e-4)
    assert sf.step_log_prob(a, sol.plan, sol.states[:, :0]).log_prob.shape == (3, 0)


def replaced(solution):
    """The same states in float64."""
    return dataclasses.replace(solution, states=solution.states.double())


def test_the_analytic_first_answer():
    """A plan with it begins with the exact word of N(0, v I) data."""
    sol = sf.solve(DATA.model(PATH), states(4, 3), "ddpm", analytic=0.3, grid=[0.9, 0.5, 0.2], seed=0, trajectory=True)
    out = sf.step_log_prob(DATA.model(PATH), sol)
    x, (m,), _ = PATH.bridge(0.9, 0.5, 1.0)
    gain = PATH.alpha(0.9) * 0.3 / (PATH.alpha(0.9) ** 2 * 0.3 + PATH.sigma(0.9) ** 2)
    torch.testing.assert_close(out.mean[0], (x + m * gain) * sol.states[0], rtol=1e-12, atol=1e-12)


def test_errors():
    model, x = DATA.model(PATH), states(4, 3)
    plan = sf.plan("ddpm", PATH, steps=4)
    kept = sf.solve(model, x, plan, seed=0, trajectory=True)
    for case in STOCHASTIC:
        if case not in CLOSED:
            with pytest.raises(ValueError, match=r"step .* → .* puts a draw through the network"):
                sf.step_log_prob(model, sf.plan(linear(case), PATH, steps=4), kept.states)
    for wrong, message in (
        ((sf.plan("ddim", PATH, steps=4), kept.states), "no step of this plan of 'ddim' draws noise"),
        ((sf.plan("ddpm", PATHS["ve"], steps=4), kept.states), "the plan was made for VESDE"),
        ((plan, kept.states[:-1]), "states must be 5, one at each time of the plan, got 4"),
        ((sf.solve(model, x, "ddpm", steps=4),), "kept no states"),
        ((sf.solve(model, x, "edict", steps=4),), "edict.* is not made of rows"),
    ):
        with pytest.raises(ValueError, match=message):
            sf.step_log_prob(model, *wrong)
    for wrong, message in ((("ddpm", kept.states), "plan must be a Plan or a Solution"), ((plan, None), "states must be")):
        with pytest.raises(TypeError, match=message):
            sf.step_log_prob(model, *wrong)
    with pytest.raises(TypeError, match="'z' is neither"):
        sf.step_log_prob(sf.ScoreModel(lambda x, t: x, PATH), kept, z=1)
    with pytest.raises(TypeError, match="model must be a ScoreModel"):
        sf.step_log_prob(DATA, kept)


# -- the same from a run that is asked -----------------------------------------------------------------------------------


def told(run, net):
    """Goes through a run, and yields what it knows of each draw."""
    yield run.transition
    while not run.done:
        run.tell(net(run.x, run.label))
        yield run.transition


@pytest.mark.parametrize("case", CLOSED)
def test_a_run_has_the_transition_of_each_of_its_steps(case):
    """Mean, std and log-density, in the order of the steps with noise, and None for the others."""
    net = Toy(torch.float64)
    model, x = sf.ScoreModel(net, PATH), states(3, 2, 4)
    sol = sf.solve(model, x, linear(case), steps=5, seed=4, trajectory=True)
    out = sf.step_log_prob(model, sol)
    drawn = [i for i, std in enumerate(out.std) if std]
    with torch.no_grad():
        found = [one for one in told(sf.ask(linear(case), x, path=PATH, steps=5, seed=4), net) if one is not None]
    assert [one.std for one in found] == [out.std[i] for i in drawn]
    torch.testing.assert_close(torch.stack([one.mean for one in found]), out.mean[drawn], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.stack([one.log_prob for one in found]), out.log_prob[drawn], rtol=1e-12, atol=1e-10)


def test_transitions_that_a_run_does_not_have():
    """Before the first step, after one without noise, within one of two stages; and where it is no Gaussian."""
    net, ask = Toy(torch.float64), {"path": PATH, "steps": 3, "seed": 0}
    assert [one is None for one in told(sf.ask("ddpm", states(2, 3), **ask), net)] == [True, False, False, True]
    assert all(one is None for one in told(sf.ask("ddim", states(2, 3), **ask), net))
    two = [one is None for one in told(sf.ask("dpm-2-ancestral", states(2, 3), **ask), net)]
    assert two == [True, True, False, True, False, True]
    run = sf.ask("seeds-2", states(2, 3), **ask)
    run.tell(net(run.x, run.label))
    assert run.transition is None
    run.tell(net(run.x, run.label))
    with pytest.raises(ValueError, match=r"step 1 → .* of 'seeds' puts a draw through the network"):
        _ = run.transition
    plan = sf.plan("ddpm", PATH, grid=[0.8, 0.4, 0.0])
    up = [PlannedStep(t, s, False, (Stage(s, sf.Row(1.0, (), 0.1)),), (Draw(t, s),)) for t, s in ((0.6, 0.7), (0.7, 0.8))]
    run = sf.ask(dataclasses.replace(plan, steps=(*up, *plan.steps)), states(2, 3), path=PATH, seed=0)
    with pytest.raises(ValueError, match="has led over 2 steps with noise of 'ddpm'"):
        _ = run.transition


def test_the_gradient_of_a_policy():
    """Step by step from constant states: d log p/dθ of `step_log_prob`; a copy has it too."""
    net = Toy(torch.float64)
    run = sf.ask("flow-sde", states(4, 3), path=sf.Flow(), prediction="flow", steps=5, seed=1, grad=True)
    total, kept = 0.0, []
    while not run.done:
        kept.append(run.x.detach())
        run.tell(net(run.x, run.label))
        if run.transition is not None:
            total = total + run.transition.log_prob
            assert copy.copy(run).transition.std == run.transition.std
        if not run.done:
            run.replace(run.x.detach())
    (found,) = torch.autograd.grad(total.sum(), net.weight)
    model = sf.ScoreModel(net, sf.Flow(), "flow")
    out = sf.step_log_prob(model, run.plan, torch.stack([*kept, run.x.detach()]), grad=True)
    (expected,) = torch.autograd.grad(out.total.sum(), net.weight)
    torch.testing.assert_close(total, out.total, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert abs(float(found)) > 1e-3
