"""exp, log, … of tensors and of numbers alike, so that a formula is written once: numbers go by `math`, which is quick.

Where `math` refuses, at a pole or beyond the largest float, or a formula takes tensors only, `lift` goes by tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from scoreflow._core.row import double

S = TypeVar("S", float, Tensor)
REFUSALS = (ZeroDivisionError, OverflowError, ValueError, TypeError, AttributeError)
"""What Python says where IEEE arithmetic gives ∞ or NaN, and where a path's own formula takes tensors only."""


def _of(tensors: Callable[..., Any], numbers: Callable[..., Any]) -> Callable[..., Any]:
    def function(x: Any) -> Any:
        return tensors(x) if isinstance(x, Tensor) else numbers(x)

    return function


exp, expm1, log, log1p = (_of(getattr(torch, name), getattr(math, name)) for name in ("exp", "expm1", "log", "log1p"))
sqrt, sin, cos, tan = (_of(getattr(torch, name), getattr(math, name)) for name in ("sqrt", "sin", "cos", "tan"))
some = _of(lambda holds: bool(holds.any()), bool)
every = _of(lambda holds: bool(holds.all()), bool)
clip = _of(lambda t: t.clamp(0, 1), lambda t: min(max(t, 0.0), 1.0))
"""To [0, 1]."""
softplus = _of(lambda x: torch.nn.functional.softplus(x, threshold=800), lambda x: max(x, 0.0) + math.log1p(math.exp(-abs(x))))
sigmoid = _of(torch.sigmoid, lambda x: 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x)))


def where(holds: Any, a: Any, b: Any) -> Any:
    """a where it holds, else b."""
    return torch.where(holds, a, b) if isinstance(holds, Tensor) else a if holds else b


def constant(value: float, like: S) -> S:
    """The value, in kind."""
    return torch.full_like(like, value) if isinstance(like, Tensor) else value


def lift(formula: Callable[..., tuple[Any, ...]], *values: S) -> tuple[S, ...]:
    """A formula of several values, on numbers, or on tensors of any floating dtype in float64; it answers in kind."""
    tensors: list[Any] = [value for value in values if isinstance(value, Tensor)]
    if not tensors:
        try:
            out = formula(*values)
            if all([type(o) is float for o in out]):  # a list is quicker
                return out
        except REFUSALS:
            pass
    found = formula(*(double(v if isinstance(v, Tensor) else torch.tensor(v, dtype=torch.float64)) for v in values))
    return cast("tuple[S, ...]", tuple(o.to(tensors[0].dtype) if tensors else o.item() for o in found))
