"""What a study answers with."""

from __future__ import annotations

from typing import NamedTuple

from scoreflow.studies.spec import Spec
from scoreflow.studies.stats import Interval


class Answer(NamedTuple):
    """One line: a sampler and its figure, and who cannot be told apart from it."""

    sampler: str
    nfe: float
    figure: str
    value: Interval
    rivals: tuple[str, ...] = ()

    def __str__(self) -> str:
        others = f"; not told apart from it: {', '.join(self.rivals)}" if self.rivals else ""
        return f"{self.sampler} at {self.nfe:g} evaluations: {self.figure} {self.value}{others}"


class Failure(NamedTuple):
    """A run or a metric that failed on a block: of a cell, or of what cells are compared to (`kind`)."""

    kind: str
    spec: Spec
    seed: int
    error: str

    def __str__(self) -> str:
        return f"{self.spec}{'' if self.kind == 'cell' else f' ({self.kind})'}, block {self.seed}: {self.error}"
