"""diffusers' schedulers as independent implementations: equal nodes, equal noise, one exact network in float64.

They hold their schedules in float32, where ᾱ is wrong by up to 1e-6 and κ = √(1/ᾱ − 1) by up to 5e-6 at the noisy end, and
so are their coefficients; states are of order 1. Ours agree to that precision, 2e-5 after a whole run. A method of another
kind is off by 1e-3 and more at these step counts. Where the two differ, the test says which side is wrong.
"""

import math

import numpy as np
import pytest
import torch
from problems import mixture, states

import scoreflow as sf

diffusers = pytest.importorskip("diffusers")

# They pass tensors to NumPy in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

T = 1000
PATH = sf.VPSDE.from_betas(torch.linspace(1e-4, 0.02, T, dtype=torch.float32).double())
MODEL, X_T = mixture().model(PATH), states(16, 3, seed=1)
CHAIN = dict(beta_start=1e-4, beta_end=0.02, num_train_timesteps=T)
SINGLE = 2e-5
"""What float32 schedules leave; 6e-7 … 4e-6 is seen."""


def scheduler(name, **config):
    return getattr(diffusers, name)(**CHAIN, **config)


def loop(peer, steps, noise=None, stop=None):
    """Their loop on VP states: the last state, the nodes as our times, and the scheduler."""
    peer.set_timesteps(steps)
    x, given = X_T.clone(), iter(noise if noise is not None else ())
    for t in peer.timesteps[:stop]:
        eps = MODEL(x, (float(t) + 1) / T)
        extra = {"variance_noise": next(given, torch.zeros_like(x))} if noise is not None else {}
        x = peer.step(eps, t, x, **extra).prev_sample
    return x, [(float(t) + 1) / T for t in peer.timesteps]


def sigma_loop(peer, steps):
    """Their loop on states x/α, whose nodes are values of κ: the last state, and the nodes as our times."""
    peer.set_timesteps(steps)
    times = [PATH.time(-math.log(k)) for k in dict.fromkeys(float(k) for k in peer.sigmas) if k > 0]
    x = X_T / PATH.alpha(times[0])
    for i, t in enumerate(peer.timesteps):
        at = PATH.time(-math.log(float(peer.sigmas[i])))
        x = peer.step(MODEL(x * PATH.alpha(at), at), t, x).prev_sample
    return x, [*times, 0.0]


def gap(x, grid, name, **keywords):
    return float((sf.solve(MODEL, X_T, name, grid=grid, **keywords).x - x).abs().max())


@pytest.mark.parametrize("name", ["trailing", "leading", "linspace"])
def test_labels_of_every_size(name):
    """Their labels, rounding included, but where they give a label of −1; one linspace step begins at the data there."""
    peer, odd = scheduler("DDIMScheduler", timestep_spacing=name), []
    for steps in range(1, 301):
        peer.set_timesteps(steps)
        ours = [round(t * T) - 1 for t in sf.grid(PATH, steps, name)[:-1]]
        if peer.timesteps.tolist() != ours:
            assert peer.timesteps.tolist() == ([*ours, -1] if name == "trailing" else [0])
            odd.append(steps)
    assert len(odd) == {"trailing": 12, "leading": 0, "linspace": 1}[name]


def replay(monkeypatch, module, noise):
    """Let a scheduler that draws by itself draw these."""
    given = iter(noise)
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(given))


# -- where the two agree -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [10, 50])
def test_ddim(spacing, eta, steps):
    peer = scheduler("DDIMScheduler", clip_sample=False, timestep_spacing=spacing)
    noise = states(steps, 16, 3, seed=2)
    peer.set_timesteps(steps)
    x = X_T.clone()
    for t, draw in zip(peer.timesteps, noise, strict=True):
        x = peer.step(MODEL(x, (float(t) + 1) / T), t, x, eta=eta, variance_noise=draw if eta else None).prev_sample
    grid = [*((float(t) + 1) / T for t in peer.timesteps), 0.0]
    assert gap(x, grid, "ddim", eta=eta, noise=noise[: steps - 1] if eta else None) < SINGLE


@pytest.mark.parametrize("steps", [10, 25])
def test_ddim_as_stable_diffusion_configures_it(steps):
    """steps_offset=1 and set_alpha_to_one=False: labels moved by one, and an end at the first node."""
    peer = scheduler("DDIMScheduler", clip_sample=False, timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False)
    peer.set_timesteps(steps)
    x = X_T.clone()
    for t in peer.timesteps:
        x = peer.step(MODEL(x, (float(t) + 1) / T), t, x).prev_sample
    assert gap(x, sf.grid(PATH, steps, "leading", steps_offset=1, stop=1 / T), "ddim") < SINGLE


@pytest.mark.parametrize(("theirs", "ours"), [("fixed_small", "posterior"), ("fixed_large", "beta")])
@pytest.mark.parametrize("steps", [20, 1000])
def test_ddpm(monkeypatch, theirs, ours, steps):
    from diffusers.schedulers import scheduling_ddpm

    noise = states(steps - 1, 16, 3, seed=2)
    replay(monkeypatch, scheduling_ddpm, noise)
    peer = scheduler("DDPMScheduler", clip_sample=False, variance_type=theirs, timestep_spacing="leading")
    x, grid = loop(peer, steps)
    # A thousand steps gather ten times the error of twenty: 1e-5 is seen.
    assert gap(x, [*grid, 0.0], "ddpm", variance=ours, noise=noise) < (SINGLE if steps == 20 else 1e-4)


@pytest.mark.parametrize(("kind", "method"), [("midpoint", "2m"), ("heun", "2m-heun")])
@pytest.mark.parametrize("steps", [10, 20, 50])
def test_dpm_solver_pp_2m(kind, method, steps):
    peer = scheduler("DPMSolverMultistepScheduler", solver_type=kind, timestep_spacing="leading")
    x, grid = loop(peer, steps)
    assert gap(x, [*grid, 0.0], "dpm-solver++", method=method) < SINGLE


@pytest.mark.parametrize(("kind", "method"), [("midpoint", "2m"), ("heun", "2m-heun")])
def test_sde_dpm_solver_pp_2m(kind, method):
    """Equal noise; their last draw is weighed by σ = 0."""
    peer = scheduler(
        "DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++", solver_type=kind, timestep_spacing="leading"
    )
    noise = states(20, 16, 3, seed=2)
    x, grid = loop(peer, 20, noise)
    assert gap(x, [*grid, 0.0], "sde-dpm-solver++", method=method, noise=noise[:19]) < SINGLE


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("steps", [10, 40])
def test_unipc(order, steps):
    """To σ = 0, where both end with x̂_0."""
    peer = scheduler("UniPCMultistepScheduler", solver_order=order, timestep_spacing="trailing", final_sigmas_type="zero")
    x, grid = loop(peer, steps)
    assert gap(x, [*grid, 0.0], "unipc", order=order) < SINGLE


def test_unipc_3_state_by_state():
    """Their corrected states; at the end they lower the order, so the last two are left out."""
    peer = scheduler("UniPCMultistepScheduler", solver_order=3, timestep_spacing="trailing", final_sigmas_type="zero")
    steps = 12
    for i in range(2, steps - 1):
        _, grid = loop(peer, steps, stop=i)
        states_ = sf.solve(MODEL, X_T, "unipc", order=3, grid=[*grid, 0.0], trajectory=True).states
        assert float((peer.last_sample - states_[i - 1]).abs().max()) < SINGLE


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis(order):
    """Their polynomials are in log κ, not in t as the paper's: the exponential Adams–Bashforth method in noise form."""
    peer = scheduler("DEISMultistepScheduler", solver_order=order, timestep_spacing="trailing", lower_order_final=False)
    x, grid = loop(peer, 20)
    grid = [*grid, 1 / T]
    # Order 3 loses two more digits to differences of κ log² κ in float32.
    assert gap(x, grid, "exponential-ab", order=order) < (10 * SINGLE if order == 3 else SINGLE)
    if order > 1:
        assert gap(x, grid, "deis", degree=order - 1, variable="t") > 1e-3


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "HeunDiscreteScheduler"])
def test_euler_and_heun(name):
    """In κ, on states x/α: DDIM, and DPM-Solver-2 with r_1 = 1, whose last step is Euler's."""
    x, grid = sigma_loop(scheduler(name, timestep_spacing="linspace"), 20)
    x_T = X_T
    ours = {"EulerDiscreteScheduler": ("ddim", {}), "HeunDiscreteScheduler": ("dpm-solver", {"order": 2, "r1": 1.0})}[name]
    assert float((sf.solve(MODEL, x_T, ours[0], grid=grid, **ours[1]).x - x).abs().max()) < SINGLE


def test_euler_ancestral(monkeypatch):
    from diffusers.schedulers import scheduling_euler_ancestral_discrete as module

    noise = states(20, 16, 3, seed=2)
    replay(monkeypatch, module, noise)
    x, grid = sigma_loop(scheduler("EulerAncestralDiscreteScheduler", timestep_spacing="linspace"), 20)
    assert gap(x, grid, "ddim", eta=1.0, noise=noise[:19]) < SINGLE


# -- where they differ, and who is wrong ---------------------------------------------------------------------------------


def observed(error):
    """Minus the slope of the median error against steps."""
    steps = (40, 80, 160)
    return -np.polyfit(np.log(steps), np.log([error(n) for n in steps]), 1)[0]


def test_dpm_solver_pp_3m_is_of_order_2_there():
    """They are wrong, as the authors' code is: the weight of the second difference lacks a factor 2.

    Their third order is our `3m-published`; with the factor, `3m`, the order is 3.
    """
    peer = scheduler("DPMSolverMultistepScheduler", solver_order=3, timestep_spacing="leading", lower_order_final=False)
    x, grid = loop(peer, 20)
    assert gap(x, [*grid, 0.0], "dpm-solver++", method="3m-published") < SINGLE
    assert gap(x, [*grid, 0.0], "dpm-solver++", method="3m") > 1e-3

    ends = dict(start=0.9, stop=0.05, grid="logsnr")
    exact = sf.solve(MODEL, X_T, "exponential-ab-4", steps=2000, **ends).x

    def order(method):
        return observed(
            lambda n: (sf.solve(MODEL, X_T, "dpm-solver++", method=method, steps=n, **ends).x - exact).norm(dim=1).median()
        )

    assert order("3m-published") < 2.4
    assert order("3m") > 2.7


def test_ddim_linspace_steps_to_another_level():
    """They are wrong: with spacing linspace a step goes to the label t − T//n, which is not the next label asked."""
    peer = scheduler("DDIMScheduler", clip_sample=False, timestep_spacing="linspace")
    x, grid = loop(peer, 10)
    labels = [round(t * T) - 1 for t in grid]
    assert labels[:2] == [999, 888]  # the first step goes to 899
    assert gap(x, [*grid, 0.0], "ddim") > 1e-2


def test_unipc_bh1_is_not_finite_at_the_end_there():
    """They are wrong: B(h) = h is infinite where σ = 0. Ours ends with x̂_0."""
    peer = scheduler("UniPCMultistepScheduler", solver_type="bh1", timestep_spacing="trailing", final_sigmas_type="zero")
    x, grid = loop(peer, 10)
    assert not x.isfinite().all()
    assert sf.solve(MODEL, X_T, "unipc", B="bh1", order=2, grid=[*grid, 0.0]).x.isfinite().all()


def test_trailing_labels_end_below_zero_there():
    """They are wrong: rounding gives n + 1 labels, the last −1, for some n. Ours has n steps for every n (test_grid.py)."""
    peer = scheduler("DDIMScheduler", timestep_spacing="trailing")
    wrong = []
    for n in range(1, T + 1):
        peer.set_timesteps(n)
        if len(peer.timesteps) != n or int(peer.timesteps[-1]) < 0:
            wrong.append(n)
    assert (wrong[0], len(wrong)) == (61, 62)


def test_noise_on_the_last_step_there():
    """They are wrong: DDPM's last step with spacing trailing draws noise, for its label is not 0. Ours ends with x̂_0."""
    peer = scheduler("DDPMScheduler", clip_sample=False, variance_type="fixed_large", timestep_spacing="trailing")
    peer.set_timesteps(10)
    assert int(peer.timesteps[-1]) == 99
    x = peer.step(torch.zeros(4, 3), peer.timesteps[-1], torch.zeros(4, 3), generator=torch.Generator().manual_seed(0))
    assert float(x.prev_sample.std()) > 0.1
    assert sf.plan("ddpm", PATH, variance="beta", steps=10).steps[-1].draws == ()
