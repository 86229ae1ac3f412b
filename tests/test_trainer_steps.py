"""The training loop against one written by hand, and what it must keep: tables, labels, modules of any kind, the state last."""

import copy
import dataclasses
import itertools

import pytest
import torch
from problems import states
from torch import nn

import scoreflow as sf
from scoreflow import checkpoint
from scoreflow.training import LossHistory, Objective, Recipe, train
from scoreflow.training.batches import Batches
from scoreflow.training.show import Show

CHAIN = sf.VPSDE.from_betas(sf.DDPMChain.linear(T=4, beta_min=0.1, beta_max=0.6).beta)
DATA = states(40, 2, dtype=torch.float32)


class Net(nn.Module):
    """A layer, a table of whole numbers, and a running mean as of a batch norm."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 2)
        self.register_buffer("table", torch.arange(10) * 7 + 3)
        self.register_buffer("mean", torch.zeros(2))
        self.told = []

    def forward(self, x, t):
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0).float())
        self.told.append(t)
        return self.layer(x) + self.mean.to(x) * t[:, None].to(x)


def test_the_loop_is_the_one_by_hand():
    """AdamW with its decay, clipped gradients, the rate of every step, importance from the losses seen, the average with its
    buffers and its short memory at first, the held-out loss of the average at stratified times."""
    recipe = Recipe(steps=40, batch=16, rate=0.05, warmup=5, weight_decay=0.5, clip=0.1, ema=0.7, show_every=20)
    objective = Objective(weighting="x0", times="importance")
    hand, lines = Net(), []
    model = sf.ScoreModel(Net(), CHAIN)
    averaged = train(model, DATA, objective, recipe, held_out=DATA[:12], show=lines.append)

    own, history = sf.ScoreModel(hand, CHAIN), LossHistory(4)
    optimizer = torch.optim.AdamW(hand.parameters(), weight_decay=0.5)
    average = None
    for step, places in enumerate(Batches(len(DATA), recipe, 0, (0, 1))):
        x_0 = DATA[places]
        draw = objective.draw(own, x_0, recipe.seed, step, history=history)
        found = objective(own, x_0, draw)
        optimizer.zero_grad()
        found.mean.backward()
        nn.utils.clip_grad_norm_(hand.parameters(), 0.1)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate_at(step)
        optimizer.step()
        history.update(history.sums(found.t, found.each))
        now = {name: value.clone() for name, value in hand.state_dict().items()}
        keep = min(0.7, (1 + step) / (10 + step))
        average = now if average is None else {k: keep * average[k] + (1 - keep) * v for k, v in now.items()}
    assert history.warm
    for name, value in hand.state_dict().items():
        torch.testing.assert_close(model.net.state_dict()[name], value, rtol=1e-5, atol=1e-7)
    assert torch.equal(averaged.net.table, hand.table)
    for name in ("layer.weight", "layer.bias", "mean"):
        torch.testing.assert_close(averaged.net.state_dict()[name], average[name], rtol=1e-5, atol=1e-7)
        assert not torch.equal(average[name], hand.state_dict()[name])
    assert [at.step for at in lines] == [1, 20, 40]
    # The history that is shown is of the plain ε-error, whatever importance goes by.
    assert not torch.allclose(lines[-1].history.state[1], history.state[1], rtol=0.1)


def test_the_held_out_loss_is_the_averages(tmp_path):
    """At stratified times, with nothing dropped, the same draws at every call."""
    objective = Objective(weighting="x0", times="importance")
    averaged = train(
        sf.ScoreModel(Net(), CHAIN), DATA, objective, Recipe(steps=12, batch=8, ema=0.9), held_out=DATA[:12], out=tmp_path
    )
    plain = dataclasses.replace(objective, times="stratified")
    parts = [DATA[:8], DATA[8:12]]
    expected = torch.cat([plain(averaged, x, plain.draw(averaged, x, 1, k)).each for k, x in enumerate(parts)]).mean()
    line = (tmp_path / "log.jsonl").read_text().splitlines()[-1]
    assert float(line.split('"held_out": ')[1].rstrip("}")) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_labels_keep_their_digits(precision):
    """In bfloat16 999 would be 1000, which a table of labels does not have."""
    path = sf.VPSDE.from_betas(sf.DDPMChain.linear().beta)
    net = Net()
    train(sf.ScoreModel(net, path, time="index"), DATA, recipe=Recipe(steps=5, batch=16, precision=precision))
    told = torch.cat(net.told).double()
    assert torch.equal(told, told.round()) and len(told.unique()) > 60 and all(t.dtype.itemsize >= 4 for t in net.told)


def test_a_finished_state_has_its_model(tmp_path, monkeypatch):
    """If the model cannot be written, the state does not say that the run is done: the next call writes it."""

    def full(*_, **__):
        raise OSError(28, "no space left on device")

    recipe = Recipe(steps=4, batch=4, save_every=2)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_model", full)
        with pytest.raises(OSError, match="no space"):
            train(sf.ScoreModel(Net(), CHAIN), DATA, recipe=recipe, out=tmp_path)
    averaged = train(sf.ScoreModel(Net(), CHAIN), DATA, recipe=recipe, out=tmp_path)
    again = checkpoint.load_model(tmp_path, Net(), path=CHAIN)
    assert torch.equal(again.net.layer.weight, averaged.net.layer.weight)


@dataclasses.dataclass
class Config:
    width: int = 2


class Tied(nn.Module):
    """Weights that are shared, and a configuration that is no JSON."""

    def __init__(self):
        super().__init__()
        self.config, self.null = Config(), {"tokens": torch.zeros(2)}
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
        self.b.weight = self.a.weight

    def forward(self, x, t, tokens):
        return self.b(torch.tanh(self.a(x))) + tokens


def double(path, t):
    return 2 + 0 * t


def test_any_module_and_function_is_written_and_gone_on_with(tmp_path):
    """Shared weights, a dataclass as `config`, tensors that mean "none given", a weighting of one's own."""
    items = [(x, {"tokens": torch.ones(2)}) for x in DATA]
    objective = Objective(weighting=double, drop=0.5)
    for steps in (2, 2):
        model = sf.ScoreModel(Tied(), CHAIN)
        train(model, items, objective, Recipe(steps=steps, batch=4, save_every=1), out=tmp_path)
    with pytest.raises(ValueError, match=r"objective.weighting='simple', there 'double'"):
        train(model, items, Objective(drop=0.5), Recipe(steps=2, batch=4), out=tmp_path)


class Flipped(torch.utils.data.Dataset):
    """Ordinary augmentation, from torch's global generator."""

    def __len__(self):
        return len(DATA)

    def __getitem__(self, i):
        return -DATA[i] if torch.rand(()) < 0.5 else DATA[i]


def test_what_a_dataset_draws_is_resumed(tmp_path):
    """A run with random flips that was cut after 3 of 6 steps goes on as if it had not been."""
    recipe = Recipe(steps=6, batch=4, decay="constant", warmup=0, save_every=1)
    train(sf.ScoreModel(Net(), CHAIN), Flipped(), recipe=recipe, out=tmp_path / "whole")

    def cut(at):
        if at.step == 3:
            raise KeyboardInterrupt

    torch.manual_seed(5)
    with pytest.raises(KeyboardInterrupt):
        shown = dataclasses.replace(recipe, show_every=1)
        train(sf.ScoreModel(Net(), CHAIN), Flipped(), recipe=shown, out=tmp_path / "cut", show=cut)
    torch.manual_seed(6)
    train(sf.ScoreModel(Net(), CHAIN), Flipped(), recipe=recipe, out=tmp_path / "cut")
    whole, parts = ((tmp_path / name / "log.jsonl").read_text() for name in ("whole", "cut"))
    assert whole == parts


def test_a_state_of_before_is_gone_on_with(tmp_path):
    """One that has no history of the ε-error begins it."""
    recipe = Recipe(steps=4, batch=4, decay="constant")
    train(sf.ScoreModel(Net(), CHAIN), DATA, recipe=recipe, out=tmp_path)
    tensors, said = checkpoint.read(tmp_path / "state.safetensors")
    del tensors["errors"]
    checkpoint.write(tensors, tmp_path / "state.safetensors", said)
    train(sf.ScoreModel(Net(), CHAIN), DATA, recipe=recipe, out=tmp_path)


def test_the_network_keeps_its_mode():
    for training in (True, False):
        model = sf.ScoreModel(Net().train(training), CHAIN)
        averaged = train(model, DATA, recipe=Recipe(steps=1, batch=4))
        assert model.net.training is training and not averaged.net.training


def test_sheets_have_the_conditions(tmp_path):
    """A network that must be told its class is told it."""

    class Told(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Embedding(10, 2)

        def forward(self, x, t, y):
            return x + self.layer(y)

    shown = Show(tmp_path, (2,), {"y": torch.arange(10)}, shown=4, nfe=2)
    train(sf.ScoreModel(Told(), CHAIN), [(x, 3) for x in DATA], recipe=Recipe(steps=1, batch=4), out=tmp_path, show=shown)
    assert (tmp_path / "samples-000001.png").is_file()


BAD = [
    (dict(data=None), TypeError, "data must be a tensor or a dataset with a length and items, got NoneType"),
    (dict(data=itertools.count()), TypeError, "data must be a tensor or a dataset .* got count"),
    (dict(data=[]), ValueError, "data must hold at least one sample"),
    (dict(data=DATA[:0]), ValueError, "data must hold at least one sample"),
    (dict(held_out=[]), ValueError, "held_out must hold at least one sample"),
    (dict(data=DATA.to(torch.uint8)), TypeError, "data must give floating-point states, got torch.uint8"),
    (dict(objective="simple"), TypeError, r"objective must be of Objective\(...\), got 'simple'"),
    (dict(recipe=10), TypeError, r"recipe must be of Recipe\(...\), got 10"),
    (
        dict(model=sf.ScoreModel(Net(), CHAIN, time="label"), objective=Objective(times="log-normal")),
        ValueError,
        "times='log-normal' lie between the nodes, and time='label' looks nodes up",
    ),
]


@pytest.mark.parametrize(("change", "kind", "says"), BAD)
def test_refusals(change, kind, says):
    given = {"model": sf.ScoreModel(Net(), CHAIN), "data": DATA, "recipe": Recipe(steps=1, batch=4), **copy.copy(change)}
    with pytest.raises(kind, match=says):
        train(**given)
