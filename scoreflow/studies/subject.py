"""What is studied: a model, the data to compare to, and all that a figure depends on beside the sampler and the seed."""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoreflow import analysis, zoo
from scoreflow._core.check import number, one_of, suggestion, whole
from scoreflow._core.grid import inner_ends
from scoreflow._core.path import PATHS
from scoreflow._score.model import ScoreModel
from scoreflow._score.oracle import Gaussian, GaussianMixture
from scoreflow.checkpoint import load_model
from scoreflow.data import Images
from scoreflow.data import load as named_data
from scoreflow.guidance import Guided
from scoreflow.studies.features import Features, get_features
from scoreflow.studies.fingerprint import fingerprint
from scoreflow.studies.metrics import Metric, draws
from scoreflow.studies.spec import parse


@dataclass(frozen=True)
class Subject:
    """A model with its data.

    Attributes:
        model: the score model.
        shape: of one sample.
        data: (N, *shape). Each block's samples are compared to a random half of it, its floor is taken from the other half.
            None if there is none, or if the model is an oracle's, whose data are drawn as needed.
        features: states (n, *shape) to features (n, d), for the metrics that need them.
        conditions: of the network. Of a tensor the first n rows go to the n samples of every block; a function gives a
            block's from (n, seed).
        dtype: of the states; the network's if None.
        start, stop: the first and last time of every run.
        name: for reports.
    """

    model: ScoreModel
    shape: tuple[int, ...]
    data: Tensor | None = None
    features: Features | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)
    dtype: torch.dtype | None = None
    start: float = 1.0
    stop: float = 0.0
    name: str = ""

    @property
    def oracle(self) -> GaussianMixture | None:
        """The data's distribution, if the model is exact for one."""
        return self.model.oracle

    @property
    def precision(self) -> torch.dtype:
        """The dtype of the states."""
        return self.dtype or (torch.float64 if self.oracle else self.model.state_dtype)

    def truth(self, seed: int, at_most: int = 2000) -> Tensor | None:
        """What the samples of a block are compared to: an oracle's draws, or one half of the data."""
        if self.oracle is not None:
            return self.oracle.sample(at_most, seed=draws(seed, "truth").initial_seed()).to(self.precision)
        return None if self.data is None else self.data[self._split(seed)[len(self.data) // 2 :][:at_most]]

    def block(self, n: int, seed: int) -> Tensor:
        """n data for the floor: an oracle's draws, or some of the other half.

        Raises:
            ValueError: more than there are.
        """
        if self.oracle is not None:
            return self.oracle.sample(n, seed=draws(seed, "floor").initial_seed()).to(self.precision)
        assert self.data is not None
        if n > (half := len(self.data) // 2):
            raise ValueError(f"n must be at most {half}, half of the {len(self.data)} data, got {n}")
        return self.data[self._split(seed)[:n]]

    def conditioned(self, n: int, seed: int) -> dict[str, Any]:
        """The conditions of a block."""
        return {
            name: value(n, seed) if callable(value) else value[:n] if isinstance(value, Tensor) and value.ndim else value
            for name, value in self.conditions.items()
        }

    def _split(self, seed: int) -> Tensor:
        """The data in the seed's order: two halves, others for every block, so that chance in the data is seen."""
        assert self.data is not None
        return torch.randperm(len(self.data), generator=draws(seed, "data"))

    def has(self) -> set[str]:
        """What metrics may need of it."""
        known = self.oracle is not None
        own = {
            "data": known or self.data is not None, "features": self.features is not None, "oracle": known,
            "mixture": known and len(self.oracle.means) > 1 if self.oracle else False,
            "gaussian": isinstance(self.oracle, Gaussian),
        }  # fmt: skip
        return {name for name, there in own.items() if there} | {"reference", "deterministic", "finest", "rows", "timed"}

    def lacks(self, metrics: list[Metric]) -> list[str]:
        """What the metrics need and it has not, as sentences."""
        wanted = {
            "data": "data=, a tensor of true samples", "features": "features=, a function from states to features",
            "oracle": "an oracle's model", "mixture": "a GaussianMixture's model", "gaussian": "a Gaussian's model",
        }  # fmt: skip
        missing = [(metric.name, need) for metric in metrics for need in metric.needs if need not in self.has()]
        return [f"metric {name!r} needs {wanted[need]}" for name, need in missing]

    def identity(self) -> dict[str, str]:
        """What its figures depend on, as text."""
        return {
            "network": type(self.oracle or self.model.net).__name__ + _guidance(self.model),
            "model": fingerprint(self.model),
            "path": repr(self.model.path),
            "shape": str(tuple(self.shape)),
            "dtype": str(self.precision).removeprefix("torch."),
            "device": getattr(self.model.device, "type", "cpu"),
            "conditions": fingerprint(dict(self.conditions)) if self.conditions else "none",
            "data": "oracle" if self.oracle else "none" if self.data is None else fingerprint(self.data),
            "features": fingerprint(self.features) if self.features else "none",
            "start": repr(self.start),
            "stop": repr(self.stop),
        }


def _guidance(model: ScoreModel) -> str:
    """Its wrappers, from the outer to the inner."""
    return f", {model.kind}{_guidance(model.model)}" if isinstance(model, Guided) else ""


# -- by name --------------------------------------------------------------------------------------------------------------


def ring(modes: int = 8, radius: float = 1.3, std: float = 0.1) -> GaussianMixture:
    """Modes on a circle, of unequal weight."""
    whole("modes", modes), number("radius", radius), number("std", std, least=0)
    angle = torch.arange(modes, dtype=torch.float64) * (2 * torch.pi / modes)
    return GaussianMixture(1 + torch.arange(modes) % 3, radius * torch.stack([angle.cos(), angle.sin()], 1), std**2)


def white(d: int = 64, var: float = 0.25) -> Gaussian:
    """N(0, var I)."""
    return Gaussian(torch.zeros(whole("d", d)), number("var", var, least=0))


def power_law(d: int = 64, power: float = 2.0) -> Gaussian:
    """Independent entries with variances `k^−power` of a natural image's frequencies, scaled to a mean of 1."""
    var = torch.arange(1, whole("d", d) + 1, dtype=torch.float64) ** -number("power", power)
    return Gaussian(torch.zeros(d), var / var.mean())


def digits() -> Gaussian:
    """The mean and covariance of the 8×8 digits."""
    x = zoo.digits_data().train.flatten(1).double()
    return Gaussian(x.mean(0), x.T.cov())


ORACLES: dict[str, Callable[..., GaussianMixture]] = {
    "mixture": analysis.problem, "ring": ring, "white": white, "power-law": power_law, "digits": digits,
}  # fmt: skip


def _zoo_digits() -> Subject:
    data = zoo.digits_data()
    return Subject(zoo.digits(), (1, 8, 8), data.held_out, zoo.digits_features(), {"y": _classes})


def _classes(n: int, seed: int, of: int = 10) -> Tensor:
    """Classes at random, as often as in the data."""
    return torch.randint(of, (n,), generator=draws(seed, "classes"))


def _zoo_mnist() -> Subject:
    held_out = named_data("mnist").held_out
    assert isinstance(held_out, Images)
    return Subject(zoo.mnist(), (1, 28, 28), held_out.x, zoo.mnist_features(), {"y": _classes})


ZOO: dict[str, Callable[[], Subject]] = {"digits": _zoo_digits, "mnist": _zoo_mnist}


def trained(folder: str | Path) -> Subject:
    """What `scoreflow train` left in a folder, with its data; images in memory are kept for comparison.

    Raises:
        FileNotFoundError, ValueError: no such run, or one whose data have no name.
    """
    model, file = load_model(folder), Path(folder) / "config.json"
    data = json.loads(file.read_text(encoding="utf-8"))["notes"]
    if "name" not in data:
        raise ValueError(f"the run in {folder} does not name its data: make a Subject of load_model({str(folder)!r}) and them")
    found = named_data(data["name"], **{k: v for k, v in data.items() if k in ("size", "channels")})
    held_out = found.held_out.x if isinstance(found.held_out, Images) else None
    classes = found.classes if data["labels"] else 0
    conditions = {"y": functools.partial(_classes, of=classes)} if classes else {}
    return Subject(model, found.shape, held_out, conditions=conditions, start=inner_ends(model.path)[1])


def load(text: str) -> Subject:
    """A subject by name: `zoo:digits`, `oracle:mixture(d=2, path=cosine)`, `run:folder`, or `package.module:factory`.

    A factory is called without arguments and returns a Subject, or a ScoreModel of an oracle.

    Raises:
        ValueError: nothing has the name, or it makes no subject.
    """
    kind, colon, rest = text.partition(":")
    if not colon:
        raise ValueError(f"model must be zoo:name, oracle:name, run:folder or package.module:factory, got {text!r}")
    if kind == "zoo":
        if rest not in ZOO:
            raise ValueError(f"no network of the zoo is called {rest!r}{suggestion(rest, ZOO)}")
        found: Any = ZOO[rest]()
    elif kind == "run":
        found = trained(rest)
    elif kind == "oracle":
        name, options, _ = parse(rest)
        if name not in ORACLES:
            raise ValueError(f"no oracle is called {name!r}{suggestion(name, ORACLES)}")
        one_of("path", path := options.pop("path", "vp"), PATHS)
        try:
            found = ORACLES[name](**options).model(PATHS[path]())
        except TypeError as error:
            raise ValueError(f"oracle {name!r}: {error}") from error
    else:
        try:
            found = getattr(importlib.import_module(kind), rest)()
        except (ImportError, AttributeError) as error:
            raise ValueError(f"model {text!r} cannot be loaded: {error}") from error
    return subject(found, name=text)


def _event(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        raise TypeError(f"shape must be that of one sample, such as (1, 8, 8), got {shape!r}")
    return tuple(whole("shape", n) for n in shape)


def subject(model: str | ScoreModel | Subject, shape: tuple[int, ...] | None = None, **given: Any) -> Subject:
    """A subject from a name, a model with what else is given, or a subject with some of it changed.

    Raises:
        ValueError: no shape for a network. TypeError: no model, or data or features of a wrong kind.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if isinstance(model, str):
        model = load(model)
    if isinstance(model, ScoreModel):
        if shape is None and model.oracle is None:
            raise ValueError("shape=None: give the shape of one sample, such as (1, 8, 8)")
        model = Subject(model, _event(shape) if shape is not None else model.oracle.event)
    elif shape is not None:
        given["shape"] = _event(shape)
    if not isinstance(model, Subject):
        raise TypeError(f"model must be a name, a ScoreModel or a Subject, got {type(model).__name__}")
    merged = {**vars(model), **given}
    if merged["features"] is not None:
        merged["features"] = get_features(merged["features"])
    data, event, dtype = merged["data"], merged["shape"], merged["dtype"]
    if not isinstance(merged["conditions"], Mapping):
        raise TypeError(f"conditions must be a mapping from names to values, got {merged['conditions']!r}")
    if dtype is not None and (not isinstance(dtype, torch.dtype) or not dtype.is_floating_point):
        raise TypeError(f"dtype must be a floating-point torch.dtype, got {dtype!r}")
    if model.oracle is not None:
        if data is not None:
            raise ValueError("data: those of an oracle's model are drawn from it; give none")
        if event != model.oracle.event:
            raise ValueError(f"shape must be that of the oracle, {model.oracle.event}, got {event}")
    if data is not None and (not isinstance(data, Tensor) or not data.is_floating_point() or data.shape[1:] != event):
        got = f"{data.dtype} of shape {tuple(data.shape)}" if isinstance(data, Tensor) else type(data).__name__
        raise TypeError(f"data must be a floating-point tensor of shape (N, {', '.join(map(str, event))}), got {got}")
    return Subject(**merged)
