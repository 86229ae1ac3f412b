"""Schedulers of diffusers, read back: networks inside a preconditioning, steps that ask for more; those that cannot be read."""

import math

import pytest
import torch
from test_audit_others import apart

import scoreflow as sf
from scoreflow._audit.found import found
from scoreflow._uses.read_back import read_back
from scoreflow.interop import Preconditioning, describe

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

CONTINUOUS = {
    "timestep_type": "continuous", "prediction_type": "v_prediction", "sigma_min": 0.002, "sigma_max": 700.0,
    "use_karras_sigmas": True,
}  # fmt: skip
READ = {
    "EDMEulerScheduler": ("ddim", {}),
    "EDMDPMSolverMultistepScheduler": ("dpm-solver++-2m", {}),
    "CosineDPMSolverMultistepScheduler": ("sde-dpm-solver++-2m", {"prediction_type": "epsilon", "sigma_max": 80.0}),
    "EulerDiscreteScheduler": ("ddim", CONTINUOUS),
    "EulerAncestralDiscreteScheduler": ("euler-ancestral", {"timestep_spacing": "trailing"}),
    "HeunDiscreteScheduler": ("edm", {"timestep_spacing": "trailing"}),
    "CMStochasticIterativeScheduler": ("consistency", {"clip_denoised": False}),
    "SCMScheduler": ("consistency", {"intermediate_timesteps": None}),
    "CogVideoXDDIMScheduler": ("ddim", {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}),
    "CogVideoXDPMScheduler": ("sde-dpm-solver++-2m", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
    "DDPMWuerstchenScheduler": ("ddpm", {}),
    "MiniMaxH3Scheduler": ("ddim", {}),
    "DDIMScheduler": ("ddim", {"clip_sample": False, "timestep_spacing": "trailing"}),
    "UnCLIPScheduler": ("ddpm", {"clip_sample": False}),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_they_are_ours(name):
    """To what float32 leaves; UnCLIP's β is 0.999 in float32 at the noisy end. Theirs end at data, or at the last level."""
    ours, options = READ[name]
    stranger = found(getattr(diffusers, name), **options)
    steps = 20 if name.startswith("CM") else 5  # near its σ_min
    assert apart(stranger, ours, 0.0, steps=steps) < (2e-3 if name == "UnCLIPScheduler" else 5e-6)


def test_options_go_where_they_are_taken():
    """To the class, to `set_timesteps`, to `step`; what was said of the network holds."""
    stranger = found(diffusers.DDIMScheduler, clip_sample=False, timestep_spacing="trailing", eta=0.5)
    assert apart(stranger, "ddim", 0.0, steps=5, eta=0.5) < 5e-6
    moved = found(diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), mu=0.7)
    assert apart(moved, "ddim", 0.0) < 1e-6
    assert read_back(moved.build(2)).labels[1] == pytest.approx(math.exp(0.7), rel=2e-3)  # 1, moved
    own = found(diffusers.DDIMScheduler(clip_sample=False), path=sf.VPSDE.cosine(), prediction="v", time="unit")
    assert isinstance(own.path, sf.VPSDE) and (own.prediction, own.time) == ("v", "unit")
    with pytest.raises(TypeError, match=r"DDIMScheduler has no option 'etta'; it has num_inference_steps, .* did you mean eta"):
        found(diffusers.DDIMScheduler(), etta=0.5)


def test_what_they_do_of_their_own():
    """What shows of those that are none of ours."""
    first = read_back(found(diffusers.IPNDMScheduler).build(6))
    assert first.labels[0] == 1 and first.end[1].abs() < 1e-6  # α = 0 there: the first output is lost
    stranger = found(diffusers.KarrasVeScheduler)
    churned = read_back(stranger.build(6))
    assert churned.labels[0] == pytest.approx(100.0**2) and stranger.path.sigma(stranger.start) == pytest.approx(100.0)
    assert churned.nfe == 11 and churned.breaks is None
    stranger = found(diffusers.LTXEulerAncestralRFScheduler)
    reading = read_back(stranger.build(6))
    told = [stranger.time_of(label) for label in reading.labels]
    levels = reading.levels(stranger.path, "flow", told, 1.0)[:-1]
    at = torch.tensor([[1 - t, t] for t in told], dtype=torch.float64)
    torch.testing.assert_close(levels, at, rtol=1e-5, atol=1e-5)
    assert read_back(found(diffusers.ScoreSdeVeScheduler, correct_steps=0).build(4)).breaks is None
    assert read_back(found(diffusers.ScoreSdeVeScheduler).build(4)).breaks == 1  # the corrector's norms
    three = read_back(found(diffusers.EDMDPMSolverMultistepScheduler, solver_order=3).build(6))
    assert three.breaks is None and three.nfe == 6


REFUSED = {
    "AmusedScheduler": ({"mask_token_id": 3}, "its states are integer tokens"),
    "BlockRefinementScheduler": ({}, "its states are integer tokens"),
    "DiscreteDDIMScheduler": ({}, "its states are integer tokens"),
    "EntropyBoundScheduler": ({}, "its states are integer tokens"),
    "VQDiffusionScheduler": ({"num_vec_classes": 8}, "its states are integer tokens"),
    "RePaintScheduler": ({}, "its step asks for original_image, mask; write the loop as a function"),
    "RFD4ProteinaScheduler": (
        {"schedule_mode": "log", "noise_mode": "tan", "tsr_k": 1.0, "tsr_sigma": 1.0}, "its step asks for emit_mask;",
    ),
    "HeliosScheduler": ({}, r"set_timesteps\(4\) fails, KeyError: None; it takes num_inference_steps, stage_index"),
    "HeliosDMDScheduler": ({}, r"set_timesteps\(4\) fails, KeyError: None; it takes num_inference_steps, stage_index"),
    "DDIMInverseScheduler": ({}, "goes from data to noise: it inverts"),
    "DPMSolverMultistepInverseScheduler": ({}, "goes from data to noise: it inverts"),
    "PiflowScheduler": ({}, "step fails, ValueError: Piflow model output channels 1 are not divisible by n_grid"),
    "SCMScheduler": ({}, "Intermediate timesteps for SCM is not supported"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_says_why(name):
    options, match = REFUSED[name]
    with pytest.raises(ValueError, match=f"{name}.*{match}"):
        read_back(found(getattr(diffusers, name), **options).build(6))


def test_configurations():
    """CogVideoX divides the SNR; a scheduler that turns the time is not taken for a flow; F and x̂_0 of each other."""
    cog = diffusers.CogVideoXDDIMScheduler(rescale_betas_zero_snr=True)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(describe(cog).path.alpha(t) ** 2, cog.alphas_cumprod.double(), rtol=1e-6, atol=1e-7)
    assert describe({**cog.config}).path.alpha(0.5) == pytest.approx(describe(cog).path.alpha(0.5))
    assert isinstance(describe(diffusers.LTXEulerAncestralRFScheduler()).path, sf.Flow)
    with pytest.raises(ValueError, match="MiniMaxH3Scheduler has neither betas nor a flow in its configuration"):
        describe(diffusers.MiniMaxH3Scheduler())
    of, x = Preconditioning(0.5, -1), torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    for sigma in (0.01, 3.0, 80.0):
        torch.testing.assert_close(of.inside(of.x0(x.sin(), x, sigma), x, sigma), x.sin(), rtol=1e-9, atol=1e-9)


class Plain:
    """A scheduler of nobody's, without a configuration."""

    def set_timesteps(self, n):
        self.timesteps = torch.linspace(1, 0, n + 1, dtype=torch.float64)[:-1]

    def step(self, output, t, x):
        return x - output / len(self.timesteps)


def test_schedulers_of_nobodys():
    """Are read if their path is given."""
    stranger = found(Plain, path=sf.Flow(), prediction="flow")
    assert apart(stranger, "ddim", 0.0) < 1e-12 and math.isclose(stranger.time_of(0.5), 0.5)
    with pytest.raises(ValueError, match="Plain does not say its path: give path, prediction and time"):
        found(Plain())
