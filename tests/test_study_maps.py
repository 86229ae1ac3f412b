"""Studies with flow maps: exact ones beside their teachers, wrong ones, networks, what is refused, what is said."""

import pickle
import sys
import time
from html import unescape

import numpy as np
import pytest
import torch
from reported import made

import scoreflow as sf
from scoreflow import cli
from scoreflow.studies import Metric
from scoreflow.studies.findings import _rises
from scoreflow.studies.spec import Spec
from scoreflow.studies.work import Here

VP, VE, FLOW = sf.VPSDE(), sf.VESDE(), sf.Flow()
LEFT = sf.GaussianMixture(torch.tensor([0.3, 0.7]), torch.tensor([[-1.0], [1.2]]), torch.tensor([0.05, 0.3]))
RIGHT = sf.GaussianMixture(torch.tensor([0.5, 0.5]), torch.tensor([[-1.0], [1.2]]), torch.tensor([0.05, 0.3]))
PLANE = sf.ProductMixture([LEFT, RIGHT])
ODE = "unipc(order=3)"
BUDGETS = [1, 2, 4, 8]
NOISE = np.array([0.01, -0.02, 0.015, -0.005, 0.02, -0.01, 0.005, -0.015])


def value(study, label, nfe, figure):
    return study.mean(Spec(label, nfe=nfe), figure).value


# -- exact maps -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exact():
    """To t = 0.001: at 0 the reference ends with x̂_0, and the map does not."""
    return sf.study(
        LEFT.model(VP), ["flow-map", "consistency", "ddim", "auto"], nfe=BUDGETS, flow_map=LEFT.flow_map(VP),
        metrics=["trajectory", "energy", "strong"], n=64, seeds=5, stop=1e-3,
    )  # fmt: skip


def test_an_exact_map_is_the_ode_at_any_budget(exact):
    """At the reference's own error, below 1e-7, and at the floor of data; the teacher's samplers are at neither in 2."""
    assert not exact.failures and exact.floor("trajectory/rms").value < 1e-7
    for nfe in BUDGETS:
        for figure in ("trajectory/median", "trajectory/rms", "energy"):
            assert exact.at_floor(Spec("flow-map", nfe=nfe), figure), (nfe, figure)
        assert exact.at_floor(Spec("consistency", nfe=nfe), "energy"), nfe
    for label in ("ddim", "auto"):
        assert not exact.at_floor(Spec(label, nfe=2), "energy") and value(exact, label, 2, "trajectory/median") > 0.05
    assert exact.best(2, "trajectory/rms").sampler == "flow-map"
    assert set(exact.best(1, "energy").rivals) | {exact.best(1, "energy").sampler} == {"flow-map", "consistency"}


def test_evaluations_are_those_of_the_map(exact):
    assert all(exact.specs[Spec(label, nfe=k)] == k for label in ("flow-map", "consistency", "ddim") for k in BUDGETS)


def test_noise_has_no_trajectory_and_rows_no_word_of_a_map(exact):
    """`consistency` is measured by `strong` alone of the two; what plans do to Gaussian data is not said of the map."""
    assert {spec.label for spec in exact.specs if exact.blocks(spec, "trajectory/rms")} == {"flow-map", "ddim", "auto"}
    assert {spec.label for spec in exact.specs if exact.blocks(spec, "strong/rms")} == {"consistency"}
    assert {spec.label for spec in exact.health} == {"ddim", "auto"}
    assert not any("flow-map" in line or "consistency" in line for line in exact.warnings)


def test_a_wrong_map_is_told():
    """A map of another law: off the teacher's ODE and off its data at every budget; a study of a map's own law is not."""
    study = sf.study(
        LEFT.model(VP), ["flow-map", "consistency"], nfe=[1, 4], flow_map=RIGHT.flow_map(VP), metrics=["trajectory", "energy"],
        n=200, seeds=6, reference=ODE,
    )  # fmt: skip
    for spec in study.specs:
        assert not study.at_floor(spec, "energy"), spec
    assert all(value(study, "flow-map", k, "trajectory/rms") > 0.1 for k in (1, 4))
    assert "Told apart from the floor at the largest budget: consistency, flow-map." in " ".join(study.findings("energy"))


def test_names_that_run_on_the_map():
    typed = [
        "flow-map",
        "flow_map(eta=0.5)",
        "Consistency",
        "ddim",
        "ddim(eta=0.0)",
        "auto",
        "plan:flow-map",
        "unipc(order=3)",
    ]
    assert [Spec(name, nfe=1).mapped for name in typed] == [True] * 3 + [False] * 5


def batched(**keywords):
    return sf.study(
        PLANE.model(VE), ["flow-map@logsnr", "consistency", "ddpm", "flow_map(eta=0.5)"], nfe=[1, 3], n=12, seeds=2,
        flow_map=PLANE.flow_map(VE), metrics=["trajectory", "modes"], reference=ODE, **keywords,
    )  # fmt: skip


class Sent(Here):
    """Jobs as another process has them."""

    def submit(self, fn, /, *args):
        return super().submit(fn, *pickle.loads(pickle.dumps(args)))


def test_lockstep_and_processes():
    """The same table, the reference with the teacher's cells in one call and the map apart; grids and options as typed."""
    alone = batched()
    assert not alone.failures
    for other in (batched(batch=512), batched(executor=Sent())):
        assert other.frame["sampler"].tolist() == alone.frame["sampler"].tolist()
        np.testing.assert_allclose(other.frame["value"], alone.frame["value"], rtol=1e-6, atol=1e-9)
    (row,) = alone.frame[(alone.frame["sampler"] == "flow-map@logsnr") & (alone.frame["asked"] == 3)
                         & (alone.frame["figure"] == "trajectory/rms")].to_dict("records")  # fmt: skip
    assert row["value"] < 1e-3


def test_plans_run_on_the_teacher(tmp_path):
    (tmp_path / "two.json").write_text(sf.plan("ddim", VP, nfe=2).to_json())
    study = sf.study(
        LEFT.model(VP), [f"plan:{tmp_path / 'two.json'}", "ddim", "flow-map"], nfe=2, flow_map=LEFT.flow_map(VP), n=8, seeds=2,
        metrics=["trajectory"], reference=ODE,
    )  # fmt: skip
    one, two, three = (value(study, label, 2, "trajectory/rms") for label in ("plan:two.json", "ddim", "flow-map"))
    assert one == pytest.approx(two, rel=1e-9) and three < 0.01 * one


# -- networks -------------------------------------------------------------------------------------------------------------


class Teacher(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, x, t, y=None):
        return self.layer(x) + (0 if y is None else y[:, None].to(x))


class Jumps(Teacher):
    calls = 0

    def forward(self, x, t, r, y=None):
        Jumps.calls += 1
        return super().forward(x, t, y) * (1 + r[:, None])


class Slow(Jumps):
    def forward(self, x, t, r, y=None):
        time.sleep(0.02)
        return super().forward(x, t, r, y)


def networks(kind=Jumps, seed=0, **keywords):
    torch.manual_seed(seed)
    return sf.ScoreModel(Teacher().eval(), VP, "x0"), sf.FlowMap(kind().eval(), VP, "x0", **keywords)


def steps_of(inputs):
    return len(inputs.plan.steps)


def test_a_guided_teacher(tmp_path):
    """Guidance pays two evaluations a step, the map one; both are told the conditions, and metrics the plan that ran."""
    teacher, jumps = networks()
    y = torch.arange(8) % 3
    guided = sf.ClassifierFree(teacher, 2.0, null={"y": torch.zeros(8, dtype=torch.long)})
    keywords = dict(flow_map=jumps, shape=(2,), conditions={"y": y}, n=8, seeds=1, reference=ODE, out=tmp_path)
    study = sf.study(guided, ["flow-map", "ddim"], nfe=[2, 4], metrics=["trajectory"], **keywords)
    assert not study.failures
    steps = {(run["sampler"], run["nfe"]): run["plan"] for run in study.runs if run["kind"] == "cell"}
    assert "4 steps" in steps["flow-map", 4] and "2 steps" in steps["ddim", 4] and "1 step" in steps["ddim", 2]
    assert all(study.specs[Spec(label, nfe=k)] == k for label in ("flow-map", "ddim") for k in (2, 4))
    (key,) = (run["key"] for run in study.runs if run["sampler"] == "flow-map" and run["nfe"] == 2)
    x_T = sf.White(0).draws("prior")(torch.empty(8, 2)) * VP.prior_std(1.0)
    torch.testing.assert_close(torch.from_numpy(study.store.samples(key)), sf.solve(jumps, x_T, "flow-map", nfe=2, y=y).x)
    count = Metric("steps", "lower", (), steps_of)
    again = sf.study(guided, ["flow-map", "ddim"], nfe=4, metrics=["trajectory", count], **keywords)
    assert value(again, "flow-map", 4, "steps") == 4 and value(again, "ddim", 4, "steps") == 2


def test_time_is_in_evaluations_of_what_ran():
    teacher, jumps = networks(Slow)
    study = sf.study(teacher, ["flow-map"], nfe=2, flow_map=jumps, shape=(2,), metrics=["time"], n=4, seeds=1)
    assert 1.5 < value(study, "flow-map", 2, "time") < 4


def test_stores_go_on_and_other_maps_are_refused(tmp_path):
    """What is there is not run again, in another process too; of other weights, another map or none it is refused."""
    teacher, jumps = networks()
    keywords = dict(shape=(2,), n=4, seeds=2, metrics=["trajectory"], reference=ODE, out=tmp_path)
    names = ["flow-map", "ddim"]
    Jumps.calls = 0
    sf.study(teacher, names, nfe=[1, 2], flow_map=jumps, **keywords)
    assert Jumps.calls == 2 * 3
    more = sf.study(teacher, names, nfe=[1, 2, 4], flow_map=pickle.loads(pickle.dumps(jumps)), **keywords)
    again = networks()[1]
    sf.study(teacher, names, nfe=[1, 2, 4], flow_map=again, **keywords)
    assert Jumps.calls == 2 * 7 and not more.failures and len(more.specs) == 6
    opened = sf.Study.open(tmp_path)
    assert opened.frame["value"].tolist() == more.frame["value"].tolist()
    assert opened.merge(more).frame["value"].tolist() == more.frame["value"].tolist()
    with torch.no_grad():
        again.net.layer.bias += 0.1
    for other in (again, networks(Slow)[1]):
        with pytest.raises(ValueError, match=r"of something else \(.*flow_map_fingerprint: \w+ there, \w+ here"):
            sf.study(teacher, names, nfe=[1], flow_map=other, **keywords)
    with pytest.raises(ValueError, match=r"flow_map: FlowMap\(Jumps, .* there, None here"):
        sf.study(teacher, ["ddim"], nfe=[1], **keywords)
    changed = sf.study(teacher, names, nfe=[1, 2], flow_map=again, **{**keywords, "out": None})
    with pytest.raises(ValueError, match="of something else"):
        opened.merge(changed)
    figure = "trajectory/rms"
    assert value(changed, "ddim", 1, figure) == value(opened, "ddim", 1, figure)
    assert value(changed, "flow-map", 1, figure) != value(opened, "flow-map", 1, figure)


# -- a flow map without its teacher ----------------------------------------------------------------------------------------


def test_a_map_alone_is_compared_to_its_own_ode():
    """Two times: that of its score model, which an exact map is at; a Gaussian's rows do not say its law."""
    keywords = {"metrics": ["trajectory"], "n": 8, "seeds": 3, "stop": 1e-3, "reference": ODE}
    study = sf.study(PLANE.flow_map(FLOW), ["flow-map", "auto"], nfe=[1, 2], **keywords)
    assert not study.failures and all(study.at_floor(spec, "trajectory/rms") for spec in study.specs)
    assert study.floor("trajectory/rms").value < 2e-3 and not study.health
    wrong = sf.FlowMap(lambda x, t, r: LEFT.flow_map(VP).net(x, t, r) + (t - r)[:, None], VP, "x0")
    other = sf.study(wrong, "flow-map", nfe=[1, 2], **keywords, shape=(1,))
    assert not any(other.at_floor(spec, "trajectory/rms") for spec in other.specs)
    gaussian = sf.Gaussian(torch.zeros(2), 0.5)
    own = sf.Subject(gaussian.flow_map(VP), (2,))
    assert {"data", "reference"} <= own.has() and not {"gaussian", "rows"} & own.has()
    assert own.identity()["network"] == "Gaussian, FlowMap"
    with pytest.raises(ValueError, match="metric 'w2-exact' needs a Gaussian's model"):
        sf.study(gaussian.flow_map(VP), "flow-map", nfe=1, metrics=["w2-exact"])
    beside = sf.study(gaussian.model(VP), ["flow-map", "ddim"], nfe=1, flow_map=gaussian.flow_map(VP), n=8, seeds=1,
                      metrics=["w2-exact", "energy"])  # fmt: skip
    assert {spec.label for spec in beside.specs if beside.blocks(spec, "w2-exact")} == {"ddim"}


@pytest.mark.parametrize("guided", [False, True])
def test_a_map_that_has_no_ode(guided):
    """One time, or guidance about it: no reference, and metrics of data all the same."""
    exact = LEFT.flow_map(VP)
    jumps = sf.guidance.Thresholding(exact) if guided else sf.FlowMap(lambda x, t: exact.net(x, t, 0 * t), VP, "x0", times=1)
    keywords = {"nfe": [1, 2], "shape": (1,), "n": 32, "seeds": 2, "data": LEFT}
    for given in ({"metrics": ["trajectory"]}, {"reference": "ddim"}, {"data": None}):
        with pytest.raises(ValueError, match="has no probability-flow ODE: give the teacher as the model and flow_map="):
            sf.study(jumps, "consistency", **{**keywords, **given})
    study = sf.study(jumps, "consistency", **keywords)
    assert study.figures == ("sliced-w2", "modes") and not study.failures
    assert study.reference("sliced-w2") is None and study.floor("sliced-w2") is not None
    assert study.store.identity["reference"] == "none"


# -- what is refused -------------------------------------------------------------------------------------------------------


def made_map():
    return LEFT.flow_map(VP)


def made_subject():
    return sf.Subject(networks()[1], (2,))


def made_model():
    return LEFT.model(VP)


SEEN = sf.Observation(torch.ones(1, 1), torch.zeros(1), 0.5)


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"flow_map": LEFT.model(VP)}, TypeError, "flow_map must be a FlowMap or the name of one, got ScoreModel"),
        ({"flow_map": "zoo:digit"}, ValueError, "flow_map: no network of the zoo is called 'digit'"),
        ({"flow_map": f"{__name__}:made_model"}, TypeError, "flow_map must be a FlowMap"),
        ({"flow_map": f"{__name__}:made_subject"}, ValueError, r"states of the model's shape, \(1,\), got one of \(2,\)"),
        ({"flow_map": PLANE.flow_map(VP)}, ValueError, r"states of the model's shape, \(1,\), got one of \(2,\)"),
        ({"flow_map": LEFT.flow_map(FLOW)}, ValueError, r"on the path of the model, VPSDE\(.*\), got one on Flow\(\)"),
        ({"flow_map": LEFT.flow_map(sf.VPSDE(0.2, 20))}, ValueError, r"on the path of the model, .*, got one on VPSDE\(.*0\.2"),
        ({"model": LEFT.flow_map(VP)}, ValueError, "stands beside its teacher, a score model, and the model is a flow map too"),
        ({"model": sf.Posterior(LEFT.model(VP), SEEN)}, ValueError, "does not follow the ODE of a Posterior"),
        ({"model": sf.guidance.Thresholding(sf.Posterior(LEFT.model(VP), SEEN))}, ValueError, "the ODE of a Posterior"),
        ({"model": sf.Posterior(LEFT.model(VP), SEEN), "simulated": 2}, ValueError, "does not follow the ODE of a Posterior"),
        ({"samplers": ["ddim", "auto"]}, ValueError, "run by the samplers flow-map and consistency, and samplers has neither"),
        ({"reference": "flow-map"}, ValueError, "reference is of the model, and flow-map runs on the flow map: give ddim"),
        ({"metrics": ["strong"], "samplers": ["flow-map"]}, ValueError, "no metric asked for applies to flow-map"),
        (
            {"flow_map": sf.FlowMap(torch.nn.Linear(1, 1, device="meta"), VP, times=1)}, ValueError,
            "on the device of the model, cpu",
        ),
    ],
)  # fmt: skip
def test_refusals(given, error, match):
    """Before anything runs."""
    given = {"model": LEFT.model(VP), "samplers": "flow-map", "nfe": 1, "flow_map": made_map(), "shape": (1,), **given}
    with pytest.raises(error, match=match):
        sf.study(**given)


def test_conditions_go_to_both():
    teacher, _ = networks()
    plain = sf.FlowMap(lambda x, t, r: x, VP, "x0")
    with pytest.raises(TypeError, match="flow_map: it is given the conditions of the model, and 'y' is neither"):
        sf.study(teacher, "flow-map", nfe=1, flow_map=plain, shape=(2,), conditions={"y": torch.zeros(64)})


def test_a_plan_that_the_map_cannot_run_is_a_failure():
    """A network that jumps to data only: in one step, or by `consistency`."""
    exact = LEFT.flow_map(VP)
    jumps = sf.FlowMap(lambda x, t: exact.net(x, t, 0 * t), VP, "x0", times=1)
    study = sf.study(LEFT.model(VP), ["flow-map", "consistency"], nfe=[1, 2], flow_map=jumps, n=8, seeds=1, metrics=["energy"])
    (failure,) = study.failures
    assert str(failure).startswith("flow-map, nfe=2, block 0: ValueError: this network jumps to data only")
    assert len(study.specs) == 3


# -- what is said ----------------------------------------------------------------------------------------------------------


def test_the_report_says_what_runs_the_map(exact, tmp_path):
    said = f"{LEFT.flow_map(VP)!r}, run by consistency, flow-map; the model by the other samplers and by the reference"
    assert said.startswith("FlowMap(QuantileMap, VPSDE(")
    page = unescape(exact.report(tmp_path / "r.html", "energy", light=True).read_text(encoding="utf-8"))
    assert f"<p>Flow map: {said}.</p>" in page and '<th scope="row">flow_map_fingerprint</th>' in page
    assert said in unescape(exact._repr_html_())
    without = sf.study(LEFT.model(VP), "ddim", nfe=2, metrics=["trajectory"], n=4, seeds=1, reference=ODE)
    page = without.report(tmp_path / "w.html", "trajectory/rms", light=True).read_text(encoding="utf-8")
    assert "Flow map" not in page and "flow_map" not in page


def test_the_command(monkeypatch, capsys, tmp_path):
    (tmp_path / "jumps.py").write_text(
        "import scoreflow as sf, torch\n\n\ndef jumps():\n    return sf.Gaussian(torch.zeros(2), 0.25).flow_map(sf.VPSDE())\n"
    )
    words = ["--model", "oracle:white(d=2)", "--samplers", "flow-map,ddim", "--nfe", "1,2", "-n", "8", "--seeds", "2"]
    words += [
        "--metrics",
        "trajectory",
        "--reference",
        ODE,
        "--out",
        tmp_path / "s",
        "--flow-map",
        f"{tmp_path / 'jumps.py'}:jumps",
    ]
    for extra, expected in (([], 0), (["--samplers", "ddim", "--out", tmp_path / "new"], 2), (["--samplers", "unipc"], 0)):
        monkeypatch.setattr(sys, "argv", ["scoreflow", "study", *map(str, [*words, *extra])])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert (ended.value.code or 0) == expected
    out, err = capsys.readouterr()
    assert "\nFlow map: FlowMap(GaussianMap, VPSDE(" in out and "), run by flow-map; the model by the other samplers" in out
    assert "Best within 1 evaluations: flow-map, " in out and "samplers has neither" in err


def test_an_error_that_rises_is_said():
    """The two budgets that are furthest apart, of figures with a better side; not what the blocks do not tell."""
    cells = {("cell", "a", n): level + NOISE * n for n, level in {1: 0.2, 2: 0.1, 4: 0.3, 8: 0.31}.items()}
    cells |= {("cell", "b", n): 0.2 + NOISE[:: (-1) ** n] for n in (1, 2, 4)}
    cells |= {("cell", "c", n): level + NOISE for n, level in {1: 0.5, 2: 0.4, 4: 0.3}.items()}
    cells |= {("cell", "d", n): level + NOISE[: 8 - n] for n, level in {1: 0.1, 2: 0.3}.items()}  # failed on some
    said = [line for line in made(cells, "sliced-w2").findings("sliced-w2") if "worse at" in line]
    assert said == ["a: worse at 8 than at 2 evaluations, 0.31 against 0.1."]
    falls = made({("cell", "a", n): 0.9 - level + n * NOISE for n, level in {1: 0.1, 2: 0.5}.items()}, "manifold")
    assert [line for line in falls.findings() if "worse at" in line] == [
        "a: worse at 2 than at 1 evaluations, 0.4 against 0.8."
    ]
    either = made({("cell", "a", n): n + NOISE for n in (1, 2)}, "log-likelihood")
    assert not any("worse at" in line for line in either.findings())


def test_within_the_references_error_nothing_rises():
    cells = {("cell", "a", n): 1e-9 * n * (1 + NOISE) for n in (1, 2)}
    for error, count in ((1e-7, 0), (1e-12, 1)):
        study = made({**cells, ("reference", "", 0): error * (1 + NOISE)}, "trajectory")
        assert sum("worse at" in line for line in study.findings("trajectory")) == count


def test_those_that_do_not_rise_are_seldom_said_to():
    """Six samplers whose error falls, and from 8 evaluations on scatters by chance: 12 of their 36 pairs do not differ. At most
    5 % of studies say that one rises; of 100, more than 14 in one of 3000 such tests. Each test by itself, 25 do.
    """
    rng, said = np.random.default_rng(0), 0
    for _ in range(100):
        cells = {
            ("cell", name, n): max(1, 9 - n) + 0.1 * rng.standard_normal(8) for name in "abcdef" for n in (2, 4, 8, 16, 32)
        }
        said += bool(_rises(made(cells, "sliced-w2"), "sliced-w2"))
    assert said <= 14
