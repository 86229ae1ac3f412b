"""A network as it is found: inside wrappers, in training mode, on a device."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def unsettled(net: Any) -> str | None:
    """A layer in training mode that answers otherwise at every call or by its batch: dropout, batch normalisation."""
    for layer in net.modules() if isinstance(net, nn.Module) else ():
        random = isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0
        if layer.training and (random or isinstance(layer, nn.modules.batchnorm._BatchNorm)):
            return type(layer).__name__
    return None


def trains(net: Any) -> bool:
    """Whether any layer of a network is in training mode. A module that wraps others has a flag of its own, which says
    nothing: it is made in training mode around a network in evaluation mode."""
    return isinstance(net, nn.Module) and any(module.training for module in net.modules() if not module._modules)


@contextmanager
def same_chance(device: torch.device) -> Iterator[None]:
    """What is drawn inside, as dropout, is drawn again by what follows."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def unwrapped(net: Any) -> Any:
    """The network itself, inside `torch.compile`, `DataParallel` and other modules that hand all they are given to one."""
    while isinstance(net, nn.Module):
        inner: Any = net._modules.get("_orig_mod")
        if inner is None and isinstance(getattr(net, "module", None), nn.Module):
            parameters = inspect.signature(net.forward).parameters.values()
            inner = net.module if all(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters) else None
        if inner is None:
            break
        net = inner
    return net


def attribute(net: Any, name: str) -> Any:
    """What a network says of itself, such as its `null`, through wrappers too; None if nothing."""
    found = getattr(net, name, None)
    return getattr(unwrapped(net), name, None) if found is None else found
