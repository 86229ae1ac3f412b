"""What is remembered of an object while its parameters stay: numbers that runs need again and again."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from scoreflow._core import check
from scoreflow._core.elementary import REFUSALS, lift
from scoreflow._core.row import double

S = TypeVar("S", float, Tensor)
Self = TypeVar("Self")
V = TypeVar("V")


class Parameters:
    """What has parameters that numbers are remembered for: it counts their changes, and leaves what it remembers behind when it
    is copied or pickled."""

    changes = 0
    """Of all."""
    fixed = False
    """Whether nothing that it holds is ever changed in place."""
    _changes = 0

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        self.__dict__["_changes"] = self._changes + 1
        Parameters.changes += 1

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_known", "_parts")}

    @property
    def stamp(self) -> Hashable:
        """What is another after every change: of an attribute, or, down to four levels, of its entries and parts, in place."""
        parts: tuple[list[Parameters], list[int], list[Tensor], list[Any]] | None = self.__dict__.get("_parts")
        if parts is None or [one._changes for one in parts[0]] != parts[1]:
            owners, held = [self], list[Any]()
            for owner in owners:  # those it holds are among them as they are found
                names = () if owner.fixed else (name for name in vars(owner) if name not in ("_changes", "_known", "_parts"))
                own = [vars(owner)[name] for name in names]
                own += [one for value in own if type(value) is tuple for one in value]
                owners += [one for one in own if isinstance(one, Parameters)]
                held += [one for one in own if not isinstance(one, Parameters)]
            tensors = [one for one in held if isinstance(one, Tensor) and not one.is_inference()]
            rest = [one for one in held if not _still(one) and not isinstance(one, Tensor)]
            parts = self.__dict__["_parts"] = owners, [one._changes for one in owners], tensors, rest
        return *parts[1], *[one._version for one in parts[2]], *[_stamp(one, 4) for one in parts[3]]


PLAIN = frozenset((float, int, bool, str, type(None)))


def _still(value: Any) -> bool:
    """Whether it can change by a new value alone: a number, a text, or a tuple of such and of tensors."""
    kind = type(value)
    return kind in PLAIN or (kind is tuple and all(type(one) in PLAIN or isinstance(one, Tensor) for one in value))


def _stamp(value: Any, levels: int) -> Hashable:
    kind: type = type(value)
    if kind in PLAIN:
        return cast(Hashable, value)
    if isinstance(value, Tensor):
        return (id(value), -1 if value.is_inference() else value._version)
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, Parameters):
        return value.stamp
    if isinstance(value, nn.Module):
        numbers = (one for layer in value.modules() for one in vars(layer).values() if type(one) in PLAIN)
        return (*((id(p), p._version) for p in (*value.parameters(), *value.buffers())), *numbers)
    if isinstance(value, tuple | list | dict) and levels:
        return tuple(_stamp(one, levels - 1) for one in (value.values() if isinstance(value, dict) else value))
    held = getattr(value, "__dict__", None)
    return (id(value), _stamp(held, levels - 1)) if isinstance(held, dict) and levels else id(value)


MOST = 100_000
"""Numbers of a path that are kept; then it begins anew."""


def known(path: Any) -> dict[tuple[Any, ...], Any]:
    """What is kept with a path while its parameters stay: runs need the same numbers again and again."""
    held: tuple[int | None, Hashable, dict[tuple[Any, ...], Any]] | None = path.__dict__.get("_known")
    if held is not None and held[0] == Parameters.changes and len(held[2]) <= MOST:
        return held[2]
    if held is not None and len(held[2]) > MOST:
        held = None
    now, stamp = Parameters.changes, path.stamp
    kept = held[2] if held is not None and held[1] == stamp else {}
    *_, tensors, rest = path.__dict__["_parts"]  # what may change in place is looked at every time
    path.__dict__["_known"] = None if tensors or rest else now, stamp, kept
    return kept


def once(path: Any, key: tuple[Any, ...], make: Callable[[], V]) -> V:
    """What `make` gives, kept with the path."""
    kept = known(path)
    if (value := kept.get(key)) is None:
        value = kept[key] = make()
    return value


def curve(formula: Callable[[Self, Tensor], Tensor]) -> Callable[[Self, S], S]:
    """Let a formula for float64 tensors take a number, or a tensor of any floating dtype, and answer in kind."""
    return _method(formula, lambda self, t: formula(self, torch.tensor(t, dtype=torch.float64)).item())


def dual(formula: Callable[[Self, Any], Any]) -> Callable[[Self, S], S]:
    """The same of a formula that takes numbers too, by `elementary`."""

    def of_number(self: Self, t: float) -> float:
        try:
            if type(out := formula(self, t)) is float:
                return out
        except REFUSALS:
            pass
        return lift(lambda u: (formula(self, u),), t)[0]

    return _method(formula, of_number)


def _method(formula: Callable[[Self, Any], Any], of_number: Callable[[Self, float], float]) -> Callable[[Self, S], S]:
    name = formula.__name__

    def method(self: Self, t: S) -> S:
        if type(t) is float:
            held = self.__dict__.get("_known")  # as `known` has it, without its call
            if held is not None and held[0] == Parameters.changes and (value := held[2].get((name, t))) is not None:
                return value
        if isinstance(t, Tensor):
            return formula(self, double(t)).to(t.dtype)
        number = float(t) if name == "time" else check.time("t", t)
        value = known(self)[name, number] = of_number(self, number)
        return value

    method.__name__, method.__qualname__, method.__doc__ = name, formula.__qualname__, formula.__doc__
    return method
