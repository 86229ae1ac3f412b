"""Networks and score models as safetensors files: weights, class, configuration, and how the network is read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoreflow import nets
from scoreflow.check import one_of
from scoreflow.model import ScoreModel, say
from scoreflow.path import GaussianPath
from scoreflow.sde import PATHS

NETWORKS: dict[str, type[nn.Module]] = {
    made.__name__: made for made in (nets.MLP, nets.UNet, nets.DiT, nets.Autoencoder, nets.Classifier, nets.NoisyClassifier)
}
"""By the name of the class."""


def save(net: nn.Module, file: str | Path, **metadata: str) -> None:
    """Write a network as safetensors: its weights, its class and, if it has a `config`, what it was made with."""
    weights = {name: value.detach().clone().contiguous() for name, value in net.state_dict().items()}
    said = {"network": type(net).__name__, "config": json.dumps(getattr(net, "config", None), default=say)}
    write(weights, file, {**said, **metadata})


def save_model(model: ScoreModel, file: str | Path) -> None:
    """Write a score model: its network, and prediction, time and path, if these have names.

    A path has one if it is among `scoreflow.sde.PATHS`; any other must be given again to `load_model`.

    Raises:
        TypeError: no score model, or one whose network is no module.
    """
    if not isinstance(model, ScoreModel) or not isinstance(model.net, nn.Module):
        raise TypeError("model must be a ScoreModel of a torch module, whose weights can be written")
    known = [name for name, make in PATHS.items() if repr(make()) == repr(model.path)]
    said = {"prediction": model.prediction, "path": known[0] if known else "", "path_text": repr(model.path)}
    save(model.net, file, **said, time=model.time if isinstance(model.time, str) else "")


def load(file: str | Path) -> nn.Module:
    """Read a network of `scoreflow.nets` that `save` wrote, in evaluation mode. Only safetensors are read; nothing is
    unpickled.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is cut short or no safetensors file, names no known network, or its weights have other
            names or shapes than the network's.
    """
    weights, metadata = read(file)
    return _fill(_made(metadata, file), weights, file)


def load_model(
    file: str | Path,
    net: nn.Module | None = None,
    *,
    path: GaussianPath | None = None,
    time: Callable[[Tensor], Tensor] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> ScoreModel:
    """Read a score model that `save_model` or a training run wrote.

    Args:
        file: the file, or the folder of a training run.
        net: the network to fill, if it is none of `scoreflow.nets`.
        path, time: if the file cannot name them.
        device, dtype: where and in what precision the network runs.

    Raises:
        FileNotFoundError, ValueError: as `load`; a path or a time that the file does not name and that was not given.
    """
    file = Path(file)
    file = file / "model.safetensors" if file.is_dir() else file
    weights, metadata = read(file)
    if "prediction" not in metadata:
        raise ValueError(f"{file} holds a network alone: read it with load, and say ScoreModel(net, path, prediction)")
    net = _fill(net if net is not None else _made(metadata, file), weights, file).to(device=device, dtype=dtype)
    if path is None and metadata["path"] not in PATHS:
        raise ValueError(f"path=None: {file} was trained on {metadata['path_text']}, which has no name; give path=")
    if time is None and not metadata["time"]:
        raise ValueError(f"time=None: {file} was trained with a function of its own for the time; give time=")
    made = PATHS[metadata["path"]]() if path is None else path
    label: Any = metadata["time"] if time is None else time
    prediction: Any = metadata["prediction"]
    return ScoreModel(net, made, prediction, label)


def write(tensors: dict[str, Tensor], file: str | Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file whole or not at all."""
    from safetensors.torch import save_file

    file = Path(file)
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        save_file(tensors, part, metadata=metadata)
        with open(part, "rb") as opened:
            os.fsync(opened.fileno())
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def read(file: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file.

    Raises:
        FileNotFoundError: no such file. ValueError: it is cut short, or something else.
    """
    from safetensors import SafetensorError, safe_open

    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"no checkpoint at {file}")
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{file} is not a whole safetensors file: {error}") from error


def make(network: str, **config: Any) -> nn.Module:
    """A network of `scoreflow.nets` by name.

    Raises:
        ValueError: no such network. TypeError, ValueError: what it is not made with.
    """
    one_of("network", network, NETWORKS)
    return NETWORKS[network](**config)


def _made(metadata: dict[str, str], file: str | Path) -> nn.Module:
    name = metadata.get("network")
    if name not in NETWORKS:
        raise ValueError(f"{file} names the network {name!r}; known are {', '.join(NETWORKS)}")
    try:
        return make(name, **json.loads(metadata["config"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} has no config that makes a {name}: {error!r}") from error


def _fill(net: nn.Module, weights: dict[str, Tensor], file: str | Path) -> nn.Module:
    expected = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if expected != found:
        wrong = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        missing, extra = (sum(n not in d for n in wrong) for d in (found, expected))
        raise ValueError(
            f"{file} does not fit {type(net).__name__}: {missing} weights missing, {extra} unknown, "
            f"{len(wrong) - missing - extra} of another shape; first {wrong[0]!r}: "
            f"expected {expected.get(wrong[0])}, found {found.get(wrong[0])}"
        )
    net.load_state_dict(weights)
    return net.eval()
