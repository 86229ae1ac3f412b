"""scoreflow: samplers of diffusion models, derived from one score network and swapped by name.

sde   = scoreflow.VPSDE()                                    a path
model = scoreflow.ScoreModel(net, sde, prediction="eps")     a network on it
x     = scoreflow.sample(model, (64, 1, 8, 8), sampler="ddim", steps=50, seed=0)
"""

from __future__ import annotations

import importlib
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scoreflow import (
        analysis,
        checkpoint,
        data,
        guidance,
        interop,
        latent,
        nets,
        path,
        posterior,
        reference,
        studies,
        training,
        zoo,
    )
    from scoreflow._audit.audit import audit
    from scoreflow._audit.result import Audit
    from scoreflow._catalogue import Table
    from scoreflow._core.chain import DDPMChain
    from scoreflow._core.gaussian import GaussianPath
    from scoreflow._core.grid import grid, sigmas
    from scoreflow._core.noise import Brownian, Replay, White
    from scoreflow._core.path import VESDE, VPSDE, Flow, SubVPSDE
    from scoreflow._core.row import Row
    from scoreflow._run.asked import AskedRun, ask
    from scoreflow._run.kept import load_plan
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
    from scoreflow._score.flow_map import FlowMap
    from scoreflow._score.model import ScoreModel
    from scoreflow._score.oracle import Empirical, Gaussian, GaussianMixture
    from scoreflow._score.product import ProductMixture
    from scoreflow._score.variance import Levels, estimate_variance
    from scoreflow._sets.generate import Generated, generate
    from scoreflow._uses.bound import Bound, continuous_bound, vlb
    from scoreflow._uses.dequantise import Bits, Dequantiser, bits_per_dim
    from scoreflow._uses.editing import image_to_image, interpolate
    from scoreflow._uses.inpainting import colourise, inpaint, outpaint, super_resolution
    from scoreflow._uses.invert import Inversion, invert
    from scoreflow._uses.likelihood import LogProb, decode, encode, log_prob
    from scoreflow._uses.optimal import dc_ratios, dmn_grid, gits_grid
    from scoreflow._uses.smc import Particles, smc
    from scoreflow._uses.table import samplers
    from scoreflow._uses.transitions import Transitions, step_log_prob
    from scoreflow.checkpoint import load_model, save_model
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
    from scoreflow.interop import (
        from_diffusers,
        from_edm,
        from_guided_diffusion,
        from_k_diffusion,
        from_score_sde,
        from_velocity,
    )
    from scoreflow.latent import Latent
    from scoreflow.posterior import Observation, Posterior
    from scoreflow.studies import Measured, Moments, Study, Subject, measure, metric, study
    from scoreflow.tuning import Tuned, TunedNoise, tune, tune_noise

__version__ = "0.1.0"

__all__ = [
    "APG", "AskedRun", "Audit", "Autoguidance", "Bits", "Bound", "Brownian", "CFGPlusPlus", "CFGZeroStar", "ClassifierFree",
    "ClassifierGuidance", "DDPMChain", "Dequantiser", "Empirical", "FDG", "Flow", "FlowMap", "Gaussian", "GaussianMixture",
    "GaussianPath", "Generated", "Guided", "Health", "Inversion", "Latent", "Levels", "Linear", "LogProb", "Measured",
    "Moments", "Observation", "Particles", "Picard", "Plan", "Posterior", "ProductMixture", "Replay", "Row", "Sampler",
    "ScoreModel", "Solution", "State", "Step", "Study", "SubVPSDE", "Subject", "TCFG", "Table", "Thresholding", "Transition",
    "Transitions", "Tuned", "TunedNoise", "VESDE", "VPSDE", "White", "analysis", "ask", "audit", "bits_per_dim", "checkpoint",
    "cite", "colourise", "continuous_bound", "data", "dc_ratios", "decode", "dmn_grid", "each", "encode", "estimate_variance",
    "family", "from_diffusers", "from_edm", "from_guided_diffusion", "from_k_diffusion", "from_score_sde", "from_velocity",
    "generate", "get_sampler", "gits_grid", "grid", "guidance", "image_to_image", "inpaint", "interop", "interpolate",
    "invert", "latent", "load_model", "load_plan", "log_prob", "measure", "metric", "nets", "outpaint", "path", "plan",
    "posterior", "reference", "sample", "sampler", "samplers", "save_model", "shared", "sigmas", "smc", "solve", "solve_many",
    "step_log_prob", "studies", "study", "super_resolution", "training", "tune", "tune_noise", "vlb", "walk", "zoo",
]  # fmt: skip

PLACES = {
    "_audit.audit": "audit",
    "_audit.result": "Audit",
    "_catalogue": "Table",
    "_core.chain": "DDPMChain",
    "_core.gaussian": "GaussianPath",
    "_core.grid": "grid sigmas",
    "_core.noise": "Brownian Replay White",
    "_core.path": "VESDE VPSDE Flow SubVPSDE",
    "_core.row": "Row",
    "_run.asked": "AskedRun ask",
    "_run.kept": "load_plan",
    "_run.lockstep": "solve_many",
    "_run.picard": "Picard",
    "_run.solution": "Solution",
    "_run.solve": "plan sample solve",
    "_run.walk": "State walk",
    "_samplers.cite": "cite",
    "_samplers.health": "Health",
    "_samplers.plan": "Plan",
    "_samplers.step": "Linear Sampler Step family get_sampler sampler",
    "_samplers.transition": "Transition",
    "_score.conditions": "each shared",
    "_score.flow_map": "FlowMap",
    "_score.model": "ScoreModel",
    "_score.oracle": "Empirical Gaussian GaussianMixture",
    "_score.product": "ProductMixture",
    "_score.variance": "Levels estimate_variance",
    "_sets.generate": "Generated generate",
    "_uses.bound": "Bound continuous_bound vlb",
    "_uses.dequantise": "Bits Dequantiser bits_per_dim",
    "_uses.editing": "image_to_image interpolate",
    "_uses.inpainting": "colourise inpaint outpaint super_resolution",
    "_uses.invert": "Inversion invert",
    "_uses.likelihood": "LogProb decode encode log_prob",
    "_uses.optimal": "dc_ratios dmn_grid gits_grid",
    "_uses.smc": "Particles smc",
    "_uses.table": "samplers",
    "_uses.transitions": "Transitions step_log_prob",
    "checkpoint": "load_model save_model",
    "guidance": "APG FDG TCFG Autoguidance CFGPlusPlus CFGZeroStar ClassifierFree ClassifierGuidance Guided Thresholding",
    "interop": "from_diffusers from_edm from_guided_diffusion from_k_diffusion from_score_sde from_velocity",
    "latent": "Latent",
    "posterior": "Observation Posterior",
    "studies": "Measured Moments Study Subject measure metric study",
    "tuning": "Tuned TunedNoise tune tune_noise",
}
"""Where each name is loaded from when it is first used, as the imports above say too: `import scoreflow` loads no torch."""

MODULES = (
    "analysis",
    "checkpoint",
    "data",
    "guidance",
    "interop",
    "latent",
    "nets",
    "path",
    "posterior",
    "reference",
    "studies",
    "training",
    "zoo",
)
LAZY = {
    **{name: f"scoreflow.{place}" for place, names in PLACES.items() for name in names.split()},
    **{name: f"scoreflow.{name}" for name in MODULES},
}
_lock = threading.RLock()
"""Threads that load modules of one package at once would stop each other."""


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module 'scoreflow' has no attribute {name!r}")
    with _lock:
        module = importlib.import_module(LAZY[name])
    globals()[name] = found = module if name in MODULES else getattr(module, name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *LAZY})
