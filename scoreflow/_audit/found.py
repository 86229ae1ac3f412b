"""A sampler of any kind, recognised by what it is and what it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from scoreflow._audit import peers, schedulers
from scoreflow._audit.stranger import Asked, Net, Stranger, name_of
from scoreflow._core.check import one_of
from scoreflow._core.gaussian import PREDICTIONS, GaussianPath, Prediction
from scoreflow._core.grid import check_path
from scoreflow._core.path import VPSDE
from scoreflow._run.auto import AUTO
from scoreflow._run.solve import solve
from scoreflow._samplers.plan import Plan
from scoreflow._samplers.step import Linear, Sampler, get_sampler
from scoreflow._score.labels import check_label
from scoreflow._score.model import ScoreModel
from scoreflow._uses.read_back import Run

PATH = VPSDE()
"""Of a function whose path is not said. One object, with which what was computed of it is kept."""


def found(
    sampler: Any, path: GaussianPath | None = None, prediction: Prediction | None = None, time: Any = None, start: float = 1.0,
    **options: Any,
) -> Stranger:  # fmt: skip
    """A sampler of any kind as a `Stranger`.

    Raises:
        TypeError: it is none, or has no such option. ValueError: it is one that cannot be read.
    """
    if path is not None:
        check_path(path)
    if prediction is not None:
        one_of("prediction", prediction, PREDICTIONS)
    asked = Asked(path, prediction, time, start)
    for recognises, adapt in OWN_WORDS:
        if recognises(sampler):
            if said := [name for name, value in asked._asdict().items() if value != Asked._field_defaults[name]]:
                raise TypeError(f"{said[0]} is known of {name_of(sampler)}, and cannot be given")
            return adapt(sampler, dict(options))
    for recognises, reads in KINDS:
        if recognises(sampler):
            return reads(sampler, asked, dict(options))
    raise TypeError(f"sampler must be a name, a Sampler, a scheduler or a function, got {type(sampler).__name__}")


def is_ours(sampler: Any) -> bool:
    """A name, a sampler or a plan."""
    return isinstance(sampler, str | Sampler | Plan)


def ours(sampler: Any, asked: Asked, options: dict[str, Any]) -> Stranger:
    """One of ours, by the front door."""
    path, prediction = asked.path or PATH, asked.prediction or "eps"

    def build(n: int) -> Run:
        def run(net: Net, x: Tensor) -> Tensor:
            model = ScoreModel(lambda x, t: net(x, t), path, prediction)
            given: dict[str, Any] = {} if isinstance(sampler, Plan) else {"steps": n, "start": asked.start}
            return solve(model, x, sampler, seed=0, **given, **options).x

        return run

    made = get_sampler(sampler, **options) if isinstance(sampler, str | Sampler) and sampler != AUTO else None
    own = made if isinstance(made, Linear) else None
    return Stranger(str(sampler), path, prediction, "unit", build, asked.start, own)


def function(sampler: Callable[..., Tensor], asked: Asked, options: dict[str, Any]) -> Stranger:
    """`run(net, x_T, n)`; or a class of such, made without arguments."""
    run = sampler() if inspect.isclass(sampler) else sampler
    if not callable(run):
        raise TypeError(f"sampler must be a class of functions run(net, x_T, n), and {name_of(sampler)}() cannot be called")
    path = asked.path or PATH
    time = check_label("unit" if asked.time is None else asked.time, path)

    def build(n: int) -> Run:
        return lambda net, x: run(net, x, n, **options)

    return Stranger(name_of(sampler), path, asked.prediction or "eps", time, build, asked.start)


OWN_WORDS: tuple[tuple[Callable[[Any], bool], Callable[[Any, dict[str, Any]], Stranger]], ...] = (
    (peers.is_azula, peers.azula),
    (peers.is_solver, peers.solver),
    (peers.is_predictor, peers.predictor),
    (peers.is_edm, peers.edm),
    (peers.is_k_diffusion, peers.k_diffusion),
)
KINDS: tuple[tuple[Callable[[Any], bool], Callable[[Any, Asked, dict[str, Any]], Stranger]], ...] = (
    (is_ours, ours),
    (schedulers.is_scheduler, schedulers.scheduler),
    (schedulers.is_step, schedulers.stepped),
    (callable, function),
)
"""Whether a sampler is of a kind, and how one of the kind is made a run; the first that recognises it does. Those with words of
their own come first: their path and what their network is told follow from their options."""
