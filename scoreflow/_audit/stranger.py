"""Samplers as they are found, made runs: functions, schedulers of diffusers, samplers of k-diffusion, ours."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoreflow._core.check import one_of
from scoreflow._core.gaussian import PREDICTIONS, GaussianPath, Prediction
from scoreflow._core.grid import check_path, grid
from scoreflow._core.path import VPSDE, Flow
from scoreflow._run.auto import AUTO
from scoreflow._run.solve import solve
from scoreflow._samplers.plan import Plan
from scoreflow._samplers.step import Linear, Sampler, get_sampler
from scoreflow._score.labels import check_label
from scoreflow._score.model import ScoreModel
from scoreflow._uses.read_back import Run
from scoreflow.interop.paths import describe, sigmas_path

SIGMAS = (0.03, 15.0)
"""The ends of σ at which functions of k-diffusion are run."""


class Stranger(NamedTuple):
    """A sampler as it is found.

    Attributes:
        name: for reports. path: of the states that its network is given.
        prediction, time: what its network gives, and is told.
        build: from a number of steps to a run, which is given a first state of standard deviation `path.prior_std(start)`.
        start: the time of the first state. own: the sampler, if it is one of ours.
    """

    name: str
    path: GaussianPath
    prediction: Prediction
    time: Any
    build: Callable[[int], Run]
    start: float = 1.0
    own: Linear | None = None

    def time_of(self, label: float) -> float:
        """The time that a label tells."""
        if self.time == "unit":
            return label
        if self.time in ("index", "label"):
            assert self.path.T is not None
            return (label + 1) / self.path.T
        if self.time == "sigma":
            on_flow = isinstance(self.path, Flow)
            return label if on_flow else self.path.time(-math.log(label)) if label > 0 else 0.0
        if self.time == "log-snr":
            return self.path.time(label / 2)
        return label / float(self.time[1])


def found(
    sampler: Any, path: GaussianPath | None = None, prediction: Prediction | None = None, time: Any = None, start: float = 1.0,
    **options: Any,
) -> Stranger:  # fmt: skip
    """A sampler of any kind as a `Stranger`.

    Raises:
        TypeError: it is none. ValueError: what it would need is missing, or has no meaning.
    """
    if path is not None:
        check_path(path)
    if prediction is not None:
        one_of("prediction", prediction, PREDICTIONS)
    if isinstance(sampler, str | Sampler | Plan):
        return _ours(sampler, path or VPSDE(), prediction or "eps", start, options)
    if hasattr(sampler, "set_timesteps") and hasattr(sampler, "step"):
        return _scheduler(sampler, options)
    if not callable(sampler):
        raise TypeError(f"sampler must be a name, a Sampler, a scheduler or a function, got {type(sampler).__name__}")
    taken = list(inspect.signature(sampler).parameters)
    if "sigmas" in taken[:3]:
        return _k_diffusion(sampler, options)
    told = "unit" if time is None else time
    on = path or VPSDE()
    return Stranger(
        _name(sampler), on, prediction or "eps", check_label(told, on), lambda n: _called(sampler, n, options), start
    )


def _name(sampler: Any) -> str:
    return str(getattr(sampler, "__name__", type(sampler).__name__))


def _called(run: Callable[..., Tensor], n: int, options: dict[str, Any]) -> Run:
    return lambda net, x: run(net, x, n, **options)


def _ours(sampler: Any, path: GaussianPath, prediction: Prediction, start: float, options: dict[str, Any]) -> Stranger:
    """One of ours, by the front door."""

    def build(n: int) -> Run:
        def run(net: Callable[..., Tensor], x: Tensor) -> Tensor:
            model = ScoreModel(lambda x, t: net(x, t), path, prediction)
            given: dict[str, Any] = {} if isinstance(sampler, Plan) else {"steps": n, "start": start}
            return solve(model, x, sampler, seed=0, **given, **options).x

        return run

    made = get_sampler(sampler, **options) if isinstance(sampler, str | Sampler) and sampler != AUTO else None
    return Stranger(str(sampler), path, prediction, "unit", build, start, made if isinstance(made, Linear) else None)


def _scheduler(scheduler: Any, options: dict[str, Any]) -> Stranger:
    """A scheduler of diffusers, in the loop of a pipeline; every run has a copy of its own."""
    described = describe(scheduler)
    if described.preconditioning is not None:
        raise ValueError(f"{type(scheduler).__name__} stands around a network of EDM's kind, which cannot be read yet")

    def build(n: int) -> Run:
        def run(net: Callable[..., Tensor], x: Tensor) -> Tensor:
            own = copy.deepcopy(scheduler)
            own.set_timesteps(n)
            x = x * getattr(own, "init_noise_sigma", 1.0)
            for t in own.timesteps:
                output = net(own.scale_model_input(x, t) if hasattr(own, "scale_model_input") else x, t)
                x = own.step(output, t, x, return_dict=False, **options)[0]
            return x

        return run

    return Stranger(type(scheduler).__name__, described.path, described.prediction, described.time, build)


def _k_diffusion(function: Callable[..., Tensor], options: dict[str, Any]) -> Stranger:
    """`sample_*(model, x, sigmas, ...)`, on Karras' σ."""
    path = sigmas_path(*SIGMAS)
    silent = {"disable": True} if "disable" in inspect.signature(function).parameters else {}

    def build(n: int) -> Run:
        times = grid(path, n - 1, "karras", stop=path.time(-math.log(SIGMAS[0]))) if n > 1 else (1.0,)
        levels = torch.tensor([*(path.sigma(t) for t in times), 0.0], dtype=torch.float64)

        def run(net: Callable[..., Tensor], x: Tensor) -> Tensor:
            return function(lambda x, sigma, **more: net(x, sigma), x, levels.to(x), **silent, **options)

        return run

    return Stranger(_name(function), path, "x0", "sigma", build)
