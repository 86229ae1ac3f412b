"""A study from Python: what runs, what is counted, what the figures say, and what is refused before anything runs."""

import math
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from problems import PATHS

import scoreflow as sf
from scoreflow.studies import METRICS, Metric, Subject, load
from scoreflow.studies.spec import Spec

pytestmark = pytest.mark.usefixtures("few_floors")

LOOSE = "scipy(rtol=1e-4)"


@pytest.fixture(scope="module")
def ring():
    """Samplers with and without noise, on their own grid and on a named one, and one that goes by a tolerance."""
    return sf.study(
        "oracle:ring", ["ddpm", "ddim", "dpm-solver++@logsnr", "pf-ode", "scipy(rtol=1e-2)"], nfe=[5, 10, 20], n=64, seeds=6,
        metrics=["trajectory", "strong", "sliced-w2", "modes", "log-likelihood", "time"], reference="scipy(rtol=1e-8)",
    )  # fmt: skip


# -- what runs ----------------------------------------------------------------------------------------------------------


def test_a_cell_is_the_run_that_solve_makes(ring):
    """The same samples from the same seed as by hand, and the distance to the reference as by hand."""
    what = load("oracle:ring")
    x_T = sf.White(2).draws("prior")(torch.empty(64, 2, dtype=torch.float64))
    exact = sf.solve(what.model, x_T, "scipy", rtol=1e-8).x
    cases = {"ddim": ("ddim", {}), "dpm-solver++@logsnr": ("dpm-solver++", {"grid": "logsnr"})}
    for label, (name, options) in cases.items():
        x = sf.solve(what.model, x_T, name, nfe=10, **options).x
        key = ring.cells.query("sampler == @name and nfe == 10 and seed == 2 and kind == 'cell'")["key"].iloc[0]
        assert np.array_equal(ring.store.samples(key), x.numpy()), label
        off = (x - exact).square().mean(1).sqrt()
        blocks = ring.blocks(Spec(name, options.get("grid"), nfe=10), "trajectory/median")
        assert blocks[2] == pytest.approx(float(off.quantile(0.5)), rel=1e-12)
    spec = Spec("ddpm", nfe=10)
    x = sf.solve(what.model, x_T, "ddpm", nfe=10, noise=sf.Brownian(2)).x
    key = ring.cells.query("sampler == 'ddpm' and nfe == 10 and seed == 2 and kind == 'cell'")["key"].iloc[0]
    assert np.array_equal(ring.store.samples(key), x.numpy())
    assert spec in ring.specs


def test_evaluations_are_counted(ring):
    """As the run counts them: Heun's 9 of 10, an adaptive run's own number; guided models count both branches."""
    nfe = ring.frame.drop_duplicates(["sampler", "asked"]).set_index(["sampler", "asked"])["nfe"]
    assert nfe["pf-ode"].tolist() == [5, 9, 19] and nfe["ddim"].tolist() == [5, 10, 20]
    assert nfe["scipy(rtol=1e-2)"].item() > 20

    class Twice(sf.ScoreModel):
        def evaluations(self, t):
            return 2

    oracle = load("oracle:ring").model
    model = Twice(oracle.net, oracle.path, prediction="x0")
    counted = sf.study(
        model, ["ddim"], steps=[4], n=4, seeds=1, metrics=["trajectory"], shape=(2,), dtype=torch.float64, reference=LOOSE
    )
    assert counted.frame["nfe"].unique().tolist() == [8]


def test_metrics_go_to_the_samplers_they_apply_to(ring):
    """Distances to the ODE for samplers without noise, strong errors for those with noise and a budget."""
    has = {label: set(part["figure"].str.partition("/")[0]) for label, part in ring.frame.groupby("sampler")}
    assert "trajectory" not in has["ddpm"] and "strong" in has["ddpm"]
    for label in ("ddim", "dpm-solver++@logsnr", "pf-ode", "scipy(rtol=1e-2)"):
        assert "trajectory" in has[label] and "strong" not in has[label]
    assert all({"sliced-w2", "modes", "log-likelihood", "time"} <= figures for figures in has.values())


def test_strong_errors_share_the_paths(ring):
    """ddpm nears its own finest run as the budget grows: the Brownian paths are the same."""
    values = ring.frame.query("sampler == 'ddpm' and figure == 'strong/median'")["value"]
    assert values.is_monotonic_decreasing and values.iloc[2] < values.iloc[0] / 3


def test_blocks_are_the_same_whoever_else_runs():
    """A sampler's figures do not depend on the others of the study, nor on the order of seeds."""
    keywords = {"nfe": [5], "n": 16, "metrics": ["sliced-w2"], "reference": LOOSE}
    a = sf.study("oracle:ring", ["ddpm", "ddim"], seeds=[3, 1], **keywords).frame
    b = sf.study("oracle:ring", ["ddpm"], seeds=[1, 3], **keywords).frame
    pd.testing.assert_frame_equal(a[a["sampler"] == "ddpm"].reset_index(drop=True), b, check_exact=True)


def test_two_names_of_one_plan_are_two_lines():
    """Heun makes the same run of 9 and of 10 evaluations, DDIM is ddim: nobody loses a line."""
    study = sf.study(
        "oracle:ring", ["pf-ode", "ddim", "DDIM"], nfe=[9, 10], n=8, seeds=1, metrics=["sliced-w2"], reference=LOOSE
    )
    assert len(study.frame) == 6


@pytest.mark.parametrize("given", [(0, 1, 2), torch.arange(3), lambda n, seed: torch.arange(n)])
def test_conditions_reach_the_network(given):
    """As values, as a tensor with a row a sample, or as a function of n and the seed."""
    told = []

    def net(x, t, y):
        told.append(y)
        return torch.zeros_like(x)

    subject = Subject(sf.ScoreModel(net, sf.VPSDE(), prediction="x0"), (2,), conditions={"y": given})
    study = sf.study(subject, ["ddim"], nfe=[2], n=3, seeds=1, metrics=["trajectory"], reference=LOOSE)
    assert not study.failures and all(len(y) == 3 for y in told)


def test_a_subject_keeps_its_ends():
    """Start and stop of a subject hold unless the study says otherwise."""
    subject = Subject(load("oracle:ring").model, (2,), start=0.9, stop=0.1)
    study = sf.study(subject, ["ddim"], nfe=[4], n=4, seeds=1, metrics=["trajectory"], reference=LOOSE)
    assert study.store.identity["start"] == "0.9" and study.store.identity["stop"] == "0.1"
    moved = sf.study(subject, ["ddim"], nfe=[4], n=4, seeds=1, metrics=["trajectory"], reference=LOOSE, stop=0.0)
    assert moved.store.identity["start"] == "0.9" and moved.store.identity["stop"] == "0.0"


# -- what the figures say ------------------------------------------------------------------------------------------------


def test_the_ordering_of_samplers(ring):
    """On an oracle: 2M beats DDIM to the ODE, DDIM beats DDPM at 5 evaluations, all but DDPM are at the floor at 20."""
    for nfe in (5, 10, 20):
        off = ring.compare("dpm-solver++@logsnr", "ddim", nfe, "trajectory/median")
        assert off.high < 0 and off.p < 0.05, nfe
    assert ring.compare("ddim", "ddpm", 5, "sliced-w2").high < 0
    for label in ("ddim", "pf-ode", "dpm-solver++@logsnr", "scipy(rtol=1e-2)"):
        assert ring.floor_from(label, "sliced-w2") is not None


def test_best_and_cheapest(ring):
    best = ring.best(nfe=10, figure="trajectory/median")
    values = ring.frame.query("figure == 'trajectory/median' and nfe <= 10").sort_values("value")
    assert (best.sampler, best.value.value) == (values["sampler"].iloc[0], values["value"].iloc[0])
    assert best.value.low < best.value.value < best.value.high
    found = ring.cheapest(within=0.1, figure="trajectory/median")
    good = ring.frame.query("figure == 'trajectory/median' and high <= 0.1").sort_values("nfe")
    assert (found.sampler, found.nfe) == (good["sampler"].iloc[0], good["nfe"].iloc[0])
    assert f"{found.sampler} at {found.nfe:g} evaluations" in str(found)
    with pytest.raises(ValueError, match=r"as good as within=0\.0"):
        ring.cheapest(within=0.0, figure="trajectory/median")
    with pytest.raises(ValueError, match=r"no finished cell of trajectory/median has so few; the least is nfe=5, passes=5"):
        ring.best(nfe=4)
    with pytest.raises(ValueError, match="no figure is called 'trajectory/mean'; did you mean trajectory/median"):
        ring.best(10, "trajectory/mean")
    with pytest.raises(ValueError, match="ddim has no cell at nfe=7; it has 5, 10, 20"):
        ring.compare("ddim", "ddpm", 7)


def test_better_goes_by_the_metric(ring):
    """Log-likelihood is good where it is data's; a figure of which higher is better is the best where it is highest."""
    floor = ring.floor("log-likelihood").value
    part = ring.frame.query("figure == 'log-likelihood' and nfe <= 10")
    nearest = part.iloc[(part["value"] - floor).abs().argmin()]
    assert ring.best(10, "log-likelihood").sampler == nearest["sampler"]


def test_pareto(ring):
    front = ring.pareto("trajectory/median")
    assert front["nfe"].is_monotonic_increasing and front["value"].is_monotonic_decreasing
    every = ring.frame.query("figure == 'trajectory/median'")
    for line in every.itertuples():
        beaten = (front["nfe"] <= line.nfe) & (front["value"] <= line.value)
        assert beaten.any()


def test_differences(ring):
    """Every pair at every budget, by SciPy's paired test, and told apart by Benjamini and Hochberg's rule."""
    from scipy import stats

    table = ring.differences("sliced-w2")
    assert len(table) == 6 * 3
    line = table.iloc[4]
    a, b = (np.array(list(ring.blocks(ring._at(label, line.budget), "sliced-w2").values())) for label in (line.a, line.b))
    test = stats.ttest_rel(a, b)
    assert line.value == pytest.approx((a - b).mean()) and line.p == pytest.approx(test.pvalue)
    assert [line.low, line.high] == pytest.approx(list(test.confidence_interval(0.95)))
    assert table["significant"].tolist() == (stats.false_discovery_control(table["p"]) <= 0.05).tolist()


def test_findings(ring):
    """Sentences that follow from the figures."""
    said = "\n".join(ring.findings("trajectory/median"))
    best = ring.best(10, "trajectory/median")
    assert f"within 10 evaluations: {best.sampler}, {best.value}" in said
    assert "The floor, the reference's own error, is" in said and "ddim: order" in said
    assert "dpm-solver++@logsnr is better than ddim at 5, 10, 20 evaluations." in said or "ddim and dpm" in said
    said = "\n".join(ring.findings("sliced-w2"))
    assert (
        "data against data" in said
        and "is not told apart from the floor: an error of the model that moves sliced-w2 by less" in said
    )
    assert "is not seen in it with 6 blocks. A second look tells none either: " in said
    assert "ddim is better than ddpm at 5" in said and "not told apart at" in said


def test_findings_of_steps():
    """Budgets in steps are called so."""
    study = sf.study("oracle:ring", ["ddim", "pf-ode"], steps=[4, 8], n=16, seeds=3, metrics=["trajectory"], reference=LOOSE)
    assert any("steps" in line for line in study.findings()) and study.frame["steps"].tolist()[0] == 4


def test_a_model_error_is_seen():
    """A network that is wrong ends off the floor however many steps it takes, and the report says whose error that is."""
    mixture = load("oracle:ring").model.oracle
    wrong = sf.GaussianMixture(mixture.weights, 1.2 * mixture.means, 0.01).model(sf.VPSDE())
    wrong.oracle = None
    data = mixture.sample(600, seed=1)
    study = sf.study(
        wrong,
        ["ddim"],
        nfe=[20],
        n=64,
        seeds=4,
        metrics=["sliced-w2"],
        shape=(2,),
        data=data,
        reference=LOOSE,
        dtype=torch.float64,
    )
    assert study.floor_from("ddim") is None
    assert any("above the floor" in line and "no solver of the ODE removes" in line for line in study.findings())


def test_out(ring, tmp_path):
    """CSV and Parquet hold the frame."""
    ring.to_csv(tmp_path / "t.csv")
    ring.to_parquet(tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), ring.frame)
    back = pd.read_csv(tmp_path / "t.csv")
    assert back["value"].tolist() == pytest.approx(ring.frame["value"].tolist(), rel=1e-12)
    assert "@inproceedings{song2021ddim" in ring.citations and "ho2020ddpm" in ring.citations
    assert repr(ring).startswith("Study(13 cells of 6 blocks, 0 failed")


# -- what fails ---------------------------------------------------------------------------------------------------------


def test_a_cell_that_fails():
    """Recorded with its error; the rest goes on, and the next call tries again."""
    study = sf.study("oracle:ring", ["edict", "ddim"], nfe=[1, 6], n=8, seeds=2, metrics=["sliced-w2"], reference=LOOSE)
    assert {str(f.spec) for f in study.failures} == {"edict, nfe=1"} and len(study.failures) == 2
    assert "ValueError: nfe=1 is less than" in study.failures[0].error
    assert len(study.frame) == 3 and "2 runs or metrics failed" in study.findings()[-1]


def test_a_metric_that_fails_takes_no_other_with_it():
    """Its error is recorded, the cell's other figures and its samples are kept, and it is tried again."""
    calls = []

    def fussy(scene):
        """Fails once."""
        calls.append(scene.seed)
        if len(calls) == 1:
            raise RuntimeError("not now")
        return 1.0

    keywords = {"nfe": [4], "n": 8, "seeds": 1, "reference": LOOSE}
    metrics = [Metric("fussy", "lower", (), fussy), METRICS["sliced-w2"]]
    study = sf.study("oracle:ring", ["ddim"], metrics=metrics, **keywords)
    assert study.figures == ("sliced-w2",)
    assert [f.error for f in study.failures] == ["metric 'fussy': RuntimeError: not now"]
    assert study.store.samples(study.cells.query("kind == 'cell'")["key"].iloc[0]).shape == (8, 2)


@pytest.mark.parametrize("path", ["vp", "cosine"])
def test_the_reference_bounds_its_own_error(path):
    """In float32: 113 evaluations and 56, whose distance is stated, and is more than what is true; in float64 a tolerance."""
    model = sf.GaussianMixture([0.5, 0.5], [[1.0, 0.0], [-1.0, 0.5]], 0.1).model(PATHS[path])
    more = {"nfe": [8], "n": 32, "seeds": 1, "metrics": ["trajectory"]}
    study = sf.study(model, ["ddim"], **more, dtype=torch.float32)
    exact = sf.study(model, ["ddim"], **more, dtype=torch.float64)
    run, fine = (next(run for run in s.runs if run["kind"] == "reference") for s in (study, exact))
    assert run["nfe"] == 113 and run["sampler"].startswith("unipc(order=3") and "DOP853" in fine["sampler"]
    off = exact.store.samples(fine["key"]) - study.store.samples(run["key"])
    ((stated,),) = (
        blocks.values()
        for (kind, _, figure), blocks in study._blocks.items()
        if (kind, figure) == ("reference", "trajectory/rms")
    )
    assert 3 * (off**2).mean() ** 0.5 < stated < 1e-2


def test_what_was_run_is_written_down(ring):
    """The head of its plan; of a sampler that has none, its options and steps."""
    ran = ring.cells.query("kind == 'cell'").set_index("sampler")["plan"]
    assert ran["ddim"].iloc[0].startswith("ddim, eta=0.0 on VPSDE(") and "scipy(" in ran["scipy(rtol=1e-2)"].iloc[0]


def test_a_reference_by_name():
    """One without a tolerance takes 113 evaluations and 56, one with a tolerance is run again at ten times that."""
    study = sf.study("oracle:ring", "ddim", nfe=4, n=4, seeds=1, metrics="trajectory", reference="dpm-solver++@logsnr")
    (run,) = [run for run in study.runs if run["kind"] == "reference"]
    assert (run["sampler"], run["grid"], run["nfe"], run["counted"]) == ("dpm-solver++", "logsnr", 113, 113)


def test_a_reference_that_fails():
    """What is compared to it says why there is no figure; what is not goes on."""

    def net(x, t):
        return torch.full_like(x, math.nan) if float(t[0]) < 0.01 else torch.zeros_like(x)

    model = sf.ScoreModel(net, sf.VPSDE(), prediction="x0")
    study = sf.study(model, ["ddim"], nfe=[4], n=4, seeds=1, metrics=["trajectory"], shape=(2,), reference=LOOSE, data=None)
    errors = [str(failure) for failure in study.failures]
    assert len(errors) == 2 and "not finite" in errors[1] and "the reference run that it is compared to has failed" in errors[0]


# -- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"samplers": []}, "samplers is empty"),
        ({"nfe": []}, "nfe is empty"),
        ({"nfe": [0]}, "nfe must be a whole number ≥ 1, got 0"),
        ({"steps": [4]}, "give nfe or steps, one of them"),
        ({"nfe": None}, "give nfe or steps, one of them"),
        ({"grids": []}, "grids is empty"),
        ({"grids": ["moon"]}, "moon"),
        ({"metrics": []}, "metrics is empty"),
        ({"metrics": ["trajectry"]}, "no metric is called 'trajectry'; did you mean trajectory"),
        ({"seeds": []}, "seeds is empty"),
        ({"seeds": 0}, "seeds must be a whole number ≥ 1"),
        ({"n": 1}, "n must be a whole number ≥ 2"),
        ({"samplers": ["ddim(eta)"]}, "options are name=value, such as"),
        ({"samplers": ["ddim(teta=1)"]}, "has no option 'teta'; it has eta"),
        ({"samplers": ["ddim@moon"]}, "moon"),
        ({"reference": "ddim(eta=0.5)"}, "reference must converge to the probability-flow ODE"),
        ({"metrics": ["kid"]}, "metric 'kid' needs features="),
        ({"metrics": ["w2-exact"]}, "metric 'w2-exact' needs a Gaussian's model"),
        ({"samplers": ["ddpm"], "metrics": ["trajectory"]}, "no metric asked for applies to ddpm"),
        ({"features": "inceptoin"}, "did you mean inception"),
        ({"start": 2.0}, "start must be a finite number ≥ 0 and ≤ 1"),
        ({"start": 0.1, "stop": 0.5}, "start must lie above stop"),
        ({"nfe": "5"}, "nfe must be a whole number ≥ 1, got '5'"),
        ({"nfe": 5.5}, "nfe must be a whole number ≥ 1, got 5.5"),
        ({"grids": "karas"}, "no grid is called 'karas'; did you mean karras"),
        ({"grids": 5}, "no grid is called 5"),
        ({"metrics": 5}, "no metric is called 5"),
        ({"samplers": None}, "samplers must be names or samplers of get_sampler, got None"),
        ({"seeds": 3.5}, "seeds must be a whole number ≥ 0, got 3.5"),
        ({"reference": 5}, "reference must be a sampler or its name, got 5"),
        ({"executor": 5}, "executor must have submit, as those of concurrent.futures have, got 5"),
        ({"out": 5}, "out must be the name of a folder, got 5"),
        ({"dtype": "f"}, "dtype must be a floating-point torch.dtype, got 'f'"),
        ({"dtype": torch.int32}, "dtype must be a floating-point torch.dtype, got torch.int32"),
        ({"conditions": 5}, "conditions must be a mapping from names to values, got 5"),
        ({"conditions": {"y": 3}}, "'y' is neither an argument nor a condition that the network Denoiser takes"),
        ({"progress": "no"}, "progress must be True or False, got 'no'"),
    ],
)
def test_refused(changed, said):
    """Before anything runs; the argument, the value and what is allowed."""
    keywords = {"samplers": ["ddim"], "nfe": [4], "metrics": ["sliced-w2"], "n": 4, "seeds": 1, **changed}
    with pytest.raises((ValueError, TypeError), match=f".*{said}".replace("(", r"\(")):
        sf.study("oracle:ring", **keywords)


def test_one_of_a_list_may_stand_alone(ring):
    """A sampler, a budget, a grid, a metric."""
    keywords = {"n": 4, "seeds": 1, "reference": LOOSE}
    one = sf.study("oracle:ring", "ddim", nfe=np.int64(5), grids="karras", metrics="sliced-w2", **keywords)
    same = sf.study("oracle:ring", ["ddim"], nfe=[5], grids=["karras"], metrics=["sliced-w2"], **keywords)
    pd.testing.assert_frame_equal(one.frame, same.frame)
    for wrong in (lambda: ring.best("ten"), lambda: ring.cheapest(within="near")):
        with pytest.raises(TypeError, match="must be a finite number"):
            wrong()


def test_all_that_is_wrong_is_said_at_once(tmp_path):
    with pytest.raises(ValueError) as error:
        sf.study("oracle:ring", ["dimm", "ddim(x=1)", "ddpm@moon"], nfe=[4], metrics=["kid"], n=0, seeds=[], out=tmp_path / "s")
    for said in ("dimm", "'x'", "moon", "kid", "n must be", "seeds is empty"):
        assert said in str(error.value)
    assert not (tmp_path / "s").exists()


def test_subjects_that_are_refused():
    model = sf.ScoreModel(lambda x, t: torch.zeros_like(x), sf.VPSDE(), prediction="x0")
    go = partial(sf.study, samplers=["ddim"], nfe=[4], n=4, seeds=1)
    with pytest.raises(ValueError, match=r"shape=None: give the shape of one sample"):
        go(model)
    with pytest.raises(
        TypeError, match=r"data must be a floating-point tensor of shape \(N, 2\), got torch.float32 of shape \(9, 3\)"
    ):
        go(model, shape=(2,), data=torch.zeros(9, 3))
    with pytest.raises(ValueError, match=r"n must be at most 3, half of the 6 data, got 4"):
        go(model, shape=(2,), data=torch.zeros(6, 2), metrics=["sliced-w2"])
    with pytest.raises(TypeError, match=r"model must be a name, a ScoreModel or a Subject, got int"):
        go(3)
    with pytest.raises(TypeError, match="features must be"):
        go(model, shape=(2,), data=torch.zeros(9, 2), features=3)
    for name, said in {
        "zoo": "model must be zoo:name", "zoo:digit": "did you mean digits", "oracle:rnig": "did you mean ring",
        "oracle:ring(path=moon)": "path must be one of", "oracle:ring(mode=3)": "mode", "no.such:thing": "cannot be loaded",
        "scoreflow:nothing": "has no function 'nothing'",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=said):
            go(name)
