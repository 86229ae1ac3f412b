"""Linear systems, sample by sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scoreflow._core.check import hidden


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
        if not hidden(moving) and not bool(moving.any()):
            break
        a = apply(p)
        bent = (p * a).sum(1, keepdim=True)
        step = torch.where(moving & (bent > 0), square / bent, 0.0)
        u, r = u + step * p, r - step * a
        new = r.square().sum(1, keepdim=True)
        p, square = r + torch.where(moving, new / square, 0.0).nan_to_num() * p, torch.where(moving, new, square)
    return u, (square / size).sqrt().nan_to_num().squeeze(1)


def gmres(apply: Callable[[Tensor], Tensor], b: Tensor, iterations: int, rtol: float) -> tuple[Tensor, Tensor]:
    """u of least `‖b − apply(u)‖` among `b, apply(b), …`, so many of them; and the residual over ‖b‖, (B,).

    `apply` acts on each row of (B, m); it need be neither symmetric nor positive, and the residual never grows. Each row stands
    still once its residual is within `rtol`: no row depends on another.

    Reference:
        GMRES: A Generalized Minimal Residual Algorithm for Solving Nonsymmetric Linear Systems (Saad & Schultz, 1986).
    """
    size = b.norm(dim=1)
    basis, columns, turns = [_over(b, size)], list[list[Tensor]](), list[tuple[Tensor, Tensor]]()
    left, residual = [size], size  # ‖b‖ e_1, turned; its last entry is the residual while a row moves
    for _ in range(iterations):
        moving = residual > rtol * size
        if not hidden(moving) and not bool(moving.any()):
            break
        w, column = apply(basis[-1]), list[Tensor]()
        for q in basis:  # modified Gram–Schmidt
            column.append((w * q).sum(1))
            w = w - column[-1][:, None] * q
        length = w.norm(dim=1)
        for i, (c, s) in enumerate(turns):
            column[i], column[i + 1] = c * column[i] + s * column[i + 1], c * column[i + 1] - s * column[i]
        radius = torch.where(moving, torch.hypot(column[-1], length), 0.0)
        c, s = torch.where(radius > 0, column[-1] / radius, 1.0), torch.where(radius > 0, length / radius, 0.0)
        column[-1] = radius
        left[-1:] = [c * left[-1], -s * left[-1]]
        residual = torch.where(moving, left[-1].abs(), residual)
        columns.append(column)
        turns.append((c, s))
        basis.append(_over(w, length))
    weights = list[Tensor]()
    for i in reversed(range(len(columns))):
        rest = left[i] - sum((columns[j][i] * weights[len(columns) - 1 - j] for j in range(i + 1, len(columns))), 0.0)
        weights.append(torch.where(columns[i][i] > 0, rest / columns[i][i], 0.0))
    u = torch.zeros_like(b)
    for weight, q in zip(reversed(weights), basis, strict=False):
        u = u + weight[:, None] * q
    return u, (residual / size).nan_to_num()


def _over(x: Tensor, size: Tensor) -> Tensor:
    """Rows of length 1, or 0."""
    return torch.where(size[:, None] > 0, x / size[:, None], 0.0)
