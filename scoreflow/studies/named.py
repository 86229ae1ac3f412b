"""Subjects by name: the zoo, oracles, runs of training, functions of your own; and what is given beside."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoreflow import analysis, zoo
from scoreflow._core.check import floating, meant, number, one_of, suggestion, whole
from scoreflow._core.check import options as check_options
from scoreflow._core.grid import inner_ends
from scoreflow._core.path import PATHS, VPSDE
from scoreflow._score.flow_map import FlowMap
from scoreflow._score.model import ScoreModel
from scoreflow._score.oracle import Empirical, Gaussian, GaussianMixture
from scoreflow.checkpoint import load_model
from scoreflow.data import Coarse, Images, read, without_labels
from scoreflow.data import load as named_data
from scoreflow.guidance import Guided
from scoreflow.posterior import Posterior
from scoreflow.studies.features import get_features
from scoreflow.studies.metrics import draws
from scoreflow.studies.spec import parse
from scoreflow.studies.subject import Subject, inner, is_map


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


def _zoo_digits(compare: bool = True) -> Subject:
    data = zoo.digits_data().held_out if compare else None
    return Subject(zoo.digits(), (1, 8, 8), data, zoo.digits_features(), {"y": _classes})


def _classes(n: int, seed: int, of: int = 10) -> Tensor:
    """Classes at random, as often as in the data."""
    return torch.randint(of, (n,), generator=draws(seed, "classes"))


def _told(n: int, seed: int, items: Coarse, name: str) -> Tensor:
    """A condition of n items at random."""
    chosen = torch.randint(len(items), (n,), generator=draws(seed, "items"))
    return torch.stack([torch.as_tensor(read(items[i])[1][name]) for i in chosen.tolist()])


def _zoo_mnist(compare: bool = True) -> Subject:
    held_out = named_data("mnist").held_out if compare else None
    data = held_out.x if isinstance(held_out, Images) else None
    return Subject(zoo.mnist(), (1, 28, 28), data, zoo.mnist_features(), {"y": _classes})


def _of_map(of: Callable[..., Subject], made: Callable[[], FlowMap], compare: bool = True) -> Subject:
    return replace(of(compare), model=made())


ZOO: dict[str, Callable[..., Subject]] = {
    "digits": _zoo_digits, "mnist": _zoo_mnist,
    "digits-map": functools.partial(_of_map, _zoo_digits, zoo.digits_map),
    "mnist-map": functools.partial(_of_map, _zoo_mnist, zoo.mnist_map),
}  # fmt: skip


def trained(folder: str | Path) -> Subject:
    """What `scoreflow train` left in a folder, or a file in it, with its data; images in memory are kept for comparison.

    Raises:
        FileNotFoundError, ValueError: no such run, or one whose data have no name.
    """
    folder = Path(folder).parent if Path(folder).is_file() else Path(folder)
    model, file = load_model(folder), folder / "config.json"
    data = json.loads(file.read_text(encoding="utf-8"))["notes"]
    if "name" not in data:
        raise ValueError(f"the run in {folder} does not name its data: make a Subject of load_model({str(folder)!r}) and them")
    found = named_data(data["name"], **{k: v for k, v in data.items() if k in ("size", "channels")})
    held_out = found.held_out.x if isinstance(found.held_out, Images) else None
    classes = found.classes if data["labels"] else 0
    conditions = {"y": functools.partial(_classes, of=classes)} if classes else {}
    if "coarse" in data:
        items = Coarse(found.held_out if classes else without_labels(found).held_out, data["coarse"])
        conditions = {name: functools.partial(_told, items=items, name=name) for name in ("image", *conditions)}
    return Subject(model, found.shape, held_out, conditions=conditions, start=inner_ends(model.path)[1])


def load(text: str, shape: tuple[int, ...] | None = None, data: Tensor | None = None, compare: bool = True) -> Subject:
    """A subject by name: `zoo:digits`, `oracle:mixture(d=2, path=cosine)`, `run:folder`, `package.module:factory`, or
    `file.py:factory`.

    A factory is called without arguments. It returns a Subject, a ScoreModel (of a network, if the shape is given), or an
    oracle, which stands on `VPSDE()`. Its module is looked for in the current folder too.

    Args:
        shape: of one sample. data: to compare to, (N, *shape).
        compare: whether the data of the zoo are needed.

    Raises:
        ValueError: nothing has the name, or it makes no subject.
    """
    return subject(_named(text, compare), shape, data=data, name=text)


def _named(text: str, compare: bool) -> ScoreModel | Subject:
    """What has the name."""
    kind, colon, rest = text.partition(":")
    if not colon:
        raise ValueError(
            "model must be zoo:name, oracle:name, run:folder, file.py:function or package.module:function, "
            f"got {text!r}{meant(text, _prefixed())}"
        )
    if kind == "zoo":
        if rest not in ZOO:
            raise ValueError(f"no network of the zoo is called {rest!r}{suggestion(rest, ZOO)}")
        found: Any = ZOO[rest](compare)
    elif kind == "run":
        found = trained(rest)
    elif kind == "oracle":
        name, options, _ = parse(rest)
        if name not in ORACLES:
            raise ValueError(f"no oracle is called {name!r}{suggestion(name, ORACLES)}")
        one_of("path", path := options.pop("path", "vp"), PATHS)
        try:
            check_options(f"oracle {name!r}", options, (*inspect.signature(ORACLES[name]).parameters, "path"))
            found = ORACLES[name](**options).model(PATHS[path]())
        except TypeError as error:
            raise ValueError(f"model {text}: {error}") from error
    else:
        found = imported(*text.rsplit(":", 1))()
        found = found.model(VPSDE()) if isinstance(found, GaussianMixture | Empirical) else found
        if not isinstance(found, ScoreModel | Subject):
            raise TypeError(f"model {text} must give a ScoreModel, a Subject or an oracle, and gives {type(found).__name__}")
    return found


def _prefixed() -> list[str]:
    """The models that have names, as typed."""
    return [*(f"zoo:{name}" for name in ZOO), *(f"oracle:{name}" for name in ORACLES)]


def _beside(file: Path, *endings: str) -> str:
    """The files of its folder whose names are near, for one that is not there."""
    return meant(file.name, (one.name for one in file.parent.glob("*") if one.suffix in endings))


def imported(module: str, name: str, what: str = "model") -> Callable[..., Any]:
    """A function of a module, or of a file: its folder, or the current one, is put last among the places of modules.

    Raises:
        ValueError: no such file, module or function, or another module of the file's name is loaded; `what` it was to be.
    """
    file = Path(module)
    if is_file := module.endswith(".py"):
        if not file.is_file():
            raise ValueError(f"{what}: no file {module!r} is there{_beside(file, '.py')}")
        folder, module = str(file.parent.resolve()), file.stem
    else:
        folder = os.getcwd()
    if folder not in sys.path:
        sys.path.append(folder)  # worker processes get it too
    try:
        made = importlib.import_module(module)
    except ImportError as error:
        near = meant(f"{module}:{name}", _prefixed()) if what == "model" else ""
        raise ValueError(f"{what} {module}:{name} cannot be loaded: {error}{near}") from error
    if is_file and (Path(made.__file__ or "").resolve() != file.resolve()):
        raise ValueError(f"{what}: {file} has the name of a module that is there, {made.__file__}: rename the file")
    if not callable(found := getattr(made, name, None)):
        own = [
            one
            for one, value in vars(made).items()
            if callable(value) and getattr(value, "__module__", "") == module and one[0] != "_"
        ]
        raise ValueError(f"{what}: {made.__file__} has no function {name!r}{suggestion(name, own)}")
    return found


def states_of(file: str | Path, shape: tuple[int, ...] | None = None) -> Tensor:
    """Data in a file, (N, ...): .npy, or .pt with a tensor; or what `data.load` holds out of a folder of images, a tenth.

    Args:
        shape: of one sample, for the size and the channels of a folder's images; None: 32×32 in colour.

    Raises:
        ValueError: another kind of file, or what holds no floating-point tensor. FileNotFoundError: nothing is there.
    """
    file = Path(file)
    if file.is_dir():
        size, channels = (shape[-1], shape[0]) if shape is not None and len(shape) == 3 else (32, 3)
        found = named_data(file, size, channels)
        items: list[Any] = [found.held_out[i] for i in range(len(found.held_out))]  # type: ignore[arg-type]
        return torch.stack([item[0] if isinstance(item, tuple) else item for item in items])
    if file.suffix not in (".npy", ".pt"):
        raise ValueError(f"data must be a .npy or .pt file or a folder of images, got {file}")
    if not file.is_file():
        raise FileNotFoundError(f"no data at {file}{_beside(file, '.npy', '.pt')}")
    held: Any = torch.from_numpy(np.load(file)) if file.suffix == ".npy" else torch.load(file, weights_only=True)
    if not isinstance(held, Tensor) or not held.is_floating_point() or held.ndim < 2:
        raise ValueError(f"data in {file} must be floating-point states of shape (N, ...)")
    return held


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
        model = load(model, shape)
    if isinstance(model, ScoreModel):
        if shape is None and inner(model).oracle is None:
            raise ValueError("shape=None: give the shape of one sample, such as (1, 8, 8) (in a shell: --shape 1,8,8)")
        model = Subject(model, _event(shape) if shape is not None else inner(model).oracle.event)
    elif shape is not None:
        given["shape"] = _event(shape)
    if not isinstance(model, Subject):
        raise TypeError(f"model must be a name, a ScoreModel or a Subject, got {type(model).__name__}")
    merged = {one.name: getattr(model, one.name) for one in fields(model)} | given
    if merged["features"] is not None:
        merged["features"] = get_features(merged["features"])
    data, event, dtype = merged["data"], merged["shape"], merged["dtype"]
    if not isinstance(merged["conditions"], Mapping):
        raise TypeError(f"conditions must be a mapping from names to values, got {merged['conditions']!r}")
    if dtype is not None:
        floating(dtype)
    merged["flow_map"], jumps_in = _map(merged["flow_map"])
    found = Subject(**merged)
    _check_data(found, data, event)
    if found.flow_map is not None:
        _check_map(found, jumps_in)
    if whole("simulated", found.simulated, 0):
        _check_simulated(found)
    return found


def _check_data(found: Subject, data: Any, event: tuple[int, ...]) -> None:
    """Raise unless the data are of the shape, and are no more than what is not known already."""
    if (law := inner(found.model).oracle) is not None:
        if data is not None and (found.observation is None or found.simulated or found._exact[0] is not None):
            raise ValueError("data: those of an oracle's model are drawn from it; give none")
        if event != law.event:
            raise ValueError(f"shape must be that of the oracle, {law.event}, got {event}")
    if isinstance(data, GaussianMixture):
        if data.event != event:
            raise ValueError(f"data must be an oracle of states of shape {event}, got one of {data.event}")
    elif data is not None and (not isinstance(data, Tensor) or not data.is_floating_point() or data.shape[1:] != event):
        got = f"{data.dtype} of shape {tuple(data.shape)}" if isinstance(data, Tensor) else type(data).__name__
        raise TypeError(f"data must be a floating-point tensor of shape (N, {', '.join(map(str, event))}), got {got}")


def _check_simulated(found: Subject) -> None:
    """Raise unless measurements can be simulated."""
    if found.observation is None:
        raise ValueError(f"simulated={found.simulated} needs a Posterior, not wrapped by guidance, as the model")
    if found.simulated < 2:
        raise ValueError(f"simulated must be 2 or more samples of each truth, or 0 for none, got {found.simulated}")
    if found.data is None and found._prior is None:
        raise ValueError(f"simulated={found.simulated} needs data=, from which truths are drawn, or an oracle's model")


def _map(given: Any) -> tuple[Any, tuple[int, ...] | None]:
    """A flow map, which may be given by name, and the shape of its states where it is known."""
    if isinstance(given, str):
        try:
            given = _named(given, compare=False)
        except (ValueError, TypeError, FileNotFoundError) as error:
            raise ValueError(f"flow_map: {error}") from error
        if isinstance(given, Subject):
            return given.model, given.shape
    law = getattr(given, "oracle", None)
    return given, None if law is None else law.event


def _of_posterior(model: ScoreModel) -> bool:
    return isinstance(model, Posterior) or (isinstance(model, Guided) and _of_posterior(model.model))


def _check_map(found: Subject, event: tuple[int, ...] | None) -> None:
    """Raise unless the flow map can be run beside the model."""
    given, model = found.flow_map, found.model
    if not isinstance(given, FlowMap):
        raise TypeError(f"flow_map must be a FlowMap or the name of one, got {given!r}: give sf.FlowMap(net, path, prediction)")
    if is_map(model):
        raise ValueError(f"flow_map stands beside its teacher, a score model, and the model is a flow map too: {model!r}")
    if _of_posterior(model):
        raise ValueError(f"flow_map: a map of the prior does not follow the ODE of a Posterior, and the model is {model!r}")
    if repr(given.path) != repr(model.path):
        raise ValueError(f"flow_map must be on the path of the model, {model.path}, got one on {given.path}")
    if event is not None and event != found.shape:
        raise ValueError(f"flow_map must take states of the model's shape, {found.shape}, got one of {event}")
    if given.device is not None and given.device != (here := model.device or torch.device("cpu")):
        raise ValueError(f"flow_map must be on the device of the model, {here}, got one on {given.device}")
    try:
        given.check_conditions(dict(found.conditions), ())
    except TypeError as error:
        raise TypeError(f"flow_map: it is given the conditions of the model, and {error}") from error
