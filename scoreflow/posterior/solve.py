"""Symmetric systems, sample by sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def conjugate_gradients(apply: Callable[[Tensor], Tensor], b: Tensor, iterations: int, rtol: float) -> tuple[Tensor, Tensor]:
    """u with `apply(u) = b`, for a symmetric `apply` ≥ 0 that acts on each row of (B, m); and `‖b − apply(u)‖/‖b‖`, (B,).

    Each row has step lengths of its own and stands still once its residual is within `rtol`: no row depends on another.

    Reference:
        Methods of Conjugate Gradients for Solving Linear Systems (Hestenes & Stiefel, 1952).
    """
    u, r = torch.zeros_like(b), b
    p, square = r, r.square().sum(1, keepdim=True)
    size = square
    for _ in range(iterations):
        moving = square > rtol**2 * size
        if not bool(moving.any()):
            break
        a = apply(p)
        bent = (p * a).sum(1, keepdim=True)
        step = torch.where(moving & (bent > 0), square / bent, 0.0)
        u, r = u + step * p, r - step * a
        new = r.square().sum(1, keepdim=True)
        p, square = r + torch.where(moving, new / square, 0.0).nan_to_num() * p, torch.where(moving, new, square)
    return u, (square / size).sqrt().nan_to_num().squeeze(1)
