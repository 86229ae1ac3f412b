"""What is not finite is refused before anything is changed: losses, gradients, weights."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import scoreflow as sf
from scoreflow.training import Objective, Recipe, train, trainer

DATA = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two weights; from the call `at` on the slope of the second is `slope`."""

    def __init__(self, slope=0.0, at=6):
        super().__init__()
        self.good, self.bad = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        self.slope, self.at, self.calls = slope, at, 0

    def forward(self, x, t):
        self.calls += 1
        y = x * self.good + self.bad * 0
        if self.calls == self.at:
            y = y + Sloped.apply(self.bad, self.slope)
        return y


class Sloped(torch.autograd.Function):
    """The value 0, with any slope."""

    @staticmethod
    def forward(ctx, x, slope):
        ctx.slope = slope
        return torch.zeros_like(x)

    @staticmethod
    def backward(ctx, grad):
        return torch.full_like(grad, ctx.slope), None


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("slope", [float("nan"), float("inf"), 1e30], ids=str)
def test_a_gradient_that_is_not_finite(slope, clip, tmp_path):
    """The parameter and the step are named; weights, average and files are those of the step before, and the run goes on from
    there. 1e30 has a norm that float32 does not hold: clipped by it the step would be 0."""
    recipe = Recipe(steps=9, batch=8, save_every=1, clip=clip)
    net = Net(slope)
    with pytest.raises(FloatingPointError, match=r"gradient of bad at step 6 is not finite"):
        train(sf.ScoreModel(net, sf.VPSDE()), DATA, None, recipe, out=tmp_path)
    state = load_file(tmp_path / "state.safetensors")
    for name, value in net.named_parameters():
        assert torch.equal(value, state[f"net.{name}"])
    for file in ("state", "model"):
        assert all(v.isfinite().all() for v in load_file(tmp_path / f"{file}.safetensors").values())
    train(sf.ScoreModel(Net(), sf.VPSDE()), DATA, None, recipe, out=tmp_path)  # the same class without the fault
    whole = Net()
    train(sf.ScoreModel(whole, sf.VPSDE()), DATA, None, recipe)
    assert torch.equal(load_file(tmp_path / "state.safetensors")["net.good"], whole.good)


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    """A step of a finite gradient may throw them out, here by their decay: 3e38 (1 − 1000) is no float32."""
    net = Net()
    net.bad.data.fill_(3e38)
    recipe = Recipe(steps=3, batch=8, save_every=1, rate=1e3, warmup=0, decay="constant", weight_decay=1.0)
    with pytest.raises(FloatingPointError, match=r"the weights bad are not finite after step 1"):
        train(sf.ScoreModel(net, sf.VPSDE()), DATA, None, recipe, out=tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize(("scale", "said"), [(65536.0, "the loss of step 7"), (0.5, "gradient of bad at step 6")])
def test_a_scaler_has_the_first_word(scale, said, monkeypatch):
    """A loss scaled up may overflow: the scaler leaves the step out (not this one). Not scaled up, it is wrong."""
    plain = trainer._fabric

    def scaled(precision):
        fabric = plain(precision)
        fabric.strategy.precision.scaler = SimpleNamespace(get_scale=lambda: scale)
        return fabric

    monkeypatch.setattr(trainer, "_fabric", scaled)
    with pytest.raises(FloatingPointError, match=said):
        train(sf.ScoreModel(Net(float("nan")), sf.VPSDE()), DATA, None, Recipe(steps=9, batch=8))


class NoDouble(torch.overrides.TorchFunctionMode):
    """A device, here `meta`, that has no float64."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else [out]:
            if isinstance(one, torch.Tensor):
                assert one.device.type != "meta" or one.dtype != torch.float64, function
        return out


@pytest.mark.parametrize("weighting", ["simple", "min-snr", "edm"])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_a_device_without_float64(prediction, weighting):
    """Times and weights are made on the host; the device sees the data's dtype."""
    net = sf.nets.MLP(2, width=8).to("meta")
    model, x_0 = sf.ScoreModel(net, sf.VPSDE(), prediction), torch.empty(4, 2, device="meta")
    objective = Objective(weighting=weighting)
    with NoDouble():
        loss = objective(model, x_0, objective.draw(model, x_0, 0))
    assert loss.mean.dtype == torch.float32 and loss.mean.device.type == "meta"
