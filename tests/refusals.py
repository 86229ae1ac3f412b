"""What the tests of errors share: a network that says 0, and the two front doors."""

import math

import pytest
import torch

import scoreflow as sf

VP, FLOW, COSINE = sf.VPSDE(), sf.Flow(), sf.VPSDE.cosine()
BETAS = sf.DDPMChain.linear().beta
CHAIN = sf.VPSDE.from_betas(BETAS)
X = torch.zeros(2, 3)
NAN, INF = math.nan, math.inf


def zero(x, t):
    return torch.zeros_like(x)


def zero_model(path=VP, prediction="eps", time="unit"):
    return sf.ScoreModel(zero, path, prediction, time)


def run_solve(model, **keywords):
    return sf.solve(model, X, **keywords)


def run_sample(model, **keywords):
    return sf.sample(model, X.shape, **keywords)


both = pytest.mark.parametrize("run", [run_solve, run_sample], ids=["solve", "sample"])


def draws(count, *shape):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))
