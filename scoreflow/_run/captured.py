"""A plan's whole run as one CUDA graph, kept for the next run of its kind.

A graph reads and writes the same memory whenever it is played: states, draws and conditions are copied there before. The rows
ask the host for no number, and tell the network the time by filling, so that a run is captured as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from scoreflow._core.noise import White
from scoreflow._core.projection import Project
from scoreflow._run.walk import Run, walk
from scoreflow._samplers.plan import Plan
from scoreflow._score.conditions import _leaves, _like
from scoreflow._score.fingerprint import networks
from scoreflow._score.model import ScoreModel

KEPT = 4
"""Graphs of a model. Each holds the memory of its run."""


class Laid:
    """The draws of a run, in memory of their own: which they are is known from the first pass on."""

    def __init__(self) -> None:
        self.asked, self.draws, self.count = list[tuple[float, float, bool]](), list[Tensor](), 0

    def __call__(self, like: Tensor, t: float = 1.0, s: float = 0.0, area: bool = False) -> Tensor:
        if self.count == len(self.draws):
            self.asked.append((t, s, area))
            self.draws.append(torch.zeros_like(like))
        self.count += 1
        return self.draws[self.count - 1]

    def fork(self) -> Laid:
        """Itself: a graph has no second pass."""
        return self


class Captured:
    """A run of one plan, model, shape and kind of conditions.

    Raises:
        ValueError: the model draws noise of its own.
    """

    def __init__(self, model: ScoreModel, plan: Plan, x: Tensor, conditions: Mapping[str, Any], project: Project) -> None:
        self.model, self.plan, self.project = model.begin(plan), plan, project
        if self.model.drawing(White(0).draws("model")) is not self.model:
            raise ValueError("capture=True plays a run whose draws are laid out before, and this model draws noise of its own")
        copies = iter([leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf, _ in _leaves(conditions)])
        self.conditions = {name: _like(value, copies) for name, value in conditions.items()}
        self.x, self.noise = x.clone(), Laid()
        with torch.no_grad(), torch.cuda.device(x.device):
            here, aside = torch.cuda.current_stream(x.device), torch.cuda.Stream(x.device)  # type: ignore[no-untyped-call]
            aside.wait_stream(here)
            with torch.cuda.stream(aside):  # libraries choose their kernels, and all draws are known
                self._walk()
            here.wait_stream(aside)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.run, self.end = self._walk()

    def _walk(self) -> tuple[Run, Tensor]:
        """To the last state, and not on to where the host looks whether all was finite."""
        run, self.noise.count = Run(self.model, self.conditions, len(self.x)), 0
        walked = walk(run, self.plan, self.plan.times, self.x, self.noise, self.project)  # type: ignore[arg-type]
        *_, last = [next(walked) for _ in self.plan.times]
        return run, last.x

    def play(self, x: Tensor, conditions: Mapping[str, Any], draws: Callable[[Tensor, float, float, bool], Tensor]) -> Tensor:
        """The end of the run from the states x with these draws.

        Raises:
            FloatingPointError: a state that is not finite.
        """
        self.x.copy_(x)
        for buffer, asked in zip(self.noise.draws, self.noise.asked, strict=True):
            buffer.copy_(draws(self.x, *asked))
        for (buffer, _), (leaf, _) in zip(_leaves(self.conditions), _leaves(conditions), strict=True):
            if isinstance(buffer, Tensor):
                buffer.copy_(leaf)
        with torch.cuda.device(x.device):
            self.graph.replay()
        seen = self.run.finite_check.seen
        finite = torch.stack([found for found, _ in seen]).tolist() if seen else []
        if not all(finite):
            raise FloatingPointError(f"{seen[finite.index(False)][1]}, or before; without capture=True the run says where")
        for t in self.plan.evaluation_times:
            self.model.count(t)
        return self.end.clone()


def captured(model: ScoreModel, plan: Plan, x: Tensor, conditions: Mapping[str, Any], project: Project) -> Captured:
    """The graph of such a run: the one that is kept, or a new one.

    Another plan, shape, dtype or device, conditions of other shapes or other texts and numbers, and weights that stand
    elsewhere in memory need a new one. Weights that change in place do not.
    """
    leaves = (
        (leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else repr(leaf) for leaf, _ in _leaves(conditions)
    )
    nets = [net for net in networks(model, set()) if isinstance(net, nn.Module)]
    weights = (one.data_ptr() for net in nets for one in (*net.parameters(), *net.buffers()))
    shape = repr({name: _like(value, repeat(None)) for name, value in conditions.items()})
    key = (plan, x.shape, x.stride(), x.dtype, x.device, project, shape, *leaves, *weights)
    kept: dict[Hashable, Captured] = vars(model).setdefault("_graphs", {})
    found = kept.pop(key, None) or Captured(model, plan, x, conditions, project)
    kept[key] = found  # the newest last
    while len(kept) > KEPT:
        del kept[next(iter(kept))]
    return found
