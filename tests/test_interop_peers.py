"""Our samplers as functions of k-diffusion, and models of flow networks, against k-diffusion, flow_matching and torchcfm.

In float64 on an exact mixture, the noise of our run replayed in theirs. The largest difference over the largest entry is held
to 1e-12. `make` installs them without what they ask for in training.
"""

import importlib
import importlib.util
import math
import sys
import types

import numpy as np
import pytest
import torch
import torchdiffeq
from problems import mixture, states

import scoreflow as sf
from scoreflow._core.noise import White
from scoreflow.interop import from_k_diffusion, from_velocity, k_sampler
from scoreflow.interop.kdiffusion import times_of
from scoreflow.interop.preconditioning import Preconditioned, Preconditioning

X, DATA = states(4, 3), mixture(d=3)


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12 * float(wanted.abs().max()))


# -- k-diffusion ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs():
    """`k_diffusion.sampling` and `.external`, without the package around them, which imports what training takes. Their
    `utils` asks for torchvision, for images only: if it is not here, an empty module stands for it until they are imported."""
    if (found := importlib.util.find_spec("k_diffusion")) is None:
        pytest.skip("k-diffusion is not installed")
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(found.submodule_search_locations)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "k_diffusion", package)
        if importlib.util.find_spec("torchvision") is None:
            transforms = types.ModuleType("torchvision.transforms")
            transforms.functional = None
            patch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
            patch.setitem(sys.modules, "torchvision.transforms", transforms)
        loaded = {name: importlib.import_module(f"k_diffusion.{name}") for name in ("sampling", "external")}
    yield types.SimpleNamespace(**loaded)
    for name in ("sampling", "external", "utils"):
        sys.modules.pop(f"k_diffusion.{name}", None)


PATH = sf.VESDE(1e-4, 100.0)
EXACT = DATA.model(PATH)


def denoiser(x, sigma):
    """The exact x̂_0 of the mixture at x = x_0 + σ ε, all of one σ."""
    return EXACT.x0(x, PATH.time(-math.log(float(sigma[0]))))


LEVELS = torch.linspace(14.6 ** (1 / 7), 0.02 ** (1 / 7), 11, dtype=torch.float64) ** 7
ENDS = {"to the data": torch.cat([LEVELS, torch.zeros(1, dtype=torch.float64)]), "to σ = 1.2": LEVELS[:6]}
every_end = pytest.mark.parametrize("sigmas", ENDS.values(), ids=ENDS)


@every_end
@pytest.mark.parametrize("name", ["sample_euler", "sample_heun", "sample_dpm_2", "sample_lms", "sample_dpmpp_2m"])
def test_deterministic_samplers_by_their_names(theirs, name, sigmas):
    x = 14.6 * X
    close(k_sampler(name)(denoiser, x, sigmas, disable=True), getattr(theirs.sampling, name)(denoiser, x, sigmas, disable=True))


@every_end
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sample_euler_ancestral", {}),
        ("sample_dpm_2_ancestral", {}),
        ("sample_dpmpp_2s_ancestral", {}),
        ("sample_dpmpp_2s_ancestral", {"eta": 0.5}),
        ("sample_dpmpp_sde", {}),
        ("sample_dpmpp_2m_sde", {}),
    ],
    ids=str,
)  # fmt: skip
def test_stochastic_samplers_by_their_names(theirs, name, options, sigmas):
    """They are handed the unit noise of each state of ours, stages too."""
    x = 14.6 * X
    path, times = times_of(sigmas)
    plan, draws, noise = sf.plan(name, path, grid=times, **options), White(3).draws(), []
    for step in plan.steps:
        drawn = [draws(x) for _ in range(step.noise_count)]
        for _, row in step.stages:
            if row.draws:
                noise.append(sum(z * drawn[k] for k, z in row.draws) / math.hypot(*(z for _, z in row.draws)))
    given = iter(noise)
    sample = getattr(theirs.sampling, name)
    wanted = sample(denoiser, x, sigmas, disable=True, noise_sampler=lambda sigma, sigma_next: next(given), **options)
    assert next(given, None) is None
    close(k_sampler(name, **options)(denoiser, x, sigmas, disable=True, seed=3), wanted)


def test_churn(theirs, monkeypatch):
    """Algorithm 2: they draw at every step, we where noise is added."""
    x, sigmas, draws = 14.6 * X, ENDS["to the data"], White(3).draws()
    churn = {"S_churn": 4.0, "S_tmin": 0.05, "S_tmax": 10.0, "S_noise": 1.003}
    low, high = (int((sigmas >= s).sum()) for s in (10.0, 0.05))
    steps = iter(range(len(sigmas)))
    monkeypatch.setattr(torch, "randn_like", lambda x: draws(x) if low <= next(steps) < high else torch.zeros_like(x))
    wanted = theirs.sampling.sample_heun(denoiser, x, sigmas, disable=True, **{k.lower(): v for k, v in churn.items()})
    monkeypatch.undo()
    close(k_sampler("edm-churn", **churn)(denoiser, x, sigmas, disable=True, seed=3), wanted)


def test_the_callback(theirs):
    """The same at every step."""
    seen, sigmas = ([], []), ENDS["to the data"]
    for sample, kept in zip((k_sampler("sample_euler"), theirs.sampling.sample_euler), seen, strict=True):
        sample(denoiser, 14.6 * X, sigmas, callback=kept.append, disable=True)
    for ours, one in zip(*seen, strict=True):
        assert ours.keys() == one.keys() and ours["i"] == one["i"]
        for name in ("x", "sigma", "sigma_hat", "denoised"):
            close(torch.as_tensor(ours[name], dtype=torch.float64), one[name])


def net(x, t):
    """Of no data at all: it sees the time."""
    return torch.sin(3 * x) * 0.3 + x * torch.cos(t / 100)[:, None]


def test_their_wrappers(theirs):
    """That of a chain is the network on its chain, at x/α; that of v-diffusion is the preconditioning that is told arctan."""
    bar = torch.from_numpy(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
    chain = sf.ScoreModel(net, sf.VPSDE.from_alphas_cumprod(bar), "eps", "index")
    model = from_k_diffusion(theirs.external.DiscreteEpsDDPMDenoiser(net, bar, quantize=False))
    for label in (0, 31, 500, 999):
        t = (label + 1) / 1000
        at = min(1.0, model.path.time(-math.log(chain.path.kappa(t))))
        torch.testing.assert_close(model.x0(X / chain.path.alpha(t), at), chain.x0(X, t), rtol=1e-8, atol=1e-8)
    wrapped = theirs.external.VDenoiser(net)
    ours = Preconditioned(net, Preconditioning(wrapped.sigma_data, -1, arctan=True))
    sigma = torch.tensor([0.02, 0.7, 3.0, 14.6], dtype=torch.float64)
    close(ours(14.6 * X, sigma), wrapped(14.6 * X, sigma))
    model = from_k_diffusion(wrapped, 0.02, 14.6)
    close(model.x0(X, 0.5), ours(X, torch.full((4,), model.path.sigma(0.5), dtype=torch.float64)))


# -- flows ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "end"), [("euler", 1.0), ("euler", 0.9), ("midpoint", 0.9)])
def test_flow_matching(method, end):
    """Their `ODESolver` on the exact velocity in their time, data at 1, and their path between the ends. The last step of ours
    to the data is x̂_0, which for Euler is their own."""
    solver, path = pytest.importorskip("flow_matching.solver"), importlib.import_module("flow_matching.path")
    exact = DATA.model(sf.Flow())

    class Velocity(importlib.import_module("flow_matching.utils").ModelWrapper):
        def __init__(self):
            super().__init__(torch.nn.Identity())

        def forward(self, x, t):
            t = t.expand(len(x))
            return -torch.cat([exact(one[None], float(1 - s), "flow") for one, s in zip(x, t, strict=True)])

    ends = torch.tensor([0.0, end], dtype=torch.float64)
    wanted = solver.ODESolver(Velocity()).sample(X, step_size=0.1, method=method, time_grid=ends)
    grid = [1 - 0.1 * k for k in range(round(10 * end))] + [1 - end]
    close(sf.solve(from_velocity(Velocity(), data_at=1), X, f"pf-ode-{method}", grid=grid).x, wanted)
    sample = path.CondOTProbPath().sample(X, X.flip(0), torch.full((4,), 0.3, dtype=torch.float64))
    close(sf.Flow().q_sample(X.flip(0), 0.7, X), sample.x_t)
    close(X.flip(0) - X, sample.dx_t)


def test_torchcfm():
    """A network of theirs, `net(t, x, y)`, by Euler as their examples run it; their conditional flow is our path."""
    matcher = pytest.importorskip("torchcfm.conditional_flow_matching")
    t = torch.full((4,), 0.3, dtype=torch.float64)
    _, x_t, u_t = matcher.ConditionalFlowMatcher(0.0).sample_location_and_conditional_flow(X, X.flip(0), t)
    close(sf.Flow().q_sample(X.flip(0), 0.7, X), x_t)
    close(X.flip(0) - X, u_t)
    torch.manual_seed(0)
    unet = importlib.import_module("torchcfm.models.unet").UNetModel((1, 8, 8), 32, 1, channel_mult=[1], class_cond=True).eval()
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.05)  # the last layer begins at 0
    y, x = torch.tensor([1, 7]), torch.randn(2, 1, 8, 8)
    model = from_velocity(unet, data_at=1)
    with torch.no_grad():
        wanted = torchdiffeq.odeint(lambda t, x: unet(t, x, y), x, torch.linspace(0, 1, 11), method="euler")[-1]
    torch.testing.assert_close(sf.solve(model, x, "pf-ode-euler", steps=10, y=y).x, wanted, rtol=1e-5, atol=1e-5)
    assert float((wanted - x).abs().max()) > 0.01
