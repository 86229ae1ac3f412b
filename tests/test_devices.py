"""A device without float64 gives what the host gives: what is asked of it in higher precision is done in what it has."""

import pytest
import torch
from pretend import DEVICE, Pretended

import scoreflow as sf
from scoreflow import training
from scoreflow._core import row
from scoreflow._core.noise import White
from scoreflow._samplers.step import SAMPLERS

PATH = sf.VPSDE.from_betas(sf.DDPMChain.linear().beta)
MIXTURE = sf.GaussianMixture([0.3, 0.7], [[1.0, 0.2, -0.5], [-1.0, 0.0, 0.5]], [0.2, 0.1])
ORACLE = MIXTURE.model(PATH)
NET = sf.ScoreModel(lambda x, t, y=None: x * torch.sin(3 * t + 1)[:, None] * 0.5, PATH)
X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)) * 0.6
TWICE = sf.ScoreModel(lambda x, t: torch.cat([x, 0.1 * x.sin()], 1), PATH)
GUIDED = sf.ClassifierFree(sf.ScoreModel(lambda x, t, y: x * (0.3 + y[:, None] * t[:, None]), PATH), 2.0, null={"y": 0.0})


@pytest.fixture
def device(monkeypatch):
    """The device's name, while it is there."""
    monkeypatch.setattr(row, "NO_FLOAT64", {DEVICE.type})
    normal = White.normal
    monkeypatch.setattr(White, "normal", lambda self, like, *key: normal(self, torch.empty(like.shape), *key).to(like))
    with Pretended():
        yield DEVICE


def loss(x):
    """Of a batch, with the variational term of a learned variance."""
    objective = training.Objective(times="stratified", vlb=0.01)
    return objective(TWICE, x, objective.draw(TWICE, x, seed=0)).each


def host(x):
    """On the host."""
    return x.cpu() if isinstance(x, torch.Tensor) else x


def on(device, x):
    """The same on a device, float by float."""
    return x.to(device) if isinstance(x, torch.Tensor) else x


SMALL = {"nfe": 12}
BUDGET = {"restart": {"nfe": 40}, **{key: {"steps": 2} for key in ("dpm-adaptive", "scipy", "torchdiffeq")}}
USES = {
    **{
        f"sample {name}": lambda x, name=name: sf.solve(ORACLE, x, name, seed=[1, 2, 3, 4], **BUDGET.get(name, SMALL)).x
        for name in SAMPLERS
    },
    # Two samples, each of which takes steps of its own.
    "sample gotta-go-fast": lambda x: sf.solve(ORACLE, x[:2], "gotta-go-fast", seed=[1, 2], steps=2).x,
    "auto": lambda x: sf.solve(NET, x).x,
    "guided": lambda x: sf.solve(GUIDED, x, y=on(x.device, torch.ones(4))).x,
    "guided adaptive": lambda x: sf.solve(GUIDED, x[:2], "dpm-solver-12", rtol=0.2, y=on(x.device, torch.ones(2))).x,
    "parallel": lambda x: sf.solve(NET, x, "ddim", nfe=12, parallel=8).x,
    "log_prob": lambda x: sf.log_prob(ORACLE, x, method="heun", steps=8).value,
    "log_prob exact": lambda x: sf.log_prob(ORACLE, x, method="heun", steps=8, divergence="exact").value,
    "encode": lambda x: sf.encode(NET, x, method="rk4", steps=4),
    "decode": lambda x: sf.decode(NET, x, method="rk4", steps=4),
    "vlb": lambda x: sf.vlb(NET, x, steps=10, variance="beta").value,
    "continuous_bound": lambda x: sf.continuous_bound(NET, x, points=8, repeats=2).value,
    "bits_per_dim": lambda x: sf.bits_per_dim(ORACLE, x, method="rk4", steps=4, draws=2).value,
    "bits_per_dim forward": lambda x: sf.bits_per_dim(ORACLE, x, method="rk4", steps=4, dequantise="forward").value,
    "image_to_image": lambda x: sf.image_to_image(NET, x, nfe=8, seed=3).x,
    "interpolate": lambda x: sf.interpolate(x, x.flip(0), 5),
    "step_log_prob": lambda x: sf.step_log_prob(NET, sf.solve(NET, x, "ddpm", steps=5, seed=0, trajectory=True)).log_prob,
    "estimate_variance": lambda x: torch.tensor(sf.estimate_variance(NET, x, 5).values).to(x),
    "loss": loss,
    "oracle": lambda x: MIXTURE.log_prob(x, 0.9, 0.3),
    "chain": lambda x: sf.DDPMChain.linear().posterior_mean(x, x, 500),
}


@pytest.mark.parametrize("name", USES)
def test_without_float64(name, device):
    """The figures are those of the host in float32, for all that is done with a model."""
    there = USES[name](X.to(device))
    assert there.device == device
    assert there.dtype == torch.float32
    near = 0.02 if "gotta" in name else 2e-3  # where its own tolerance is 0.0078, other steps give another answer
    torch.testing.assert_close(host(there).float(), USES[name](X).float(), rtol=near, atol=near, equal_nan=True)
