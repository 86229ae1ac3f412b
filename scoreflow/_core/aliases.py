"""Names of samplers and grids as typed elsewhere, and what they are here.

Only where the update is the same to rounding; grids are chosen apart, with `grid=`. Upper and lower case, spaces, `_`, `-`
and `.` do not matter, and `++` may be typed `pp`.
"""

from __future__ import annotations

import re
from typing import Any

ALIASES: dict[str, tuple[str, dict[str, Any]]] = {
    # diffusers
    "DDPMScheduler": ("ddpm", {}),
    "DDIMScheduler": ("ddim", {}),
    "EulerDiscreteScheduler": ("ddim", {}),
    "EulerAncestralDiscreteScheduler": ("ddim", {"eta": 1.0}),
    "FlowMatchEulerDiscreteScheduler": ("pf-ode", {"method": "euler"}),
    "HeunDiscreteScheduler": ("edm", {}),
    "KDPM2DiscreteScheduler": ("dpm-2", {}),
    "KDPM2AncestralDiscreteScheduler": ("dpm-2-ancestral", {}),
    "LMSDiscreteScheduler": ("lms", {}),
    "PNDMScheduler": ("pndm", {}),
    "DPMSolverMultistepScheduler": ("dpm-solver++", {"method": "2m"}),
    "UniPCMultistepScheduler": ("unipc", {"order": 2}),
    "EDMEulerScheduler": ("edm", {"method": "euler"}),
    "EDMDPMSolverMultistepScheduler": ("dpm-solver++", {"method": "2m"}),
    "DPMSolverSDEScheduler": ("sde-dpm-solver++", {"method": "2s"}),
    # k-diffusion, A1111, ComfyUI
    "euler": ("ddim", {}),
    "sample_euler": ("ddim", {}),
    "euler_ancestral": ("ddim", {"eta": 1.0}),
    "sample_euler_ancestral": ("ddim", {"eta": 1.0}),
    "Euler a": ("ddim", {"eta": 1.0}),
    "heun": ("edm", {}),
    "sample_heun": ("edm", {}),
    "sample_dpm_2": ("dpm-2", {}),
    "sample_dpm_2_ancestral": ("dpm-2-ancestral", {}),
    "DPM2 a": ("dpm-2-ancestral", {}),
    "sample_lms": ("lms", {}),
    "res_multistep": ("res", {"method": "2m"}),
    "sample_res_multistep": ("res", {"method": "2m"}),
    "sample_gradient_estimation": ("gradient-estimation", {}),
    "DPM++ 2M": ("dpm-solver++", {"method": "2m"}),
    "sample_dpmpp_2m": ("dpm-solver++", {"method": "2m"}),
    "DPM++ 2M SDE": ("sde-dpm-solver++", {"method": "2m"}),
    "sample_dpmpp_2m_sde": ("sde-dpm-solver++", {"method": "2m"}),
    "DPM++ 2M SDE Heun": ("sde-dpm-solver++", {"method": "2m-heun"}),
    "DPM++ SDE": ("sde-dpm-solver++", {"method": "2s"}),
    "sample_dpmpp_sde": ("sde-dpm-solver++", {"method": "2s"}),
    "DPM++ 2S a": ("dpm-solver++-2s-ancestral", {}),
    "sample_dpmpp_2s_ancestral": ("dpm-solver++-2s-ancestral", {}),
    "sample_seeds_2": ("seeds", {"order": 2}),
    "uni_pc_bh2": ("unipc", {"B": "bh2"}),
    # plain words
    "probability-flow-ode": ("pf-ode", {}),
}

GRID_ALIASES = {
    "exponential": "logsnr",
    "lu-lambda": "logsnr",
    "kl-optimal": "cosine",
    "time_uniform": "uniform",
    "time_quadratic": "quadratic",
    "edm": "karras",
}
"""Names of grids, in the same way."""


def plain(name: str) -> str:
    """The name without what does not matter."""
    return re.sub(r"[\s_.\-()]", "", name.lower().replace("++", "pp"))


PLAIN = {plain(name): meant for name, meant in ALIASES.items()}


def elsewhere(name: str) -> list[str]:
    """What a sampler of ours, whatever its options, is called elsewhere."""
    return [other for other, (base, _) in ALIASES.items() if base == name]
