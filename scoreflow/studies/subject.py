"""What is studied: a model, the data to compare to, and all that a figure depends on beside the sampler and the seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scoreflow._score.fingerprint import fingerprint
from scoreflow._score.model import ScoreModel
from scoreflow._score.oracle import Gaussian, GaussianMixture
from scoreflow.guidance import Guided
from scoreflow.studies.features import Features
from scoreflow.studies.metrics import Metric, draws


@dataclass(frozen=True)
class Subject:
    """A model with its data.

    Attributes:
        model: the score model.
        shape: of one sample.
        data: (N, *shape). Each block's samples are compared to a random half of it, its floor is taken from the other half.
            None if there is none, or if the model is an oracle's, whose data are drawn as needed.
        features: states (n, *shape) to features (n, d), for the metrics that need them.
        conditions: of the network. Of a tensor the first n rows go to the n samples of every block; a function gives a
            block's from (n, seed).
        dtype: of the states; the network's if None.
        start, stop: the first and last time of every run.
        name: for reports.
    """

    model: ScoreModel
    shape: tuple[int, ...]
    data: Tensor | None = None
    features: Features | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)
    dtype: torch.dtype | None = None
    start: float = 1.0
    stop: float = 0.0
    name: str = ""

    @property
    def oracle(self) -> GaussianMixture | None:
        """The data's distribution, if the model is exact for one."""
        return self.model.oracle

    @property
    def precision(self) -> torch.dtype:
        """The dtype of the states."""
        return self.dtype or (torch.float64 if self.oracle else self.model.state_dtype)

    def truth(self, seed: int, at_most: int = 2000) -> Tensor | None:
        """What the samples of a block are compared to: an oracle's draws, or one half of the data."""
        if self.oracle is not None:
            return self.oracle.sample(at_most, seed=draws(seed, "truth").initial_seed()).to(self.precision)
        return None if self.data is None else self.data[self._split(seed)[len(self.data) // 2 :][:at_most]]

    def block(self, n: int, seed: int) -> Tensor:
        """n data for the floor: an oracle's draws, or some of the other half.

        Raises:
            ValueError: more than there are.
        """
        if self.oracle is not None:
            return self.oracle.sample(n, seed=draws(seed, "floor").initial_seed()).to(self.precision)
        assert self.data is not None
        if n > (half := len(self.data) // 2):
            raise ValueError(f"n must be at most {half}, half of the {len(self.data)} data, got {n}")
        return self.data[self._split(seed)[:n]]

    def conditioned(self, n: int, seed: int) -> dict[str, Any]:
        """The conditions of a block."""
        return {
            name: value(n, seed) if callable(value) else value[:n] if isinstance(value, Tensor) and value.ndim else value
            for name, value in self.conditions.items()
        }

    def _split(self, seed: int) -> Tensor:
        """The data in the seed's order: two halves, others for every block, so that chance in the data is seen."""
        assert self.data is not None
        return torch.randperm(len(self.data), generator=draws(seed, "data"))

    def has(self) -> set[str]:
        """What metrics may need of it."""
        known = self.oracle is not None
        own = {
            "data": known or self.data is not None, "features": self.features is not None, "oracle": known,
            "mixture": known and len(self.oracle.means) > 1 if self.oracle else False,
            "gaussian": isinstance(self.oracle, Gaussian),
        }  # fmt: skip
        return {name for name, there in own.items() if there} | {"reference", "deterministic", "finest", "rows", "timed"}

    def lacks(self, metrics: list[Metric]) -> list[str]:
        """What the metrics need and it has not, as sentences."""
        wanted = {
            "data": "data=, a tensor of true samples (in a shell: --data)",
            "features": "features=, a function from states to features",
            "oracle": "an oracle's model", "mixture": "a GaussianMixture's model", "gaussian": "a Gaussian's model",
        }  # fmt: skip
        missing = [(metric.name, need) for metric in metrics for need in metric.needs if need not in self.has()]
        return [f"metric {name!r} needs {wanted[need]}" for name, need in missing]

    def identity(self) -> dict[str, str]:
        """What its figures depend on, as text."""
        return {
            "network": type(self.oracle or self.model.net).__name__ + _guidance(self.model),
            "model": fingerprint(self.model),
            "path": repr(self.model.path),
            "shape": str(tuple(self.shape)),
            "dtype": str(self.precision).removeprefix("torch."),
            "device": getattr(self.model.device, "type", "cpu"),
            "conditions": fingerprint(dict(self.conditions)) if self.conditions else "none",
            "data": "oracle" if self.oracle else "none" if self.data is None else fingerprint(self.data),
            "features": fingerprint(self.features) if self.features else "none",
            "start": repr(self.start),
            "stop": repr(self.stop),
        }


def _guidance(model: ScoreModel) -> str:
    """Its wrappers, from the outer to the inner."""
    return f", {model.kind}{_guidance(model.model)}" if isinstance(model, Guided) else ""
