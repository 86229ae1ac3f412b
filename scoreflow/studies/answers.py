"""What a study answers with."""

from __future__ import annotations

from typing import NamedTuple

from scoreflow.studies.spec import Spec
from scoreflow.studies.stats import Interval


class Answer(NamedTuple):
    """One line: a sampler and its figure, and who cannot be told apart from it; its evaluations, and backward passes if any."""

    sampler: str
    nfe: float
    figure: str
    value: Interval
    rivals: tuple[str, ...] = ()
    backward: float = 0.0

    def __str__(self) -> str:
        passes = f" and {self.backward:g} backward passes" if self.backward else ""
        others = f"; not told apart from it: {', '.join(self.rivals)}" if self.rivals else ""
        return f"{self.sampler} at {self.nfe:g} evaluations{passes}: {self.figure} {self.value}{others}"


class Failure(NamedTuple):
    """A run or a metric that failed on a block: of a cell, or of what cells are compared to (`kind`)."""

    kind: str
    spec: Spec
    seed: int
    error: str

    def __str__(self) -> str:
        return f"{self.spec}{'' if self.kind == 'cell' else f' ({self.kind})'}, block {self.seed}: {self.error}"
