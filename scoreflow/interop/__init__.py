"""Networks and loops of other libraries: their networks as score models, our samplers in their loops."""

import importlib
from typing import Any

from scoreflow.interop.kdiffusion import k_sampler
from scoreflow.interop.networks import (
    from_diffusers,
    from_edm,
    from_guided_diffusion,
    from_k_diffusion,
    from_score_sde,
    from_velocity,
)
from scoreflow.interop.paths import Described, describe
from scoreflow.interop.preconditioning import Preconditioning

__all__ = [
    "Described",
    "DiffusersScheduler",
    "Preconditioning",
    "describe",
    "from_diffusers",
    "from_edm",
    "from_guided_diffusion",
    "from_k_diffusion",
    "from_score_sde",
    "from_velocity",
    "k_sampler",
]


def __getattr__(name: str) -> Any:
    if name == "DiffusersScheduler":  # diffusers is imported when it is wanted
        return importlib.import_module("scoreflow.interop.scheduler").DiffusersScheduler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
