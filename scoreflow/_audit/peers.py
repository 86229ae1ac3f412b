"""Samplers of azula, DPM-Solver, UniPC, score_sde, EDM and k-diffusion, by what their classes and functions take."""

from __future__ import annotations

import copy
import importlib
import inspect
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from scoreflow._audit.stranger import InDtype, Net, Stranger, name_of, parameters, path_of, split
from scoreflow._core.grid import grid
from scoreflow._uses.read_back import Run, without_draws
from scoreflow.interop.paths import sigmas_path

SIGMAS = (0.03, 15.0)
"""The ends of σ at which functions of k-diffusion are run."""


def _kind(sampler: Any) -> Any:
    """The class, of a class or of an object."""
    return sampler if inspect.isclass(sampler) else type(sampler)


def _beside(kind: Any, name: str) -> Any:
    """What the module of a class calls by this name; None if nothing."""
    return getattr(kind.__init__, "__globals__", {}).get(name)


# -- azula -----------------------------------------------------------------------------------------------------------------


def is_azula(sampler: Any) -> bool:
    """A class that is made with a denoiser, or what has one, and times."""
    kind = _kind(sampler)
    made = "denoiser" in parameters(kind) if kind is sampler else hasattr(sampler, "denoiser")
    return made and hasattr(kind, "timesteps")


def azula(sampler: Any, options: dict[str, Any]) -> Stranger:
    """A sampler around a denoiser, on the schedule of that, on `schedule=`, or on azula's `VPSchedule`.

    Raises:
        TypeError: options of what is made already, or a class without a schedule.
    """
    kind, schedule = _kind(sampler), options.pop("schedule", None)
    if kind is not sampler:
        split(kind.__name__, options, lambda schedule: None)
    schedule = schedule or (_vp_schedule(kind) if kind is sampler else sampler.denoiser.schedule)

    def made(denoiser: Any, n: int) -> Any:
        if kind is sampler:
            return kind(denoiser, **{"steps": n, "silent": True, **options})
        own = copy.copy(sampler)
        own.denoiser, own.steps, own.silent = denoiser, n, True
        return own

    def build(n: int) -> Run:
        return _exactly(lambda net, x: made(_Denoiser(net, schedule), n)(x))

    start = options.get("start", 1.0) if kind is sampler else sampler.start
    on = name_of(schedule)
    return Stranger(f"{kind.__name__} on {on}", path_of(schedule, on), "x0", "unit", build, float(start))


def _vp_schedule(kind: Any) -> Any:
    package = kind.__module__.partition(".")[0]
    try:
        return importlib.import_module(f"{package}.noise").VPSchedule()
    except (ImportError, AttributeError) as error:
        raise TypeError(f"{kind.__name__} stands on a noise schedule: give schedule=, t to (alpha, sigma)") from error


class _Denoiser:
    """`denoiser(x_t, t).mean` and its schedule."""

    def __init__(self, net: Net, schedule: Any) -> None:
        self.net, self.schedule = net, schedule

    def __call__(self, x: Tensor, t: Tensor, **more: Any) -> Any:
        return SimpleNamespace(mean=self.net(x, t))


def _exactly(run: Run) -> Run:
    """With its constants in the dtype of the states."""

    def exact(net: Net, x: Tensor) -> Tensor:
        with InDtype(x.dtype):
            return run(net, x)

    return exact


# -- DPM-Solver and UniPC --------------------------------------------------------------------------------------------------


def is_solver(sampler: Any) -> bool:
    """A class that is made with a network and a noise schedule, or an object of it; and `sample`."""
    return {"model_fn", "noise_schedule"} <= {*parameters(_kind(sampler))} and hasattr(sampler, "sample")


def solver(sampler: Any, options: dict[str, Any]) -> Stranger:
    """Their classes, on `noise_schedule=`, and else on `NoiseScheduleVP("linear")` of the same file.

    Raises:
        TypeError: an option that neither the class nor `sample` has, or no noise schedule.
    """
    kind, given = _kind(sampler), dict[str, Any]()
    if kind is sampler:
        given, sampled = split(kind.__name__, options, kind, kind.sample)
        default = _beside(kind, "NoiseScheduleVP")
        schedule = given.pop("noise_schedule", None) or (default and default("linear"))
    else:
        (sampled,) = split(kind.__name__, options, sampler.sample)
        schedule = sampler.noise_schedule
    if schedule is None:
        raise TypeError(f"{kind.__name__} stands on a noise schedule: give noise_schedule=")

    def made(net: Net) -> Any:
        if kind is sampler:
            return kind(net, schedule, **given)
        own = copy.copy(sampler)
        own.model = lambda x, t: net(x, t.expand(len(x)))
        return own

    def build(n: int) -> Run:
        return _exactly(lambda net, x: made(net).sample(x, **{"steps": n, **sampled}))

    path, start = path_of(_marginals(schedule), type(schedule).__name__), sampled.get("t_start")
    return Stranger(kind.__name__, path, "eps", "unit", build, 1.0 if start is None else float(start))


def _marginals(schedule: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """α and σ of their schedules; of a discrete one, lines between the nodes of log α, which is 0 at 0, in less time."""
    if getattr(schedule, "schedule", None) != "discrete":
        return lambda t: (schedule.marginal_alpha(t), schedule.marginal_std(t))
    start = torch.zeros(1, dtype=torch.float64)
    nodes, log_alpha = (torch.cat([start, one.double().flatten()]) for one in (schedule.t_array, schedule.log_alpha_array))

    def curves(t: Tensor) -> tuple[Tensor, Tensor]:
        k = torch.searchsorted(nodes, t.detach()).clamp(1, len(nodes) - 1)
        log = torch.lerp(log_alpha[k - 1], log_alpha[k], (t - nodes[k - 1]) / (nodes[k] - nodes[k - 1]))
        return log.exp(), (-torch.expm1(2 * log)).sqrt()

    return curves


# -- score_sde -------------------------------------------------------------------------------------------------------------


def is_predictor(sampler: Any) -> bool:
    """A class that is made with an SDE and a score, and updates a state."""
    return {"sde", "score_fn"} <= {*parameters(sampler)} and hasattr(sampler, "update_fn")


def predictor(sampler: Any, options: dict[str, Any]) -> Stranger:
    """A predictor in the loop of a predictor-corrector sampler; the network gives the score, and is told t.

    Options: `sde`, a class or an object (its VPSDE if none is given), `eps`, `denoise`, `corrector`, a class, and what the two
    classes take.

    Raises:
        TypeError: no SDE, or an option that neither class has.
    """
    near = _beside(sampler, "VPSDE") or getattr(_beside(sampler, "sde_lib"), "VPSDE", None)
    sde = options.pop("sde", None) or near
    if sde is None:
        raise TypeError(f"{name_of(sampler)} stands on an SDE: give sde=")
    corrector, eps, denoise = (options.pop(*one) for one in (("corrector", None), ("eps", 1e-3), ("denoise", True)))
    mine, corrects = split(name_of(sampler), options, sampler, corrector or (lambda: None))

    def build(n: int) -> Run:
        def run(net: Net, x: Tensor) -> Tensor:
            own = _with_steps(sde, n)
            predict, correct = sampler(own, net, **mine), corrector(own, net, **corrects) if corrector else None
            mean = x
            for t in torch.linspace(own.T, eps, n):
                told = t.expand(len(x))
                x, mean = correct.update_fn(x, told) if correct else (x, mean)
                x, mean = predict.update_fn(x, told)
            return mean if denoise else x

        return _exactly(run)

    whole = _with_steps(sde, 1000)

    def curves(t: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = whole.marginal_prob(torch.ones(len(t), 1, 1, 1, dtype=t.dtype), t)
        return mean[:, 0, 0, 0], std

    return Stranger(name_of(sampler), path_of(curves, type(whole).__name__), "score", "unit", build)


def _with_steps(sde: Any, n: int) -> Any:
    """The SDE discretised in n steps, by its class, or by the ends of its β or σ."""
    if callable(sde):
        return sde(N=n)
    ends = [getattr(sde, name) for name in ("beta_0", "beta_1", "sigma_min", "sigma_max") if hasattr(sde, name)]
    return type(sde)(*ends, N=n)


# -- EDM -------------------------------------------------------------------------------------------------------------------


def is_edm(sampler: Any) -> bool:
    """A function of a network, noise of variance 1 and a number of steps."""
    taken = parameters(sampler)
    return taken[:1] == ["net"] and "num_steps" in taken and not inspect.isclass(sampler)


def edm(sampler: Any, options: dict[str, Any]) -> Stranger:
    """`sampler(net, latents, num_steps=…)`, whose network is told σ; σ of the first state is what it makes of the noise."""
    split(name_of(sampler), options, sampler)
    seen = list[tuple[float, float]]()

    def run(net: Net, z: Tensor, n: int) -> Tensor:
        return sampler(_Network(net), z, num_steps=n, **options)

    def watched(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append((float(x.reshape(-1)[0]), float(torch.as_tensor(sigma).reshape(-1)[0])))
        return torch.zeros_like(x)

    without_draws(lambda net, z: run(net, z, 2), watched, torch.ones(1, 1, 1, 1, dtype=torch.float64))
    first, told = seen[0][0], [sigma for _, sigma in seen]
    path = sigmas_path(min(told), max(told))
    start = path.time(-math.log(first))

    def build(n: int) -> Run:
        return lambda net, x: run(net, x / first, n)

    return Stranger(name_of(sampler), path, "x0", "sigma", build, start)


class _Network:
    """A denoiser that takes all σ."""

    sigma_min, sigma_max = 0.0, math.inf

    def __init__(self, net: Net) -> None:
        self.net = net

    def __call__(self, x: Tensor, sigma: Tensor, *more: Any, **conditions: Any) -> Tensor:
        return self.net(x, sigma)

    def round_sigma(self, sigma: Any) -> Tensor:
        return torch.as_tensor(sigma)


# -- k-diffusion -----------------------------------------------------------------------------------------------------------


def is_k_diffusion(sampler: Any) -> bool:
    """A function of a denoiser and its σ, or the ends of them."""
    taken = parameters(sampler)
    return "sigmas" in taken[:3] or taken[:4] == ["model", "x", "sigma_min", "sigma_max"]


def k_diffusion(sampler: Callable[..., Tensor], options: dict[str, Any]) -> Stranger:
    """`sample_*(model, x, sigmas, ...)`, on Karras' σ, or `(model, x, sigma_min, sigma_max, n)`."""
    path, taken = sigmas_path(*SIGMAS), parameters(sampler)
    split(name_of(sampler), options, sampler)
    silent = {"disable": True} if "disable" in taken else {}

    def build(n: int) -> Run:
        times = grid(path, n - 1, "karras", stop=path.time(-math.log(SIGMAS[0]))) if n > 1 else (1.0,)
        levels = torch.tensor([*(path.sigma(t) for t in times), 0.0], dtype=torch.float64)

        def run(net: Net, x: Tensor) -> Tensor:
            ends = (levels.to(x),) if "sigmas" in taken else (*SIGMAS, n)[: 3 if "n" in taken else 2]
            return sampler(lambda x, sigma, **more: net(x, sigma), x, *ends, **silent, **options)

        return run

    return Stranger(name_of(sampler), path, "x0", "sigma", build)
