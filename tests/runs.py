"""What the tests of runs share: one oracle on several paths, and every sampler by case."""

from itertools import pairwise

import torch
from problems import LINEAR, PATHS, linear, mixture, states
from torch import nn

import scoreflow as sf
from scoreflow._run.schedule import Schedule
from scoreflow._run.walk import Run

RATE = 1e-6
ORACLE = mixture()
VP = ORACLE.model(PATHS["vp"])
CHAIN = ORACLE.model(PATHS["chain"])
ON = {"vp": VP, "chain": CHAIN, "sub-vp": ORACLE.model(PATHS["sub-vp"]), "ve": ORACLE.model(PATHS["ve"])}
X = states(4, 3)

# Made with learned variances, Langevin, states remembered, torchdiffeq, SciPy and torchsde: steps that are not rows.
OTHERS = {
    "bdia-ddim": {},
    "dpm-adaptive": {},
    "gotta-go-fast": {},
    "edict": {},
    "predictor-corrector": {},
    "predictor-corrector bridge": {"corrector": "bridge"},
    "torchdiffeq": {},
    "torchdiffeq rk4": {"method": "rk4"},
    "torchdiffeq sample": {"control": "sample"},
    "scipy": {},
    "scipy sample": {"control": "sample"},
    "torchsde": {},
    "torchsde srk": {"method": "srk"},
}
ALL = [*LINEAR, *OTHERS]


def sampler(case: str) -> sf.Sampler:
    return linear(case) if case in LINEAR else sf.get_sampler(case.split()[0], **OTHERS[case])


def by_hand(model, chosen, times, x, noise):
    """The loop, written out: the last state, and how often the network was asked."""
    run, memory = Run(model, {}, len(x)), ()
    for t, s in pairwise(times):
        x, memory, _ = chosen.step(run, x, t, s, memory, noise)
    return x, int(run.counts.max())


class Toy(nn.Module):
    """A small nonlinear network of any shape, with one parameter."""

    def __init__(self, dtype=torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7, dtype=dtype))

    def forward(self, x, t):
        return torch.tanh(x * self.weight) * t.reshape(-1, *[1] * (x.ndim - 1)).to(x)


def schedule(sampler, path, *asked, per_call=None, labels=False, **more):
    """The times that were asked for."""
    return Schedule(*asked, **more).times(sampler, path, per_call, labels)
