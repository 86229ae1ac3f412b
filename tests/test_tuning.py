"""Tuned plans: the decision, resuming, what a plan is bound to, and kinds of models."""

import copy
import dataclasses
import json
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from problems import PATHS, Classed, mixture, states

import scoreflow as sf
from scoreflow._samplers.plan import Fit
from scoreflow._score.fingerprint import identity
from scoreflow.tuning import decide, work
from scoreflow.tuning import fit as fits
from scoreflow.tuning.problem import Problem, errors
from scoreflow.tuning.screen import candidates

VP = PATHS["vp"]
DATA = mixture()
ANY = Fit("", "", 0)
QUICK = dict(seeds=(32, 64, 64), iterations=40, starts=1, teacher=60, candidates=("ddim", "unipc-2@ode", "ipndm-3@quadratic"))


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
    done = sf.tune(DATA.model(VP), 5, **{**QUICK, "iterations": 8})
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


def test_a_longer_plan_begins_where_the_shorter_ended(tmp_path):
    """Of two budgets, in one call or from the folder; its weights still carry marginals where history cuts them off."""
    model = DATA.model(VP)
    quick = {**QUICK, "iterations": 8}
    both = sf.tune(model, [6, 4], out=tmp_path, **quick)
    assert [*both] == [6, 4] and "the plan before, with more steps" in [one["name"] for one in both[6].starts]
    for file in (*tmp_path.glob("*-6*"),):
        file.unlink()
    assert sf.tune(model, [4, 6], out=tmp_path, **quick)[6].plan == both[6].plan
    alone = sf.tune(model, 6, **quick)
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
    of = Problem(DATA.model(VP), (3,), {}, {"fit": range(16)}, 1.0, 0.0, 60, 16)
    found = list(candidates(of, 5, 0.9))
    assert found[0][0] == "auto" and len({(p.prediction, p.steps, p.analytic) for _, p in found}) == len(found)
    assert all(plan.nfe <= 5 and not plan.noise_count for _, plan in found)
    names = {name for name, _ in found}
    assert {"dpm-solver++@logsnr", "edm", "unipc-2@karras", "auto(analytic=0.9)"} <= names


# -- other models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["conditions", "guided", "label", "flow"])
def test_kinds_of_models(kind):
    """A network with conditions, a guided one, one that knows whole labels only, and one on the path of rectified flow."""
    torch.manual_seed(0)
    net, quick = Classed(), {**QUICK, "seeds": (16, 16, 16), "iterations": 4, "shape": (2,), "batch": 8}
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
    net = sf.ScoreModel(Classed(), VP)
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
