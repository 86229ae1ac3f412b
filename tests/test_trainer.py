"""The training loop: cut and resumed, in two processes, refused; what it writes and what it learns."""

import json
import os
import random
import time

import numpy as np
import pytest
import torch
import trained
from forked import FORKED
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import scoreflow as sf
from scoreflow import checkpoint
from scoreflow.training import Objective, Recipe, train
from scoreflow.training.trainer import Batches

STEPS = 24


def log(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def weights(out):
    return checkpoint.read(out / "state.safetensors")[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run without a break, with dropout."""
    out = tmp_path_factory.mktemp("whole")
    trained.main(out, STEPS, 8, 0.1)
    return out


def test_killed_and_resumed(whole, tmp_path):
    """Kill −9 at a random moment, then run again: losses, held-out losses and weights are those without a break.

    What is run again is another process: draws depend on nothing but seed and step.
    """
    chance = random.Random(0)
    process = FORKED.Process(target=trained.main, args=(tmp_path, STEPS, 8, 0.1))
    process.start()
    least = chance.randint(5, 12)
    while process.is_alive() and len(log_or_none(tmp_path)) < least:
        time.sleep(0.01)
    time.sleep(chance.random() * 0.1)
    process.kill()
    process.join()
    assert 0 < len(log_or_none(tmp_path)) < STEPS
    trained.main(tmp_path, STEPS, 8, 0.1)
    assert log(tmp_path) == log(whole)
    there, here = weights(whole), weights(tmp_path)
    assert there.keys() == here.keys() and all(torch.equal(there[k], here[k]) for k in there)


def log_or_none(out):
    try:
        return [line for line in (out / "log.jsonl").read_text().splitlines() if line.endswith("}")]
    except FileNotFoundError:
        return []


def test_two_processes_are_one_with_the_doubled_batch(tmp_path):
    """Under torchrun's agent (gloo), two processes with 8 samples each come to the weights of one with 16."""
    # In float64: Adam divides gradients that are 0 but for rounding by their own size.
    trained.main(tmp_path / "one", 10, 16, precision="64-true")
    config = LaunchConfig(1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method="forkserver")
    elastic_launch(config, trained.main)(tmp_path / "two", 10, 16, 0.0, "64-true")
    for one, two in zip(log(tmp_path / "one"), log(tmp_path / "two"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-6) and two["rate"] == one["rate"]
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, value in one.items():
        if name.startswith(("net.", "average.module.")):
            torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-6)


def test_what_a_run_writes(whole):
    """A log of every step, the configuration, and a model that runs."""
    lines = log(whole)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines if "held_out" in line] == [1, 10, 20, 24]
    config = json.loads((whole / "config.json").read_text())
    assert config["recipe"]["batch"] == 8 and config["model"]["network"] == "UNet" and config["objective"]["drop"] == 0.2
    model = checkpoint.load_model(whole)
    average = {k.removeprefix("average.module."): v for k, v in weights(whole).items() if k.startswith("average.module.")}
    assert all(torch.equal(v, average[k]) for k, v in model.net.state_dict().items())
    assert model.time == "index" and model.path.T == 1000 and not model.net.training
    x = sf.sample(model, (2, 1, 8, 8), "ddim", steps=2, seed=0, y=torch.tensor([1, 2]))
    assert bool(x.isfinite().all())


def linear_model():
    net = torch.nn.Linear(2, 2)
    return sf.ScoreModel(Wrapped(net), sf.VPSDE())


class Wrapped(torch.nn.Module):
    """A linear network that is not told the time."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, t):
        return self.inner(x)


def test_another_run_in_the_folder(tmp_path):
    """A folder with a run of another recipe is not gone on with; what differs is said. Bookkeeping may change."""
    data = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    train(linear_model(), data, Objective(), Recipe(steps=3, batch=4), out=tmp_path)
    with pytest.raises(
        ValueError, match=r"holds another run: objective.times='stratified', there 'uniform'; recipe.batch=5, there 4"
    ):
        train(linear_model(), data, Objective(times="stratified"), Recipe(steps=3, batch=5), out=tmp_path)
    train(linear_model(), data, Objective(), Recipe(steps=3, batch=4, save_every=1, shown=3), out=tmp_path)
    assert len(log(tmp_path)) == 3
    (tmp_path / "state.safetensors").unlink()
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"model.safetensors is there, and no state to go on from"):
        train(linear_model(), data, Objective(), Recipe(steps=3, batch=4), out=tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_run_goes_on_with_numbers_of_numpy(tmp_path):
    """They mean what Python's mean, in an objective as in a recipe."""
    data = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))

    def objective(number):
        return Objective(weighting="min-snr", weighting_options={"gamma": number(5)}, drop=number(0))

    train(linear_model(), data, objective(int), Recipe(steps=2, batch=4), out=tmp_path)
    train(linear_model(), data, objective(np.float32), Recipe(steps=np.int64(2), batch=4), out=tmp_path)
    assert len(log(tmp_path)) == 2


def test_any_data(tmp_path):
    """Tensors, (x, class) and (x, {name: value}) train; in memory nothing is written; the average is what comes back."""
    data = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    model = linear_model()
    before = model.net.inner.weight.detach().clone()
    seen = []
    averaged = train(model, data, recipe=Recipe(steps=5, batch=4, ema=0.5, show_every=2), show=seen.append)
    assert [at.step for at in seen] == [1, 2, 4, 5] and seen[-1].model is averaged
    assert not torch.equal(model.net.inner.weight, before) and not torch.equal(
        averaged.net.inner.weight, model.net.inner.weight
    )

    class Told(Wrapped):
        def forward(self, x, t, tokens):
            return self.inner(x) + tokens.sum(1)

    items = [(x, {"tokens": torch.zeros(3, 2)}) for x in data]
    train(sf.ScoreModel(Told(torch.nn.Linear(2, 2)), sf.VPSDE()), items, recipe=Recipe(steps=2, batch=4))
    with pytest.raises(TypeError, match="an item of the dataset must be"):
        train(model, [(x, x, x) for x in data], recipe=Recipe(steps=1, batch=4))


def test_it_learns():
    """On N(0, 0.04 I) the loss comes down to what is left: half of it is gone, and samples have the data's spread."""
    data = 0.2 * torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))

    class Gain(torch.nn.Module):
        """`ε̂ = x σ/(α² v + σ²)` with v to be learned."""

        def __init__(self, path):
            super().__init__()
            self.path, self.log_v = path, torch.nn.Parameter(torch.zeros(()))

        def forward(self, x, t):
            alpha, sigma = self.path.alpha(t)[:, None], self.path.sigma(t)[:, None]
            return x * sigma / (alpha**2 * self.log_v.exp() + sigma**2)

    path = sf.VPSDE()
    recipe = Recipe(steps=400, batch=64, rate=0.05, warmup=0, ema=0.95, weight_decay=0.0)
    averaged = train(sf.ScoreModel(Gain(path), path), data, Objective(), recipe)
    assert averaged.net.log_v.exp().item() == pytest.approx(0.04, rel=0.1)


def test_a_loss_that_is_not_finite():
    data = torch.full((8, 2), float("nan"))
    with pytest.raises(FloatingPointError, match="the loss of step 1 is not finite"):
        train(linear_model(), data, recipe=Recipe(steps=2, batch=4))


def test_batches_go_through_the_data_in_new_orders():
    """Every sample once an epoch, across the seams; a later start or more processes give the same numbers."""
    recipe = Recipe(steps=10, batch=6)
    whole = list(Batches(15, recipe, 0, (0, 1)))
    flat = [i for batch in whole for i in batch]
    assert len(flat) == 60
    for epoch in range(4):
        assert sorted(flat[epoch * 15 : (epoch + 1) * 15]) == list(range(15))
    assert flat[:15] != flat[15:30]
    assert list(Batches(15, recipe, 4, (0, 1))) == whole[4:]
    halves = [list(Batches(15, recipe, 0, (which, 2))) for which in range(2)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole


def test_the_rate():
    """Rises over the warm-up, falls to 0 by cosine or line."""
    recipe = Recipe(steps=100, warmup=10, rate=1.0)
    assert recipe.rate_at(0) == 0.1 and recipe.rate_at(50) == pytest.approx(0.5) and recipe.rate_at(99) < 1e-3
    assert Recipe(steps=100, warmup=0, rate=1.0, decay="linear").rate_at(75) == 0.25
    assert Recipe(steps=100, warmup=0, rate=1.0, decay="constant").rate_at(99) == 1.0


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("steps", 0, "steps must be a whole number ≥ 1, got 0"),
        ("rate", 0.0, "rate must be a finite number > 0"),
        ("ema", 1.5, "ema must be a finite number ≥ 0 and ≤ 1"),
        ("decay", "step", "decay must be one of cosine, linear, constant"),
        ("clip", -1.0, "clip must be"),
    ],
)
def test_recipes_refused(name, value, says):
    with pytest.raises(ValueError, match=says):
        Recipe(**{name: value})


def test_models_refused():
    with pytest.raises(TypeError, match="model must be a ScoreModel of a torch module"):
        train(sf.ScoreModel(lambda x, t: x, sf.VPSDE()), torch.zeros(4, 2))


def test_a_write_is_whole_or_not_at_all(tmp_path, monkeypatch):
    """A write that breaks off leaves the file of before."""
    file = tmp_path / "a.safetensors"
    checkpoint.write({"w": torch.ones(2)}, file, {"step": "1"})
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        checkpoint.write({"w": torch.zeros(2)}, file, {"step": "2"})
    tensors, metadata = checkpoint.read(file)
    assert tensors["w"].tolist() == [1, 1] and metadata["step"] == "1"


def test_models_without_names(tmp_path):
    """A path, a time or a network that a file cannot name is asked for."""
    file = tmp_path / "m.safetensors"
    checkpoint.save_model(sf.ScoreModel(sf.nets.UNet(widths=(8,)), sf.VPSDE(0.2, 5.0), "v", lambda t: t), file)
    with pytest.raises(ValueError, match=r"trained on VPSDE\(.*which has no name; give path="):
        checkpoint.load_model(file)
    with pytest.raises(ValueError, match="a function of its own for the time; give time="):
        checkpoint.load_model(file, path=sf.VPSDE(0.2, 5.0))
    model = checkpoint.load_model(file, path=sf.VPSDE(0.2, 5.0), time=lambda t: t, dtype=torch.float64)
    assert model.prediction == "v" and model.dtype is torch.float64
    net = linear_model()
    checkpoint.save_model(net, file)
    with pytest.raises(ValueError, match="names the network 'Wrapped'; known are"):
        checkpoint.load_model(file)
    assert checkpoint.load_model(file, Wrapped(torch.nn.Linear(2, 2))).path.T is None
    checkpoint.save(net.net, file)
    with pytest.raises(ValueError, match="holds a network alone"):
        checkpoint.load_model(file)
