"""Names of samplers and grids as typed elsewhere, and what they are here.

Only where the update is the same to rounding; grids are chosen apart, with `grid=`. Upper and lower case, spaces, `_`, `-`
and `.` do not matter, `++` may be typed `pp`, and k-diffusion's prefix `sample_` and ComfyUI's suffix `_gpu` are left out.
"""

from __future__ import annotations

import re
from typing import Any

ALIASES: dict[str, tuple[str, dict[str, Any]]] = {
    # diffusers
    "DDPMScheduler": ("ddpm", {}),
    "DDPMParallelScheduler": ("ddpm", {}),
    "DDIMScheduler": ("ddim", {}),
    "DDIMParallelScheduler": ("ddim", {}),
    "CogVideoXDDIMScheduler": ("ddim", {}),
    "EulerDiscreteScheduler": ("ddim", {}),
    "EulerAncestralDiscreteScheduler": ("ddim", {"eta": 1.0}),
    "FlowMatchEulerDiscreteScheduler": ("pf-ode", {"method": "euler"}),
    "FlowMatchHeunDiscreteScheduler": ("pf-ode", {"method": "heun"}),
    "HeunDiscreteScheduler": ("edm", {}),
    "KDPM2DiscreteScheduler": ("dpm-2", {}),
    "KDPM2AncestralDiscreteScheduler": ("dpm-2-ancestral", {}),
    "LMSDiscreteScheduler": ("lms", {}),
    "PNDMScheduler": ("pndm", {}),
    "IPNDMScheduler": ("ipndm", {}),
    "DEISMultistepScheduler": ("exponential-ab", {"order": 2}),
    "DPMSolverMultistepScheduler": ("dpm-solver++", {"method": "2m"}),
    "UniPCMultistepScheduler": ("unipc", {"order": 2}),
    "EDMEulerScheduler": ("edm", {"method": "euler"}),
    "EDMDPMSolverMultistepScheduler": ("dpm-solver++", {"method": "2m"}),
    "DPMSolverSDEScheduler": ("sde-dpm-solver++", {"method": "2s"}),
    "CosineDPMSolverMultistepScheduler": ("sde-dpm-solver++", {"method": "2m"}),
    # k-diffusion, A1111, ComfyUI
    "euler": ("ddim", {}),
    "euler_ancestral": ("ddim", {"eta": 1.0}),
    "Euler a": ("ddim", {"eta": 1.0}),
    "heun": ("edm", {}),
    "exp_heun_2_x0": ("res", {"method": "2s", "c2": 1.0}),
    "DPM2 a": ("dpm-2-ancestral", {}),
    "res_multistep": ("res", {"method": "2m"}),
    "DPM++ 2M": ("dpm-solver++", {"method": "2m"}),
    "DPM++ 2M SDE": ("sde-dpm-solver++", {"method": "2m"}),
    "DPM++ 2M SDE Heun": ("sde-dpm-solver++", {"method": "2m-heun"}),
    "DPM++ SDE": ("sde-dpm-solver++", {"method": "2s"}),
    "DPM++ 2S a": ("dpm-solver++-2s-ancestral", {}),
    "dpmpp_2s_ancestral": ("dpm-solver++-2s-ancestral", {}),
    "uni_pc_bh2": ("unipc", {"B": "bh2"}),
    # plain words
    "probability-flow-ode": ("pf-ode", {}),
}

FEW_STEPS = "it samples networks distilled to few steps, which jump to the data or between times; these samplers integrate"
DISCRETE = "its states are discrete, and those here are real numbers"
CFGPP = "CFG++ is guidance here: give ScoreModels wrapped in sf.CFGPlusPlus to {}"

NOT_HERE: dict[str, str] = {
    # diffusers
    "DPMSolverSinglestepScheduler": (
        "its stages stand at nodes of the grid; those of 'dpm-solver++-2s' and 'dpm-solver-2' at a share r1 of the step in λ"
    ),
    "SASolverScheduler": "'sa-solver' has the update; theirs is with tau=lambda t: float(0.2 < t <= 0.8)",
    "UnCLIPScheduler": "'ddpm' has the update, with variance='learned' for networks that give it; x̂_0 is not clipped",
    "DDPMWuerstchenScheduler": "'ddpm' has the update, on VPSDE.cosine() with a uniform grid; ᾱ is not clipped",
    "KarrasVeScheduler": "'edm-churn' is the algorithm, with S_churn=80, S_noise=1.007",
    "ScoreSdeVeScheduler": "'predictor-corrector' has its two steps, the corrector's with expected norms",
    "ScoreSdeVpScheduler": "'euler-maruyama' has the update, for a ScoreModel of prediction='score'",
    "DDIMInverseScheduler": "sf.invert(model, x_0) goes from data to a latent",
    "DPMSolverMultistepInverseScheduler": "sf.invert(model, x_0) goes from data to a latent",
    "RePaintScheduler": "it fills in masks by going up and down; that is conditioning, and no sampler",
    "CogVideoXDPMScheduler": "its noise is not that of the reverse SDE's levels; 'sde-dpm-solver++' is near",
    "LTXEulerAncestralRFScheduler": "its level to go down to is σ_s²/σ_t; 'euler-ancestral' goes down to κ_s²/κ_t",
    "RFD4ProteinaScheduler": "it rescales scores of two kinds of data; guidance and sampler are two things here",
    "MiniMaxH3Scheduler": "'pf-ode-euler' has the update, on Flow() with grid='flow-shift'",
    "HeliosScheduler": "it goes through resolutions of one family of video networks",
    **dict.fromkeys(
        (
            "LCMScheduler", "FlowMatchLCMScheduler", "TCDScheduler", "CMStochasticIterativeScheduler", "SCMScheduler",
            "ConsistencyDecoderScheduler", "FlowMapEulerDiscreteScheduler", "PiflowScheduler", "HeliosDMDScheduler", "lcm",
        ),
        FEW_STEPS,
    ),
    **dict.fromkeys(
        (
            "AmusedScheduler", "BlockRefinementScheduler", "DiscreteDDIMScheduler", "EntropyBoundScheduler",
            "VQDiffusionScheduler",
        ),
        DISCRETE,
    ),
    # k-diffusion, A1111, ComfyUI
    "DPM++ 3M SDE": "published code has other weights on the second difference; 'sde-dpm-solver++-3m' has the right ones",
    "exp_heun_2_x0_sde": "'sde-dpm-solver++-2s' with r1=1 has the stage, with weights of the other kind",
    "res_multistep_ancestral": "'sde-dpm-solver++-2m' looks back as it does, with the noise of the step's own integral",
    "PLMS": "its first step is of another kind; 'pndm' is that of the paper, 'ipndm' starts with lower orders",
    "euler_cfg_pp": CFGPP.format("'euler'"),
    "euler_ancestral_cfg_pp": CFGPP.format("'euler-ancestral'"),
    "dpmpp_2s_ancestral_cfg_pp": CFGPP.format("'dpm-solver++-2s-ancestral'"),
    "dpmpp_2m_cfg_pp": CFGPP.format("'dpm-solver++-2m'"),
    "res_multistep_cfg_pp": CFGPP.format("'res-2m'"),
    "res_multistep_ancestral_cfg_pp": CFGPP.format("'sde-dpm-solver++-2m'"),
    "gradient_estimation_cfg_pp": CFGPP.format("'gradient-estimation'"),
}  # fmt: skip
"""Names elsewhere for which there is no sampler of the same update, and what to do instead."""

GRID_ALIASES = {
    "exponential": "logsnr",
    "lu-lambda": "logsnr",
    "kl-optimal": "cosine",
    "time_uniform": "uniform",
    "time_quadratic": "quadratic",
    "edm": "karras",
    "align_your_steps": "ays",
}
"""Names of grids, in the same way."""


def plain(name: str) -> str:
    """The name without what does not matter."""
    bare = re.sub(r"[\s_.\-()]", "", name.lower().replace("++", "pp"))
    return bare.removeprefix("sample").removesuffix("gpu")


PLAIN = {plain(name): meant for name, meant in ALIASES.items()}
REASONS = {plain(name): reason for name, reason in NOT_HERE.items()}


def elsewhere(name: str) -> list[str]:
    """What a sampler of ours, whatever its options, is called elsewhere."""
    return [other for other, (base, _) in ALIASES.items() if base == name]
