"""Schedulers of diffusers, and functions that take the step of one, in the loop of a pipeline."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoreflow._audit.stranger import Asked, InDtype, Net, Stranger, name_of, parameters, path_of, split
from scoreflow._core.gaussian import GaussianPath, Prediction
from scoreflow._core.path import VESDE, VPSDE, Flow
from scoreflow._score.labels import check_label
from scoreflow._uses.read_back import Run
from scoreflow.interop.paths import describe, sigmas_path
from scoreflow.interop.preconditioning import Preconditioning

Loop = Callable[[Any, Net, Tensor, int], Tensor]
"""Of a scheduler whose timesteps are set, a network, a first state and the number of steps."""
STATE = ("model_output", "timestep", "sample")
CIRCLE = VPSDE.cosine(0.0)
"""`α = cos(πt/2)`, `σ = sin(πt/2)`."""


# -- a scheduler -----------------------------------------------------------------------------------------------------------


def is_scheduler(sampler: Any) -> bool:
    """Whether it has timesteps that are set, and a step."""
    return hasattr(sampler, "set_timesteps") and any(hasattr(sampler, step) for step in LOOPS)


def scheduler(sampler: Any, asked: Asked, options: dict[str, Any]) -> Stranger:
    """A scheduler, by its class or as it is; every run has a copy of its own."""
    if inspect.isclass(sampler):
        sampler = sampler(**{name: options.pop(name) for name in parameters(sampler) if name in options})
    name = type(sampler).__name__
    loop = next(loop for method, loop in LOOPS.items() if hasattr(sampler, method))
    if loop is not _plain:
        (sets,) = split(name, options, sampler.set_timesteps)
        return _stranger(name, sampler, asked, sets, loop)
    _readable(sampler)
    sets, steps = split(name, options, sampler.set_timesteps, sampler.step)
    return _stranger(name, sampler, asked, sets, lambda own, net, x, n: _plain(own, net, x, n, **steps))


def _stranger(name: str, sampler: Any, asked: Asked, sets: dict[str, Any], loop: Loop) -> Stranger:
    """What a loop makes of a scheduler whose timesteps are set."""
    said = _said(sampler, asked, sets)
    low, high, alpha = said.path.sigma(said.start), said.path.prior_std(said.start), said.path.alpha(said.start)

    def build(n: int) -> Run:
        def run(net: Net, x: Tensor) -> Tensor:
            own = _set(sampler, n, sets)
            std = float(getattr(own, "init_noise_sigma", 1.0))
            # A prior has the noise alone, or that and data of variance 1, of states that may be divided by α: each is the
            # first state as it is.
            near = (1 / unit for unit in (1.0, alpha) if low * (1 - 1e-6) <= std * unit <= high * (1 + 1e-6))
            scale = next(near, std / high)
            return loop(own, said.inside(own, net), x * (scale * said.unit), n) / said.unit

        return run

    return Stranger(name, said.path, said.prediction, said.time, build, said.start)


def _set(sampler: Any, n: int, options: dict[str, Any]) -> Any:
    """A copy with its timesteps set.

    Raises:
        ValueError: it cannot set that many.
    """
    own = copy.deepcopy(sampler)
    try:
        own.set_timesteps(n, **options)
    except Exception as error:
        raise _fails(own, f"set_timesteps({n})", error, parameters(own.set_timesteps)) from error
    return own


def _fails(own: Any, what: str, error: Exception, takes: Iterable[str]) -> ValueError:
    return ValueError(f"{type(own).__name__}.{what} fails, {type(error).__name__}: {error}; it takes {', '.join(takes)}")


def _readable(sampler: Any) -> None:
    """Raise ValueError for a scheduler that is no sampler of a path, or whose step asks for what the loop does not have."""
    taken, name = inspect.signature(sampler.step).parameters, type(sampler).__name__
    if "LongTensor" in str(getattr(taken.get("sample"), "annotation", "")):
        raise ValueError(f"{name} cannot be read: its states are integer tokens, and those of a Gaussian path are real numbers")
    bare = [one.name for one in taken.values() if one.default is one.empty and one.kind is not one.VAR_KEYWORD]
    missing = [one for one in bare if one not in (*STATE, *MEMORY)]
    if set(STATE) <= set(taken) and missing:
        raise ValueError(
            f"{name} cannot be read by itself: its step asks for {', '.join(missing)}; write the loop as a function "
            "run(net, x_T, n) that gives it"
        )


# -- what its network is ---------------------------------------------------------------------------------------------------


class Said(NamedTuple):
    """What a scheduler says of its network.

    Attributes:
        path, prediction, time: as of `Stranger`. inside: what a scheduler calls, of it and of a network of these words.
        unit: what its states are multiples of. start: the time of the first.
    """

    path: GaussianPath
    prediction: Prediction
    time: Any
    inside: Callable[[Any, Net], Net] = lambda own, net: net
    unit: float = 1.0
    start: float = 1.0


def _said(own: Any, asked: Asked, sets: dict[str, Any]) -> Said:
    """By what was asked, and else by the scheduler's configuration and attributes."""
    said = _configured(own, sets) if asked.path is None else Said(asked.path, "eps", "unit", start=asked.start)
    time = said.time if asked.time is None else check_label(asked.time, said.path)
    return said._replace(prediction=asked.prediction or said.prediction, time=time)


def _configured(own: Any, sets: dict[str, Any]) -> Said:
    """By its configuration and attributes.

    Raises:
        ValueError: an inversion, or what says no path.
    """
    config: Any = getattr(own, "config", {})
    if config.get("prediction_type") == "trigflow":
        return Said(CIRCLE, "v", "unit", _angles, float(config["sigma_data"]))
    if hasattr(own, "ets") and hasattr(own, "betas") and not hasattr(own, "alphas_cumprod"):  # IPNDM: its betas are σ
        return Said(CIRCLE, "v", "unit")
    if hasattr(own, "add_noise_to_input"):
        std = float(own.init_noise_sigma)
        levels = [*map(float, _set(own, 2, sets).schedule), std]
        reaches = sigmas_path(min(levels), max(levels) * math.sqrt(2))
        return Said(reaches, "eps", "sigma", start=reaches.time(-math.log(std)))
    if hasattr(own, "get_scalings_for_boundary_condition"):
        return Said(VESDE(config["sigma_min"], config["sigma_max"]), "x0", "sigma", _consistent)
    if hasattr(own, "step_pred"):
        return Said(sigmas_path(config["sigma_min"], config["sigma_max"]), "score", "sigma")
    rises, turned, continuous = _times(_set(own, 4, sets))
    if turned:
        return Said(Flow(), "flow", "unit", lambda own, net: lambda x, t: -net(x, 1 - t))
    if rises:
        raise ValueError(f"{type(own).__name__} goes from data to noise: it inverts, and samples nothing")
    try:
        path, prediction, time, preconditioning = describe(own)
    except (ValueError, TypeError) as error:
        if continuous and hasattr(own, "add_noise"):
            return Said(path_of(lambda t: _noised(own, t), type(own).__name__), "eps", "unit")
        raise ValueError(f"{type(own).__name__} does not say its path: give path, prediction and time ({error})") from error
    if preconditioning is None:
        return Said(path, prediction, time)
    return Said(path, prediction, time, lambda own, net: _raw(preconditioning, own, net))


def _times(own: Any) -> tuple[bool, bool, bool]:
    """Whether the timesteps rise; whether they are 1 − σ of a flow, whose velocity then points to the data; are from 1 to 0."""
    told, sigma = torch.as_tensor(own.timesteps).double(), getattr(own, "sigmas", None)
    turned = sigma is not None and torch.allclose(told, 1 - torch.as_tensor(sigma)[: len(told)].double(), atol=1e-6)
    return bool(told[0] < told[-1]), turned, bool((told >= 0).all() and told[0] == 1)


def _raw(of: Preconditioning, own: Any, net: Net) -> Net:
    """The network within EDM's preconditioning, of a denoiser that is told the σ of a label."""

    def raw(given: Tensor, label: Tensor) -> Tensor:
        label = torch.as_tensor(label, dtype=given.dtype)
        told, levels = of.sigma(label), getattr(own, "sigmas", None)
        sigma = told if levels is None else levels[own.step_index].to(given.dtype)
        told = sigma if abs(of.label(sigma) - label) < 1e-6 else told  # a label in float32 has few digits of a large σ
        x = given / of.given(torch.ones_like(given), sigma)
        return of.inside(net(x, told), x, sigma)

    return raw


def _consistent(own: Any, net: Net) -> Net:
    """The network within a consistency model, which is told 250 log σ, of one that maps to the states at σ_min, its data."""
    least, data = own.config["sigma_min"], own.config["sigma_data"]

    def raw(given: Tensor, label: Tensor) -> Tensor:
        sigma = torch.as_tensor(label, dtype=torch.float64).div(250).exp()
        x = given / Preconditioning(data).given(torch.ones_like(given), sigma)
        c_skip, c_out = own.get_scalings_for_boundary_condition(sigma)
        return (net(x, (sigma**2 - least**2).clamp(min=0).sqrt()) - c_skip * x) / c_out

    return raw


def _angles(own: Any, net: Net) -> Net:
    """TrigFlow's network of angles, on states in units of σ_d; 1.5708 is π/2."""
    unit = own.config["sigma_data"]
    return lambda x, angle: unit * net(x / unit, (angle * (2 / math.pi)).clamp(max=1.0))


def _noised(own: Any, t: Tensor) -> tuple[Tensor, Tensor]:
    """(α, σ) by the noise that a scheduler adds at continuous times."""
    one = torch.ones(len(t), 1, dtype=t.dtype)
    return own.add_noise(one, 0 * one, t)[:, 0], own.add_noise(0 * one, one, t)[:, 0]


# -- loops -----------------------------------------------------------------------------------------------------------------

MEMORY = ("old_pred_original_sample", "timestep_back", "prev_timestep")
"""What a step may ask for of the one before and the one after."""


def _plain(own: Any, net: Net, x: Tensor, n: int, step: Callable[..., Any] | None = None, **options: Any) -> Tensor:
    """One call of the network and one step at each timestep."""
    step = step or own.step
    taken, out, times = inspect.signature(step).parameters, None, [*own.timesteps]
    end = torch.as_tensor(times[-1])
    # Continuous times may name their end, where no network is called.
    if len(times) == n + 1 and end.is_floating_point() and end == 0 and getattr(own, "order", 1) == 1:
        times = times[:-1]
    each = getattr(taken.get("timestep"), "annotation", None) in (Tensor, "torch.Tensor")
    for k, t in enumerate(times):
        told = t.expand(len(x)) if each else t
        output = net(own.scale_model_input(x, t) if hasattr(own, "scale_model_input") else x, told)
        memory = {
            "old_pred_original_sample": out[1] if isinstance(out, tuple) and len(out) > 1 else None,
            "timestep_back": times[k - 1] if k else None,
            "prev_timestep": times[k + 1] if k + 1 < len(times) else None,
            "return_dict": False,
        }  # fmt: skip
        known = {name: value for name, value in memory.items() if name in taken} | options
        state = dict(zip(STATE, (output, told, x), strict=True))
        try:
            out = step(**state, **known) if set(STATE) <= set(taken) else step(*state.values(), **known)
        except Exception as error:
            raise _fails(own, "step", error, taken) from error
        x = out if isinstance(out, Tensor) else out[0]
    return x


def _churned(own: Any, net: Net, x: Tensor, n: int) -> Tensor:
    """Noise up, a step of Euler, and its correction, as of EDM; the network's ε̂ with the sign of the score."""
    for k in own.timesteps:
        level, below = own.schedule[k], own.schedule[k - 1] if k > 0 else 0
        at, sigma = own.add_noise_to_input(x, level)
        x, slope = own.step(-net(at, sigma), sigma, below, at, return_dict=False)
        if below:
            x = own.step_correct(-net(x, below), sigma, below, at, x, slope, return_dict=False)[0]
    return x


def _predicted(own: Any, net: Net, x: Tensor, n: int) -> Tensor:
    """Correctors and a predictor at each level, and the last mean."""
    with InDtype(x.dtype):
        own.set_timesteps(n)
        own.set_sigmas(n)
    mean = x
    for t, sigma in zip(own.timesteps, own.sigmas, strict=True):
        for _ in range(own.config["correct_steps"]):
            x = own.step_correct(net(x, sigma), x, return_dict=False)[0]
        x, mean = own.step_pred(net(x, sigma), t, x, return_dict=False)
    return mean


LOOPS: dict[str, Loop] = {"add_noise_to_input": _churned, "step_pred": _predicted, "step": _plain}
"""The loops by the method that tells them."""


# -- a step that is a function ---------------------------------------------------------------------------------------------


def is_step(sampler: Any) -> bool:
    """Whether it is a function of a scheduler, an output, a timestep and a sample."""
    return tuple(parameters(sampler)[1:4]) == STATE and not inspect.isclass(sampler)


def stepped(sampler: Any, asked: Asked, options: dict[str, Any]) -> Stranger:
    """A step that is given the scheduler, as those that return the density of their draw.

    Raises:
        TypeError: no scheduler is given, and the annotation of its first parameter is of none.
    """
    first = next(iter(inspect.signature(sampler, eval_str=True).parameters.values()))
    chosen = options.pop("scheduler", None)
    if chosen is None and not is_scheduler(first.annotation):
        raise TypeError(f"{name_of(sampler)} is the step of a scheduler, its {first.name!r}: give scheduler=")
    chosen = first.annotation() if chosen is None else chosen
    sets, steps = split(name_of(sampler), options, chosen.set_timesteps, sampler)

    def loop(own: Any, net: Net, x: Tensor, n: int) -> Tensor:
        def step(model_output: Tensor, timestep: Tensor, sample: Tensor, **more: Any) -> Any:
            return sampler(own, model_output, timestep.expand(len(sample)), sample, **more)

        return _plain(own, net, x, n, step, **steps)

    return _stranger(name_of(sampler), chosen, asked, sets, loop)
