"""Networks of other libraries as score models, one line each."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scoreflow._core.check import number, one_of
from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.path import VESDE, VPSDE, Flow, SubVPSDE
from scoreflow._score.model import ScoreModel
from scoreflow._score.network import attribute
from scoreflow.interop.paths import describe, sigmas_path
from scoreflow.interop.preconditioning import Preconditioned, Preconditioning
from scoreflow.nets import adapt


class Wrapped(nn.Module):
    """A network of another library as `net(x, t, **conditions)`; `call` says how it is called."""

    def __init__(self, net: Any, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.net, self.call, self.null = net, call, attribute(net, "null")
        self.training = bool(getattr(net, "training", False))

    def forward(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        return self.call(self.net, x, t, **conditions)


def _called(name: str, net: Any) -> None:
    if not callable(net):
        raise TypeError(f"{name} must be a network, a module or a callable, got {type(net).__name__}")


# -- diffusers -----------------------------------------------------------------------------------------------------------


UNIT_TIME = ("AuraFlow", "Chroma", "Flux", "LongCatImage", "OvisImage", "QwenImage")
"""Transformers that their pipelines tell t in [0, 1]."""
TURNED = ("HiDream", "Lumina", "NucleusMoE", "ZImage")
"""Transformers whose pipelines turn the time that they are told, the velocity that they give, or both."""


def from_diffusers(net: Any, scheduler: Any = None) -> ScoreModel:
    """A network of diffusers with the path, prediction and time that its scheduler's configuration says.

    Conditions go by diffusers' names (`encoder_hidden_states`, `class_labels`, `added_cond_kwargs`, …); `y` is `class_labels`,
    `tokens` is `encoder_hidden_states`. A network with twice the channels has a learned variance. The `shift` of a flow moves
    the times of a run and does not concern the network. By EDM's schedulers, and Euler's with continuous times (Stable Video
    Diffusion), the network stands inside EDM's preconditioning: the model is on a VE path, and gives x̂_0.

    States of Flux are its packed latents (B, L, 64); `img_ids=sf.shared(...)`, `txt_ids=sf.shared(...)`, `guidance`,
    `encoder_hidden_states` and `pooled_projections` are conditions.

    Args:
        net: a UNet or transformer of diffusers, or a pipeline that has one.
        scheduler: a scheduler of diffusers or its configuration; the pipeline's if None.

    Raises:
        TypeError: no network, or a scheduler that is none. ValueError: as `describe`; a network whose pipeline turns what it
            gives.
    """
    if scheduler is None:
        scheduler = getattr(net, "scheduler", None)
    if scheduler is None:
        raise TypeError("scheduler=None: give that of the network, or a pipeline that has one")
    inner = next((part for name in ("unet", "transformer") if (part := getattr(net, name, None)) is not None), net)
    if not isinstance(inner, nn.Module):
        raise TypeError(f"net must be a network of diffusers or a pipeline with one, got {type(net).__name__}")
    if (name := type(inner).__name__).startswith(TURNED):
        raise ValueError(f"the pipeline of {name} turns its time or its velocity: wrap the network, and see sf.from_velocity")
    path, prediction, time, preconditioning = describe(scheduler)
    wrapped = adapt.from_diffusers(inner)
    if preconditioning is not None:
        return ScoreModel(Preconditioned(wrapped, preconditioning), path, prediction, time)
    if name.startswith(UNIT_TIME):
        time = "unit"
    return ScoreModel(wrapped, path, prediction, time)


# -- denoisers in σ ------------------------------------------------------------------------------------------------------


def from_edm(
    net: Any, sigma_min: float | None = None, sigma_max: float | None = None, sigma_data: float | None = None
) -> ScoreModel:
    """EDM's network, `net(x, σ, class_labels)` → x̂_0, on a VE path from σ_max; labels as `y=` or `class_labels=`.

    Run it to the data on EDM's own grid by `sf.solve(model, x_T, "edm", steps=18, grid=grid)`,
    `grid = sf.grid(model.path, 18, "karras", sigma_min=0.002, sigma_max=80)`.

    Args:
        sigma_min, sigma_max: the network's own if None; 0.002 and 80 where it has 0 and infinity, as EDM's preconditioning.
        sigma_data: if given, net is the raw network inside the preconditioning, `F(c_in x, ¼ log σ, class_labels)`.

    Raises:
        TypeError: no callable. ValueError: not 0 < sigma_min < sigma_max.

    Reference:
        Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), Table 1.
    """
    _called("net", net)
    low, high = (float(getattr(net, name, 0) or 0) for name in ("sigma_min", "sigma_max"))
    low = number("sigma_min", sigma_min, above=0) if sigma_min is not None else max(low, 0.002)
    high = number("sigma_max", sigma_max, above=0) if sigma_max is not None else high if 0 < high < math.inf else 80.0
    wrapped: nn.Module = Wrapped(net, _edm)
    if sigma_data is not None:
        wrapped = Preconditioned(wrapped, Preconditioning(number("sigma_data", sigma_data, above=0)))
    return ScoreModel(wrapped, sigmas_path(low, high), "x0", "sigma")


def _edm(net: Any, x: Tensor, sigma: Tensor, **conditions: Any) -> Tensor:
    if "y" in conditions:
        conditions["class_labels"] = conditions.pop("y")
    return net(x, sigma, **conditions)


def from_k_diffusion(denoiser: Any, sigma_min: float | None = None, sigma_max: float | None = None) -> ScoreModel:
    """A denoiser of k-diffusion, `denoiser(x, σ, **conditions)` → x̂_0 with x = x_0 + σ ε, on a VE path.

    Its wrappers of VP networks (`CompVisDenoiser` and others) are denoisers too: they scale the state themselves.

    Args:
        sigma_min, sigma_max: the denoiser's own if None (`sigma_min`, `sigma_max`, or the ends of `sigmas`).

    Raises:
        TypeError: no callable. ValueError: the denoiser has no σ of its own and none is given.
    """
    _called("denoiser", denoiser)
    own = getattr(denoiser, "sigmas", None)
    ends = (float(own.min()), float(own.max())) if isinstance(own, Tensor) else (None, None)
    found = []
    for name, given, end in (("sigma_min", sigma_min, ends[0]), ("sigma_max", sigma_max, ends[1])):
        value = given if given is not None else getattr(denoiser, name, end)
        if value is None:
            raise ValueError(f"{name}=None, and the denoiser has none of its own: give it")
        found.append(number(name, float(value), above=0))
    return ScoreModel(Wrapped(denoiser, _called_plainly), sigmas_path(*found), "x0", "sigma")


def _called_plainly(net: Any, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
    return net(x, t, **conditions)


# -- DDPM codebases ------------------------------------------------------------------------------------------------------


def from_guided_diffusion(model: Any, diffusion: Any) -> ScoreModel:
    """A network of guided-diffusion or improved-diffusion with its `GaussianDiffusion`.

    Give the diffusion of the whole chain if you can: `steps=` and `grid=` of a run say which steps are taken. The path of a
    `SpacedDiffusion` of K steps goes through its K nodes, at t = k/K; there the network is told the labels of the whole chain,
    and between two nodes a label between theirs. Twice the channels are a learned variance, for `ddpm` with
    `variance="interpolated"` (LEARNED_RANGE).

    Args:
        model: `model(x, timesteps, **conditions)`. diffusion: its betas, what it predicts, the labels of its steps, whether
            they are rescaled to 1000.

    Raises:
        TypeError: no network, or a diffusion without betas. ValueError: a mean that it does not predict; not a label a step.
    """
    _called("model", model)
    betas = getattr(diffusion, "betas", None)
    if betas is None:
        raise TypeError(f"diffusion must have betas, as GaussianDiffusion has, got {type(diffusion).__name__}")
    kind = str(getattr(getattr(diffusion, "model_mean_type", "EPSILON"), "name", "EPSILON"))
    means = {"EPSILON": "eps", "START_X": "x0"}
    if kind not in means:
        raise ValueError(f"model_mean_type must be one of {', '.join(means)}, got {kind}")
    chain = np.asarray(betas, dtype=np.float64)
    whole = int(getattr(diffusion, "original_num_steps", len(chain)))
    kept = [int(label) for label in getattr(diffusion, "timestep_map", range(len(chain)))]
    if len(kept) != len(chain) or any(not a < b for a, b in pairwise(kept)) or not 0 <= kept[0] <= kept[-1] < whole:
        raise ValueError(f"timestep_map must have {len(chain)} rising labels below {whole}, one for each beta, got {kept}")
    scaled = bool(getattr(diffusion, "rescale_timesteps", False))
    time: Any = "index" if kept == list(range(whole)) and not scaled else Labels(kept, 1000.0 / whole if scaled else 1.0)
    return ScoreModel(Wrapped(model, _called_plainly), VPSDE.from_betas(chain), means[kind], time)  # type: ignore[arg-type]


class Labels:
    """The label of the k-th node of K, at t = k/K, times a factor; between the nodes a straight line, from −1 at t = 0."""

    def __init__(self, labels: Sequence[int], factor: float = 1.0) -> None:
        self.labels, self.factor = torch.tensor([-1, *labels], dtype=torch.float64), factor

    def __call__(self, t: Tensor) -> Tensor:
        labels, place = self.labels.to(t), t * (len(self.labels) - 1)
        place = torch.where((place - place.round()).abs() < 1e-6, place.round(), place)
        below = place.floor().long().clamp(0, len(labels) - 2)
        return torch.lerp(labels[below], labels[below + 1], place - below) * self.factor

    def __repr__(self) -> str:
        return f"{self.factor:g}·label, {len(self.labels) - 1} from {int(self.labels[1])} to {int(self.labels[-1])}"


def from_score_sde(model: Any, sde: Any, continuous: bool = True) -> ScoreModel:
    """A network of score_sde with its SDE: `VPSDE`, `subVPSDE` or `VESDE`.

    As `get_score_fn` there: on VP and sub-VP the network is told 999·t and gives −σ_t times the score, which is ε̂; on VE it is
    told the noise level and gives the score. After discrete training VP is told (N − 1)·t, and VE the number of the level, 0 at
    σ_max, N − 1 at σ_min. Their VE path begins at σ_min, ours at 0: below σ_min the network was not trained.

    Args:
        sde: by its class's name, with beta_0 and beta_1, or sigma_min and sigma_max, and N.
        continuous: of the training, as `config.training.continuous`.

    Raises:
        TypeError: no network. ValueError: another SDE.

    Reference:
        Song et al. (2021); `models/utils.py` of its code.
    """
    _called("model", model)
    kind = type(sde).__name__.lower()
    one_of("sde", kind, ("vpsde", "subvpsde", "vesde"))
    if kind == "vesde":
        ve = VESDE(float(sde.sigma_min), float(sde.sigma_max))
        return ScoreModel(Wrapped(model, _called_plainly), ve, "score", "sigma" if continuous else NearestLevel(ve, int(sde.N)))
    path: GaussianPath = (VPSDE if kind == "vpsde" else SubVPSDE)(float(sde.beta_0), float(sde.beta_1))
    scale = 999.0 if continuous or kind == "subvpsde" else float(sde.N - 1)
    return ScoreModel(Wrapped(model, _called_plainly), path, "eps", ("scaled", scale))


class NearestLevel:
    """The number of the nearest of N levels, geometric from σ_max, 0, to σ_min, N − 1."""

    def __init__(self, path: VESDE, N: int) -> None:
        self.path, self.N = path, N

    def __call__(self, t: Tensor) -> Tensor:
        down = (math.log(self.path.sigma_max) + self.path.lam(t)) / self.path.rate
        return (down.clamp(0, 1) * (self.N - 1)).round().long()

    def __repr__(self) -> str:
        return f"the nearest of {self.N} levels"


# -- flows ---------------------------------------------------------------------------------------------------------------


def from_velocity(net: Any, *, data_at: int, scale: float = 1.0, time_first: bool | None = None) -> ScoreModel:
    """A velocity network of flow matching on straight paths, `x = (1 − τ) x_0 + τ ε` in our time.

    Args:
        net: `net(x, t, **conditions)`, or `net(t, x, **conditions)` as torchcfm has it.
        data_at: the end of *its* time where the data stand. 1 for torchcfm and flow_matching, whose velocity points to the
            data; 0 for SD3 and Flux, whose velocity points to the noise.
        scale: what its time is multiplied by, such as 1000.
        time_first: whether the time is its first argument; None: by the names of its parameters.

    Raises:
        TypeError: no callable. ValueError: data_at is neither 0 nor 1.
    """
    _called("net", net)
    if data_at not in (0, 1) or isinstance(data_at, bool):
        raise ValueError(f"data_at must be 0 or 1, the end of the network's time where the data stand, got {data_at!r}")
    number("scale", scale, above=0)
    first = _time_first(net) if time_first is None else time_first
    return ScoreModel(Velocity(net, data_at == 1, float(scale), first), Flow(), "flow", "unit")


class Velocity(nn.Module):
    """A velocity in our time: that of data at 1 is told 1 − t and turned."""

    def __init__(self, net: Any, turned: bool, scale: float, time_first: bool) -> None:
        super().__init__()
        self.net, self.turned, self.scale, self.time_first, self.null = net, turned, scale, time_first, attribute(net, "null")
        self.training = bool(getattr(net, "training", False))

    def forward(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        told = (1 - t if self.turned else t) * self.scale
        v = self.net(told, x, **conditions) if self.time_first else self.net(x, told, **conditions)
        return -v if self.turned else v


def _time_first(net: Any) -> bool:
    try:
        names = list(inspect.signature(net.forward if isinstance(net, nn.Module) else net).parameters)
    except (TypeError, ValueError):
        return False
    return bool(names) and names[0] in ("t", "time", "timestep", "timesteps")
