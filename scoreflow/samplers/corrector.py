"""Predictor–corrector: after each step, moves that stay at the level reached."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from scoreflow.check import number, one_of, whole
from scoreflow.noise import Draws
from scoreflow.path import GaussianPath
from scoreflow.plan import Model
from scoreflow.step import Linear, Sampler, Step, family, get_sampler


@family("predictor-corrector")
def predictor_corrector(
    predictor: str | Sampler = "reverse-diffusion",
    corrector: Literal["langevin", "bridge"] = "langevin",
    n: int = 1,
    snr: float = 0.16,
    delta: float = 0.1,
) -> Sampler:
    """Step with the predictor, then n times correct at s, but not at σ = 0.

    - langevin: `x ← x + e ∇log p_s + √(2e) ε`, `e = 2 (snr · ‖ε‖/‖∇log p_s‖)²`, norms of each sample by itself; e is held
      to σ_s², past which a move overshoots: that binds where a score is small by chance, in few dimensions.
    - bridge: `x ~ N(α x̂_0 + √(1−δ) σ ε̂, δ σ²)`: a share δ of the noise is redrawn; exact when x̂_0 is.

    Published code takes the norms from the mean over the batch, and on VP paths multiplies e by the α_i of its own step.

    Reference:
        Song et al. (2021), Algorithms 2–5.
    """
    one_of("corrector", corrector, ("langevin", "bridge"))
    whole("n", n)
    number("snr", snr, above=0)
    number("delta", delta, above=0, most=1)
    inner = get_sampler(predictor)
    if isinstance(inner, PredictorCorrector):
        raise ValueError("predictor must not be a predictor-corrector itself: raise n instead")
    if inner.analytic is not None:
        raise ValueError(f"analytic={inner.analytic} belongs to the predictor-corrector itself, not to its predictor")
    return PredictorCorrector(
        order=inner.order,
        cites=("song2021sde",),
        brownian=inner.brownian,
        default_steps=100,
        predictor=inner,
        corrector=corrector,
        n=n,
        snr=snr,
        delta=delta,
    )


@dataclass(frozen=True, repr=False)
class PredictorCorrector(Sampler):
    """Any sampler, corrected. See `predictor_corrector`."""

    predictor: Sampler = field(default_factory=Sampler)
    corrector: str = "langevin"
    n: int = 1
    snr: float = 0.16
    delta: float = 0.1

    @property
    def stochastic(self) -> bool:
        return True

    def __call__(self, **options: Any) -> Sampler:
        return replace(get_sampler(self.name, **{**self.options, **options}), name=self.name)

    def evaluations(self, path: GaussianPath, times: tuple[float, ...]) -> int | None:
        predictor = self.predictor.evaluations(path, times)
        corrected = sum(path.sigma(s) > 0 for s in times[1:])
        # A predictor that has the word at s already must ask again, once x_s is corrected.
        again = sum(path.sigma(s) > 0 for s in times[1:-1]) if getattr(self.predictor, "reuse", False) else 0
        return None if predictor is None else predictor + again + self.n * corrected - (self.analytic is not None)

    def step(self, model: Model, x: Tensor, t: float, s: float, memory: tuple[Any, ...], noise: Draws) -> Step:
        out = self.predictor.step(model, x, t, s, memory, noise)
        x = out.x
        if model.path.sigma(s) == 0:
            return Step(x)
        for _ in range(self.n):
            x = self._langevin(model, x, s, noise) if self.corrector == "langevin" else self._bridge(model, x, s, noise)
        if not isinstance(self.predictor, Linear):
            return Step(x, out.memory)
        return Step(x, tuple(m for m in out.memory if m[0] != s))  # what was said of the old x_s is stale

    def _langevin(self, model: Model, x: Tensor, s: float, noise: Draws) -> Tensor:
        score, draw = model(x, s, "score"), noise(x, s, s)
        norms = [
            torch.linalg.vector_norm(a[..., None], dim=tuple(range(1, x.ndim + 1)), keepdim=True)[..., 0] for a in (draw, score)
        ]
        step = (2 * (self.snr * norms[0] / norms[1]) ** 2).nan_to_num(posinf=math.inf).clamp(max=model.path.sigma(s) ** 2)
        corrected: Tensor = x + step * score + (2 * step).sqrt() * draw
        return corrected

    def _bridge(self, model: Model, x: Tensor, s: float, noise: Draws) -> Tensor:
        row = model.path.bridge(s, s, std=math.sqrt(self.delta) * model.path.sigma(s))
        return row(x, [model(x, s, "x0")], lambda k: noise(x, s, s))
