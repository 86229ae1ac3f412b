"""What a network is told of the time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from scoreflow._core import check
from scoreflow._core.gaussian import GaussianPath

TimeLabel = Literal["unit", "index", "label", "log-snr", "sigma"] | tuple[Literal["scaled"], float]
TIMES = ("unit", "index", "label", "log-snr", "sigma")


def check_label(time: Any, path: GaussianPath) -> TimeLabel | Callable[[Tensor], Tensor]:
    """It, if a network on this path can be told so.

    Raises:
        ValueError: it is unknown, or a label and the path has no chain.
    """
    if isinstance(time, tuple | list) and len(time) == 2 and time[0] == "scaled":
        return "scaled", check.number("time's scale", time[1], above=0)
    if not callable(time) and time not in TIMES:
        near = check.meant(time, TIMES)
        raise ValueError(f"time must be one of {', '.join(TIMES)}, ('scaled', k) or a callable, got {time!r}{near}")
    if time in ("index", "label") and path.T is None:
        raise ValueError(
            f"time={time!r} needs a path with a chain, such as VPSDE.from_betas(betas); {path} has none. "
            "Give time=lambda t: ... to say what the network is told"
        )
    return time


def label(
    time: TimeLabel | Callable[[Tensor], Tensor], path: GaussianPath, t: float | Tensor, x: Tensor, eps: float,
    dtype: torch.dtype | None,
) -> Tensor:  # fmt: skip
    """What a network of this dtype is told at the time t, a number or float64 times (B,): (B,), on the device of x.

    Times are good to `eps`; as near to a whole label they are that label. A number is told by filling, for which no device is
    waited for.

    Raises:
        ValueError: whole labels, and a time between the nodes of the chain; a function that gives another shape.
    """
    if callable(time):
        t = t if isinstance(t, Tensor) else torch.full(x.shape[:1], t, dtype=torch.float64)
        told = torch.as_tensor(time(t))
        if told.shape != t.shape:
            raise ValueError(f"time(t) must give shape {tuple(t.shape)}, got {tuple(told.shape)}")
    else:
        told = _told(time, path, t, eps)
    kind = torch.float64 if (dtype or x.dtype) == torch.float64 else torch.float32
    if isinstance(told, Tensor):
        return told.to(x.device, kind if told.is_floating_point() else told.dtype)
    return torch.full(x.shape[:1], told, dtype=torch.int64 if isinstance(told, int) else kind, device=x.device)


def _told(time: TimeLabel, path: GaussianPath, t: Any, eps: float) -> Any:
    """Of a number a number, of times a tensor."""
    if time == "unit":
        return t
    if isinstance(time, tuple):
        return time[1] * t
    if time == "log-snr":
        return 2 * path.lam(t)
    if time == "sigma":
        return path.sigma(t)
    T, tensor = path.T or 0, isinstance(t, Tensor)
    told = t * T - 1
    whole = told.round() if tensor else round(told)
    near = abs(told - whole) < max(1e-6, 2 * T * eps)
    if time == "index":
        return torch.where(near, whole, told) if tensor else float(whole) if near else told
    fits = near & (whole >= 0)
    if not (fits if not tensor else t.device.type == "meta" or bool(fits.all())):
        wrong = t[~fits][0].item() if tensor else t
        raise ValueError(
            f"the network takes whole labels 0…{max(T - 1, 0)} (time='label'), and t={wrong} has the label "
            f"{wrong * T - 1:.6g}: use a grid of the chain ('trailing', 'leading', 'linspace') and a sampler that stays on it"
        )
    return whole.long() if tensor else whole
