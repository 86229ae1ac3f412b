"""What a step costs beside its network, in operations: how many, that none waits for a device, and what a plan takes to lay."""

import itertools
import math

import pytest
import torch
from pretend import DEVICE, Elsewhere, Made
from problems import PATHS, states
from torch.utils._python_dispatch import TorchDispatchMode

import scoreflow as sf
from scoreflow._run import walk as walk_module
from scoreflow._run.walk import Run, walk

BETAS = sf.DDPMChain.linear().beta
WAITS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique", "_unique2"}
"""Operations that need the numbers on the host."""


class Seen(TorchDispatchMode):
    """The names of all operations."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


class Watched(TorchDispatchMode):
    """The operations that wait for a pretended device, or bring numbers to it or from it."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), func.overloadpacket.__name__
        given = [one for one in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        there = [isinstance(one, Elsewhere) for one in given]
        onto = kwargs.get("device")
        moves = (onto is not None and given and (torch.device(onto) == DEVICE) != all(there)) or 0 < sum(there) < len(there)
        if (name in WAITS and any(there)) or moves:
            self.waits.append(name)
        if name == "full" and onto is not None and torch.device(onto) == DEVICE:
            return Elsewhere(func(*args, **{**kwargs, "device": "cpu"}))
        return func(*args, **kwargs)


def there(monkeypatch):
    """What is elsewhere can be looked at, and its draws are 0."""
    monkeypatch.setattr(walk_module, "hidden", lambda value: False)
    monkeypatch.setattr(sf.White, "normal", lambda source, like, *key: torch.zeros_like(like))


def host(output):
    return sf.ScoreModel(lambda x, t: output, PATHS["chain"], time="index")


@pytest.mark.parametrize(("name", "most"), [("ddim", 3), ("ddpm", 6), ("dpm-solver++", 6), ("unipc", 12)])
def test_operations_of_a_step(name, most):
    """A label, and what the rows and conversions take; a generator's draw is two. All of it grows with the steps alone."""
    x, counts = torch.randn(8, 16), []
    for steps in (16, 32):
        with torch.no_grad():
            sf.solve(host(x), x, name, steps=steps, grid="uniform", seed=0)  # its plan is laid, and its numbers are known
            with Seen() as seen:
                sf.solve(host(x), x, name, steps=steps, grid="uniform", seed=0)
        counts.append(len([one for one in seen.names if one != "detach"]))
    # In eight steps the state is looked at once, a sum and its number.
    assert (counts[1] - counts[0]) / 16 <= most + 2 / 8


SAMPLERS = ("ddim", "ddpm", "dpm-solver++", "unipc", "pf-ode", "sde-dpm-solver++-2m", "sra", "edm-churn", "seeds", "restart")


@pytest.mark.parametrize("time", ["unit", "index", "log-snr", ("scaled", 1000.0)])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run_waits_for_nothing(name, time, monkeypatch):
    """Of what is elsewhere no number is asked for, and none is sent there, from the first step of a first run to the last
    state; after it there is one look."""
    there(monkeypatch)
    path = sf.VPSDE.from_betas(BETAS)
    plan = sf.plan(name, path, 9, start=0.9, grid="uniform")
    model = sf.ScoreModel(lambda x, t: 0.3 * x * t.reshape(-1, 1).cos(), path, time=time)
    x = Elsewhere(states(2, 3, dtype=torch.float32))
    with torch.no_grad(), Made(), Watched() as watched:
        walked = walk(Run(model, {}, 2), plan, plan.times, x, sf.White(0).draws())
        last = [next(walked) for _ in plan.times][-1]
        assert last.t == plan.times[-1] and not watched.waits
        assert next(walked, None) is None and watched.waits in ([], ["_to_copy"])
    assert isinstance(last.x, Elsewhere)


def test_what_is_not_finite_elsewhere_is_found_and_placed(monkeypatch):
    """At the end, once: a second pass looks at every step."""
    there(monkeypatch)
    plan, calls = sf.plan("ddim", sf.VPSDE(), 12, grid="uniform"), []

    def net(x, t):
        calls.append(len(calls))
        return x * (math.nan if len(calls) in (4, 16) else 0.1)

    run = Run(sf.ScoreModel(net, sf.VPSDE()), {}, 2)
    with torch.no_grad(), Made(), Watched():
        walked = walk(run, plan, plan.times, Elsewhere(states(2, 3, dtype=torch.float32)), sf.White(0).draws())
        assert [state.step for state in itertools.islice(walked, 13)] == list(range(13))
        with pytest.raises(FloatingPointError, match=r"the network's output at t=0.75 is not finite, in step 4 \(t=0.75 → "):
            next(walked)
    assert len(calls) == 24


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run_on_cuda_waits_for_nothing(name):
    plan = sf.plan(name, PATHS["chain"], 9, start=0.9, grid="uniform")
    x = torch.randn(2, 3, device="cuda")
    model = sf.ScoreModel(lambda x, t: 0.3 * x * t.reshape(-1, 1).cos(), PATHS["chain"], time="index")
    walked = walk(Run(model, {}, 2), plan, plan.times, x, sf.White(0).draws())
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in plan.times:
            next(walked)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm-solver++", "unipc", "dpm-solver-2", "ipndm", "auto"])
def test_a_plan_is_laid_by_numbers(name):
    """On a path that was never used the steps take no operations of torch: only the grid and a few ends do."""
    counts = []
    for steps in (10, 40):
        path, asked = sf.VPSDE.from_betas(BETAS), {"nfe" if name == "auto" else "steps": steps}
        with Seen() as seen:
            sf.plan(name, path, **asked)
        counts.append(len(seen.names))
    assert abs(counts[1] - counts[0]) < 60 and max(counts) < 600, counts
