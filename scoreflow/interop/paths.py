"""What the configuration of a diffusers scheduler says of a network: its path, its prediction, what it is told of the time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoreflow._core.chain import DDPMChain
from scoreflow._core.gaussian import GaussianPath, Prediction
from scoreflow._core.path import VPSDE, Flow

PREDICTION: dict[str, Prediction] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}
"""Their names of predictions."""
Time = str | Callable[[Tensor], Tensor] | tuple[str, float]


class Described(NamedTuple):
    """What a network was trained on and for.

    Attributes:
        path, prediction, time: as of `ScoreModel`.
    """

    path: GaussianPath
    prediction: Prediction
    time: Any


def _linspace(start: float, end: float, n: int) -> np.ndarray:
    return np.linspace(start, end, n)


def _cosine(start: float, end: float, n: int) -> np.ndarray:
    """Nichol & Dhariwal (2021), Eq. 17, β held to 0.999."""
    t = np.arange(n + 1) / n
    bar = np.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - bar[1:] / bar[:-1], 0.999)


def _sigmoid(start: float, end: float, n: int) -> np.ndarray:
    """GeoDiff (Xu et al., 2022)."""
    return (end - start) / (1 + np.exp(-np.linspace(-6, 6, n))) + start


BETAS: dict[str, Callable[[float, float, int], np.ndarray]] = {
    "linear": _linspace,
    "scaled_linear": lambda start, end, n: np.linspace(start**0.5, end**0.5, n) ** 2,
    "squaredcos_cap_v2": _cosine,
    "sigmoid": _sigmoid,
}
"""β_1 … β_T by `beta_schedule`, in float64."""


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
    name = str(config.get("_class_name", type(scheduler).__name__))
    betas = "beta_schedule" in config or config.get("trained_betas") is not None
    shifted = "shift" in config and not betas  # FlowMatch…, whose configuration does not say its class before it is saved
    if name.startswith("FlowMatch") or shifted or config.get("prediction_type") == "flow_prediction":
        return Described(Flow(), "flow", ("scaled", float(config.get("num_train_timesteps", 1000))))
    if not betas:
        raise ValueError(
            f"scheduler {name} has neither betas nor a flow in its configuration; give path, prediction and time to ScoreModel"
        )
    told = config.get("prediction_type", "epsilon")
    if told not in PREDICTION:
        raise ValueError(f"prediction_type must be one of {', '.join(PREDICTION)}, got {told!r}")
    path = VPSDE.from_betas(_betas(config, scheduler))
    theirs = getattr(scheduler, "alphas_cumprod", None)
    if isinstance(theirs, Tensor):
        nodes = torch.arange(1, len(theirs) + 1, dtype=torch.float64) / len(theirs)
        off = float((path.alpha(nodes) ** 2 - theirs.to("cpu", torch.float64)).abs().max())
        # A zero terminal SNR is 2^-24 in some schedulers, so that a division by √ᾱ is finite.
        if not off < 1e-6:
            raise ValueError(f"{name}: ᾱ of its configuration and its own alphas_cumprod differ by {off:.1e}")
    return Described(path, PREDICTION[told], "index")


def _betas(config: Mapping[str, Any], scheduler: Any) -> Tensor:
    """β_1 … β_T of a configuration."""
    if (trained := config.get("trained_betas")) is not None:
        betas = torch.as_tensor(np.asarray(trained), dtype=torch.float64)
    elif (name := config["beta_schedule"]) in BETAS:
        ends = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
        betas = torch.from_numpy(BETAS[name](*ends, int(config.get("num_train_timesteps", 1000))))
    elif isinstance(own := getattr(scheduler, "alphas_cumprod", None), Tensor):
        return DDPMChain.from_alphas_cumprod(own.to("cpu", torch.float64)).beta
    else:
        raise ValueError(f"beta_schedule must be one of {', '.join(BETAS)}, got {name!r}; or give the scheduler itself")
    return DDPMChain(betas).zero_terminal_snr().beta if config.get("rescale_betas_zero_snr") else betas
