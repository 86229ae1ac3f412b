"""Tuned plans: the student's rows, the fit against closed forms, the decision, resuming, and what a plan is bound to."""

import copy
import dataclasses
import json
import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from problems import PATHS, mixture, states

import scoreflow as sf
from scoreflow._core.grid import ode
from scoreflow._samplers.plan import Fit
from scoreflow._score.fingerprint import identity
from scoreflow.tuning import decide, work
from scoreflow.tuning import fit as fits
from scoreflow.tuning.problem import Part, Problem, errors
from scoreflow.tuning.screen import candidates
from scoreflow.tuning.student import Student

VP = PATHS["vp"]
DATA = mixture()
ANY = Fit("", "", 0)
QUICK = dict(seeds=(32, 64, 64), iterations=40, starts=1, teacher=60, candidates=("ddim", "unipc-2@ode", "ipndm-3@quadratic"))


def answer(model):
    return lambda x, t, prediction: model(x, torch.as_tensor(t, dtype=torch.float64), prediction)


def student(path, name="ipndm-4", steps=6, **options):
    """A student on the grid `rectified`, and the plan of a sampler on it."""
    times, noise = sf.grid(path, steps, "rectified"), path.alpha(1.0) > 0
    chosen = {"form": "noise" if noise else "data", "most": path.lam(1e-4), **options}
    one = Student(path, times, chosen.pop("form"), chosen.pop("most"), **chosen)
    return one, sf.plan(name if noise else "ddim", path, grid=times)


# -- rows ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["vp", "chain", "ve", "sub-vp"])
def test_it_begins_as_ipndm(path):
    """Before anything is fitted the rows are those of iPNDM of order 4 on the same times, also the last."""
    path = PATHS[path]
    one, theirs = student(path)
    ours = one.plan(fit=ANY)
    assert ours.times == pytest.approx(theirs.times, rel=1e-9)
    for a, b in zip(ours.steps[:-1], theirs.steps[:-1], strict=True):
        assert a.stages[0].row.x == pytest.approx(b.stages[0].row.x, rel=1e-8)
        assert a.stages[0].row.m == pytest.approx(b.stages[0].row.m, rel=1e-7)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("form", ["noise", "data"])
def test_rows_carry_marginals_whatever_the_numbers_are(path, form):
    """`x α_t + Σm = α_s` in data form, `x α_t = α_s` in noise form, and the other half of it; `free` gives that up."""
    path = PATHS[path]
    if form == "noise" and path.alpha(1.0) == 0:
        return
    for free in (False, True):
        one = student(path, form=form, free=free)[0]
        generator = torch.Generator().manual_seed(0)
        one.shares = one.shares + torch.randn(len(one.shares), generator=generator, dtype=torch.float64)
        one.weights = [w + torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in one.weights]
        off = []
        for step in one.plan(fit=ANY).steps:
            (u, (x, m, z)), alpha, sigma = step.stages[0], path.alpha(step.t), path.sigma(step.t)
            whole = x * alpha + (sum(m) if form == "data" else 0.0)
            noise = x * sigma + (sum(m) if form == "noise" else 0.0)
            off += [abs(whole - path.alpha(u)), abs(noise - path.sigma(u))]
            assert z == 0.0
        assert (max(off) < 1e-9) != free


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("v", [None, 0.8])
def test_the_differentiable_run_is_the_plans(path, v):
    """The same `advance`: the state that is differentiated is that of `solve` with the plan, to rounding."""
    path = PATHS[path]
    one, model, x = student(path, v=v)[0], DATA.model(path), states(5, 3) * path.prior_std(1.0)
    one.weights = [w + 0.05 * torch.arange(len(w), dtype=torch.float64) for w in one.weights]
    run = one.run(answer(model), x)
    sol = sf.solve(model, x, one.plan(fit=ANY))
    torch.testing.assert_close(run, sol.x, rtol=1e-9, atol=1e-9)
    assert sol.nfe == one.steps - (v is not None)


@pytest.mark.parametrize("labels", [False, True])
def test_slopes_are_those_of_finite_differences(labels):
    """Through times, weights, the first answer's variance and labels."""
    one, model, x = student(VP, v=0.8, labels=labels, steps=4)[0], DATA.model(VP), states(4, 3)
    parameters = [p.requires_grad_() for p in one.parameters]
    value = lambda: one.run(answer(model), x).square().sum()  # noqa: E731
    slopes = torch.autograd.grad(value(), parameters)
    with torch.no_grad():
        for p, slope in zip(parameters, slopes, strict=True):
            for i in np.ndindex(*p.shape):
                kept, h = p[i].item(), 1e-5
                ends = []
                for side in (h, -h):
                    p[i] = kept + side
                    ends.append(float(value()))
                p[i] = kept
                assert float(slope[i]) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_times_stay_in_order_and_in_bounds_whatever_the_shares(path):
    """Also of a line search that went far, so that all shares but one round to 0."""
    for k in range(6):
        one = student(PATHS[path])[0]
        one.shares = one.shares + 600 * torch.nn.functional.one_hot(torch.tensor(k), len(one.shares))
        times = one.plan(fit=ANY).times
        assert all(s <= t for t, s in pairwise(times)) and all(math.isfinite(t) for t in times)


def test_times_stay_in_order_and_in_bounds():
    one = student(VP)[0]
    one.shares = 50 * states(1, 6, seed=3)[0]
    times = one.plan(fit=ANY).times
    assert all(s <= t for t, s in pairwise(times)) and times[-2] >= 1e-4 * (1 - 1e-6)
    ends = Student(VP, (0.9, 0.5, 0.2), "noise", VP.lam(1e-3)).plan(fit=ANY).times
    assert (ends[0], ends[-1]) == (0.9, 0.2)


# -- the fit --------------------------------------------------------------------------------------------------------------


def problem(data, path=VP, n=64, **more):
    model = data.model(path)
    made = Problem(model, tuple(data.event), {}, {"fit": range(n), "validate": range(n, 2 * n)}, 1.0, 0.0, 200, n)
    return dataclasses.replace(made, **more)


def part(of, name="fit"):
    x, told = of.states(name)
    return Part(x, told, of.ode(x, told)[0][-1])


def test_a_gaussian_is_fitted_to_rounding():
    """On N(μ, S) data the ODE is linear, and two evaluations of a direction are enough: weights alone end where it does."""
    data = sf.Gaussian(torch.zeros(1), torch.eye(1) * 0.3)
    of = problem(data)
    begin = fits.Start("", tuple(sf.grid(VP, 4, "rectified")))
    asked = fits.Asked("noise", 4, False, True, False, 0, 1.0)
    some = part(of)
    before = errors(of.run(fits.student(of, begin, asked).plan(fit=ANY), some.x, some.told)[0], some.target)
    done = fits.descend(of, begin, asked, some, math.inf)
    one = fits.student(of, begin, asked)
    one.load(done.state)
    after = errors(of.run(one.plan(fit=ANY), some.x, some.told)[0], some.target)
    assert after.median() < 0.02 * before.median()  # states are of 32 bits


@pytest.mark.parametrize("off", [0.0, 1e-15, 1e-9])
def test_the_odes_states_at_times_that_are_nearly_its_own(off):
    """A node of the student beside one of the solver makes no step of no length."""
    of = problem(DATA, n=8)
    x, told = of.states("fit")
    times = sf.grid(VP, 200, partial(ode, exact=True))
    (middle, end), _ = of.ode(x, told, [times[100] + off])
    (there,), _ = of.ode(x, told)
    torch.testing.assert_close(end, there, rtol=1e-4, atol=1e-4)
    assert middle.isfinite().all()


def test_fitting_lowers_the_loss_on_other_seeds():
    of = problem(DATA, n=128)
    begin = fits.Start("", tuple(sf.grid(VP, 5, "ode")))
    some, other = part(of), part(of, "validate")
    medians = []
    for asked in (
        fits.Asked("noise", 4, False, False, False, 0, 0.1),
        fits.Asked("noise", 4, False, False, False, 300, 0.1),
        fits.Asked("noise", 4, False, True, False, 300, 0.1),
    ):
        done = fits.descend(of, begin, asked, some, math.inf)
        one = fits.student(of, begin, asked)
        one.load(done.state)
        medians.append(float(errors(of.run(one.plan(fit=ANY), other.x, other.told)[0], other.target).median()))
    assert medians[1] < 0.7 * medians[0] and medians[2] < 0.6 * medians[1], medians


def test_conditions_are_drawn_by_seed():
    """A row of a tensor by the sample's own seed; marked, so that parts of a batch take their rows."""
    of = problem(DATA, conditions={"y": torch.arange(100, 110), "w": 2.0, "f": lambda n, seed: torch.arange(n)})
    told, again = of.told(range(20)), of.told(range(10, 20))
    assert torch.equal(told["y"].value[10:], again["y"].value) and len(set(told["y"].value.tolist())) > 3
    assert told["w"] == 2.0 and told["f"].rows
    few = Part(torch.zeros(20, 3), told, torch.zeros(20, 3)).of(torch.tensor([3, 5]))
    assert torch.equal(sf.each(few.told["y"]).value.value, told["y"].value[[3, 5]])


def test_the_loss_is_not_ruled_by_a_sample_at_another_mode():
    x, target = torch.zeros(10, 2), torch.full((10, 2), 0.1)
    far = target.clone()
    far[0] = 100.0
    near, off = fits.loss_of(x, target, 0.1), fits.loss_of(x, far, 0.1)
    assert near == pytest.approx(math.log(2)) and off < near + 1.5


# -- the result ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """One result of an oracle, its folder and its model."""
    folder, model = tmp_path_factory.mktemp("tuned"), DATA.model(VP)
    return sf.tune(model, 6, out=folder, **QUICK), folder, model


def test_a_result(tuned):
    done, folder, model = tuned
    assert done.nfe == 6 and done.plan.fit.nfe == 6 and done.plan.fit.model == identity(model)
    assert done.candidates[0]["median"] <= min(one["median"] for one in done.candidates)
    assert "auto" in [one["name"] for one in done.candidates] and done.screened == 5
    assert done.accepted == all(high < 1 for _, high in done.validation.values())
    assert done.test["returned"]["median"] <= done.test["best"]["median"] * 1.05
    x = sf.sample(model, (4, 3), sampler=done.plan, seed=0)
    assert torch.equal(x, sf.sample(model, (4, 3), sampler=sf.load_plan(folder / "plan-6.json"), seed=0))
    assert "6 evaluations" in str(done) and done.reason in str(done)
    again = sf.Tuned.load(folder / "tuned-6.json")
    assert again.plan == done.plan and again.test == done.test and again.curves == done.curves


def test_figures_are_those_of_runs(tuned):
    """The test figures again, from seeds after those fitted to and decided by."""
    done, _, model = tuned
    of = Problem(model, (3,), {}, {"test": range(96, 160)}, 1.0, 0.0, QUICK["teacher"], 32)
    x, told = of.states("test")
    off = errors(of.run(done.plan, x, told)[0], of.ode(x, told)[0][-1])
    assert done.test["returned"]["median"] == pytest.approx(float(off.median()), rel=1e-9)
    assert done.test["returned"]["rms"] == pytest.approx(float(off.square().mean().sqrt()), rel=1e-9)


def test_the_same_seeds_give_the_same_plan_and_a_stopped_run_goes_on(tuned, tmp_path):
    """Without a folder; and in a folder whose last stages were never written, with a pool for the rest."""
    done, folder, model = tuned
    for name in ("problem.json", "ode-fit.safetensors", "screen-6.json", "fit-6-0.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with ThreadPoolExecutor(2) as pool:
        again = sf.tune(model, 6, out=tmp_path, executor=pool, **QUICK)
    assert again.plan == done.plan and again.test == done.test and again.candidates == done.candidates
    kept = (tmp_path / "tuned-6.json").read_bytes()
    assert sf.tune(model, 6, out=tmp_path, **QUICK).plan == done.plan and (tmp_path / "tuned-6.json").read_bytes() == kept


def test_a_folder_of_another_problem(tuned):
    _, folder, model = tuned
    with pytest.raises(ValueError, match=r"out='.*' holds another problem: seeds was .* and is"):
        sf.tune(model, 6, out=folder, **{**QUICK, "seeds": (16, 16, 16)})
    with pytest.raises(ValueError, match="holds another problem: model was"):
        sf.tune(mixture(seed=1).model(VP), 6, out=folder, **QUICK)


def test_a_plan_is_bound_to_its_model(tuned):
    done, _, model = tuned
    plan = dataclasses.replace(done.plan, fit=done.plan.fit)
    other = mixture(seed=1).model(VP)
    x = states(2, 3)
    with pytest.raises(
        ValueError, match=r"the plan was fitted to ScoreModel.* fit it anew with tune, or give plan\.anyway\(\)"
    ):
        sf.solve(other, x, plan)
    assert sf.solve(other, x, plan.anyway()).nfe == 6
    with pytest.raises(ValueError, match="the plan was made for VPSDE"):
        sf.solve(DATA.model(PATHS["ve"]), x, plan.anyway())
    with pytest.raises(ValueError, match="a plan has its times, but nfe=8 was given too"):
        sf.solve(model, x, plan, nfe=8)
    assert sf.Plan.from_json(plan.to_json()) == plan
    assert json.loads(plan.to_json())["fit"][2] == 6


def test_a_bad_fit_is_not_returned(monkeypatch):
    """Numbers that are worse on the validation seeds: the best sampler's plan is returned, and it is said."""

    def spoiled(*arguments):
        done = fits.descend(*arguments)
        done.state["shares"] = done.state["shares"] + 3 * torch.arange(len(done.state["shares"]), dtype=torch.float64)
        return done

    monkeypatch.setattr(work, "descend", spoiled)
    done = sf.tune(DATA.model(VP), 5, **QUICK)
    assert not done.accepted and "stays: the fitted plan is not surely better" in done.reason
    assert done.plan.sampler != "tuned" and done.plan.fit.nfe == 5
    assert done.test["returned"] == done.test["best"] and done.test["ratio"] == (1.0, 1.0, 1.0)


def test_both_figures_decide(monkeypatch):
    """A smaller median alone is not enough, nor is a smaller quantile alone."""
    for median, quantile, taken in ((0.6, 1.1, False), (1.1, 0.6, False), (0.6, 0.6, True)):
        monkeypatch.setattr(work, "upper", lambda ours, theirs, q, m=median, n=quantile: (0.5, m if q == 0.5 else n))
        assert sf.tune(DATA.model(VP), 4, **{**QUICK, "iterations": 0}).accepted == taken


def test_the_fit_of_the_least_loss_goes_on(monkeypatch):
    """And not the first; what it comes to is judged."""
    losses, begun = [5.0, 2.0, 3.0], []

    def described(*arguments):
        begun.append(arguments[1])
        return fits.descend(*arguments)._replace(loss=losses.pop(0) if losses else 1.0)

    monkeypatch.setattr(work, "descend", described)
    done = sf.tune(DATA.model(VP), 4, **{**QUICK, "iterations": 0})
    assert [one["loss"] for one in done.starts] == [5.0, 2.0, 3.0, 1.0] and begun[3] is begun[1]
    assert begun[1].even and not begun[0].even and begun[2].v is not None


@pytest.mark.parametrize("kind", ["wild", "nan", "astray"])
def test_a_descent_that_goes_wrong_gives_the_best_it_has_seen(monkeypatch, kind):
    """A minimizer that walks away, losses and steps that are no numbers."""
    of, begin = problem(DATA), fits.Start("", tuple(sf.grid(VP, 5, "ode")))
    some, asked = part(of), fits.Asked("noise", 4, False, True, False, 0, 0.1)
    at_first = fits.descend(of, begin, asked, some, math.inf).loss

    def away(function, numbers, **more):
        function(numbers)
        if kind == "nan":
            monkeypatch.setattr(fits, "loss_of", lambda x, *_: x.sum() * math.nan)
        worse, slope = function(numbers + {"wild": 30.0, "nan": 0.1, "astray": math.nan}[kind])
        assert at_first < worse < math.inf and np.isfinite(slope).all()

    monkeypatch.setattr("scipy.optimize.minimize", away)
    done = fits.descend(of, begin, asked._replace(iterations=60), some, math.inf)
    assert done.loss == pytest.approx(at_first, rel=1e-9) and all(bool(v.isfinite().all()) for v in done.state.values())


@pytest.mark.parametrize("form", ["noise", "data"])
@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("path", ["vp", "chain", "ve"])
def test_one_step_more_is_the_same_run(path, free, form):
    """The new output weighs 0; with as much history as steps, states agree to rounding."""
    path, x = PATHS[path], states(5, 3)
    one = student(path, form=form, free=free, history=8, labels=False)[0]
    one.weights = [w + 0.05 * torch.arange(len(w), dtype=torch.float64) for w in one.weights]
    times, state = one.grown()
    longer = Student(path, times, form, path.lam(1e-4), history=8, free=free)
    longer.load(state)
    assert longer.steps == one.steps + 1 == len(times) - 1
    assert longer.plan(fit=ANY).times == pytest.approx(times, rel=1e-9)
    x = x * path.prior_std(1.0)
    model = answer(DATA.model(path))
    torch.testing.assert_close(longer.run(model, x), one.run(model, x), rtol=1e-9, atol=1e-9)


def test_a_longer_plan_begins_where_the_shorter_ended(tmp_path):
    """Of two budgets, in one call or from the folder; its weights still carry marginals where history cuts them off."""
    model = DATA.model(VP)
    both = sf.tune(model, [6, 4], out=tmp_path, **QUICK)
    assert [*both] == [6, 4] and "the plan before, with more steps" in [one["name"] for one in both[6].starts]
    for file in (*tmp_path.glob("*-6*"),):
        file.unlink()
    assert sf.tune(model, [4, 6], out=tmp_path, **QUICK)[6].plan == both[6].plan
    alone = sf.tune(model, 6, **QUICK)
    assert "the plan before, with more steps" not in [one["name"] for one in alone.starts]


def test_the_decision_is_a_paired_bootstrap():
    """Errors that are a tenth smaller sample by sample are told apart; equal ones, or smaller by chance, are not."""
    theirs = states(256, 1, seed=5).exp().flatten()
    assert decide.upper(0.9 * theirs, theirs, 0.5)[1] < 0.92
    assert decide.upper(theirs, theirs, 0.9) == (1.0, 1.0)
    # Of 200 pairs of one law, those that seem better at 95 %: at most 20, which chance passes once in 10⁴ draws.
    better = sum(decide.upper(*states(2, 64, seed=k).exp(), 0.5)[1] < 1 for k in range(200))
    assert better <= 20


def test_candidates_come_once_and_within_the_budget():
    of = problem(DATA)
    found = list(candidates(of, 7, 0.9))
    assert found[0][0] == "auto" and len({(p.prediction, p.steps, p.analytic) for _, p in found}) == len(found)
    assert all(plan.nfe <= 7 and not plan.noise_count for _, plan in found)
    names = {name for name, _ in found}
    assert {"dpm-solver++@logsnr", "edm", "unipc-2@karras", "auto(analytic=0.9)"} <= names


# -- other models -----------------------------------------------------------------------------------------------------------


class Network(torch.nn.Module):
    """A small network with a class, whose states are of 32 bits."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(3, 2)

    def forward(self, x, t, y=None):
        shift = 0.0 if y is None else 0.1 * y[:, None]
        return torch.tanh(self.net(torch.cat([x, t[:, None].to(x)], 1))) + x * 0.5 + shift


@pytest.mark.parametrize("kind", ["conditions", "guided", "label", "flow"])
def test_kinds_of_models(kind):
    """A network with conditions, a guided one, one that knows whole labels only, and one on the path of rectified flow."""
    torch.manual_seed(0)
    net, quick = Network(), {**QUICK, "seeds": (16, 16, 16), "iterations": 4, "shape": (2,), "batch": 8}
    chain = PATHS["chain"]
    if kind == "label":
        model = sf.ScoreModel(lambda x, t, net=net: net(x, t / 1000), chain, time="label")
        done = sf.tune(model, 5, **quick)
        assert all(abs(1000 * t - round(1000 * t)) < 1e-9 for t in done.plan.evaluation_times)
    elif kind == "flow":
        done = sf.tune(sf.ScoreModel(net, PATHS["flow"], "flow"), 5, **quick)
        assert done.plan.evaluation_times[0] <= 1.0
    elif kind == "guided":
        model = sf.ClassifierFree(sf.ScoreModel(net, chain, time="index"), 2.0, null={"y": 0})
        done = sf.tune(model, 10, conditions={"y": torch.arange(4)}, **quick)
        assert len(done.plan.evaluation_times) == 5
    else:
        model = sf.ScoreModel(net, chain, time="index")
        done = sf.tune(model, 5, conditions={"y": torch.arange(4)}, **quick)
        assert done.plan.fit.conditions == ("y",)
    assert len(done.starts) >= 2 and math.isfinite(done.test["returned"]["median"])


def test_time_is_kept():
    """With seconds given, a fit of very many iterations ends, and not all candidates are run."""
    done = sf.tune(DATA.model(VP), 5, **{**QUICK, "iterations": 10**6, "candidates": None}, budget_s=3.0)
    assert done.cost["seconds"] < 15 and done.screened < 700


def test_refusals():
    model = DATA.model(VP)
    net = sf.ScoreModel(Network(), VP)
    for call, match in [
        (lambda: sf.tune(model, 1), "nfe must be a whole number ≥ 2, got 1"),
        (lambda: sf.tune(net, 5), "shape=None, and only an oracle knows"),
        (lambda: sf.tune(model, 5, seeds=(1, 2, 3)), "seeds must be a whole number ≥ 2, got 1"),
        (lambda: sf.tune(model, 5, seeds=(16, 16)), "seeds must be three numbers"),
        (lambda: sf.tune(model, 5, form="x"), "form must be one of noise, data, got 'x'"),
        (lambda: sf.tune(DATA.model(PATHS["flow"]), 5, form="noise"), "form='noise' begins where alpha > 0"),
        (lambda: sf.tune(model, 5, budget_s=0), "budget_s must be"),
        (lambda: sf.tune(model, 5, **{**QUICK, "candidates": ["dppm"]}), "no sampler is called 'dppm'"),
        (lambda: sf.tune(sf.APG(net, 2.0, null={"y": 0}, momentum=-0.5), 5, shape=(2,)), "follows its run"),
    ]:
        with pytest.raises(ValueError, match=match):
            call()
    with pytest.raises(TypeError, match="'z' is neither an argument nor a condition"):
        sf.tune(model, 5, conditions={"z": 1})
    assert copy.copy(model).plans == ()


def test_a_network_that_says_nothing():
    """All outputs are 0: least squares have nothing to weigh, and the best sampler stays."""
    model = sf.ScoreModel(lambda x, t: torch.zeros_like(x), VP)
    done = sf.tune(model, 4, **{**QUICK, "seeds": (8, 8, 8), "iterations": 4}, shape=(2,))
    assert not done.accepted and math.isfinite(done.test["returned"]["median"])
