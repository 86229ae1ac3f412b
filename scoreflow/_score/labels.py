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
    time: TimeLabel | Callable[[Tensor], Tensor], path: GaussianPath, t: Tensor, x: Tensor, slack: float,
    dtype: torch.dtype | None,
) -> Tensor:  # fmt: skip
    """What a network of this dtype is told at times t, on the device of x; within `slack` of a whole number it is that number.

    Raises:
        ValueError: whole labels, and a time between the nodes of the chain; a function that gives another shape.
    """
    if time == "unit":
        told = t
    elif isinstance(time, tuple):
        told = time[1] * t
    elif time == "log-snr":
        told = 2 * path.lam(t)
    elif time == "sigma":
        told = path.sigma(t)
    elif time in ("index", "label"):
        told = t * (path.T or 0) - 1
        whole = told.round()
        near = (told - whole).abs() < slack
        told = torch.where(near, whole, told)
        if time == "label":
            if t.device.type != "meta" and not bool((near & (whole >= 0)).all()):
                wrong = t[~(near & (whole >= 0))][0].item()
                raise ValueError(
                    f"the network takes whole labels 0…{path.T - 1 if path.T else 0} (time='label'), and "
                    f"t={wrong} has the label {wrong * (path.T or 0) - 1:.6g}: use a grid of the chain "
                    "('trailing', 'leading', 'linspace') and a sampler that stays on it"
                )
            return whole.long().to(x.device)
    else:
        assert callable(time)
        told = torch.as_tensor(time(t))
        if told.shape != t.shape:
            raise ValueError(f"time(t) must give shape {tuple(t.shape)}, got {tuple(told.shape)}")
    if not told.is_floating_point():
        return told.to(x.device)
    return told.to(x.device, torch.float64 if (dtype or x.dtype) == torch.float64 else torch.float32)
