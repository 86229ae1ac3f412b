"""Networks inside others on disk: written and read under the names of the network inside, whatever is around it."""

import json

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import scoreflow as sf
from scoreflow import checkpoint
from scoreflow._score.fingerprint import fingerprint
from scoreflow.training import Recipe, train

WRAPPED = {
    "compiled": lambda net: torch.compile(net, backend="eager"),
    "spread": nn.DataParallel,
    "compiled and spread": lambda net: nn.DataParallel(torch.compile(net, backend="eager")),
    "averaged": AveragedModel,
}
around = pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)


def mlp(seed=0):
    torch.manual_seed(seed)
    net = sf.nets.MLP(2, width=8)
    for p in net.parameters():
        nn.init.normal_(p)
    return net


class Holder(nn.Module):
    """Holds a wrapped network under a name of its own, and a part that is called `module`."""

    def __init__(self, wrap, seed=0):
        super().__init__()
        self.inner, self.module = wrap(mlp(seed)), nn.Linear(2, 2)

    def forward(self, x, t):
        return self.module(self.inner(x, t))


def same(one, other):
    x, t = torch.randn(5, 2), torch.rand(5)
    return torch.equal(one.eval()(x, t), other.eval()(x, t))


@around
def test_a_wrapped_network_is_the_one_inside(wrap, tmp_path):
    """The file is byte for byte that of the plain network; it fills plain and wrapped ones."""
    plain, wrapped = tmp_path / "plain.safetensors", tmp_path / "wrapped.safetensors"
    checkpoint.save_model(sf.ScoreModel(mlp(), sf.VPSDE()), plain)
    checkpoint.save_model(sf.ScoreModel(wrap(mlp()), sf.VPSDE()), wrapped)
    (there, said), (here, told) = checkpoint.read(plain), checkpoint.read(wrapped)
    assert said == told and there.keys() == here.keys() and all(torch.equal(there[k], here[k]) for k in there)
    for net in (None, mlp(1), wrap(mlp(1))):
        assert same(sf.load_model(wrapped, net).net, mlp())


@pytest.mark.parametrize("wrap", [WRAPPED["compiled"], WRAPPED["spread"], WRAPPED["compiled and spread"]])
def test_a_wrapped_part_of_a_network(wrap, tmp_path):
    """Names inside are plain too; a part that is called `module` keeps its name."""
    file, held = tmp_path / "m.safetensors", Holder(wrap)
    sf.save_model(sf.ScoreModel(held, sf.VPSDE()), file)
    assert {k.split(".")[0] for k in checkpoint.read(file)[0]} == {"inner", "module"}
    assert set(checkpoint.read(file)[0]) >= {f"inner.{k}" for k in mlp().state_dict()}
    for other in (Holder(lambda net: net, 1), Holder(wrap, 1)):
        assert same(sf.load_model(file, other).net, held)


@around
def test_files_of_before(wrap, tmp_path):
    """Names as wrapped networks give them are read; of a compiled network its class is found by its configuration."""
    file, net = tmp_path / "old.safetensors", wrap(mlp())
    config = json.dumps(getattr(net, "config", None))
    said = {"prediction": "eps", "path": "vp", "time": "unit", "network": type(net).__name__, "config": config}
    checkpoint.write({k: v.clone() for k, v in net.state_dict().items()}, file, said)
    assert same(sf.load_model(file, mlp(1)).net, mlp())
    if type(net).__name__ == "OptimizedModule":
        assert same(sf.load_model(file).net, mlp())


def test_a_compiled_network_goes_on_as_a_plain_one(tmp_path):
    """A run that began compiled goes on plain, and back: its weights are those of a run that was never either."""
    data = torch.randn(32, 2)
    compiled = WRAPPED["compiled"]

    def state(out, *nets):
        for steps, net in zip((4, 8), nets, strict=True):
            recipe = Recipe(steps=8, batch=8, decay="constant", save_every=4)
            show = (lambda at: stop(at, 4)) if steps == 4 else None
            try:
                train(sf.ScoreModel(net, sf.VPSDE()), data, None, recipe, out=out, show=show)
            except KeyboardInterrupt:
                pass
        return checkpoint.read(out / "state.safetensors")[0]

    def stop(at, step):
        if at.step >= step:
            raise KeyboardInterrupt

    there = state(tmp_path / "plain", mlp(), mlp())
    for name, nets in (("one", (compiled(mlp()), mlp())), ("two", (mlp(), compiled(mlp())))):
        here = state(tmp_path / name, *nets)
        assert here.keys() == there.keys()
        for k in there:
            torch.testing.assert_close(here[k], there[k])


def test_an_autoencoder_that_is_spread():
    """`DataParallel` hides encode and decode."""
    net = sf.nets.Autoencoder(1, 2, (8,))
    x = torch.randn(2, 1, 4, 4)
    spread = sf.latent.Latent(sf.ScoreModel(mlp(), sf.VPSDE()), nn.DataParallel(net))
    assert torch.equal(spread.encode(x), sf.latent.Latent(spread.model, net).encode(x))


@around
def test_a_study_finds_what_the_network_inside_gave(wrap):
    plain, wrapped = (fingerprint(sf.ScoreModel(net, sf.VPSDE())) for net in (mlp(), wrap(mlp())))
    assert plain == wrapped != fingerprint(sf.ScoreModel(wrap(mlp(1)), sf.VPSDE()))
