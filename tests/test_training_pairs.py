"""Pairs of noise and sample: killed and resumed, refused, read, trained on; and the command line."""

import contextlib
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from problems import Classed, states
from torch.utils.data import DataLoader
from typer.testing import CliRunner

import scoreflow as sf
from scoreflow import cli
from scoreflow.analysis import straightness
from scoreflow.training import MapObjective, Objective, Pairs, Recipe, pairs, setup, train

FLOW, VP = sf.Flow(), sf.VPSDE()
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
MIXTURE = sf.GaussianMixture(torch.tensor([1.0, 2.0, 1.0]), torch.tensor([[-1.2, 0.0], [0.9, 0.9], [0.8, -1.1]]), 0.02)
MADE = {"sampler": "dpm-solver++", "steps": 150, "batch": 8, "seed": 3}


def made(out, n=200):
    return pairs(MIXTURE.model(VP), (2,), n, out, **MADE)


def content(folder):
    """The bytes of all that is written, but for what a killed process left."""
    return {file.name: file.read_bytes() for file in Path(folder).iterdir() if not file.name.startswith(".")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Made without a break."""
    out = tmp_path_factory.mktemp("whole")
    made(out)
    return out


def started(out):
    return subprocess.Popen([sys.executable, __file__, str(out)], env=ENV)


def test_killed_and_made_again(whole, tmp_path):
    """Kill −9 at random moments, twice: what was written stays as it was, and in the end all is as without a break."""
    chance, before = random.Random(1), {}
    for least in (3, 9):
        process = started(tmp_path)
        while process.poll() is None and len(list(tmp_path.glob("pairs-*"))) < least:
            time.sleep(0.002)
        time.sleep(chance.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in tmp_path.glob("pairs*")}
        assert least < len(now) < 25 and before.items() <= now.items()
        before = now
    made(tmp_path)
    after = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in tmp_path.glob("pairs*")}
    assert before.items() <= after.items() and content(tmp_path) == content(whole)


def test_two_processes_at_once(whole, tmp_path):
    """Both end well, and leave what one would."""
    both = [started(tmp_path) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0] and content(tmp_path) == content(whole)


def test_a_pair_is_what_solve_makes_of_its_noise(whole):
    """x_0 is where the sampler leads from ε; ε is standard normal, and depends on the seed and the pair's number alone."""
    found = Pairs(whole)
    assert len(found) == 200 and found.shape == (2,) and "dpm-solver++" in repr(found)
    x_0, eps = (torch.stack(parts) for parts in zip(*((x, told["eps"]) for x, told in found), strict=True))
    x = sf.solve(MIXTURE.model(VP), eps * VP.prior_std(1.0), "dpm-solver++", steps=150).x
    torch.testing.assert_close(x_0, x, rtol=1e-5, atol=1e-5)
    assert abs(float(eps.mean())) < 5 / 400**0.5 and abs(float(eps.square().mean()) - 1) < 5 * (2 / 400) ** 0.5
    assert len(eps.unique(dim=0)) == 200
    assert torch.equal(found[-1][0], x_0[199]) and torch.equal(found[torch.tensor(17)][1]["eps"], eps[17])
    with pytest.raises(IndexError, match="pair 200 of 200"):
        found[200]


def test_a_larger_number_adds_to_them(whole, tmp_path):
    """Files that are there stay; pairs are those of one go, to rounding where a file was short, to the bit where not."""
    few = made(tmp_path, 20)
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in tmp_path.glob("pairs-*")}
    assert len(few) == 20 and len(before) == 3
    more, there = made(tmp_path, 61), Pairs(whole)
    assert before.items() <= {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in tmp_path.glob("pairs-*")}.items()
    assert len(more) == 61 and len(made(tmp_path, 30)) == 61
    ends = [int(file.stem.split("-")[2]) for file in sorted(tmp_path.glob("pairs-*"))]
    assert ends == [8, 16, 20, 24, 32, 40, 48, 56, 61]
    for i in range(61):
        for one, other in zip((more[i][0], more[i][1]["eps"]), (there[i][0], there[i][1]["eps"]), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
            assert torch.equal(one, other) or 16 <= i < 24 or i >= 56
    assert not torch.equal(
        pairs(MIXTURE.model(VP), (2,), 8, tmp_path / "other", **MADE | {"seed": 4})[0][1]["eps"], more[0][1]["eps"]
    )


def test_the_longest_of_two_files_is_read(whole, tmp_path):
    """Processes that make other numbers of pairs at once may leave two files that begin alike."""
    made(tmp_path, 20)
    for name in ("pairs-00000016-00000024.safetensors", "pairs-00000024-00000032.safetensors"):
        shutil.copy(whole / name, tmp_path)
    assert len(Pairs(tmp_path)) == 32 and torch.equal(Pairs(tmp_path)[23][0], Pairs(whole)[23][0])


OTHERS = [
    ({"seed": 4}, "seed=4, there 3"),
    ({"batch": 9}, "batch=9, there 8"),
    ({"steps": 9}, "times="),
    ({"sampler": "ddim"}, r"sampler='ddim\(eta=0.0\)', there \"dpm-solver"),
    ({"dtype": torch.float64}, "dtype='float64', there 'float32'"),
    ({"shape": (1, 2)}, r"shape=\[1, 2\], there \[2\]"),
    ({"model": sf.GaussianMixture(torch.ones(1), torch.zeros(1, 2), 0.3).model(VP)}, "weights='.*', there"),
    ({"model": MIXTURE.model(FLOW)}, r"path='Flow\(\)', there 'VPSDE"),
]


@pytest.mark.parametrize(("changes", "says"), OTHERS, ids=[next(iter(changes)) for changes, _ in OTHERS])
def test_a_folder_with_other_pairs(whole, changes, says):
    """What differs is named, and nothing is written."""
    before = content(whole)
    asked = {"model": MIXTURE.model(VP), "shape": (2,), "n": 8, "out": whole, **MADE, **changes}
    with pytest.raises(ValueError, match=f"holds other pairs: .*{says}.*Give another out"):
        pairs(**asked)
    assert content(whole) == before


def test_folders_refused(whole, tmp_path):
    """No folder, no manifest, no shard, one that is missing, cut short, renamed or of others."""
    for place, error, says in [
        (tmp_path / "none", FileNotFoundError, "no pairs at .*none"),
        (tmp_path, ValueError, "holds no pairs: there is no pairs.json"),
        (whole / "pairs.json", NotADirectoryError, "pairs.json is a file"),
    ]:
        with pytest.raises(error, match=says):
            Pairs(place)
    with pytest.raises(NotADirectoryError, match="is a file: give a folder"):
        made(whole / "pairs.json")
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    one = broken / "pairs-00000016-00000024.safetensors"
    data = one.read_bytes()
    one.unlink()
    with pytest.raises(ValueError, match="lacks the pairs from 16 to 23: make them again"):
        Pairs(broken)
    made(broken)
    assert one.read_bytes() == data and len(Pairs(broken)) == 200
    one.write_bytes(data[: len(data) // 2])
    assert Pairs(broken)[15][0].shape == (2,)
    for read in (lambda: Pairs(broken)[16], lambda: made(broken)):
        with pytest.raises(ValueError, match=r"00000016-00000024.safetensors is not a whole shard of pairs"):
            read()
    pairs(MIXTURE.model(VP), (2,), 24, tmp_path / "other", **MADE | {"seed": 4})
    shutil.copy(tmp_path / "other" / one.name, one)
    for read in (lambda: Pairs(broken)[16], lambda: made(broken)):
        with pytest.raises(ValueError, match=r"holds other pairs than pairs.json beside it says"):
            read()
    one.unlink()
    for file in broken.glob("pairs-*"):
        if file.name > "pairs-00000024":
            file.unlink()
    shutil.copy(whole / "pairs-00000008-00000016.safetensors", one)
    (broken / "pairs-00000008-00000016.safetensors").rename(broken / "pairs-00000008-00000024.safetensors")
    with pytest.raises(ValueError, match="holds 8 pairs, and its name says 16"):
        Pairs(broken)[8]
    (broken / "pairs.json").write_text("{}")
    with pytest.raises(ValueError, match="has format None, and this version reads 1"):
        Pairs(broken)
    (broken / "pairs.json").write_text("{")
    with pytest.raises(ValueError, match="is no manifest of pairs"):
        Pairs(broken)
    (broken / "pairs.json").unlink()
    with pytest.raises(ValueError, match=r"holds shards of pairs, and no pairs.json"):
        made(broken)
    shutil.copy(whole / "pairs.json", tmp_path)
    with pytest.raises(ValueError, match=r"holds no pairs yet: pairs.json is there"):
        Pairs(tmp_path)


def classed():
    torch.manual_seed(0)
    return sf.ScoreModel(Classed(), VP)


def test_guidance_and_conditions(tmp_path):
    """Rows, a row for all, a function of the numbers: each is kept with the pairs, and is what the model was told."""
    guided, y = sf.ClassifierFree(classed(), 3.0, null={"y": 0.0}), torch.arange(30.0)

    def told(numbers, seed):
        return numbers * 2.0 + seed

    for name, given, rows in [
        ("rows", y, y[:20]),
        ("each", sf.each(y[:20]), y[:20]),
        ("number", 3.0, torch.full((20,), 3.0)),
        ("one", torch.tensor([3.0]), torch.full((20,), 3.0)),
        ("function", told, told(torch.arange(20), 5)),
    ]:
        asked = {"sampler": "ddim", "steps": 4, "batch": 8, "seed": 5}
        found = pairs(guided, (2,), 20, tmp_path / name, y=given, **asked)
        assert found.conditions == ("y",) and torch.equal(found.condition("y"), rows)
        x_0, kept = next(iter(DataLoader(found, 20)))
        assert torch.equal(kept["y"], rows) and found.manifest["conditions"] == {"y": ["float32", []]}
        x = sf.solve(guided, kept["eps"] * VP.prior_std(1.0), "ddim", steps=4, y=rows).x
        torch.testing.assert_close(x_0, x, rtol=1e-5, atol=1e-6)
        plain = sf.solve(classed(), kept["eps"] * VP.prior_std(1.0), "ddim", steps=4, y=rows).x
        assert name == "each" or (x - plain).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"model=.*scale=2.0.*, there .*scale=3.0"):
        pairs(sf.ClassifierFree(classed(), 2.0, null={"y": 0.0}), (2,), 20, tmp_path / "rows", y=y, **asked)
    with pytest.raises(ValueError, match="condition 'y' is another than that of the pairs 8 to 15"):
        pairs(guided, (2,), 20, tmp_path / "rows", y=y + (torch.arange(30) == 9), **asked)
    assert len(pairs(guided, (2,), 30, tmp_path / "rows", conditions={"y": torch.cat([y, y])}, **asked)) == 30
    fewer = pairs(guided, (2,), 10, tmp_path / "rows", conditions={"y": y[:10]}, **asked)
    assert len(fewer) == 30  # of the file that goes further, the rows that are given are looked at
    with pytest.raises(KeyError, match="no condition 'z': the pairs have y"):
        found.condition("z")


def posterior(method):
    data = sf.Gaussian(torch.zeros(2), 1.0)
    return sf.Posterior(data.model(VP), sf.Observation(torch.eye(2, dtype=torch.float64)[:1], torch.ones(1), 0.1), method)


@pytest.mark.parametrize("kind", ["pigdm", "dps", "ve"])
def test_other_models(kind, tmp_path):
    """Posteriors by methods that draw nothing, and a path whose prior is wide."""
    model = sf.Gaussian(torch.zeros(2), 1.0).model(sf.VESDE()) if kind == "ve" else posterior(kind)
    found = pairs(model, (2,), 5, tmp_path, "ddim", steps=4, start=0.9, dtype=torch.float64)
    eps = torch.stack([told["eps"] for _, told in found])
    x = sf.solve(model, eps * model.path.prior_std(0.9), "ddim", steps=4, start=0.9).x
    torch.testing.assert_close(torch.stack([x_0 for x_0, _ in found]), x)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"sampler": "ddpm"}, ValueError, r"ddpm\(.*\) draws noise on its way, and x_0 must be a function of ε"),
        ({"sampler": "ddim", "eta": 0.5}, ValueError, "draws noise on its way"),
        ({"sampler": "sra", "steps": None}, ValueError, "draws noise on its way"),
        ({"sampler": "ddimm"}, ValueError, "no sampler is called 'ddimm'"),
        ({"model": posterior("replacement"), "start": 0.9}, ValueError, "the model draws noise of its own in a run"),
        ({"shape": 2}, TypeError, "shape must be a sequence of whole numbers, that of one sample, got 2"),
        ({"n": 0}, ValueError, "n must be a whole number ≥ 1, got 0"),
        ({"batch": 0}, ValueError, "batch must be a whole number ≥ 1, got 0"),
        ({"seed": -1}, ValueError, "seed must be a whole number ≥ 0, got -1"),
        ({"dtype": torch.int64}, TypeError, "dtype must be a floating-point torch.dtype, got torch.int64"),
        ({"z": 3}, TypeError, "'z' is neither an argument"),
        ({"y": torch.zeros(5)}, ValueError, r"condition 'y' has 5 rows for n=9 pairs: give one a pair, or one row for all"),
        ({"y": "a cat"}, TypeError, "condition 'y' must be a number, a tensor or a function .*, got str: .* texts as what"),
        ({"y": sf.shared(torch.zeros(9))}, ValueError, "condition 'y' belongs to all pairs alike"),
        ({"y": lambda numbers, seed: 3}, ValueError, "condition 'y' must give a tensor with a row for each of 1 .*, got int"),
        ({"model": MIXTURE}, TypeError, "model must be a ScoreModel"),
    ],
)  # fmt: skip
def test_calls_refused(tmp_path, changes, error, says):
    """Before anything is written."""
    asked = {"model": classed(), "shape": (2,), "n": 9, "out": tmp_path / "new", "sampler": "ddim", "steps": 2, **changes}
    with pytest.raises(error, match=says):
        pairs(**asked)
    assert not (tmp_path / "new").exists()


def test_a_condition_called_eps(tmp_path):
    def net(x, t, eps):
        return x

    with pytest.raises(ValueError, match="the condition 'eps' would be taken for the noise of the pairs"):
        pairs(sf.ScoreModel(net, VP), (2,), 4, tmp_path, "ddim", steps=2, conditions={"eps": 1.0})


def test_workers_read_them(whole):
    """In a DataLoader with two processes, and after pickling, opened or not."""
    found = Pairs(whole)
    found[3]
    alone = list(DataLoader(found, 64))
    for copy in (found, pickle.loads(pickle.dumps(found))):
        for one, other in zip(DataLoader(copy, 64, num_workers=2), alone, strict=True):
            assert torch.equal(one[0], other[0]) and torch.equal(one[1]["eps"], other[1]["eps"])


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
    objective, recipe = Objective("flow", "stratified", pairs=True), Recipe(steps=250, batch=128, rate=5e-3)
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


if __name__ == "__main__":
    torch.set_num_threads(1)
    made(sys.argv[1])
