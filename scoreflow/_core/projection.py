"""What holds the states of a run in a set, such as those of mean 0: a function of the caller's, with its answers checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Project = Callable[[Tensor], Tensor]
"""From the states (B, ...) of a whole batch to such states."""


def free(x: Tensor) -> Tensor:
    """The states as they are: no projection."""
    return x


@dataclass(frozen=True)
class Checked:
    """A function of states whose answers are looked at.

    Raises:
        TypeError: it gives no tensor. ValueError: it gives another shape.
    """

    project: Project

    def __call__(self, x: Tensor) -> Tensor:
        out = self.project(x)
        if not isinstance(out, Tensor):
            raise TypeError(f"project must give the states again, a tensor, got {type(out).__name__}")
        if out.shape != x.shape:
            raise ValueError(f"project must keep the shape of the states, {tuple(x.shape)}, got {tuple(out.shape)}")
        return out.to(x)


def projection(project: Project | None) -> Project:
    """What was given as `project`, checked. Raises TypeError unless it is a function or None."""
    if project is None:
        return free
    if not callable(project):
        raise TypeError(f"project must be a function of the states, got {project!r}")
    return Checked(project)
