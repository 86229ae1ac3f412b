"""Reflow: training on pairs, and its command line."""

import contextlib
import json
import os

import pytest
import torch
from problems import Classed, states
from typer.testing import CliRunner

import scoreflow as sf
from scoreflow import cli
from scoreflow.analysis import straightness
from scoreflow.training import MapObjective, Objective, Pairs, Recipe, pairs, setup, train

FLOW, VP = sf.Flow(), sf.VPSDE()
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
MIXTURE = sf.GaussianMixture(torch.tensor([1.0, 2.0, 1.0]), torch.tensor([[-1.2, 0.0], [0.9, 0.9], [0.8, -1.1]]), 0.02)


# -- training -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Pairs of a mixture on the straight path."""
    return pairs(MIXTURE.model(FLOW), (2,), 4096, tmp_path_factory.mktemp("flow"), nfe=40, batch=2048)


def student(times=1):
    torch.manual_seed(0)
    return sf.nets.MLP(2, width=64, depth=2, times=times, time_scale=10.0)


def test_reflow(straight):
    """A student of pairs has straighter paths than the teacher, and one Euler step leads nearer to the end of the ODE."""
    eps = states(300, 2, seed=4, dtype=torch.float32)
    teacher = MIXTURE.model(FLOW)
    end = sf.solve(teacher, eps, nfe=40).x
    objective, recipe = Objective("flow", "stratified", pairs=True), Recipe(steps=200, batch=64, rate=1e-2)
    found = []
    for model in (teacher, train(sf.ScoreModel(student(), FLOW, "flow"), straight, objective, recipe)):
        one_step = sf.solve(model, eps, "pf-ode-euler", steps=1).x
        found.append((straightness(model, eps, nodes=16).relative, float((one_step - end).norm(dim=1).mean())))
    (before, off_before), (after, off_after) = found
    assert after < 0.05 * before and off_after < 0.2 * off_before


@pytest.mark.parametrize("loss", [None, "meanflow", "progressive", "lagrangian", "consistency-training"])
def test_the_noise_is_that_of_the_data(loss):
    """Losses of score models and of flow maps are those of a draw with this noise; the draw's own is not used."""
    x_0, eps = states(16, 2), states(16, 2, seed=1)
    net = student(1 if loss is None else 2).double()
    model = sf.ScoreModel(net, FLOW, "flow") if loss is None else sf.FlowMap(net, FLOW, "flow")
    make = Objective if loss is None else lambda **more: MapObjective(loss=loss, **more)
    own, given = make(), make(pairs=True)
    draw = own.draw(model, x_0, 0)
    expected = own(model, x_0, draw._replace(eps=eps))
    found = given(model, x_0, given.draw(model, x_0, 0), eps=eps)
    assert torch.equal(found.mean, expected.mean) and torch.equal(found.each, expected.each)
    assert not torch.equal(found.each, own(model, x_0, draw).each)


def test_conditions_are_dropped_and_the_noise_is_not():
    """With drop the class may be none; the noise is no condition of the network."""
    seen = []

    class Net(Classed):
        null = {"y": -1.0}  # noqa: RUF012

        def forward(self, x, t, y=None):
            seen.append(y)
            return super().forward(x, t, y)

    x_0, objective = states(64, 2, dtype=torch.float32), Objective(drop=0.5, pairs=True)
    model = sf.ScoreModel(Net(), VP)
    objective(model, x_0, objective.draw(model, x_0, 0), eps=torch.zeros(64, 2), y=torch.ones(64))
    assert seen[0].unique().tolist() == [-1, 1]


def test_objectives_refused(straight):
    model, x = sf.ScoreModel(student(), FLOW, "flow"), states(8, 2, dtype=torch.float32)
    recipe = Recipe(steps=1, batch=4)
    for data, pairing, says in [
        (x, True, "pairs=True takes the noise of each sample from the data, as the condition eps, and they give no conditions"),
        ([(one, {"y": one}) for one in x], True, "and they give y: train on Pairs"),
        ([(one, {"eps": one[:1]}) for one in x], True, r"eps must have the shape of the states, \(4, 2\), got \(4, 1\)"),
        ([(one, {"eps": "a"}) for one in x], True, "eps must have the shape of the states, .*, got list"),
        (straight, False, "the data give eps, the noise of each sample, and pairs=False draws another: set pairs=True"),
    ]:
        with pytest.raises(ValueError, match=says):
            train(model, data, Objective(pairs=pairing), recipe)
    with pytest.raises(ValueError, match=r"vlb=0.1 is a bound where noise and data are independent"):
        Objective(vlb=0.1, pairs=True)
    with pytest.raises(TypeError, match="pairs must be True or False, got 1"):
        Objective(pairs=1)

    def named(x, t, eps):
        return x + eps

    objective = Objective()  # a network may have a condition of that name, without pairs
    model = sf.ScoreModel(named, FLOW, "flow")
    assert objective(model, x, objective.draw(model, x, 0), eps=x).mean > 0


def test_a_run_goes_on(straight, tmp_path):
    """A run with pairs is another than one without; one that began before there were pairs goes on."""
    recipe, held_out = Recipe(steps=4, batch=8, save_every=2, show_every=2), torch.utils.data.Subset(straight, range(20))
    for out, stops in (("whole", [4]), ("cut", [2, 4])):
        for stop in stops:
            model = sf.ScoreModel(student(), FLOW, "flow")
            with pytest.raises(KeyboardInterrupt) if stop < 4 else contextlib.nullcontext():
                asked = {"out": tmp_path / out, "held_out": held_out, "show": _stop_at(stop) if stop < 4 else None}
                train(model, straight, Objective(pairs=True), recipe, **asked)
    logs = [(tmp_path / out / "log.jsonl").read_text() for out in ("whole", "cut")]
    assert logs[0] == logs[1] and '"held_out"' in logs[0]
    with pytest.raises(ValueError, match=r"holds another run: objective.pairs=False, there True"):
        train(sf.ScoreModel(student(), FLOW, "flow"), states(8, 2).float(), Objective(), recipe, out=tmp_path / "cut")
    old, data = tmp_path / "old", states(8, 2).float()
    train(sf.ScoreModel(student(), FLOW, "flow"), data, Objective(), recipe, out=old)
    tensors, metadata = sf.checkpoint.read(old / "state.safetensors")
    config = json.loads(metadata["config"])
    assert config["objective"].pop("pairs") is False
    sf.checkpoint.write(tensors, old / "state.safetensors", {**metadata, "config": json.dumps(config)})
    train(sf.ScoreModel(student(), FLOW, "flow"), data, Objective(), recipe, out=old)


def _stop_at(step):
    def show(at):
        if at.step == step:
            raise KeyboardInterrupt

    return show


# -- the command line ---------------------------------------------------------------------------------------------------

DIGITS = ["pairs", "--model", "zoo:digits", "--sampler", "dpm-solver++", "--nfe", "4", "--batch", "8", "--seed", "1"]


def invoked(*words):
    done = CliRunner().invoke(cli.app, [*map(str, words)])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def test_pairs_train_sample(tmp_path):
    """Digits with classes of their own, more of them later, a student on the straight path, and samples by it."""
    out, run = tmp_path / "pairs", tmp_path / "run"
    said = json.loads(invoked(*DIGITS, "--out", out, "-n", 12, "--json"))
    assert said["pairs"] == 12 and said["shape"] == [1, 8, 8] and said["conditions"] == ["y"]
    first = Pairs(out).condition("y")
    assert "30 pairs by dpm-solver++(method='2m')" in invoked(*DIGITS, "--out", out, "-n", 30)
    found = Pairs(out)
    assert torch.equal(found.condition("y")[:12], first) and len(found.condition("y").unique()) > 3
    data = sf.data.load(f"pairs:{out}")
    assert (len(data.train), len(data.held_out), data.shape) == (27, 3, (1, 8, 8)) and data.classes <= 10
    assert torch.equal(data.held_out[1][0], found[10][0]) and torch.equal(data.train[0][1]["eps"], found[1][1]["eps"])
    small = ["network.widths=[8]", "network.attention=[]", "recipe.steps=2", "recipe.batch=4", "recipe.shown=4"]
    sets = [word for one in small for word in ("--set", one)]
    invoked("train", "--data", f"pairs:{out}", "--out", run, *sets)
    config = json.loads((run / "config.json").read_text())
    assert (
        config["objective"]["pairs"] is True and config["model"]["path"] == "Flow()" and config["model"]["prediction"] == "flow"
    )
    assert {file.name for file in run.glob("samples-*")} == {"samples-000001.png", "samples-000002.png"}
    invoked("sample", "--model", f"run:{run}", "--nfe", 1, "-n", 3, "--out", tmp_path / "x.npy")
    invoked("train", "--data", f"pairs:{out}", "--out", tmp_path / "bare", *sets, "--set", "data.labels=false")
    assert sf.load_model(tmp_path / "bare").net.config["classes"] == 0


def test_conditions_of_the_command(tmp_path):
    """One class, some in turn; a scale of guidance; a list in turn is that of one go when there are more."""
    invoked(*DIGITS, "--out", tmp_path / "three", "-n", 9, "-c", "y=3")
    assert Pairs(tmp_path / "three").condition("y").tolist() == [3] * 9
    for n in (9, 20):
        invoked(*DIGITS, "--out", tmp_path / "turn", "-n", n, "-c", "y=[0,1,2]", "--guidance", 2.0)
    assert Pairs(tmp_path / "turn").condition("y").tolist() == [i % 3 for i in range(20)]
    assert "scale=2.0" in Pairs(tmp_path / "turn").manifest["model"]
    found = sf.data.load(f"pairs:{tmp_path / 'turn'}")
    assert found.classes == 3 and "ClassifierFree" in found.source


def test_commands_and_setups_refused(tmp_path):
    done = CliRunner().invoke(cli.app, [*DIGITS, "--out", str(tmp_path / "a"), "-n", "4", "--sampler", "ddpm"])
    assert isinstance(done.exception, ValueError) and "draws noise on its way" in str(done.exception)
    with pytest.raises(FileNotFoundError, match="no pairs at"):
        setup(f"pairs:{tmp_path / 'none'}")
    given = sf.ScoreModel(lambda x, t, z: x, VP)
    found = pairs(given, (1, 4, 4), 4, tmp_path / "z", "ddim", steps=2, z=1.0)
    with pytest.raises(ValueError, match="has the condition 'z', and classes are all that this takes: use train"):
        setup(f"pairs:{found.folder}")
    with pytest.raises(ValueError, match=r"data.size is of a folder of images"):
        setup(f"pairs:{found.folder}", changes={"data.size": 8})
    one = pairs(sf.ScoreModel(lambda x, t: x, VP), (1, 4, 4), 1, tmp_path / "one", "ddim", steps=2)
    data = sf.data.load(f"pairs:{one.folder}")
    assert len(data.train) == len(data.held_out) == 1 and data.classes == 0
