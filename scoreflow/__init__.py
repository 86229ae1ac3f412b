"""scoreflow: samplers of diffusion models, derived from one score network and swapped by name.

sde   = scoreflow.VPSDE()                                    a path
model = scoreflow.ScoreModel(net, sde, prediction="eps")     a network on it
x     = scoreflow.sample(model, (64, 1, 8, 8), sampler="ddim", steps=50, seed=0)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from scoreflow import _samplers as _registered
from scoreflow._core import chain_grid as _chain_grid
from scoreflow._core import tool_grid as _tool_grid
from scoreflow._core.chain import DDPMChain
from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.grid import grid, sigmas
from scoreflow._core.noise import Brownian, Replay, White
from scoreflow._core.path import VESDE, VPSDE, Flow, SubVPSDE
from scoreflow._core.row import Row
from scoreflow._run.asked import AskedRun, ask
from scoreflow._run.lockstep import solve_many
from scoreflow._run.picard import Picard
from scoreflow._run.solution import Solution
from scoreflow._run.solve import plan, sample, solve
from scoreflow._run.walk import State, walk
from scoreflow._samplers.cite import cite
from scoreflow._samplers.health import Health
from scoreflow._samplers.plan import Plan
from scoreflow._samplers.step import Linear, Sampler, Step, family, get_sampler, sampler
from scoreflow._samplers.transition import Transition
from scoreflow._score.conditions import each, shared
from scoreflow._score.model import ScoreModel
from scoreflow._score.oracle import Empirical, Gaussian, GaussianMixture
from scoreflow._score.variance import Levels, estimate_variance
from scoreflow._uses.bound import Bound, continuous_bound, vlb
from scoreflow._uses.dequantise import Bits, Dequantiser, bits_per_dim
from scoreflow._uses.editing import image_to_image, interpolate
from scoreflow._uses.invert import Inversion, invert
from scoreflow._uses.likelihood import LogProb, decode, encode, log_prob
from scoreflow._uses.optimal import dc_ratios, dmn_grid, gits_grid
from scoreflow._uses.table import Table, samplers
from scoreflow._uses.transitions import Transitions, step_log_prob
from scoreflow.guidance import (
    APG,
    FDG,
    TCFG,
    Autoguidance,
    CFGPlusPlus,
    CFGZeroStar,
    ClassifierFree,
    ClassifierGuidance,
    Guided,
    Thresholding,
)

if TYPE_CHECKING:
    from scoreflow import analysis, data, interop, latent, nets, training, zoo
    from scoreflow.checkpoint import load_model, save_model
    from scoreflow.interop import (
        from_diffusers,
        from_edm,
        from_guided_diffusion,
        from_k_diffusion,
        from_score_sde,
        from_velocity,
    )
    from scoreflow.latent import Latent
    from scoreflow.studies import Study, Subject, metric, study

__version__ = "0.1.0"

__all__ = [
    "APG", "AskedRun", "Autoguidance", "Bits", "Bound", "Brownian", "CFGPlusPlus", "CFGZeroStar", "ClassifierFree",
    "ClassifierGuidance", "DDPMChain", "Dequantiser", "Empirical", "FDG", "Flow", "Gaussian", "GaussianMixture", "GaussianPath",
    "Guided", "Health", "Inversion", "Latent", "Levels", "Linear", "LogProb", "Picard", "Plan", "Replay", "Row", "Sampler",
    "ScoreModel", "Solution", "State", "Step", "Study", "SubVPSDE", "Subject", "TCFG", "Table", "Thresholding", "Transition",
    "Transitions", "VESDE", "VPSDE", "White", "analysis", "ask", "bits_per_dim", "cite", "continuous_bound", "data",
    "dc_ratios", "decode", "dmn_grid", "each", "encode", "estimate_variance", "family", "from_diffusers", "from_edm",
    "from_guided_diffusion", "from_k_diffusion", "from_score_sde", "from_velocity", "get_sampler", "gits_grid", "grid",
    "image_to_image", "interop", "interpolate", "invert", "latent", "load_model", "log_prob", "metric", "nets", "plan",
    "sample", "sampler", "samplers", "save_model", "shared", "sigmas", "solve", "solve_many", "step_log_prob", "study",
    "training", "vlb", "walk", "zoo",
]  # fmt: skip

del _chain_grid, _registered, _tool_grid


LAZY = {
    **{name: f"scoreflow.{name}" for name in ("analysis", "data", "interop", "latent", "nets", "training", "zoo")},
    "Latent": "scoreflow.latent",
    **dict.fromkeys(("load_model", "save_model"), "scoreflow.checkpoint"),
    **dict.fromkeys(("Study", "Subject", "metric", "study"), "scoreflow.studies"),
    **dict.fromkeys(
        ("from_diffusers", "from_edm", "from_guided_diffusion", "from_k_diffusion", "from_score_sde", "from_velocity"),
        "scoreflow.interop",
    ),
}
"""What is heavy or seldom used, and the module that it is loaded from when it is first named."""


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module 'scoreflow' has no attribute {name!r}")
    module = importlib.import_module(LAZY[name])
    return module if LAZY[name] == f"scoreflow.{name}" else getattr(module, name)
