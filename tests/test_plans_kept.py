"""Plans in files, beside a model and in studies: what takes them, and what they are refused for.

Their numbers are those of samplers here; what is kept of a fit is written by hand, so that nothing has to be fitted.
"""

import html
from dataclasses import replace

import pytest
import torch
from problems import states
from test_files_wrapped import around, mlp

import scoreflow as sf
from scoreflow._run.kept import names
from scoreflow._samplers.plan import Fit
from scoreflow._score.fingerprint import identity
from scoreflow.studies.spec import Spec
from scoreflow.studies.store import Store

PATH = sf.VPSDE()
MODEL = sf.ScoreModel(mlp(), PATH)
X = states(6, 2, dtype=torch.float32)
ROWS, RMS = "dpm-solver++-2m", "trajectory/rms"
CITED = ("frankel2025s4s",)


def fitted(model, nfe, sampler=ROWS, name="tuned", **more):
    """A plan with the rows of a sampler, as `tune` would mark it."""
    plan, ends = sf.plan(sampler, model.path, nfe, **more), (more.get("start", 1.0), more.get("stop", 0.0))
    fit = Fit(identity(model), repr(model), nfe, (), CITED, ends)
    return replace(plan, sampler=name, options=(), fit=fit) if name == "tuned" else replace(plan, fit=fit._replace(cites=()))


@pytest.fixture
def folder(tmp_path):
    """As `tune` leaves it, for 4 and 6 evaluations."""
    place = tmp_path / "runs" / "small"
    place.mkdir(parents=True)
    for nfe in (4, 6):
        (place / f"plan-{nfe}.json").write_text(fitted(MODEL, nfe).to_json(), encoding="utf-8")
    (place / "plan-of-others.json").write_text("{}", encoding="utf-8")
    return place


# -- files --------------------------------------------------------------------------------------------------------------


def test_a_plan_is_read_as_it_was_written(folder):
    plan = sf.load_plan(folder / "plan-4.json")
    assert plan == fitted(MODEL, 4) and plan.fit == fitted(MODEL, 4).fit
    assert sf.load_plan(folder / "plan-4.json", anyway=True) == plan.anyway() != plan
    said = f"fitted to {MODEL!r} at 4 evaluations, conditions none"
    assert str(plan).splitlines()[1] == said and said in repr(plan) and html.escape(said) in plan._repr_html_()


def test_a_file_and_a_folder_are_samplers(folder):
    """To the bit what the plan gives: at its budget, with the ends said or not, alone, among others, or asked."""
    sol = sf.solve(MODEL, X, ROWS, steps=6)
    for sampler, budget in ((fitted(MODEL, 6), {}), (f"plan:{folder}/plan-6.json", {}), (f"plan:{folder}", {"nfe": 6})):
        for ends in ({}, {"start": 1.0, "stop": 0.0}):
            found = sf.solve(MODEL, X, sampler, **budget, **ends)
            assert torch.equal(found.x, sol.x) and found.nfe == 6 and found.plan.check() == sol.plan.check()
    assert "a plan of tune" in repr(found) and found.plan.fit.nfe == 6 and "frankel2025s4s" in found.citations
    assert "a plan of tune" not in repr(sol)
    many = sf.solve_many([(f"plan:{folder}", 6), f"plan:{folder}/plan-4.json"], MODEL, X)
    torch.testing.assert_close(many[0].x, sol.x)
    assert [one.nfe for one in many] == [6, 4]
    run = sf.ask(f"plan:{folder}", X, path=PATH, nfe=6)  # whose network it is, the caller knows
    while not run.done:
        run.tell(mlp(0)(run.x, torch.full((len(X),), run.t)))
    torch.testing.assert_close(run.x, sol.x)
    assert sf.plan(f"plan:{folder}", PATH, nfe=4) == fitted(MODEL, 4)


def test_a_sampler_that_stayed_is_named(folder):
    """Where no fit was better, the plan is a sampler's, and says so with its options and its own works."""
    kept = fitted(MODEL, 5, "ddim", name="ddim")
    sol = sf.solve(MODEL, X, kept)
    assert sol.sampler == sf.get_sampler("ddim") and sol.cites == sol.sampler.cites
    assert "the best sampler's rows for ScoreModel(MLP" in str(kept) and "a plan of tune" in repr(sol)


def test_measurements_and_tensors_are_part_of_a_model():
    """Of a wrapper's options the text shows shapes only: another y, noise, A or covariance is another model."""
    mask, y = torch.tensor([True, False, True, False]), torch.zeros(2)

    def of(A=mask, y=y, noise=0.1, **options):
        return identity(sf.Posterior(MODEL, sf.Observation(A, y, noise), **options))

    matrix = torch.ones(2, 4)
    others = [of(), of(y=y + 1), of(noise=0.2), of(A=~mask), of(A=matrix), of(A=2 * matrix), of(noise=torch.tensor([0.1, 0.2]))]
    others += [of(method="jfps", cov=torch.ones(4)), of(method="jfps", cov=2 * torch.ones(4)), identity(MODEL)]
    assert len(set(others)) == len(others) and of() == of()
    outer = [identity(sf.Thresholding(sf.Posterior(MODEL, sf.Observation(mask, y + k, 0.1)))) for k in (0, 1)]
    assert outer[0] != outer[1]
    seen = sf.Observation(mask, y.clone(), 0.1)
    model = sf.Posterior(MODEL, seen)
    before = identity(model)
    seen.y += 1  # in place: what was known of it is not taken for it
    assert identity(model) != before


REFUSED = {
    "no file": ("plan:{}/plan-5.json", {}, FileNotFoundError, r"no file or folder '.*plan-5.json'; did you mean plan-\d.json"),
    "nothing": ("plan:", {}, FileNotFoundError, "no file or folder ''"),
    "no budget": ("plan:{}", {}, ValueError, "is a folder, and nfe says which plan of it: it has plans for 4, 6"),
    "steps for a folder": ("plan:{}", {"steps": 4}, ValueError, "nfe says which plan"),
    "another budget": ("plan:{}", {"nfe": 5}, FileNotFoundError, "has no plan for nfe=5; it has plans for 4, 6"),
    "a budget that the file is not for": (
        "plan:{}/plan-6.json", {"nfe": 5}, ValueError, "a plan for 6 evaluations, got nfe=5: another budget needs another plan",
    ),
    "steps": ("plan:{}/plan-6.json", {"steps": 6}, ValueError, "a plan has its times, but steps=6 was given too"),
    "a grid": ("plan:{}", {"nfe": 6, "grid": "karras"}, ValueError, "a plan has its times, but grid=karras was given too"),
    "another start": ("plan:{}", {"nfe": 6, "start": 0.5}, ValueError, "a plan has its times, but start=0.5 was given too"),
    "a grid in the name": ("plan:{}@karras", {"nfe": 6}, ValueError, r"takes no grid or options: give 'plan:[^@]*small'$"),
    "an option in the name": ("plan:{}(eta=1)", {"nfe": 6}, ValueError, "takes no grid or options"),
    "an option": ("plan:{}", {"nfe": 6, "eta": 1.0}, TypeError, "'eta' is neither an argument of solve"),
    "what is no plan": ("plan:{}/plan-of-others.json", {}, ValueError, "plan-of-others.json holds no plan, such as"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, folder):
    sampler, keywords, error, said = REFUSED[case]
    with pytest.raises(error, match=said):
        sf.solve(MODEL, X, sampler.format(folder), **keywords)


def test_a_plan_before_it_runs_is_held_to_the_same(folder):
    """`sf.plan` takes no options, no grid and no other path either."""
    for keywords, error, said in (
        ({"eta": 1.0}, TypeError, "has no option 'eta'"),
        ({"grid": "karras"}, ValueError, "grid=karras was given too"),
    ):
        with pytest.raises(error, match=said):
            sf.plan(f"plan:{folder}", PATH, nfe=6, **keywords)
    with pytest.raises(ValueError, match=r"made for VPSDE\(.*, the model stands on Flow\(\)"):
        sf.plan(f"plan:{folder}", sf.Flow(), nfe=6)


def test_an_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no plan for nfe=6; it has none"):
        sf.solve(MODEL, X, f"plan:{tmp_path}", nfe=6)
    with pytest.raises(IsADirectoryError):
        sf.load_plan(tmp_path)


# -- whose it is --------------------------------------------------------------------------------------------------------


def other_weight():
    model = sf.ScoreModel(mlp(), PATH)
    with torch.no_grad():
        next(iter(model.net.parameters()))[0] += 1e-6
    return model


OTHERS = {
    "weight": other_weight,
    "dtype": lambda: sf.ScoreModel(mlp().double(), PATH),
    "prediction": lambda: sf.ScoreModel(mlp(), PATH, "x0"),
    "time": lambda: sf.ScoreModel(mlp(), PATH, time="log-snr"),
    "guidance": lambda: sf.Thresholding(sf.ScoreModel(mlp(), PATH)),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_model_is_refused_unless_it_is_said(what, folder):
    model = OTHERS[what]()
    with pytest.raises(ValueError, match=r"was fitted to ScoreModel\(MLP.*fit it anew with tune, or give plan\.anyway"):
        sf.solve(model, X, f"plan:{folder}", nfe=6)
    plan = sf.load_plan(folder / "plan-6.json", anyway=True)
    assert torch.equal(sf.solve(model, X, plan).x, sf.solve(model, X, ROWS, steps=6).x)


@around
def test_a_wrapped_network_is_the_same_model(wrap):
    """Compiled, spread over devices or averaged, it is the one that the plan was fitted to."""
    model = sf.ScoreModel(wrap(mlp()).eval(), PATH)
    assert identity(model) == identity(MODEL) and repr(model) == repr(MODEL)


# -- beside a model -----------------------------------------------------------------------------------------------------


@pytest.fixture
def beside(tmp_path):
    """A file of the model with plans for 4 and 6 evaluations."""
    file = tmp_path / "model.safetensors"
    sf.save_model(sf.ScoreModel(mlp(), PATH), file, plans=[fitted(MODEL, 4), fitted(MODEL, 6)])
    return file


def test_auto_takes_the_plan_of_its_budget_and_no_other(beside):
    model = sf.load_model(beside)
    assert model.plans == (fitted(MODEL, 4), fitted(MODEL, 6)) and MODEL.plans == ()
    found = sf.solve(model, X, nfe=6)
    assert torch.equal(found.x, sf.solve(MODEL, X, fitted(MODEL, 6)).x)
    assert found.plan.fit.nfe == found.nfe == 6 and "a plan of tune" in repr(found)
    assert torch.equal(sf.sample(model, (3, 2), nfe=6, seed=0), sf.sample(MODEL, (3, 2), fitted(MODEL, 6), seed=0))
    for other in (
        {"nfe": 5}, {"steps": 6}, {}, {"nfe": 6, "grid": "karras"}, {"nfe": 6, "start": 0.9}, {"nfe": 6, "stop": 0.01},
        {"nfe": 6, "stop": 0.01, "denoise": True}, {"nfe": 6, "analytic": 1.0},
    ):  # fmt: skip
        sol = sf.solve(model, X, **other)
        assert sol.plan.fit is None and torch.equal(sol.x, sf.solve(MODEL, X, **other).x), other


def test_auto_takes_a_plan_that_stops_early_where_the_run_does(beside):
    """And not where the run is to go on to x̂_0."""
    model = sf.load_model(beside)
    model.plans = (fitted(MODEL, 4, stop=0.01),)
    assert sf.solve(model, X, nfe=4, stop=0.01).plan.fit is not None
    for other in ({}, {"stop": 0.01, "denoise": True}):
        assert sf.solve(model, X, nfe=4, **other).plan.fit is None


@pytest.mark.parametrize("change", ["weight", "dtype", "guidance"])
def test_auto_goes_by_its_table_where_the_model_is_another(change, beside):
    model = sf.load_model(beside, dtype=torch.float64 if change == "dtype" else None)
    assert len(model.plans) == 2
    if change == "weight":
        with torch.no_grad():
            next(iter(model.net.parameters()))[0] += 1e-6
    model = sf.Thresholding(model) if change == "guidance" else model
    assert sf.solve(model, X, nfe=6).plan.fit is None


def test_plans_go_along_with_the_model_while_they_are_its_own(beside, tmp_path):
    """Written again they stay; once a weight has moved they are left out."""
    model, again = sf.load_model(beside), tmp_path / "again.safetensors"
    sf.save_model(model, again)
    assert sf.load_model(again).plans == model.plans
    sf.save_model(model, again, plans=[])
    assert sf.load_model(again).plans == ()
    with torch.no_grad():
        next(iter(model.net.parameters()))[0] += 1e-6
    sf.save_model(model, again)
    assert sf.load_model(again).plans == ()


@pytest.mark.parametrize(
    ("plan", "error", "said"),
    [
        (sf.plan("ddim", PATH, 4), ValueError, "was fitted to no model"),
        (
            fitted(sf.ScoreModel(mlp(1), PATH), 4),
            ValueError,
            r"these weights, and Plan\(tuned .* fitted to ScoreModel\(MLP",
        ),
        ("plan:file", TypeError, "plans must be plans"),
    ],
    ids=["unfitted", "of another", "text"],
)
def test_plans_that_auto_would_never_take_are_refused(plan, error, said, tmp_path):
    with pytest.raises(error, match=said):
        sf.save_model(MODEL, tmp_path / "model.safetensors", plans=[plan])
    assert not [*tmp_path.iterdir()]


# -- studies ------------------------------------------------------------------------------------------------------------


def study(samplers, nfe, out=None, **more):
    keywords = {"shape": (2,), "n": 4, "seeds": 2, "metrics": "trajectory", "reference": "unipc", **more}
    return sf.study(MODEL, samplers, nfe=nfe, out=out, **keywords)


def test_a_study_runs_it_at_the_budgets_that_it_is_for(folder):
    """Under the folder's last name; grids are for the others. Its works are cited, its health is known."""
    found = study(["ddim", f"plan:{folder}"], [4, 5, 6], grids=["karras", "logsnr"])
    assert {(s.label, s.nfe) for s in found.specs if "plan" in s.label} == {("plan:small", 4), ("plan:small", 6)}
    assert len(found.specs) == 2 * 3 + 2 and not found.failures
    assert found.compare("plan:small", "ddim@karras", nfe=6).value != 0
    assert any("plan:small" in line for line in found.findings()) and "frankel2025s4s" in found.citations
    assert str(folder) not in " ".join(found.findings()) and {s.nfe for s in found.health if s.label == "plan:small"} == {4, 6}
    assert found.blocks(Spec("plan:small", nfe=4), RMS) == study(ROWS, 4).blocks(Spec(ROWS, nfe=4), RMS)


def test_the_report_is_readable(folder, tmp_path):
    text = study(["ddim", f"plan:{folder}"], 4).report(tmp_path / "r.html", light=True).read_text(encoding="utf-8")
    assert "plan:small" in text and str(folder) not in text and "tuned on VPSDE" in text


def test_a_changed_file_is_run_again_in_the_place_of_the_old(folder, tmp_path):
    """Also for blocks that are not asked for again; what has not changed stays."""
    out, label = tmp_path / "study", f"plan:{folder}"
    before = study(["ddim", label], [4, 6], out, seeds=3)
    made = {(run["sampler"], run["nfe"], run["seed"]): run["key"] for run in before.runs if run["kind"] == "cell"}
    (folder / "plan-6.json").write_text(fitted(MODEL, 6, "ddim").to_json(), encoding="utf-8")
    after = study(["ddim", label], [4, 6], out, seeds=2)
    now = {(run["sampler"], run["nfe"], run["seed"]): run["key"] for run in after.runs if run["kind"] == "cell"}
    changed = {cell for cell, key in made.items() if now.get(cell) != key}
    assert changed == {("plan:small", 6, seed) for seed in range(3)} and ("plan:small", 6, 2) not in now
    own = after.blocks(Spec("ddim", nfe=6), RMS)
    assert after.blocks(Spec("plan:small", nfe=6), RMS) == {seed: own[seed] for seed in range(2)} and len(own) == 3
    values = Store(out / "study.sqlite").rows("SELECT DISTINCT key FROM value")
    assert {row["key"] for row in values} <= {run["key"] for run in after.runs}
    with pytest.raises(ValueError, match=r"plan:.*small' at nfe=6 was not the same plan in all of these studies"):
        study(label, 6, seeds=1).merge(older(label, folder))


def older(label, folder):
    """The study of what the file held before."""
    (folder / "plan-6.json").write_text(fitted(MODEL, 6).to_json(), encoding="utf-8")
    return study(label, 6, seeds=1)


@pytest.mark.parametrize(
    ("sampler", "budget", "said"),
    [
        ("plan:{}", {"nfe": [5, 7]}, "has plans for nfe=4, 6, and none for 5, 7"),
        ("plan:{}/plan-4.json", {"nfe": 6}, "has plans for nfe=4, and none for 6"),
        ("plan:{}", {"nfe": None, "steps": 4}, "is for a budget of evaluations: give nfe, not steps"),
        ("plan:{}@karras", {"nfe": 4}, "takes no grid or options"),
        ("plan:{}s", {"nfe": 4}, "there is no file or folder"),
        ("plan:{}", {"nfe": 4, "start": 0.5}, "start=0.5 was given too"),
        ("plan:{}", {"nfe": 4, "metrics": "strong"}, "no metric asked for applies to ddim"),
    ],
)
def test_a_study_refuses_before_anything_runs(sampler, budget, said, folder, tmp_path):
    with pytest.raises(ValueError, match=said):
        study(["ddim", sampler.format(folder)], out=tmp_path / "study", **budget)
    assert not (tmp_path / "study").exists()


def test_a_study_of_another_model_says_so(folder):
    with pytest.raises(ValueError, match=r"was fitted to ScoreModel\(MLP.*and this model is ScoreModel\(MLP"):
        sf.study(other_weight(), f"plan:{folder}", nfe=4, shape=(2,))


def test_names_are_as_short_as_they_can_be():
    told = ["plan:a/x/tuned", "plan:b/x/tuned", "plan:/home/digits", "plan:c", "plan:./c", "ddim(eta=0.5)"]
    assert names(told) == {
        "plan:a/x/tuned": "plan:a/x/tuned", "plan:b/x/tuned": "plan:b/x/tuned", "plan:/home/digits": "plan:digits",
        "plan:c": "plan:c", "plan:./c": "plan:./c", "ddim(eta=0.5)": "ddim(eta=0.5)",
    }  # fmt: skip
    assert names(["plan:/u/a/tuned", "plan:/u/b/tuned"]) == {
        "plan:/u/a/tuned": "plan:a/tuned",
        "plan:/u/b/tuned": "plan:b/tuned",
    }


def test_a_noisy_plan_goes_along_brownian_paths(tmp_path):
    """A plan of DDPM is measured as DDPM is: not against the ODE, and along the same paths."""
    file = tmp_path / "plan.json"
    file.write_text(sf.plan("ddpm", PATH, 4, grid="uniform").to_json(), encoding="utf-8")
    with pytest.raises(ValueError, match="no metric asked for applies to plan:"):
        study(f"plan:{file}", 4)
    more = {"data": states(32, 2, dtype=torch.float32), "metrics": "sliced-w2"}
    one, other = study(f"plan:{file}", 4, **more), study("ddpm@uniform", 4, **more)
    (mine,), (own,) = one.specs, other.specs
    assert one.blocks(mine, "sliced-w2") == other.blocks(own, "sliced-w2")


# -- the zoo's ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [False, True])
@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_shipped_plans(name, classes):
    """At their budgets "auto" takes them, says so, and on states that they were not fitted to ends nearer to the ODE."""
    model = getattr(sf.zoo, name)()
    plain = getattr(sf.zoo, name)()
    plain.plans = ()
    size, n = {"digits": (8, 16), "mnist": (28, 8)}[name]
    told = {"y": torch.arange(n) % 10} if classes else {}
    x = sf.White(range(50_000, 50_000 + n)).draws("prior")(torch.empty(n, 1, size, size))
    end = sf.solve(model, x, "unipc-3", nfe=60, grid="ode", **told).x
    assert {plan.fit.model for plan in model.plans} == {identity(model)}
    own = [plan.fit.nfe for plan in model.plans if plan.fit.conditions == tuple(told)]
    assert sorted(own) == [5, 6, 8, 10, 15]
    for nfe in own:
        sol, before = (sf.solve(one, x, nfe=nfe, **told) for one in (model, plain))
        assert sol.plan.fit.nfe == nfe and sol.nfe <= nfe and "a plan of tune" in repr(sol) and before.plan.fit is None
        off, off_before = (float((one.x - end).flatten(1).square().mean(1).sqrt().median()) for one in (sol, before))
        assert off < 0.85 * off_before, (nfe, off, off_before)
    assert sf.solve(model, x[:2], nfe=7, **{k: v[:2] for k, v in told.items()}).plan.fit is None
    assert all(one.fit is None for one in [sf.solve(sf.ClassifierFree(model, 2.0), x[:2], nfe=8, y=torch.tensor([1, 2])).plan])
