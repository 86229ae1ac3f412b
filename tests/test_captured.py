"""A run as one graph, on a graph of ours that plays again the operations that it saw: what is copied, kept, refused."""

import contextlib
import copy
import math

import pytest
import torch
from problems import PATHS, states
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import scoreflow as sf
from scoreflow._run import solve as solve_module
from scoreflow._run.captured import KEPT, Captured
from scoreflow._run.walk import FiniteCheck

CHAIN = PATHS["chain"]
HOST = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select"}


class Graph(TorchDispatchMode):
    """Played, each operation reads what its arguments hold by then, and writes to the memory that it had."""

    captures = 0

    def __init__(self):
        super().__init__()
        self.seen = []
        Graph.captures += 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in HOST, f"{func} asks the device for numbers"
        assert "generator" not in (kwargs or {}), "a graph has no seeds"
        out = func(*args, **(kwargs or {}))
        self.seen.append((func, args, kwargs or {}, out))
        return out

    def replay(self):
        for func, args, kwargs, out in self.seen:
            new = func(*args, **kwargs)
            for there, value in zip(*(one if isinstance(one, list | tuple) else [one] for one in (out, new)), strict=True):
                if there.data_ptr() != value.data_ptr():  # not where it is, as in place and as of a view
                    there.copy_(value)


@pytest.fixture(autouse=True)
def pretended(monkeypatch):
    """CUDA's streams and graphs, and a check that puts off its look as on a device."""

    class Stream:
        def __init__(self, device=None):
            self.device = device

        def wait_stream(self, other):
            assert other is not self

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: graph)
    monkeypatch.setattr(FiniteCheck, "look", lambda self, value, what: self.seen.append((value.isfinite().all(), what)))
    Graph.captures = 0


@pytest.fixture
def on_cuda(monkeypatch):
    """States that say they are on such a device."""
    played = solve_module._played

    def say(model, x, *rest):
        class There(torch.Tensor):
            device = torch.device("cuda")

        assert x.device.type == "cpu"
        kept = x.as_subclass(There)
        monkeypatch.setattr(solve_module, "wide", lambda y: y.as_subclass(torch.Tensor))
        return played(model, kept, *rest)

    monkeypatch.setattr(solve_module, "_played", say)


class Net(nn.Module):
    null = {"y": 4}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.embedding = nn.Linear(3, 3), nn.Embedding(5, 3)

    def forward(self, x, t, y=None):
        told = 0 if y is None else self.embedding(y)
        return torch.tanh(self.layer(x) + told) * t.reshape(-1, 1).cos()


@pytest.fixture
def model():
    return sf.ScoreModel(Net().eval(), CHAIN, time="index")


X, Y = states(4, 3, dtype=torch.float32), torch.tensor([0, 1, 2, 3])


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm-solver++", "unipc", "sra", "seeds", "restart"])
def test_a_played_run_is_the_run(name, model, on_cuda):
    """To the bit: other states, seeds and conditions go through the graph of the first call; counts are the same."""
    asked = {"start": 0.9, "steps": 5, "grid": "uniform"}
    for x, seed, y in ((X, 1, Y), (X + 1, 2, Y.flip(0)), (X, 3, Y)):
        before = model.nfe
        sol = sf.solve(model, x, name, capture=True, seed=seed, y=y, **asked)
        spent = model.nfe - before
        own = sf.solve(model, x, name, seed=seed, y=y, **asked)
        assert torch.equal(sol.x, own.x) and sol.nfe == own.nfe and sol.noise_count == own.noise_count
        assert sol.nfe_per_sample == own.nfe_per_sample and spent >= sol.nfe
    assert spent == sol.nfe and Graph.captures == 1


def test_guidance_is_played_too(model, on_cuda):
    guided = sf.ClassifierFree(model, lambda t: 1 + 2 * t, interval=(0.2, 0.8))
    for y in (Y, Y.flip(0)):
        sol = sf.solve(guided, X, "dpm-solver++", steps=4, start=0.9, capture=True, y=y)
        assert torch.equal(sol.x, sf.solve(guided, X, "dpm-solver++", steps=4, start=0.9, y=y).x)
    assert Graph.captures == 1


def test_when_a_graph_is_made_anew(model, on_cuda):
    """Another plan, shape or dtype, conditions of another kind, weights that stand elsewhere; not weights changed in place."""

    def run(x=X, name="ddim", **more):
        sol = sf.solve(model, x, name, steps=3, capture=True, **more)
        assert torch.equal(sol.x, sf.solve(model, x, name, steps=3, **more).x)
        return Graph.captures

    assert [run(), run(X + 1), run(X[:2]), run(name="dpm-solver++"), run(y=Y)] == [1, 1, 2, 3, 4]
    with torch.no_grad():
        model.net.layer.weight.mul_(2)
    assert run(y=Y) == 4
    model.net.layer.weight = nn.Parameter(model.net.layer.weight.detach().clone())
    assert run(y=Y) == 5 and len(model._graphs) == KEPT
    assert not hasattr(copy.deepcopy(model), "_graphs")


def test_what_is_not_finite_is_said(model, on_cuda):
    sf.solve(model, X, "ddim", steps=3, capture=True)
    with torch.no_grad():
        model.net.layer.bias.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="the state, or before; without capture=True the run says where"):
        sf.solve(model, X, "ddim", steps=3, capture=True)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({}, "capture=True needs states on a CUDA device, got cpu"),
        ({"callback": print}, "capture=True plays a run as one graph, which has no callback"),
        ({"trajectory": True}, "which has no trajectory"),
        ({"parallel": 3}, "which has no parallel"),
        ({"grad": True}, "which has no grad"),
        ({"sampler": "dpm-adaptive"}, r"capture=True plays the steps of a plan, and dpm-adaptive\(.*\) is not made of rows"),
    ],
)
def test_refusals(asked, says, model):
    with pytest.raises(ValueError, match=says):
        sf.solve(model, X, **{"sampler": "ddim", "start": 0.9, "capture": True, **asked})
    with pytest.raises(TypeError, match="capture must be True or False, got 1"):
        sf.solve(model, X, "ddim", capture=1)


def test_a_model_that_draws_is_refused(model):
    class Drawing(sf.ScoreModel):
        def drawing(self, draws):
            return sf.ScoreModel(self.net, self.path)

    plan = sf.plan("ddim", CHAIN, 2)
    with pytest.raises(ValueError, match="this model draws noise of its own"):
        Captured(Drawing(model.net, CHAIN), plan, X, {}, lambda x: x)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda(monkeypatch):
    monkeypatch.undo()
    model = sf.ScoreModel(Net().eval().cuda(), CHAIN, time="index")
    for seed, y in ((1, Y.cuda()), (2, Y.flip(0).cuda())):
        runs = [sf.solve(model, X.cuda(), "unipc", steps=6, start=0.9, seed=seed, y=y, capture=c).x for c in (True, False)]
        torch.testing.assert_close(*runs, rtol=1e-5, atol=1e-6)
