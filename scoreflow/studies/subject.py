"""What is studied: a model, the data to compare to, and all that a figure depends on beside the sampler and the seed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from scoreflow._score.fingerprint import fingerprint
from scoreflow._score.flow_map import FlowMap
from scoreflow._score.model import ScoreModel
from scoreflow._score.observation import Observation
from scoreflow._score.oracle import Empirical, Gaussian, GaussianMixture
from scoreflow._show.picture import drawable
from scoreflow.guidance import Guided
from scoreflow.posterior import Posterior
from scoreflow.posterior.denoised import innermost
from scoreflow.studies.features import Features
from scoreflow.studies.metrics import Metric, draws
from scoreflow.studies.simulated import Simulated
from scoreflow.studies.spec import Spec

NO_ODE = (
    "the model is a flow map that jumps to data only, or is guided, and has no probability-flow ODE: "
    "give the teacher as the model and flow_map="
)


@dataclass(frozen=True)
class Subject:
    """A model with its data.

    Attributes:
        model: the score model. Of a `Posterior` of an oracle's model the data are draws of the exact posterior.
        shape: of one sample.
        data: (N, *shape), or an oracle from which they are drawn as needed. Each block's samples are compared to a random half
            of them, its floor is taken from the other half. None if there are none, or if the model is exact for a law that is
            known. For a `Posterior` of a network they are reference draws of the posterior; with `simulated` they are draws
            of the prior, the truths.
        features: states (n, *shape) to features (n, d), for the metrics that need them.
        conditions: of the network. Of a tensor the first n rows go to the n samples of every block; a function gives a
            block's from (n, seed).
        dtype: of the states; the network's if None.
        start, stop: the first and last time of every run.
        name: for reports.
        simulated: K, for calibration: each block draws n/K truths x* from the oracle or from `data`, measures each,
            `y* = A x* + e`, and takes K samples for each y*. The y of the observation is not used. 0: it is what was measured.
        flow_map: on the path of the model, its teacher. The samplers that are named "flow-map" and "consistency" run on it,
            all others and the reference on the model. It is given the same conditions.
    """

    model: ScoreModel
    shape: tuple[int, ...]
    data: Tensor | GaussianMixture | None = None
    features: Features | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)
    dtype: torch.dtype | None = None
    start: float = 1.0
    stop: float = 0.0
    name: str = ""
    simulated: int = 0
    flow_map: FlowMap | None = None

    @cached_property
    def oracle(self) -> GaussianMixture | None:
        """What samples are compared to, if it is a known law: of `data`, or what the model is exact for, a posterior too."""
        if self.simulated:
            return None
        return self.data if isinstance(self.data, GaussianMixture) else self._exact[0]

    @cached_property
    def _exact(self) -> tuple[GaussianMixture | None, str]:
        """The law of x_0 that the model stands for, or why it has no closed form."""
        try:
            return exact_law(self.model), ""
        except ValueError as error:
            return None, f" (the exact posterior is not known: {error})"

    @property
    def posterior(self) -> Posterior | None:
        """The model, if it is one."""
        return self.model if isinstance(self.model, Posterior) else None

    @property
    def observation(self) -> Observation | None:
        """What was measured, if the model is a `Posterior`."""
        return None if self.posterior is None else self.posterior.observation

    def runner(self, spec: Spec) -> ScoreModel:
        """The model that a sampler runs on: the flow map, for its own samplers, or the model."""
        return self.flow_map if self.flow_map is not None and spec.mapped else self.model

    @cached_property
    def ode(self) -> ScoreModel | None:
        """The model that the reference solves the probability-flow ODE of: of a flow map as the model its score model.

        None of a flow map that jumps to data only, or is guided: there is no such ODE.
        """
        if not is_map(self.model):
            return self.model
        return self.model.score_model() if isinstance(self.model, FlowMap) and self.model.times == 2 else None

    @cached_property
    def _prior(self) -> GaussianMixture | None:
        """The law of simulated truths, if it is known."""
        if isinstance(self.data, Tensor) or not isinstance(self.model, Posterior):
            return None
        return self.data or exact_law(self.model.model)

    @property
    def precision(self) -> torch.dtype:
        """The dtype of the states."""
        return self.dtype or (torch.float64 if inner(self.model).oracle else self.model.state_dtype)

    def truth(self, seed: int, at_most: int = 2000) -> Tensor | None:
        """What the samples of a block are compared to: an oracle's draws, or one half of the data."""
        if self.oracle is not None:
            return self.oracle.sample(at_most, seed=draws(seed, "truth").initial_seed()).to(self.precision)
        if self.simulated or not isinstance(self.data, Tensor):
            return None
        return self.data[self._split(seed)[len(self.data) // 2 :][:at_most]]

    def block(self, n: int, seed: int) -> Tensor:
        """n data for the floor: an oracle's draws, or some of the other half; or draws of the simulated truths' posteriors.

        Raises:
            ValueError: more than there are.
        """
        if self.simulated:
            return self.simulate(n, seed).exact(self.simulated, "floor").flatten(0, 1).to(self.precision)
        if self.oracle is not None:
            return self.oracle.sample(n, seed=draws(seed, "floor").initial_seed()).to(self.precision)
        assert isinstance(self.data, Tensor)
        if n > (half := len(self.data) // 2):
            raise ValueError(f"n must be at most {half}, half of the {len(self.data)} data, got {n}")
        return self.data[self._split(seed)[:n]]

    def simulate(self, n: int, seed: int) -> Simulated:
        """The truths of a block and what is measured of each, from the block's seed.

        Raises:
            ValueError: n is no multiple of K, or there are fewer data than truths.
        """
        assert self.observation is not None
        if n % self.simulated:
            raise ValueError(f"n must be a multiple of simulated={self.simulated}, the samples of a truth, got {n}")
        count = n // self.simulated
        if isinstance(self.data, Tensor):
            if count > len(self.data):
                raise ValueError(f"n/simulated must be at most {len(self.data)}, the data that are truths, got {count}")
            truths = self.data[self._split(seed)[:count]]
        else:
            assert self._prior is not None
            truths = self._prior.sample(count, seed=draws(seed, "truths").initial_seed())
        truths = truths.to("cpu", self.precision)
        y = self.observation.draw(truths, draws(seed, "measurements"))
        return Simulated(truths, self.observation.given(y), self.simulated, self._prior, seed)

    def posed(self, n: int, seed: int, model: ScoreModel | None = None) -> ScoreModel:
        """The model of a block, or another that runs: with simulated measurements, each K times, or as it is."""
        model = model or self.model
        if not self.simulated:
            return model
        assert isinstance(model, Posterior)
        return model.seeing(self.simulate(n, seed).repeated())

    def pictures(self, n: int, seed: int) -> dict[str, Tensor]:
        """Of a `Posterior` of images, what was measured in a block, and of simulated measurements the truths; by their kind.

        A measurement is shown as it is if it is an image, and else as Aᵀ y, scaled down where it goes beyond −1 to 1.
        """
        if self.observation is None or len(self.shape) != 3 or not drawable(self.shape):
            return {}
        simulated = self.simulate(n, seed) if self.simulated else None
        seen = simulated.observation if simulated else self.observation
        x = torch.zeros(len(simulated.truths) if simulated else 1, *self.shape, dtype=self.precision)
        y = seen.y if simulated else seen.y[None] if seen.is_one(x) else seen.y
        if seen.mask is not None or y.ndim != 4 or not drawable(y.shape[1:]):
            if not seen.linear:
                return {"truth": simulated.truths} if simulated else {}
            y = seen.adjoint(seen.values(x[:1].expand(len(y), *self.shape)), x)
            y = y / y.abs().amax().clamp(min=1)
        elif (scale := self.shape[-1] // y.shape[-1]) * y.shape[-1] == self.shape[-1] and scale * y.shape[-2] == self.shape[-2]:
            y = y.repeat_interleave(scale, 2).repeat_interleave(scale, 3)  # as wide as what it is a measurement of
        return {"truth": simulated.truths, "measurement": y} if simulated else {"measurement": y}

    def conditioned(self, n: int, seed: int) -> dict[str, Any]:
        """The conditions of a block."""
        return {
            name: value(n, seed) if callable(value) else value[:n] if isinstance(value, Tensor) and value.ndim else value
            for name, value in self.conditions.items()
        }

    def _split(self, seed: int) -> Tensor:
        """The data in the seed's order: two halves, others for every block, so that chance in the data is seen."""
        assert isinstance(self.data, Tensor)
        return torch.randperm(len(self.data), generator=draws(seed, "data"))

    def has(self) -> set[str]:
        """What metrics may need of it."""
        dense = self.oracle is not None and not isinstance(self.oracle, Empirical)
        data = not self.simulated and (self.oracle is not None or self.data is not None)
        own = {
            "data": data, "features": self.features is not None, "oracle": dense,
            "mixture": self.oracle is not None and dense and len(self.oracle.means) > 1,
            "gaussian": self._laws(), "simulated": bool(self.simulated),
            "posterior": self.observation is not None and (self.has_floor() if self.simulated else data),
            "evidence": self._evidence(), "reference": self.ode is not None, "rows": not is_map(self.model),
        }  # fmt: skip
        return {name for name, there in own.items() if there} | {"deterministic", "finest", "timed"}

    def _laws(self) -> bool:
        """Whether `analysis.law` has the law of a plan's outputs, and what to compare it to."""
        of = self.posterior
        if of is None or self.simulated:
            return isinstance(self.model.oracle, Gaussian) and not is_map(self.model)
        return of.is_affine and isinstance(of.model.oracle, Gaussian) and isinstance(self.oracle, Gaussian)

    def _evidence(self) -> bool:
        """Whether log p(y) is known, and `smc` can find it."""
        of = self.posterior
        if of is None or self.simulated or of.method.spread is None:
            return False
        try:
            of.observation.log_likelihood(torch.zeros(1, *self.shape, dtype=self.precision))
            law = exact_law(of.model)
            return law is not None and math.isfinite(law.evidence(of.observation))
        except ValueError:
            return False

    def has_floor(self) -> bool:
        """Whether there are data, or exact posteriors of simulated truths, that can take the place of samples."""
        if not self.simulated:
            return self.oracle is not None or self.data is not None
        try:
            self.simulate(self.simulated, 0).exact(1, "floor")
        except ValueError:
            return False
        return True

    def lacks(self, metrics: list[Metric]) -> list[str]:
        """What the metrics need and it has not, as sentences."""
        why = "" if self.simulated or self.data is not None else self._exact[1]
        wanted = {
            "data": "data=, a tensor of true samples (in a shell: --data)",
            "features": "features=, a function from states to features",
            "oracle": "an oracle's model, or data= an oracle", "gaussian": "a Gaussian's model",
            "mixture": "a GaussianMixture's model, or data= one",
            "posterior": "a Posterior, and of an oracle's model or with data=, draws of it",
            "simulated": "simulated=, how many samples each simulated measurement gets",
            "evidence": "a Posterior of an oracle's model, one y, noise above 0, a method with a V, as mmps, and no simulated=",
            "reference": f"a reference: {NO_ODE}", "rows": "a score model: of a flow map the rows alone do not say the law",
        }  # fmt: skip
        if self.observation is not None:
            wanted["gaussian"] += ", or a Posterior of it by a method that is affine: not dps or mcg, mmps with iterations=None"
        if self.simulated:
            for need in ("data", "oracle", "mixture"):
                wanted[need] += " and one measurement: with simulated= each truth has its own"
            wanted["posterior"] = "a law of the truths whose posteriors are known: an oracle's model, or data= an oracle"
        missing = [(metric.name, need) for metric in metrics for need in metric.needs if need not in self.has()]
        return [
            f"metric {name!r} needs {wanted[need]}{why if need in ('data', 'oracle', 'mixture', 'posterior') else ''}"
            for name, need in missing
        ]

    def identity(self) -> dict[str, str]:
        """What its figures depend on, as text."""
        return {
            "network": type(inner(self.model).oracle or self.model.net).__name__ + _guidance(self.model),
            "model": fingerprint(self.model),
            "path": repr(self.model.path),
            "shape": str(tuple(self.shape)),
            "dtype": str(self.precision).removeprefix("torch."),
            "device": getattr(self.model.device, "type", "cpu"),
            "conditions": fingerprint(dict(self.conditions)) if self.conditions else "none",
            "data": fingerprint(self.data) if self.data is not None else "oracle" if inner(self.model).oracle else "none",
            "features": fingerprint(self.features) if self.features else "none",
            "start": repr(self.start),
            "stop": repr(self.stop),
            **({"simulated": str(self.simulated)} if self.simulated else {}),
            **({"flow_map": repr(of), "flow_map_fingerprint": fingerprint(of)} if (of := self.flow_map) is not None else {}),
        }


def _guidance(model: ScoreModel) -> str:
    """Its wrappers, from the outer to the inner; and whether it is a flow map."""
    return f", {model.kind}{_guidance(model.model)}" if isinstance(model, Guided) else ", FlowMap" * is_map(model)


def is_map(model: ScoreModel) -> bool:
    """Whether it is a flow map, guided or not: then a row says where it jumps to, and not what comes out."""
    return isinstance(innermost(model), FlowMap)


def exact_law(model: ScoreModel) -> GaussianMixture | None:
    """The law of x_0 that a model is exact for, or that a `Posterior` of such a model stands for; None if there is none.

    Raises:
        ValueError: the posterior has no closed form.
    """
    if not isinstance(model, Posterior):
        return model.oracle
    prior = exact_law(model.model)
    return None if prior is None else prior.posterior(model.observation)


def inner(model: ScoreModel) -> ScoreModel:
    """The model that posteriors are of."""
    return inner(model.model) if isinstance(model, Posterior) else model
