"""Grids whose times are nodes of a DDPM chain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from scoreflow._core import check
from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.grid import TooFine, _even, grid_rule


@grid_rule("trailing")
def trailing(path: GaussianPath, steps: int, start: float, stop: float) -> Tensor:
    """The chain's nodes nearest to equal steps, from `start`'s node down: the chain itself when steps = T.

    `np.round(np.arange(T, 0, −T/steps))`, as in diffusers; where rounding gives that one entry too many, it is left out.
    """
    top, bottom = _node(path, "start", start), _node(path, "stop", stop)
    _enough(steps, top - bottom)
    return _nodes(path, [*np.round(np.arange(top, bottom, -(top - bottom) / steps))[:steps], bottom])


@grid_rule("leading")
def leading(path: GaussianPath, steps: int, start: float, stop: float, steps_offset: int = 0) -> Tensor:
    """Labels 0, k, 2k, … with k = ⌊T/steps⌋, then t = 0: starts below t = 1 (Song et al., 2021, DDIM; "leading" elsewhere).

    `steps_offset` moves all labels up, as in diffusers. `stop` may be the first node, 1/T, where Stable Diffusion's
    configuration (`steps_offset=1`, `set_alpha_to_one=False`) ends.
    """
    top, last = _node(path, "start", start), _node(path, "stop", stop)
    check.whole("steps_offset", steps_offset, 0)
    if last > 1:
        raise ValueError(f"grid 'leading' ends at stop=0 or at the first node, got stop={stop}: use 'trailing' or 'uniform'")
    _enough(steps, top)
    nodes = [1 + steps_offset + j * (top // steps) for j in reversed(range(steps))]
    if nodes[0] > top or nodes[-1] <= last:
        raise TooFine(
            f"steps={steps} with steps_offset={steps_offset} and stop={stop} does not fit the chain of {path.T} steps"
        )
    return _nodes(path, [*nodes, last])


@grid_rule("ddim-uniform")
def ddim_uniform(path: GaussianPath, steps: int, start: float, stop: float) -> Tensor:
    """`leading` with `steps_offset=1`: labels 1, 1 + k, 1 + 2k, … (ComfyUI, where k may leave room for a step more)."""
    return leading(path, steps, start, stop, 1)


@grid_rule("simple")
def simple(path: GaussianPath, steps: int, start: float, stop: float) -> Tensor:
    """`trailing` with the steps to a node cut off, `T − ⌊iT/steps⌋`, where it rounds (ComfyUI); without a chain "uniform"."""
    if path.T is None:
        return _even(start, stop, steps)
    top, bottom = _node(path, "start", start), _node(path, "stop", stop)
    _enough(steps, top - bottom)
    return _nodes(path, [*(top - i * (top - bottom) // steps for i in range(steps)), bottom])


@grid_rule("linspace")
def linspace(path: GaussianPath, steps: int, start: float, stop: float) -> Tensor:
    """Labels `np.linspace(0, T − 1, steps).round()` from above, then 0 (Nichol & Dhariwal, 2021); one step starts at the top.

    This is diffusers' rounding, half to even; the authors' code adds the stride up, which settles some halves otherwise.
    """
    top = _node(path, "start", start)
    _to_zero("linspace", stop)
    _enough(steps, top)
    labels = np.linspace(top - 1, 0, steps) if steps == 1 else np.linspace(0, top - 1, steps).round()[::-1]
    return _nodes(path, [*(1 + labels), 0])


def _nodes(path: GaussianPath, nodes: Sequence[float]) -> Tensor:
    return torch.tensor(nodes, dtype=torch.float64) / (path.T or 1)


def _node(path: GaussianPath, name: str, t: float) -> int:
    if path.T is None:
        raise ValueError(f"this grid needs a path made from betas; {path} has no chain: use 'uniform'")
    node = round(t * path.T)
    if abs(node - t * path.T) > 1e-6:
        raise ValueError(f"{name}={t} is no node of the chain of {path.T} steps; the nearest is {node / path.T}")
    return node


def _enough(steps: int, available: int) -> None:
    if steps > available:
        raise TooFine(f"steps={steps} is more than the {available} steps of the chain: use grid='uniform'")


def _to_zero(name: str, stop: float) -> None:
    if stop != 0:
        raise ValueError(f"grid {name!r} ends at stop=0, got stop={stop}: use 'trailing' or 'uniform'")
