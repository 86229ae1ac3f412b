"""Stochastic plans fitted level by level: rows, laws, the decision."""

import math
from itertools import pairwise

import pytest
import torch
from problems import PATHS, Classed, mixture, states

import scoreflow as sf
from scoreflow._core.noise import White
from scoreflow._samplers.plan import Fit
from scoreflow._score.fingerprint import identity
from scoreflow.studies.metrics import squared_energy
from scoreflow.tuning.laws import Exact, Sampled, nearer
from scoreflow.tuning.levels import Levelled, levelled
from scoreflow.tuning.problem import Problem

VP = PATHS["vp"]
DATA = mixture()
ANY = Fit("", "", 0)
NORMAL = sf.Gaussian(torch.tensor([0.5, -0.2, 0.0]), torch.diag(torch.tensor([1.0, 0.3, 0.05])))


def answer(model):
    return lambda x, t, prediction: model(x, torch.as_tensor(t, dtype=torch.float64), prediction)


def one_of(kind, path, steps=6, known=False):
    """Numbers that differ from level to level."""
    times = sf.grid(path, steps, "rectified")
    variances = torch.linspace(0.3, 0.01, steps - 1).tolist() if known else None
    one = Levelled(path, times, kind, 0.4, variances)
    one.numbers = one.numbers + torch.linspace(-1, 1, steps - 1, dtype=torch.float64)
    return one


@pytest.mark.parametrize("path", ["vp", "chain", "ve", "sub-vp"])
@pytest.mark.parametrize("kind", ["variance", "churn"])
def test_rows_carry_marginals(path, kind):
    """Means and variances of the path, step by step, up and down; Heun's weights sum to those of DDIM."""
    path = PATHS[path]
    plan = one_of(kind, path).plan(ANY)
    assert plan.noise_count == (5 if kind == "variance" else 4)
    for step in plan.steps:
        for u, (x, m, z) in step.stages:
            weight = sum(m)
            whole = x * path.alpha(step.t) + (weight if kind == "variance" else 0.0)
            noise = (x * path.sigma(step.t) + (weight if kind == "churn" else 0.0)) ** 2 + z**2
            assert whole == pytest.approx(path.alpha(u), abs=1e-9)
            assert noise == pytest.approx(path.sigma(u) ** 2, abs=1e-9)


@pytest.mark.parametrize("kind, known", [("variance", False), ("variance", True), ("churn", False)])
def test_the_differentiable_run_is_the_plans(kind, known):
    one, model, x = one_of(kind, VP, known=known), DATA.model(VP), states(5, 3)
    run = one.run(answer(model), x, White(range(5)).draws("step"))
    torch.testing.assert_close(run, sf.solve(model, x, one.plan(ANY), seed=range(5)).x, rtol=1e-9, atol=1e-9)


def test_all_of_the_noise_fresh_is_ddpm_and_none_is_ddim():
    """On a grid, with c that of the posterior, the rows are those of `ddpm`; with a share near 0 those of `ddim`."""
    times = sf.grid(VP, 6, "rectified")
    shares = [VP.posterior_std(t, s) / VP.sigma(s) for t, s in pairwise(times[:-1])]
    for c, name in ((shares, "ddpm"), (0.0, "ddim")):
        ours, theirs = Levelled(VP, times, "variance", c).plan(ANY), sf.plan(name, VP, grid=times)
        for a, b in zip(ours.steps, theirs.steps, strict=True):
            assert a.stages[0].row.x == pytest.approx(b.stages[0].row.x, rel=1e-6)
            assert a.stages[0].row.z == pytest.approx(b.stages[0].row.z, rel=1e-6, abs=2e-4)  # the least share is 1e-4


@pytest.mark.parametrize("name", ["ddpm", "ddim(eta=0.5)", "analytic-dpm", "analytic-dpm(eta=0.0)", "sde-dpm-solver++-1"])
def test_a_plan_of_one_output_a_step_is_taken_as_it_is(name):
    name, _, options = name.partition("(")
    options = {"eta": float(options[4:-1])} if options else {}
    plan = sf.plan(name, VP, 6, grid="rectified", **options)
    for a, b in zip(levelled(VP, plan).plan(ANY).steps, plan.steps, strict=True):
        (u, ours), (v, theirs) = a.stages[0], b.stages[0]
        theirs = theirs if plan.prediction == "x0" else theirs.through(*VP.convert("x0", plan.prediction, b.t))
        assert (a.t, u) == (b.t, v) and ours.z == pytest.approx(theirs.z, rel=1e-6, abs=1e-4)
        assert (ours.x, ours.m[0]) == pytest.approx((theirs.x, theirs.m[0]), rel=1e-6, abs=1e-6)


def test_plans_of_other_kinds_are_not():
    """Several outputs a step, stages, steps up."""
    for name in ("sde-dpm-solver++-2m", "edm-churn", "seeds-2", "ddim-analytic"):
        options = {"analytic": 1.0} if name.endswith("analytic") else {}
        assert levelled(VP, sf.plan(name.removesuffix("-analytic"), VP, 6, **options)) is None


@pytest.mark.parametrize("kind, known", [("variance", False), ("variance", True), ("churn", False)])
def test_the_exact_loss_is_the_laws(kind, known):
    """W₂² of `analysis.law`, and slopes of finite differences."""
    one, judge = one_of(kind, VP, known=known), Exact(NORMAL.model(VP), NORMAL)

    def value():
        return judge.distance(one.plan(ANY)) ** 2

    parameters = [p.requires_grad_() for p in one.parameters]
    loss, slopes = judge.loss_and_slopes(one, [0])
    assert loss == pytest.approx(value(), rel=1e-9)
    with torch.no_grad():
        for p, slope in zip(parameters, slopes, strict=True):
            for i in range(len(p)):
                kept, h, ends = float(p[i]), 1e-5, []
                for side in (h, -h):
                    p[i] = kept + side
                    ends.append(value())
                p[i] = kept
                assert float(slope[i]) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-4, abs=1e-7)


def sampled(batch):
    model = DATA.model(VP)
    problem = Problem(model, (3,), {}, {"fit": range(24)}, 1.0, 0.0, 50, batch)
    x, told = problem.states("fit")
    return Sampled(problem, x, range(24), told, DATA.sample(40, seed=1), {})


@pytest.mark.parametrize("kind", ["variance", "churn"])
def test_the_loss_in_pieces_is_the_whole(kind):
    """The same figure and slopes whatever the batch; and the figure is that of a run of `solve`."""
    one = one_of(kind, VP)
    one.numbers.requires_grad_()
    whole, parts = (sampled(batch).loss_and_slopes(one, [0]) for batch in (24, 5))
    found = sampled(5).distance(one.plan(ANY))  # states are of 32 bits
    assert whole[0] == pytest.approx(parts[0], abs=1e-6) and whole[0] == pytest.approx(found, abs=1e-6)
    torch.testing.assert_close(whole[1][0], parts[1][0], rtol=1e-4, atol=1e-6)


def test_energy_has_slopes():
    """Those of finite differences; its means are those of SciPy's distances."""
    from scipy.spatial.distance import cdist, pdist

    x, y = states(8, 3, seed=1), states(6, 3, seed=2) + 0.3
    assert float(squared_energy(x, y)) == pytest.approx(2 * cdist(x, y).mean() - pdist(x).mean() - pdist(y).mean(), rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: squared_energy(x, y), x.requires_grad_())


def test_the_decision():
    """Equal ends differ by 0; ends that are off are told apart; of 100 pairs of one law at most 8 seem nearer at 97.5 %.

    2.5 of 100 are expected; more than 8 come by chance once in 10³ draws.
    """
    truth, ours = states(200, 2, seed=1), states(200, 2, seed=2)
    assert nearer(ours, ours, truth) == (0.0, 0.0, 0.0)
    assert nearer(ours, ours + 1.0, truth)[2] < 0 < nearer(ours + 1.0, ours, truth)[1]
    off = nearer(ours, 2 * ours, truth)[0]
    assert off == pytest.approx(float(squared_energy(ours, truth) - squared_energy(2 * ours, truth)), rel=1e-9)
    alarms = sum(nearer(*states(3, 60, 2, seed=10 + k))[2] < 0 for k in range(100))
    assert alarms <= 8


def test_a_gaussian_is_met():
    """Six evaluations: a hundredth of the best sampler's W₂, by `analysis.law`, in a plan that samples and is kept."""
    model = NORMAL.model(VP)
    done = sf.tune_noise(model, 6, seeds=(32, 32, 32))
    assert done.accepted and done.judge == "W₂" and done.plan.nfe == 6 and done.plan.fit.model == identity(model)
    assert sf.analysis.law(done.plan, VP, NORMAL).w2 == done.test["returned"] < 0.01 * done.test["best"]
    assert done.candidates[0]["distance"] == done.test["best"] == min(one["distance"] for one in done.candidates)
    assert sf.Plan.from_json(done.plan.to_json()) == done.plan and "bao2022analytic" in done.plan.fit.cites
    assert done.reason in str(done) and "W₂: returned" in str(done)


def test_the_best_sampler_stays(tmp_path, few_grids):
    """Churn of three Heun steps is no match: the best stochastic sampler's plan is returned, and it is said."""
    model = NORMAL.model(VP)
    done = sf.tune_noise(model, [5, 6], kinds=["churn"], seeds=(32, 32, 32), iterations=20)[5]
    assert not done.accepted and "stays: the fitted plan (churn) is not surely nearer" in done.reason
    assert done.plan.sampler != "tuned" and done.plan.fit.nfe == 5 and done.test["difference"] == (0.0, 0.0, 0.0)
    x, there = states(4, 3), done.save(tmp_path)
    assert there.name == "plan-5.json"
    assert torch.equal(
        sf.solve(model, x, f"plan:{tmp_path}", nfe=5, seed=0).x, sf.solve(model, x, done.plan, seed=0).x
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["conditions", "guided", "data", "label"])
def test_kinds_of_models(kind, few_grids):
    """A network with classes, a guided one, and data of one's own; batches smaller than the states. Twice, one plan."""
    torch.manual_seed(0)
    net = sf.ScoreModel(Classed(), PATHS["chain"], time="index")
    quick = {"seeds": (12, 12, 12), "iterations": 2, "shape": (2,), "batch": 5, "teacher": 20}
    if kind == "guided":
        done = sf.tune_noise(sf.ClassifierFree(net, 2.0, null={"y": 0}), 8, conditions={"y": torch.arange(4)}, **quick)
        assert len(done.plan.evaluation_times) <= 4
    elif kind == "label":
        chained = sf.ScoreModel(lambda x, t, net=net.net: net(x, t / 1000), PATHS["chain"], time="label")
        done = sf.tune_noise(chained, 5, **quick)
        assert all(abs(1000 * t - round(1000 * t)) < 1e-9 for t in done.plan.evaluation_times)
    elif kind == "data":
        quick["data"] = torch.randn(30, 2)
        done = sf.tune_noise(net, 5, **quick)
        assert sf.tune_noise(net, 5, **quick).plan == done.plan
    else:
        done = sf.tune_noise(net, 5, conditions={"y": torch.arange(4)}, **quick)
        assert done.plan.fit.conditions == ("y",)
    assert done.plan.noise_count and all(math.isfinite(v) for v in (done.test["returned"], done.validation[0]))
    assert done.judge == "energy" and {one["kind"] for one in done.starts} == (
        {"variance"} if kind in ("guided", "label") else {"variance", "churn"}
    )


def test_refusals():
    model = DATA.model(VP)
    for more, match in [
        ({"kinds": ["weights"]}, "kinds must be one of variance, churn, got 'weights'"),
        ({"kinds": []}, "kinds must name at least one of variance, churn"),
        ({"data": torch.zeros(9, 2)}, r"data must be \(N, 3\), N ≥ 6, got \(9, 2\)"),
        ({"seeds": (8, 8)}, "seeds must be three numbers"),
        ({"budget_s": 0}, "budget_s must be"),
    ]:
        with pytest.raises(ValueError, match=match):
            sf.tune_noise(model, 5, **more)
    follows = sf.CFGPlusPlus(sf.ScoreModel(Classed(), VP), 0.5, null={"y": 0})
    with pytest.raises(ValueError, match="follows its run"):
        sf.tune_noise(follows, 5, shape=(2,))
    with pytest.raises(ValueError, match=r"start=1\.0: alpha=0 there"):
        sf.tune_noise(DATA.model(PATHS["flow"]), 5)
