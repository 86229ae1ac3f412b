"""What a model or a function computes, as a hash: the same in every process, another when a weight or a line of code changes.

A stored figure is found by it. Code counts by its instructions and constants, so comments and names of files do not.
"""

from __future__ import annotations

import functools
import hashlib
import pickle
import types
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scoreflow._core.gaussian import GaussianPath
from scoreflow._score.model import ScoreModel
from scoreflow._score.network import unwrapped

PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, GaussianPath)
"""What its text says all of."""
_KNOWN: weakref.WeakKeyDictionary[ScoreModel, tuple[Any, str]] = weakref.WeakKeyDictionary()
COUNTERS = ("nfe", "_graphs", "plans", "_passes", "_matrices")
"""What changes when a model runs."""


def digest(*parts: str | bytes) -> str:
    """A short hash of texts."""
    h = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        h.update(len(data).to_bytes(8, "big") + data)
    return h.hexdigest()[:24]


def fingerprint(value: Any) -> str:
    """A hash of what a value holds or does: tensors by their entries, modules by class, settings, weights and `forward`,
    functions by code, defaults and what they refer to, other objects by their attributes.

    What is none of these counts by its pickle; what has no pickle by its class alone.
    """
    return digest(*_parts(value, {}))


def identity(model: ScoreModel) -> str:
    """A hash of a model's weights and of how it is read: path, prediction, time and guidance.

    It is the same with every version of Python and of this library, unlike a fingerprint, which has the code too; but for
    networks that are functions, whose code is all there is.
    """
    found, parts = list(networks(model, set())), list[str | bytes]()
    held = [net.state_dict() if isinstance(net, nn.Module) else net if isinstance(net, dict) else {} for net in found]
    tensors = [t for one in held for t in one.values()]
    stamp = (repr(model), *((t.data_ptr(), t._version) for t in tensors))
    if (known := _KNOWN.get(model)) and known[0] == stamp:
        return known[1]
    for net in found:
        if isinstance(net, nn.Module):
            for name, tensor in net.state_dict().items():
                parts += [name, *_parts(tensor, {})]
        else:
            parts += _parts(net, {})
    _KNOWN[model] = stamp, digest(repr(model), *parts)
    return _KNOWN[model][1]


def networks(value: Any, seen: set[int]) -> Iterator[Any]:
    """The networks of a model and of those that it wraps."""
    if isinstance(value, ScoreModel) and id(value) not in seen:
        seen.add(id(value))
        if value.oracle is not None:
            yield {name: one for name, one in vars(value.oracle).items() if isinstance(one, Tensor)}
        elif not value.guided:
            yield unwrapped(value.net)
        elif tensors := dict(_tensors(getattr(value, "options", {}))):  # of which its text shows the shape
            yield tensors
        for one in vars(value).values():
            yield from networks(one, seen)
    elif isinstance(value, nn.Module) and id(value) not in seen:
        seen.add(id(value))
        yield unwrapped(value)


def _tensors(options: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """The tensors among options, and of what these hold, such as an observation."""
    for name, option in options.items():
        for inner, one in [("", option), *getattr(option, "__dict__", {}).items()]:
            if isinstance(one, Tensor):
                yield f"{name}.{inner}", one


def _parts(value: Any, seen: dict[int, Any]) -> Iterator[str | bytes]:
    value = unwrapped(value)  # a compiled network computes what it does
    if isinstance(value, PLAIN):
        yield f"{type(value).__name__} {value!r}"
        return
    if isinstance(value, Tensor):
        host = value.detach().to("cpu").contiguous()
        yield from (f"tensor {host.dtype} {tuple(host.shape)}", host.flatten().view(torch.uint8).numpy().tobytes())
        return
    if isinstance(value, np.ndarray):
        yield from (f"array {value.dtype} {value.shape}", np.ascontiguousarray(value).tobytes())
        return
    if id(value) in seen:
        yield "again"
        return
    seen[id(value)] = value  # kept, so that no other takes its id
    if isinstance(value, Mapping):
        yield f"mapping {len(value)}"
        for name in sorted(value, key=repr):
            yield repr(name)
            yield from _parts(value[name], seen)
    elif isinstance(value, list | tuple):
        yield f"sequence {len(value)}"
        for one in value:
            yield from _parts(one, seen)
    elif isinstance(value, types.FunctionType):
        yield from _function(value, seen)
    elif isinstance(value, types.MethodType):
        yield from _parts(value.__func__, seen)
        yield from _parts(value.__self__, seen)
    elif isinstance(value, functools.partial):
        yield from _parts([value.func, value.args, value.keywords], seen)
    elif isinstance(value, type | types.BuiltinFunctionType | types.ModuleType):
        yield f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value.__name__)}"
    else:
        yield from _object(value, seen)


def _function(value: types.FunctionType, seen: dict[int, Any]) -> Iterator[str | bytes]:
    yield from _code(value.__code__)
    cells = [cell.cell_contents for cell in value.__closure__ or ()]
    yield from _parts([value.__defaults__, value.__kwdefaults__, cells], seen)
    for name in sorted(_names(value.__code__) & set(value.__globals__)):
        used = value.__globals__[name]
        near = isinstance(used, types.FunctionType) and used.__module__ == value.__module__
        if near or isinstance(used, (*PLAIN, Tensor, np.ndarray, nn.Module, ScoreModel)):
            yield name
            yield from _parts(used, seen)


def _methods(kind: type, seen: dict[int, Any]) -> Iterator[str | bytes]:
    """All that a class and those it comes from do, but for torch's and Python's own."""
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] not in ("torch", "builtins", "typing", "abc"):
            for name, found in sorted(vars(base).items()):
                if isinstance(found, types.FunctionType):
                    yield name
                    yield from _parts(found, seen)


def _code(code: types.CodeType) -> Iterator[str | bytes]:
    yield from (code.co_code, " ".join(code.co_names))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _code(constant)
        else:
            yield repr(sorted(constant, key=repr) if isinstance(constant, frozenset) else constant)


def _names(code: types.CodeType) -> set[str]:
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*inner)


def _object(value: Any, seen: dict[int, Any]) -> Iterator[str | bytes]:
    kind = type(value)
    yield f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(value, nn.Module):
        yield from _methods(kind, seen)
        own = {name: attribute for name, attribute in vars(value).items() if not name.startswith("_")}
        yield from _parts(own, seen)
        for name, tensor in [*value.named_parameters(recurse=False), *value.named_buffers(recurse=False)]:
            yield name
            yield from _parts(tensor, seen)
        for name, child in value.named_children():
            yield name
            yield from _parts(child, seen)
    elif hasattr(value, "__dict__"):
        if callable(value):
            yield from _methods(kind, seen)
        kept = {name for name, one in vars(kind).items() if isinstance(one, functools.cached_property)}
        yield from _parts({name: v for name, v in vars(value).items() if name not in COUNTERS and name not in kept}, seen)
    else:
        try:
            yield pickle.dumps(value)
        except (TypeError, AttributeError, pickle.PicklingError):
            return
