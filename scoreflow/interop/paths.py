"""What the configuration of a diffusers scheduler says of a network: its path, its prediction, what it is told of the time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoreflow._core.chain import DDPMChain
from scoreflow._core.check import one_of
from scoreflow._core.gaussian import GaussianPath, Prediction
from scoreflow._core.path import VESDE, VPSDE, Flow
from scoreflow.interop.preconditioning import Preconditioning

PREDICTION: dict[str, Prediction] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}
"""Their names of predictions."""


class Described(NamedTuple):
    """What a network was trained on and for.

    Attributes:
        path, prediction, time: as of `ScoreModel`.
        preconditioning: what stands around the network, where it is EDM's; then prediction and time are those of the whole.
    """

    path: GaussianPath
    prediction: Prediction
    time: Any
    preconditioning: Preconditioning | None = None


def _sigmoid(T: int, start: float, end: float) -> DDPMChain:
    """GeoDiff (Xu et al., 2022)."""
    return DDPMChain((end - start) / (1 + np.exp(-np.linspace(-6, 6, T))) + start)


CHAINS: dict[str, Callable[[int, float, float], DDPMChain]] = {
    "linear": DDPMChain.linear,
    "scaled_linear": DDPMChain.scaled_linear,
    "squaredcos_cap_v2": lambda T, start, end: DDPMChain.cosine(T),
    "sigmoid": _sigmoid,
}
"""The chain by `beta_schedule`, from its length and the ends of β."""


def describe(scheduler: Any) -> Described:
    """The path, the prediction and the time of a network, by the scheduler of diffusers that it was published with.

    Args:
        scheduler: a scheduler of diffusers, or its configuration, a mapping.

    Raises:
        ValueError: a configuration that is of no path we know, or whose ᾱ is not what the scheduler itself has, to 1e-6.
        TypeError: it is neither.
    """
    config = scheduler if isinstance(scheduler, Mapping) else getattr(scheduler, "config", None)
    if not isinstance(config, Mapping):
        raise TypeError(f"scheduler must be a scheduler of diffusers or its configuration, got {type(scheduler).__name__}")
    name = str(
        config.get("source_class") or config.get("_class_name") or type(scheduler).__name__
    )  # of ours, the one it replaces
    if "sigma_data" in config:
        return _edm(config, name)
    betas = "beta_schedule" in config or config.get("trained_betas") is not None
    # FlowMatch…, whose configuration does not say its class before it is saved, and what takes its configurations
    shifted = {"shift", "num_train_timesteps"} <= set(config) and not betas
    shifted |= "FlowMatchEulerDiscreteScheduler" in getattr(scheduler, "_compatibles", ())
    if config.get("invert_sigmas"):
        raise ValueError(f"scheduler {name}: invert_sigmas=True turns the time, data at σ = 1; use sf.from_velocity(data_at=1)")
    if name.startswith("FlowMatch") or shifted or config.get("prediction_type") == "flow_prediction":
        return Described(Flow(), "flow", ("scaled", float(config.get("num_train_timesteps", 1000))))
    if not betas:
        raise ValueError(
            f"scheduler {name} has neither betas nor a flow in its configuration; give path, prediction and time to ScoreModel"
        )
    told = config.get("prediction_type", "epsilon")
    one_of("prediction_type", told, PREDICTION)
    chain = _chain(config, scheduler)
    path = VPSDE.from_betas(chain.beta)
    theirs = getattr(scheduler, "alphas_cumprod", None)
    if isinstance(theirs, Tensor):
        nodes = torch.arange(1, len(theirs) + 1, dtype=torch.float64) / len(theirs)
        off = float((path.alpha(nodes) ** 2 - theirs.to("cpu", torch.float64)).abs().max())
        # A zero terminal SNR is 2^-24 in some schedulers, so that a division by √ᾱ is finite.
        if not off < 1e-6:
            raise ValueError(f"{name}: ᾱ of its configuration and its own alphas_cumprod differ by {off:.1e}")
    if config.get("timestep_type") == "continuous" and told == "v_prediction":  # Stable Video Diffusion
        low, high = (config.get(end) or path.kappa(t) for end, t in (("sigma_min", 1 / chain.T), ("sigma_max", 1.0)))
        return Described(sigmas_path(float(low), float(high)), "x0", "sigma", Preconditioning(1.0, -1))
    return Described(path, PREDICTION[told], "index")


def _edm(config: Mapping[str, Any], name: str) -> Described:
    """Of EDMEulerScheduler, EDMDPMSolverMultistepScheduler and CosineDPMSolverMultistepScheduler."""
    if not name.startswith(("EDM", "CosineDPM")):
        raise ValueError(
            f"scheduler {name}: this configuration has sigma_data, and does not say whether the network is told ¼ log σ, as by "
            "EDMEulerScheduler, or 2/π arctan σ, as by CosineDPMSolverMultistepScheduler: give the scheduler itself"
        )
    one_of("prediction_type", told := config.get("prediction_type"), ("epsilon", "v_prediction"))
    path = sigmas_path(float(config["sigma_min"]), float(config["sigma_max"]))
    sign = -1 if told == "v_prediction" else 1
    return Described(path, "x0", "sigma", Preconditioning(float(config["sigma_data"]), sign, name.startswith("Cosine")))


def sigmas_path(sigma_min: float, sigma_max: float) -> VESDE:
    """The VE path whose σ is σ_max at t = 1, to rounding."""
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"need 0 < sigma_min < sigma_max, got sigma_min={sigma_min}, sigma_max={sigma_max}")
    return VESDE(sigma_min, math.hypot(sigma_max, sigma_min))


def _chain(config: Mapping[str, Any], scheduler: Any) -> DDPMChain:
    """The chain of a configuration."""
    if (trained := config.get("trained_betas")) is not None:
        chain = DDPMChain(torch.as_tensor(np.asarray(trained), dtype=torch.float64))
    elif (name := config["beta_schedule"]) in CHAINS:
        ends = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
        chain = CHAINS[name](int(config.get("num_train_timesteps", 1000)), *ends)
    elif isinstance(own := getattr(scheduler, "alphas_cumprod", None), Tensor):
        return DDPMChain.from_alphas_cumprod(own.to("cpu", torch.float64))
    else:
        raise ValueError(f"beta_schedule must be one of {', '.join(CHAINS)}, got {name!r}; or give the scheduler itself")
    if (c := float(config.get("snr_shift_scale", 1.0))) != 1:  # CogVideoX: the SNR over c
        chain = DDPMChain.from_alphas_cumprod(chain.alpha_bar / (c + (1 - c) * chain.alpha_bar))
    return chain.zero_terminal_snr() if config.get("rescale_betas_zero_snr") else chain
