"""What a run keeps of how states and networks are given: memory format, autocast, compiled networks."""

import pytest
import torch
from problems import PATHS
from torch import nn

import scoreflow as sf

CHAIN = PATHS["chain"]
NAMES = ("ddim", "ddpm", "dpm-solver++", "unipc", "pf-ode", "sra")


class Net(nn.Module):
    """A convolution that is told the time; it notes what it was given."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.seen = nn.Conv2d(3, 3, 1), []

    def forward(self, x, t):
        self.note(x)
        return self.layer(x) * t.reshape(-1, 1, 1, 1).cos()

    def note(self, x):
        self.seen.append((x.dtype, x.is_contiguous(memory_format=torch.channels_last)))


class Plain(Net):
    def note(self, x):
        """Nothing."""


def run(net, x, name="unipc", **keywords):
    model = sf.ScoreModel(net.eval(), CHAIN, time="index")
    return sf.solve(model, x, name, steps=5, start=0.9, grid="uniform", seed=0, **keywords)


X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
def test_channels_last_is_kept(name):
    """By every state, what the network is given and the result, which is that of the usual order."""
    net = Net()
    sol = run(net, X.to(memory_format=torch.channels_last), name, trajectory=True)
    assert sol.x.is_contiguous(memory_format=torch.channels_last) and all(last for _, last in net.seen)
    assert not sol.x.is_contiguous()
    torch.testing.assert_close(sol.x, run(Net(), X, name).x, rtol=1e-5, atol=1e-6)


def test_autocast_is_the_networks_own():
    """Inside it the network's layers take 16 bits; the states are of 32, and nearly those of a run without."""
    taken = []
    net = Net()
    net.layer.register_forward_hook(lambda layer, given, out: taken.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        sol = run(net, X, trajectory=True)
    assert set(taken) == {torch.bfloat16} and sol.x.dtype == sol.states.dtype == torch.float32
    assert {dtype for dtype, _ in net.seen} == {torch.float32}
    torch.testing.assert_close(sol.x, run(Net(), X).x, rtol=0.1, atol=0.1)
    assert not torch.equal(sol.x, run(Net(), X).x)


def test_a_compiled_network_is_compiled_once():
    """Times differ from step to step, and are tensors: one graph for a whole run, and none of ours in it breaks it."""
    from torch._dynamo.testing import CompileCounter

    net, counter = Plain(), CompileCounter()
    compiled = torch.compile(net.eval(), backend=counter, fullgraph=True)
    assert torch.equal(run(compiled, X).x, run(net, X).x) and counter.frame_count == 1


def test_a_call_of_a_model_is_one_graph():
    """Of a ScoreModel whose numbers at this time are known: the network, its label and the conversion."""
    path = sf.VPSDE.from_betas(CHAIN.noise_schedule.betas)  # with few numbers that are known: the compiler looks at all
    model = sf.ScoreModel(Plain().eval(), path, time="index")
    expected = model.x0(X, 0.5)
    whole = torch.compile(lambda x: model.x0(x, 0.5), backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(whole(X), expected)
