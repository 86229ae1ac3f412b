"""Every name of diffusers, k-diffusion and ComfyUI resolves, or the error says why not; those that resolve are the same."""

import inspect
import math
import re

import pytest
import torch
from problems import mixture, states

import scoreflow as sf
from scoreflow._core.aliases import NOT_HERE
from scoreflow._core.grid import GRIDS, named

K_DIFFUSION = (
    "sample_euler", "sample_euler_ancestral", "sample_heun", "sample_dpm_2", "sample_dpm_2_ancestral", "sample_lms",
    "sample_dpm_fast", "sample_dpm_adaptive", "sample_dpmpp_2s_ancestral", "sample_dpmpp_sde", "sample_dpmpp_2m",
    "sample_dpmpp_2m_sde", "sample_dpmpp_3m_sde",
)  # fmt: skip
"""All of k-diffusion 0.1.1."""
COMFY = (
    "euler", "euler_cfg_pp", "euler_ancestral", "euler_ancestral_cfg_pp", "heun", "heunpp2", "exp_heun_2_x0",
    "exp_heun_2_x0_sde", "dpm_2", "dpm_2_ancestral", "lms", "dpm_fast", "dpm_adaptive", "dpmpp_2s_ancestral",
    "dpmpp_2s_ancestral_cfg_pp", "dpmpp_sde", "dpmpp_sde_gpu", "dpmpp_2m", "dpmpp_2m_cfg_pp", "dpmpp_2m_sde",
    "dpmpp_2m_sde_gpu", "dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu", "dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "ddpm", "lcm",
    "ipndm", "ipndm_v", "deis", "res_multistep", "res_multistep_cfg_pp", "res_multistep_ancestral",
    "res_multistep_ancestral_cfg_pp",
    "gradient_estimation", "gradient_estimation_cfg_pp", "er_sde", "seeds_2", "seeds_3", "sa_solver", "sa_solver_pece",
    "ddim", "uni_pc", "uni_pc_bh2",
)  # fmt: skip
"""ComfyUI's samplers."""
A1111 = (
    "DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 2S a", "DPM++ 3M SDE", "Euler a", "Euler", "LMS",
    "Heun", "DPM2", "DPM2 a", "DPM fast", "DPM adaptive", "Restart", "DDIM", "PLMS", "UniPC", "LCM",
)  # fmt: skip
COMFY_GRIDS = (
    "simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal", "linear_quadratic", "kl_optimal",
    "beta57",
)  # fmt: skip
"""ComfyUI's schedulers, and RES4LYF's."""
A1111_GRIDS = ("Uniform", "Karras", "Exponential", "Polyexponential", "SGM Uniform", "KL Optimal", "Align Your Steps", "Simple",
               "Normal", "DDIM Uniform", "Beta")  # fmt: skip
MEANT = {"lcm", "plms", "exp_heun_2_x0_sde"}
"""No sampler here has their update; so have none with these endings."""


def resolves(name):
    """Whether it does; if not, an error says why."""
    try:
        assert isinstance(sf.get_sampler(name), sf.Sampler)
        return True
    except ValueError as error:
        assert f"no sampler here has the update of {name!r}: " in str(error)
        return False


@pytest.mark.parametrize("name", [*K_DIFFUSION, *COMFY, *A1111])
def test_samplers(name):
    there = name.lower() not in MEANT and "cfg_pp" not in name and "3m" not in name.lower()
    assert resolves(name) == (there and "multistep_ancestral" not in name)


def test_every_scheduler_of_diffusers():
    module = pytest.importorskip("diffusers.schedulers")
    names = [n for n, c in vars(module).items() if inspect.isclass(c) and n.endswith("Scheduler")]
    names = [*names, *(n for n in dir(module) if n.endswith("Scheduler") and n not in names)]
    assert len(names) > 30
    assert sum(map(resolves, names)) >= 20


@pytest.mark.parametrize("name", [*COMFY_GRIDS, *A1111_GRIDS])
def test_grids(name):
    assert named(name) in GRIDS


@pytest.mark.parametrize("name", NOT_HERE)
def test_what_a_reason_names_is_there(name):
    """Samplers and grids in quotes are; and no reason is given for what resolves."""
    reason = NOT_HERE[name]
    for other in re.findall(r"(?<!=)'([\w+-]+)'", reason):
        assert other in GRIDS or sf.get_sampler(other)
    for method in re.findall(r"sf\.(\w+)", reason):
        assert hasattr(sf, method)
    assert not resolves(name)


def test_spellings_that_do_not_matter():
    for name in ("sample_dpmpp_2m_sde_gpu", "DPM++ 2M SDE GPU", "dpmpp_2m_sde"):
        assert sf.get_sampler(name) == sf.get_sampler("sde-dpm-solver++-2m")


# -- the same update -----------------------------------------------------------------------------------------------------

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_ipndm_is_diffusers():
    """From the second node on, as α = 0 at the first, to the last but one: the row to σ = 0 is of the order that is safe."""
    diffusers = pytest.importorskip("diffusers")
    peer = diffusers.IPNDMScheduler()
    peer.set_timesteps(12)
    peer.set_begin_index(1)
    path = sf.VPSDE()
    model, x = mixture().model(path), states(8, 3, seed=1)
    times = [path.time(math.log(float(a / b))) for a, b in zip(peer.alphas[1:-1], peer.betas[1:-1], strict=True)]
    ours = sf.solve(model, x, "IPNDMScheduler", grid=times).x
    for at, t in zip(times[:-1], peer.timesteps[1:-1], strict=True):
        x = peer.step(model(x, at, "v"), t, x).prev_sample
    assert float((ours - x).abs().max()) < 1e-5


def test_flow_heun_is_diffusers():
    """Heun's method in t on the flow, and Euler at the end; they carry states in 32 bits."""
    diffusers = pytest.importorskip("diffusers")
    peer = diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0)
    peer.set_timesteps(8)
    path = sf.Flow()
    model, x_T = mixture().model(path), states(8, 3, seed=1)
    x, times = x_T.clone(), list(dict.fromkeys(peer.sigmas.tolist()))
    for t in peer.timesteps:
        x = peer.step(model(x, float(t) / 1000, "flow"), t, x).prev_sample
    ours = sf.solve(model, x_T, "FlowMatchHeunDiscreteScheduler", grid=times).x
    assert float((ours - x).abs().max()) < 1e-5


def test_cogvideox_ddim_is_ddim():
    diffusers = pytest.importorskip("diffusers")
    peer = diffusers.CogVideoXDDIMScheduler(timestep_spacing="trailing", snr_shift_scale=1.0, prediction_type="epsilon")
    peer.set_timesteps(10)
    path = sf.VPSDE.from_alphas_cumprod(peer.alphas_cumprod.double())
    model, x_T = mixture().model(path), states(8, 3, seed=1)
    x = x_T.clone()
    for t in peer.timesteps:
        x = peer.step(model(x, (float(t) + 1) / 1000), int(t), x).prev_sample
    ours = sf.solve(model, x_T, "CogVideoXDDIMScheduler", steps=10, grid="trailing").x
    assert float((ours - x).abs().max()) < 1e-4


def test_cosine_dpm_is_sde_2m(monkeypatch):
    """Stable Audio's, with the draws of its Brownian path replaced by given ones."""
    diffusers = pytest.importorskip("diffusers")
    peer = diffusers.CosineDPMSolverMultistepScheduler(sigma_min=0.05, sigma_max=50.0, prediction_type="epsilon")
    peer.set_timesteps(9)
    path, noise = sf.VESDE(0.05, 60.0), states(9, 8, 3, seed=2)
    model, given = mixture().model(path), iter(noise)
    peer.noise_sampler = lambda *_: next(given)
    times = sf.sigmas(path, peer.sigmas.double())
    x_T = states(8, 3, seed=1) * 50
    x = x_T.clone()
    monkeypatch.setattr(
        peer, "precondition_outputs", lambda sample, output, sigma: output
    )  # D itself, in place of a raw network's
    for k, t in enumerate(peer.timesteps):
        x = peer.step(model.x0(x, times[k]), t, x).prev_sample
    ours = sf.solve(model, x_T, "CosineDPMSolverMultistepScheduler", grid=times, noise=noise[:8]).x
    assert float((ours - x).abs().max()) < 1e-3
    assert torch.isfinite(ours).all()
