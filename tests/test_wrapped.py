"""Networks inside others: compiled, in parallel, of another library, in a module of one's own."""

import pytest
import torch
from problems import states
from torch import nn

import scoreflow as sf
from scoreflow._score.network import attribute, trains, unwrapped

VP, X, Y = sf.VPSDE(), states(4, 3, dtype=torch.float32), torch.tensor([0, 1, 2, 1])


class Net(nn.Module):
    def __init__(self, null=None):
        super().__init__()
        self.layer, self.drop, self.seen = nn.Linear(3, 3), nn.Dropout(0.0), []
        if null is not None:
            self.null = null

    def forward(self, x, t, y=None):
        self.seen.append(len(x))
        return self.drop(self.layer(x)) * (1 + y[:, None])


class Own(nn.Module):
    """A module of a user's, that has another called `module` and does more than to hand on."""

    def __init__(self, net):
        super().__init__()
        self.module, self.null = net, {"y": 7}

    def forward(self, x, t, **conditions):
        return 2 * self.module(x, t, **conditions)


class Out(nn.Module):
    """A network of diffusers, told its classes by another name."""

    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, sample, timestep, class_labels=None):
        return type("Output", (), {"sample": self.net(sample, timestep, class_labels)})()


def compiled(net):
    return torch.compile(net, backend="eager")


WRAPPED = {
    "bare": lambda net: net,
    "parallel": nn.DataParallel,
    "averaged": torch.optim.swa_utils.AveragedModel,
    "compiled": compiled,  # not called, so that nothing is compiled; torch takes seconds to load what compiles
    "compiled, in parallel": lambda net: nn.DataParallel(compiled(net)),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_wrappers_are_seen_through(kind):
    """What the network says of itself, takes and is made of; evaluation mode, whatever the wrapper says."""
    net = Net({"y": 3}).eval()
    wrapped = WRAPPED[kind](net)
    assert attribute(wrapped, "null") == {"y": 3} and attribute(wrapped, "config") is None
    inner = unwrapped(wrapped)
    assert type(inner) is Net and (inner is net or kind == "averaged")
    model = sf.ScoreModel(wrapped, VP)
    assert model.accepts("y") and not model.accepts("yy")
    assert (model.dtype, model.device) == (torch.float32, torch.device("cpu"))
    assert not trains(wrapped) and trains(wrapped.train()) and not trains(wrapped.eval())
    net.drop.train()
    assert trains(wrapped) or kind == "averaged"
    net.eval()
    guided = sf.ClassifierFree(model, 2.0)
    assert guided.null == {"y": 3}
    assert sf.training.Objective(drop=0.1).nulls(model) == {"y": 3}
    if "compiled" not in kind:
        inner.seen.clear()
        sf.solve(guided, X, "ddim", steps=2, y=Y)
        assert inner.seen == [8, 8]


def test_what_is_outside_comes_first():
    """A module of one's own is no wrapper, and its null is its own; one that is set on a wrapper is the wrapper's."""
    own = Own(Net({"y": 3}))
    assert unwrapped(own) is own and attribute(own, "null") == {"y": 7}
    assert attribute(nn.DataParallel(own), "null") == {"y": 7}
    wrapped = nn.DataParallel(Net({"y": 3}))
    wrapped.null = {"y": 5}
    assert attribute(wrapped, "null") == {"y": 5} and attribute(lambda x, t: x, "null") is None
    model = sf.ScoreModel(nn.DataParallel(own.eval()), VP)
    torch.testing.assert_close(model(X, 0.5, y=Y), sf.ScoreModel(own, VP)(X, 0.5, y=Y))
    assert not trains(lambda x, t: x) and trains(Net()) and not trains(Own(Net().eval()))


def test_networks_of_diffusers():
    """Mode, dtype, device, parameters and null are those of the network inside, then and later."""
    inner = Out().eval().to(torch.bfloat16)
    inner.null = {"y": 2}
    net = sf.nets.from_diffusers(inner)
    assert not net.training and not trains(net) and net.null == {"y": 2}
    model = sf.ScoreModel(net, VP)
    assert model.dtype is torch.bfloat16 and next(net.parameters()) is inner.net.layer.weight
    sf.solve(sf.ClassifierFree(model, 2.0), X, "ddim", steps=3, y=Y)
    assert inner.net.seen == [8, 8, 8]
    inner.train()
    assert trains(net)
    net.eval()
    assert not inner.training and net.double().net.net.layer.weight.dtype is torch.float64 is model.dtype
    assert sf.nets.from_diffusers(Out().train()).training
    with pytest.raises(TypeError, match="net must be a torch module, got int"):
        sf.nets.from_diffusers(3)
