"""What of a network's conditions belongs to which sample: one rule, and all that is done by it.

A condition is a tensor, a text, a number or any object, or a dict, list or tuple of such. In a batch of B samples

- a tensor of B rows, or a list of B texts or objects, has one a sample if `each` says so or a `null` names the condition;
- numbers, single texts, tensors of another length and what `shared` holds belong to all samples;
- of the rest, such as any other tensor of B rows, it is not known. It is never taken apart: the network is given it whole,
  beside a whole batch, which is right either way.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Marked:
    """A condition, and whether what is as long as the batch has a row a sample."""

    value: Any
    rows: bool


def shared(value: Any) -> Marked:
    """A condition that belongs to all samples alike, such as `solve(..., scales=sf.shared(tensor))`.

    The network is given what it holds. Results are the same without it; but what might have a row a sample is not taken apart,
    and then guidance calls the network twice for one batch of both branches, and adaptive runs keep samples that have arrived.
    """
    return Marked(value, False)


def each(value: Any) -> Marked:
    """A condition with a row a sample: its tensors, and lists of texts, that are as long as the batch.

    The network is given what it holds. Results are the same without it, and dearer, as of `shared`. Conditions that the
    network's own `null` or that of the guidance names need no marked.
    """
    return Marked(value, True)


def plain(value: Any) -> Any:
    """The conditions as a network is given them, without marks."""
    if isinstance(value, Marked):
        return plain(value.value)
    if not _nested(value):
        return value
    inner = _inner(value)
    bare = [plain(one) for one in inner]
    return value if all(a is b for a, b in zip(inner, bare, strict=True)) else _rebuilt(value, bare)


def known(conditions: Mapping[str, Any], batch: int, with_rows: Collection[str] = ()) -> bool:
    """Whether it is known of all conditions what belongs to each sample of the batch; those named `with_rows` have rows."""
    return all(_has_rows(leaf, batch, marked) is not None for leaf, marked in _leaves(conditions, with_rows))


def rows(conditions: Mapping[str, Any], samples: Tensor, batch: int, with_rows: Collection[str] = ()) -> dict[str, Any]:
    """The conditions of some samples of the batch: their rows of what has rows; the rest as it is."""
    found = (
        _taken(leaf, samples) if _has_rows(leaf, batch, marked) else leaf for leaf, marked in _leaves(conditions, with_rows)
    )
    return {name: _like(value, found) for name, value in conditions.items()}


def joined(
    one: Mapping[str, Any], other: Mapping[str, Any], batch: int, with_rows: Collection[str] = ()
) -> dict[str, Any] | None:
    """The conditions of two batches as of one of 2B; None where that takes what is not known, or rows of another shape."""
    if any(_like(value, repeat(None)) != _like(other[name], repeat(None)) for name, value in one.items()):
        return None
    leaves: list[Any] = []
    for (a, marked), (b, _) in zip(_leaves(one, with_rows), _leaves(other, with_rows), strict=True):
        has = _has_rows(a, batch, marked)
        if has is False and a is b:
            leaves.append(a)
        elif not has or not _has_rows(b, batch, marked):
            return None
        elif isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape:
            leaves.append(torch.cat([a, b]))
        elif not isinstance(a, Tensor) and not isinstance(b, Tensor):
            leaves.append([*a, *b])
        else:
            return None
    found = iter(leaves)
    return {name: _like(value, found) for name, value in one.items()}


def none_given(name: str, value: Any, null: Any, batch: int) -> Any:
    """What a network is given for a condition that is dropped, in the condition's shape where the null can take it.

    A number or tensor fills a tensor, by broadcasting; or is one sample's, or a row a sample, of another length. A text or an
    object stands for each entry of a list of B. A dict or tuple goes entry by entry; any other null is given as it is.

    Raises:
        ValueError: a tensor that does not fit; NaN for a condition that cannot hold it.
    """
    if isinstance(value, Marked):
        return replace(value, value=none_given(name, value.value, null, batch))
    null = plain(null)
    if isinstance(value, Mapping) and isinstance(null, Mapping):
        return _rebuilt(value, [none_given(f"{name}.{k}", v, null[k], batch) if k in null else v for k, v in value.items()])
    if _nested(value) and isinstance(null, list | tuple) and len(null) == len(value):
        return _rebuilt(value, [none_given(f"{name}[{i}]", v, null[i], batch) for i, v in enumerate(value)])
    if isinstance(value, Tensor) and (isinstance(null, Tensor | np.ndarray | Number) or _numbers(null)):
        if isinstance(null, float) and math.isnan(null) and not value.is_floating_point():
            raise ValueError(f"null[{name!r}] is NaN, and the condition {value.dtype}: give it as floating-point numbers")
        return _filled(name, value, torch.as_tensor(null, dtype=value.dtype, device=value.device))
    texts = isinstance(value, list | tuple) and not _nested(value) and len(value) == batch
    return [null] * batch if texts and null is not None and not isinstance(null, list | tuple) else null


def rounds(samples: Sequence[int], batch: int) -> Iterator[tuple[list[int], list[int], list[int]]]:
    """How to evaluate `samples`, numbers that may come again, in whole batches.

    Yields the places of those that are evaluated at once, their numbers, and for every sample of the batch the place of its
    state: for the others that of the first, whose output is not used.
    """
    left = list(enumerate(samples))
    while left:
        now: dict[int, int] = {}
        later = []
        for place, sample in left:
            if sample in now:
                later.append((place, sample))
            else:
                now[sample] = place
        yield list(now.values()), list(now), [now.get(sample, left[0][0]) for sample in range(batch)]
        left = later


def _has_rows(leaf: Any, batch: int, marked: bool | None) -> bool | None:
    """Whether it has a row a sample; None if that is not known."""
    if marked is False or leaf is None or isinstance(leaf, Number | str | bytes):
        return False
    if isinstance(leaf, Tensor | list | tuple):
        long = len(leaf) == batch if not isinstance(leaf, Tensor) or leaf.ndim else False
        return marked if long else False
    return None


def _nested(value: Any) -> bool:
    """Whether it is a dict, or a list or tuple of more than texts and objects."""
    if isinstance(value, list | tuple):
        return any(isinstance(one, Tensor | Mapping | list | tuple | Marked) for one in value)
    return isinstance(value, Mapping)


def _inner(value: Any) -> list[Any]:
    return list(value.values() if isinstance(value, Mapping) else value)


def _leaves(value: Any, with_rows: Collection[str] = (), marked: bool | None = None) -> Iterator[tuple[Any, bool | None]]:
    """All that is not nested, and whether it is marked; at the top by name."""
    if isinstance(value, Marked):
        yield from _leaves(value.value, (), value.rows)
    elif _nested(value):
        names = value if isinstance(value, Mapping) else repeat("")
        for name, one in zip(names, _inner(value), strict=False):
            yield from _leaves(one, (), True if name in with_rows else marked)
    else:
        yield value, marked


def _like(value: Any, leaves: Iterator[Any]) -> Any:
    """The same with other leaves."""
    if isinstance(value, Marked):
        return replace(value, value=_like(value.value, leaves))
    return _rebuilt(value, [_like(one, leaves) for one in _inner(value)]) if _nested(value) else next(leaves)


def _rebuilt(value: Any, inner: list[Any]) -> Any:
    """The same dict, list or tuple of other things."""
    if isinstance(value, Mapping):
        parts = dict(zip(value, inner, strict=True))
        if not isinstance(value, MutableMapping):
            return parts
        other = copy.copy(value)
        other.update(parts)
        return other
    return type(value)(*inner) if hasattr(value, "_fields") else type(value)(inner)


def _taken(leaf: Any, samples: Tensor) -> Any:
    return leaf[samples.to(leaf.device)] if isinstance(leaf, Tensor) else [leaf[i] for i in samples.tolist()]


def _numbers(null: Any) -> bool:
    return isinstance(null, list | tuple) and all(isinstance(one, Number | Tensor) or _numbers(one) for one in null)


def _filled(name: str, value: Tensor, null: Tensor) -> Tensor:
    try:
        return null.expand_as(value)
    except RuntimeError:
        one = null[None] if null.ndim == value.ndim - 1 else null
        if one.ndim == value.ndim and len(one) in (1, len(value)):
            return one.expand(len(value), *one.shape[1:])
        raise ValueError(
            f"null[{name!r}] has shape {tuple(null.shape)}, and the condition {tuple(value.shape)}: give one that broadcasts "
            f"to it, or of another length for one sample or for all {len(value)}"
        ) from None
