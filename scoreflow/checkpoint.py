"""Networks and score models as safetensors files: weights, class, configuration, and how the network is read."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scoreflow import nets
from scoreflow._core.check import one_of, options, placed
from scoreflow._core.files import check_file, whole_file
from scoreflow._core.gaussian import PREDICTIONS, GaussianPath
from scoreflow._core.path import PATHS
from scoreflow._samplers.plan import Plan
from scoreflow._score.fingerprint import identity
from scoreflow._score.flow_map import FlowMap
from scoreflow._score.model import ScoreModel, module_of, say
from scoreflow._score.network import unwrapped

NETWORKS: dict[str, type[nn.Module]] = {
    made.__name__: made for made in (nets.MLP, nets.UNet, nets.DiT, nets.Autoencoder, nets.Classifier, nets.NoisyClassifier)
}
"""By the name of the class."""


def save(net: nn.Module, file: str | Path, **metadata: str) -> None:
    """Write a network as safetensors: its weights, its class and, if it has a `config`, what it was made with.

    Of a network that is compiled, averaged or spread over devices, it is the network inside that is written.

    Raises:
        FileNotFoundError: no such folder.
    """
    inner = unwrapped(net)
    header = {"network": type(inner).__name__, "config": json.dumps(getattr(inner, "config", None), default=as_json)}
    write(weights_of(inner), file, {**header, **metadata})


def save_model(model: ScoreModel, file: str | Path, *, plans: Sequence[Plan] | None = None) -> None:
    """Write a score model: its network, prediction, time and path, if these have names, and its plans.

    A path has one if it is among `PATHS`; any other must be given again to `load_model`.

    Args:
        plans: that `tune` fitted to it, for "auto" to take at their budgets. None: those of `model.plans` that are for its
            weights as they are.

    Raises:
        TypeError: no score model, one whose network is no module, or what is no plan. ValueError: a plan that was fitted to no
            model, or to another, such as a guided one. FileNotFoundError: no such folder.
    """
    net = module_of(model, ": of a Latent, write its model with save_model and its autoencoder with save")
    known = [name for name, make in PATHS.items() if repr(make()) == repr(model.path)]
    of_map = {"times": str(model.times)} if isinstance(model, FlowMap) else {}
    header = {**of_map, "prediction": model.prediction, "path": known[0] if known else "", "path_text": repr(model.path)}
    told = model.time
    time = told if isinstance(told, str) else f"{told[0]} {told[1]!r}" if isinstance(told, tuple) else ""
    beside = [json.loads(plan.to_json()) for plan in _own(model, plans)]
    save(net, file, **header, time=time, **({"plans": json.dumps(beside)} if beside else {}))


def _own(model: ScoreModel, plans: Sequence[Plan] | None) -> list[Plan]:
    """Those of the plans that were fitted to this model; all of those that are given."""
    own = [plan for plan in model.plans if plan.fit is not None and plan.fit.model == identity(model)] if plans is None else []
    for plan in plans or ():
        if not isinstance(plan, Plan):
            raise TypeError(f"plans must be plans, such as the `plan` of what tune gives, got {plan!r}")
        if plan.fit is None or plan.fit.model != identity(model):
            other = "no model" if plan.fit is None else plan.fit.described
            raise ValueError(f"plans must be fitted to this model with these weights, and {plan!r} was fitted to {other}")
        own.append(plan)
    return own


def load(file: str | Path) -> nn.Module:
    """Read a network of `scoreflow.nets` that `save` wrote, in evaluation mode. Only safetensors are read; nothing is
    unpickled.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is cut short or no safetensors file, names no known network, or its weights have other
            names or shapes than the network's.
    """
    weights, metadata = read(file)
    net = _made(metadata, file)
    fill(net, weights, file)
    return net.eval()


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
        FileNotFoundError, ValueError: as `load`; a path or a time that the file does not name and that was not given; no such
            device. TypeError: net is no module, or dtype no floating dtype.
    """
    file = Path(file)
    file = file / "model.safetensors" if file.is_dir() else file
    weights, metadata = read(file)
    if "prediction" not in metadata:
        raise ValueError(f"{file} holds a network alone: read it with load, and say ScoreModel(net, path, prediction)")
    if net is None:
        net = _made(metadata, file)
    elif not isinstance(net, nn.Module):
        raise TypeError(f"net must be a torch module to fill with the weights, got {net!r}")
    fill(net, weights, file)
    named, label = metadata.get("path"), time or metadata.get("time")
    if path is None and named not in PATHS:
        on = metadata.get("path_text") or "a path that it does not say"
        raise ValueError(f"path=None: {file} was trained on {on}, which has no name; give path=")
    if not label:
        raise ValueError(f"time=None: {file} was trained with a function of its own for the time; give time=")
    prediction: Any = metadata["prediction"]
    one_of(f"prediction in {file}", prediction, PREDICTIONS)
    made = PATHS[str(named)]() if path is None else path
    scaled = isinstance(label, str) and label.startswith("scaled ")
    told: Any = ("scaled", float(label.split()[1])) if scaled else label  # type: ignore[union-attr]
    network = moved(net.eval(), device, dtype)
    jumps: Any = int(metadata.get("times", 0))
    model = FlowMap(network, made, prediction, told, jumps) if jumps else ScoreModel(network, made, prediction, told)
    model.plans = tuple(Plan.from_json(json.dumps(one)) for one in json.loads(metadata.get("plans", "[]")))
    return model


def moved(net: nn.Module, device: torch.device | str | None, dtype: torch.dtype | None) -> nn.Module:
    """The network, moved there and to that precision.

    Raises:
        ValueError, TypeError: no such device, or a dtype that is not a floating one of torch.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype must be a floating dtype such as torch.float32, got {dtype!r}")
    return net.to(device=placed(device), dtype=dtype)


def as_json(value: Any) -> Any:
    """What JSON has no form for: numbers of numpy as Python's, the rest as text."""
    return value.item() if isinstance(value, np.generic) else say(value)


def write(tensors: dict[str, Tensor], file: str | Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file whole or not at all.

    Raises:
        FileNotFoundError: no such folder. IsADirectoryError: there is a folder of that name.
    """
    from safetensors.torch import save_file

    with whole_file(check_file("file", file)) as part:
        save_file(tensors, part, metadata=metadata)


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
    options(network, config, inspect.signature(NETWORKS[network]).parameters)
    return NETWORKS[network](**config)


def completed(network: str | None, config: Any) -> Any:
    """A configuration of a network of `scoreflow.nets`, with the defaults of arguments that came later."""
    if network not in NETWORKS or not isinstance(config, dict):
        return config
    return {name: p.default for name, p in inspect.signature(NETWORKS[network]).parameters.items()} | config


def _made(metadata: dict[str, str], file: str | Path) -> nn.Module:
    name = metadata.get("network")
    try:
        config = json.loads(metadata["config"])
        if name == "OptimizedModule":  # of a compiled network, as once written
            arguments = {known: [*inspect.signature(kind).parameters] for known, kind in NETWORKS.items()}
            name = next((known for known, names in arguments.items() if names[: len(config)] == [*config]), name)
        if name in NETWORKS:
            return make(name, **config)
    except (KeyError, TypeError, ValueError) as error:
        if name in NETWORKS:
            raise ValueError(f"{file} has no config that makes a {name}: {error!r}") from error
    raise ValueError(f"{file} names the network {name!r}; known are {', '.join(NETWORKS)}. Give any other as net=")


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    """Copies of a network's weights and buffers, by the names that they have without wrappers around it or inside."""
    plain = _plain(net)
    return {plain[name]: value.detach().clone().contiguous() for name, value in net.state_dict().items()}


def fill(net: nn.Module, weights: dict[str, Tensor], file: str | Path) -> None:
    """Load the weights of a file, by the names of `weights_of`, or by those of a wrapped network.

    Raises:
        ValueError: names or shapes are not the network's; says which is the first.
    """
    net = unwrapped(net)
    plain = _plain(net)
    shapes = {plain[name]: tuple(value.shape) for name, value in net.state_dict().items()}
    if weights.keys() != shapes.keys():
        weights = _without_wrappers(weights)
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if shapes != found:
        wrong = sorted(name for name in {*shapes, *found} if shapes.get(name) != found.get(name))
        missing, extra = (sum(n not in d for n in wrong) for d in (found, shapes))
        raise ValueError(
            f"{file} does not fit {type(net).__name__}: {missing} weights missing, {extra} unknown, "
            f"{len(wrong) - missing - extra} of another shape; first {wrong[0]!r}: "
            f"expected {shapes.get(wrong[0])}, found {found.get(wrong[0])}"
        )
    net.load_state_dict({name: weights[plain[name]] for name in plain})


def _plain(net: nn.Module) -> dict[str, str]:
    """The names in a network's state, each without the wrappers on the way to it."""
    inner = [
        (name, child) for name, module in net.named_modules() if unwrapped(module) is not module for child in module._modules
    ]
    plain = {name: name for name in net.state_dict()}
    for outer, child in reversed(inner):  # the innermost first
        before = f"{outer}." if outer else ""
        plain = {
            name: before + short.removeprefix(f"{before}{child}.") if short.startswith(f"{before}{child}.") else short
            for name, short in plain.items()
        }
    return plain


def _without_wrappers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights as compiled, spread and averaged networks name them, by the names of the network inside."""
    weights = {name.replace("_orig_mod.", ""): value for name, value in weights.items() if name != "n_averaged"}
    while weights and all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    return weights
