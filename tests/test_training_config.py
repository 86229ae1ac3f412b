"""`scoreflow train`: the TOML file, what is filled in, what is refused, and what the folder is good for."""

import copy
import json

import pytest
import torch
from typer.testing import CliRunner

import scoreflow as sf
from scoreflow import cli
from scoreflow.studies import load
from scoreflow.training import parse, setup

TOML = """
data = "digits"

[network]
widths = [8, 16]
attention = []

[model]
path = "cosine"
prediction = "v"

[objective]
weighting = "min-snr"
weighting_options = { gamma = 3.0 }

[recipe]
steps = 6
batch = 8
show_every = 3
shown = 4
"""


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(TOML)
    return file


def test_what_is_filled_in():
    """Digits alone: a class-conditional U-Net for their shape on the linear chain, ε, a tenth of the classes dropped."""
    found = setup("digits")
    assert found.model.net.config["classes"] == 10 and found.model.net.config["channels"] == 1
    assert (found.model.prediction, found.model.time, found.model.path.T) == ("eps", "index", 1000)
    assert found.objective.drop == 0.1 and found.recipe.steps == 10_000
    again = setup("digits")
    assert all(torch.equal(a, b) for a, b in zip(found.model.net.parameters(), again.model.net.parameters(), strict=True))
    other = setup("digits", changes={"recipe.seed": 1, "data.labels": False, "model.path": "vp"})
    assert other.model.net.config["classes"] == 0 and other.objective.drop == 0 and other.model.net.config["time_scale"] == 1000
    assert not torch.equal(next(found.model.net.parameters()), next(other.model.net.parameters()))


def test_a_file_and_changes(file):
    """The file's values go before what is filled in, changes before the file's, the name of the data before all."""
    found = setup(file=file, changes=parse(["recipe.batch=4", "objective.times=stratified", "network.widths=[8]"]))
    assert found.recipe.batch == 4 and found.recipe.steps == 6 and found.objective.times == "stratified"
    assert found.model.net.config["widths"] == [8] and found.model.prediction == "v"
    assert found.objective.weighting_options == {"gamma": 3.0}


def test_every_network_can_be_trained(tmp_path):
    """The configured networks run a step: U-Net, DiT."""
    for changes in ({"network.name": "DiT", "network.width": 16, "network.depth": 1, "network.heads": 2}, {"network.patch": 2}):
        small = {"network.widths": [8]} if "network.patch" in changes else {}
        run = setup("digits", changes={**changes, **small, "recipe.steps": 1, "recipe.batch": 2, "recipe.shown": 2})
        model = run.run(tmp_path / str(len(changes)))
        assert sf.load_model(tmp_path / str(len(changes))).net.config == model.net.config


def test_train_sample_study(file, tmp_path):
    """The command trains, goes on where it was, and `run:folder` is a model to sample from and to study."""
    out = tmp_path / "run"
    command = ["train", "--config", str(file), "--out", str(out)]
    first = CliRunner().invoke(cli.app, command)
    assert first.exit_code == 0 and "6 steps, loss" in first.stdout, first.output
    files = {f.name for f in out.iterdir()}
    assert files == {
        "config.json", "log.jsonl", "loss.png", "model.safetensors", "state.safetensors",
        "samples-000001.png", "samples-000003.png", "samples-000006.png",
    }  # fmt: skip
    said = json.loads(CliRunner().invoke(cli.app, [*command, "--json"]).stdout)
    assert said["step"] == 6 and said["held_out"] > 0
    sheet = tmp_path / "x.png"
    drawn = CliRunner().invoke(cli.app, ["sample", "--model", f"run:{out}", "--out", str(sheet), "--nfe", "3", "-n", "4"])
    assert drawn.exit_code == 0 and sheet.stat().st_size > 100, drawn.output
    what = load(f"run:{out}")
    assert what.shape == (1, 8, 8) and what.data.shape == (500, 1, 8, 8)
    assert torch.equal(load(f"run:{out / 'model.safetensors'}").data, what.data), "the file of the model stands for its run"
    assert what.conditioned(5, 0)["y"].max() < 10
    study = sf.study(what, ["ddim"], nfe=[2], n=4, seeds=2, metrics=["sliced-w2"], reference="scipy(rtol=1e-1, atol=1e-1)")
    assert not study.failures


REFUSED = [
    ({"data.name": "digits", "data.labels": "no"}, "data.labels must be true or false, got 'no'"),
    ({"data.name": "digits", "data.size": 16}, "data.size is of a folder of images; digits has a shape of its own"),
    ({"data.name": "digits", "network.name": "MLP"}, "network.name must be one of UNet, DiT, got 'MLP'"),
    ({}, "no data: give one of digits, mnist"),
    ({"data.name": "digits", "recipe.step": 5}, "recipe has no 'step'; did you mean steps"),
    ({"data.name": "digits", "recipe": 5}, "set must be table.name=value"),
    ({"data.name": "digits", "network.name": "Unet"}, "network.name must be one of .*UNet"),
    ({"data.name": "digits", "network.width": 5}, "network UNet: .*'width'"),
    ({"data.name": "digits", "network.patch": 3}, r"network UNet does not take data of shape \(1, 8, 8\): .* multiples of 6"),
    ({"data.name": "digits", "network.name": "DiT", "network.size": 4}, r"network DiT does not take data of shape \(1, 8, 8\)"),
    ({"data.name": "digits", "model.path": "linear"}, "model.path must be one of vp, cosine, ddpm"),
    ({"data.name": "digits", "model.prediction": "noise"}, "prediction must be one of eps, x0"),
    ({"data.name": "digits", "objective.weighting": "none"}, "weighting must be one of"),
    ({"data.name": "digits", "objective.loss": "progresive"}, "objective.loss must be one of score, reflow, lagrangian, .*"),
    ({"data.name": "digits", "objective.loss": "reflow"}, "'reflow' learns from pairs, data.name='pairs:folder', got 'digits'"),
    ({"data.name": "digits", "objective.loss": "progressive-distillation"}, "needs a teacher, .* got teacher=None"),
    ({"data.name": "digits", "objective.loss": "progressive", "objective.teacher": 3}, "objective.teacher must be the name"),
    ({"data.name": "digits", "objective.loss": "progressive", "objective.teacher": "zoo:digit"}, "zoo.*digits"),
    ({"data.name": "digits", "objective.loss": "progressive", "objective.guidance": [1, 2]}, "needs a guided teacher"),
]


@pytest.mark.parametrize(("changes", "says"), REFUSED)
def test_refusals(changes, says):
    with pytest.raises(ValueError, match=says):
        setup(changes=changes)


def test_a_flow_map_of_a_teacher(tmp_path):
    """Its path, its time and a copy of its network, told a second time and a scale; without a teacher a network of its own."""
    given = {"data.name": "digits", "objective.loss": "progressive", "objective.teacher": "zoo:digits"}
    zoo = sf.zoo.digits()
    plain = setup(changes=given)
    assert isinstance(plain.model, sf.FlowMap) and plain.model.prediction == "v" and plain.model.time == "index"
    assert repr(plain.model.path) == repr(zoo.path) and plain.objective.drop == 0.1 and plain.objective.weighting is None
    assert repr(plain.objective.teacher) == repr(zoo)
    found = setup(changes=given | {"objective.guidance": [1.0, 3.0], "recipe.steps": 1, "recipe.batch": 4, "recipe.shown": 4})
    assert found.model.net.config == {**zoo.net.config, "times": 2, "guidance": True}
    assert found.config["network"] == {**found.model.net.config, "name": "UNet"}
    x, t, y = torch.randn(2, 1, 8, 8), torch.tensor([300.0, 700.0]), torch.tensor([1, 2])
    assert torch.equal(found.model.net.eval()(x, t, t, y), zoo.net(x, t, y))
    assert found.objective.guidance == (1.0, 3.0) and "ClassifierFree(scale=1.0)" in repr(found.objective.teacher)
    found.run(tmp_path / "run")
    again = load(f"run:{tmp_path / 'run'}").model
    assert isinstance(again, sf.FlowMap) and sf.sample(again, (2, 1, 8, 8), nfe=1, y=y, scale=2.0).isfinite().all()
    assert (tmp_path / "run" / "samples-000001.png").is_file()
    own = setup(changes={"data.name": "digits", "objective.loss": "meanflow", "network.widths": [8]}).model
    assert repr(own.path) == "Flow()" and own.prediction == "flow" and own.net.config["times"] == 2


def test_the_teacher_is_part_of_the_run(tmp_path):
    """A run goes on with the teacher that it began with, and is refused with another."""
    path, recipe = sf.Flow(), sf.training.Recipe(steps=2, batch=4)

    def run(teacher):
        torch.manual_seed(0)
        model = sf.FlowMap(sf.nets.MLP(2, width=8, depth=1, times=2), path, "flow")
        objective = sf.training.MapObjective(loss="progressive", teacher=sf.ScoreModel(teacher, path, "flow"))
        sf.training.train(model, torch.zeros(8, 2), objective, recipe, out=tmp_path)

    teacher = sf.nets.MLP(2, width=8, depth=1)
    run(teacher)
    run(copy.deepcopy(teacher))
    with torch.no_grad():
        teacher.first.bias += 1e-3
    with pytest.raises(ValueError, match=r"holds another run: objective\.teacher="):
        run(teacher)


def test_objectives_by_name():
    known = sf.training.LOSSES
    assert known[:2] == ("score", "reflow") and set(known[2:]) == set(sf.training.MAP_LOSSES)
    reflow = sf.training.get_objective("reflow", drop=0.1)
    assert (reflow.pairs, reflow.weighting, reflow.drop) == (True, None, 0.1)
    assert sf.training.get_objective(weighting="min-snr").weighting == "min-snr"
    assert sf.training.get_objective("meanflow", adaptive=0.0).adaptive == 0
    with pytest.raises(ValueError, match="loss must be one of score, reflow, lagrangian"):
        sf.training.get_objective("mean-flow")
    with pytest.raises(TypeError, match="loss 'score' has no option 'teacher'; it has weighting"):
        sf.training.get_objective("score", teacher=sf.zoo.digits())


def test_files_refused(tmp_path):
    bad = tmp_path / "bad.toml"
    bad.write_text("data = ")
    with pytest.raises(ValueError, match="is no TOML"):
        setup(file=bad)
    bad.write_text("[recipy]\nsteps = 3")
    with pytest.raises(ValueError, match="'recipy' is none of its tables; did you mean recipe"):
        setup("digits", file=bad)
    bad.write_text("recipe = 5")
    with pytest.raises(ValueError, match=r"recipe must be a table, \[recipe\], got 5"):
        setup("digits", file=bad)
    with pytest.raises(FileNotFoundError):
        setup(file=tmp_path / "none.toml")
    assert parse(["data.labels=False", "model.time=unit"]) == {"data.labels": False, "model.time": "unit"}
    with pytest.raises(ValueError, match=r"set must be table.name=value, got 'steps'"):
        parse(["steps"])
    none = CliRunner().invoke(cli.app, ["sample", "--model", f"run:{tmp_path}", "--out", "x.png"])
    assert isinstance(none.exception, FileNotFoundError)


def test_a_run_without_the_name_of_its_data(tmp_path):
    data = torch.zeros(8, 1, 8, 8)
    model = sf.ScoreModel(sf.nets.UNet(widths=(8,), attention=()), sf.VPSDE())
    sf.training.train(model, data, recipe=sf.training.Recipe(steps=1, batch=2), out=tmp_path)
    with pytest.raises(ValueError, match="does not name its data"):
        load(f"run:{tmp_path}")
