"""Checks at the front door: each names the argument, the value and what is allowed."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex, TypeGuard

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from scoreflow._core.aliases import plain


def whole(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """The value as an int. Raises TypeError unless it is a whole number, ValueError under `least` or over `most`."""
    allowed = f"a whole number ≥ {least}" if most is None else f"a whole number from {least} to {most}"
    if not is_whole(value):
        raise TypeError(f"{name} must be {allowed}, got {value!r}")
    number = operator.index(value)
    if number < least or (most is not None and number > most):
        raise ValueError(f"{name} must be {allowed}, got {value}")
    return number


def is_whole(value: Any) -> TypeGuard[SupportsIndex]:
    """Whether it is one whole number: an int, or NumPy's or torch's."""
    try:
        return not _is_bool(value) and operator.index(value) is not None
    except TypeError:
        return False


def number(name: str, value: Any, least: float = -math.inf, most: float = math.inf, above: float = -math.inf) -> float:
    """The value as a float. Raises TypeError unless it is a number, ValueError unless finite and in range."""
    x = value if type(value) is float else _real(value)
    if x is not None and math.isfinite(x) and least <= x <= most and x > above:
        return x
    limits = (f"> {above:g}", above > -math.inf), (f"≥ {least:g}", least > -math.inf), (f"≤ {most:g}", most < math.inf)
    allowed = " ".join(["a finite number", " and ".join(text for text, holds in limits if holds)]).strip()
    if x is None:
        raise TypeError(f"{name} must be {allowed}, got {value!r}")
    raise ValueError(f"{name} must be {allowed}, got {value}")


def scalar(value: Any) -> Any:
    """A scalar of NumPy's or torch's, of no dimension, as Python's; anything else as it is."""
    return value.item() if getattr(value, "shape", None) == () else value


def flag(name: str, value: Any) -> bool:
    """The value as a bool. Raises TypeError unless it is True or False."""
    if value is not True and value is not False:
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def listed(value: Any) -> list[Any]:
    """The values as a list; text, or what is no collection, stands for itself alone."""
    try:
        return [value] if isinstance(value, str) else list(value)
    except TypeError:
        return [value]


def one_of(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Raise ValueError unless the value is among the allowed words."""
    words = tuple(allowed)
    if not isinstance(value, str) or value not in words:
        raise ValueError(f"{name} must be one of {', '.join(words)}, got {value!r}{meant(value, words)}")


def options(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise TypeError for an option that this, such as "weighting 'p2'", does not have."""
    words = tuple(known)
    for name in given:
        if name not in words:
            raise TypeError(no_option(what, name, words))


def no_option(what: str, name: str, known: Iterable[str]) -> str:
    """That this has no such option, with all that it has, and the near ones."""
    words = tuple(known)
    return f"{what} has no option {name!r}; it has {', '.join(words) or 'none'}{meant(name, words)}"


def time(name: str, t: Any) -> float:
    """The time as a float. Raises TypeError if it is no number, ValueError outside [0, 1]."""
    if (value := t if type(t) is float else _real(t)) is None:
        raise TypeError(f"{name} must be a number between 0 (data) and 1 (prior), got {t!r}")
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie between 0 (data) and 1 (prior), got {value}")
    return value


def event_shape(shape: Any) -> tuple[int, ...]:
    """The shape of one sample. Raises TypeError unless it is a sequence of whole numbers, ValueError for one below 1."""
    if not isinstance(shape, Sequence) or isinstance(shape, str) or not all(is_whole(size) for size in shape):
        raise TypeError(f"shape must be a sequence of whole numbers, that of one sample, got {shape!r}")
    return tuple(whole("shape", size) for size in shape)


def floating(dtype: Any) -> torch.dtype:
    """The dtype. Raises TypeError unless it is a floating-point one of torch's."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point torch.dtype, got {dtype!r}")
    return dtype


def placed(device: Any) -> torch.device | None:
    """The device by its name. Raises ValueError if torch knows none of it."""
    try:
        return None if device is None else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be one of torch's, such as 'cpu' or 'cuda', got {device!r}") from error


def check_state(name: str, x: Any) -> None:
    """Raise TypeError unless it can be the state of a run, ValueError unless it is finite."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 1 or x.is_nested:
        shape = "nested shape" if isinstance(x, Tensor) and x.is_nested else f"shape {tuple(getattr(x, 'shape', ()))}"
        got = f"{x.dtype} of {shape}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name} must be a floating-point tensor of shape (B, ...), got {got}")
    if x.device.type == "cpu" and not hidden(x) and not finite(x):
        wrong = (~x.isfinite()).flatten(1).any(1) if x.ndim > 1 else ~x.isfinite()
        which = wrong.nonzero().flatten().tolist()
        raise ValueError(f"{name} must be finite, and {len(which)} of its {len(x)} samples are not: {which[:10]}")


def hidden(value: Tensor) -> bool:
    """Whether its numbers cannot be looked at: it is in a transform of torch.func, such as vmap, or has a shape alone."""
    wrapped = bool(torch._C._functorch.is_functorch_wrapped_tensor(value))
    return wrapped or value.device.type == "meta" or isinstance(value, FakeTensor)


def finite(value: Tensor) -> bool:
    """Whether all entries are. A finite sum says so, in a twentieth of the time of `isfinite().all()`; it may overflow."""
    value = value.detach()
    return math.isfinite(value.sum()) or bool(value.isfinite().all())


def meant(name: Any, known: Iterable[str]) -> str:
    """ "; did you mean a, b or c?" for the three nearest, whatever their case, spaces and signs; nothing if none is near."""
    words = {plain(word): word for word in sorted(known, reverse=True)}
    near = [words[found] for found in difflib.get_close_matches(plain(str(name)), words, n=3, cutoff=0.5)]
    return f"; did you mean {', '.join(near[:-1])}{' or ' * (len(near) > 1)}{near[-1]}?" if near else ""


def suggestion(name: Any, known: Iterable[str], lists: str = "", also: Iterable[str] = ()) -> str:
    """The nearest of what is known; then what lists all, or all of them.

    Args:
        lists: a sentence that says where all are found, if they are too many. also: other names that may be near.
    """
    words = sorted(known)
    return f"{meant(name, [*words, *also]) or '.'} {lists or 'Known: ' + ', '.join(words)}"


def slip(name: str, known: Iterable[str]) -> str | None:
    """The known name that this one is likely to be a slip of."""
    others = [one for one in known if one != name]
    same = [one for one in others if one.replace("_", "").lower() == name.replace("_", "").lower()]
    return next(iter((*same, *difflib.get_close_matches(name, others, 1, 0.8))), None)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or "bool" in str(getattr(value, "dtype", ""))


def _real(value: Any) -> float | None:
    """One real number as a float, NumPy's and torch's too; None for anything else."""
    if isinstance(value, str | bytes) or _is_bool(value):
        return None
    try:
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError):
        return None
