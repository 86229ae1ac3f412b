"""Predictor–corrector: after each step, moves that stay at the level reached."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor

from scoreflow._core.check import number, one_of, whole
from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.noise import Draws
from scoreflow._core.row import Row
from scoreflow._samplers.plan import Network
from scoreflow._samplers.step import Linear, Sampler, Step, family, get_sampler


@family("predictor-corrector")
def predictor_corrector(
    predictor: str | Sampler = "reverse-diffusion",
    corrector: Literal["langevin", "bridge"] = "langevin",
    n: int = 1,
    snr: float = 0.16,
    delta: float = 0.1,
) -> Sampler:
    """Step with the predictor, then n times correct at s, but not at σ = 0.

    - langevin: `x ← x + e ∇log p_s + √(2e) ε`, `e = 2 snr² σ_s²`, at most σ_s². It is the published
      `2 (snr · ‖ε‖/‖∇log p_s‖)²` with ‖ε‖ = √d and the score's RMS norm where x_0 is known, √d/σ_s: a number of the level, so
      that p_s is kept as snr → 0. On N(0, w) the moves settle at the variance `w/(1 − e/(2w))`, at snr = 0.16 at most 2.7 %
      above w.
    - bridge: `x ~ N(α x̂_0 + √(1−δ) σ ε̂, δ σ²)`: a share δ of the noise is redrawn. It keeps p_s where x̂_0 is x_0 itself,
      elsewhere as δ → 0.

    Published code takes e from the draw and the score at hand, means over the batch: in few dimensions the law then settles
    well above p_s. On VP paths it multiplies e by the α_i of its own step. A fixed snr or δ leaves an error that no grid
    removes, so there is no order.

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
        # An output that the predictor has at s already is taken again, once x_s is corrected.
        again = sum(path.sigma(s) > 0 for s in times[1:-1]) if getattr(self.predictor, "reuse", False) else 0
        return None if predictor is None else predictor + again + self.n * corrected - (self.analytic is not None)

    def step(self, model: Network, x: Tensor, t: float, s: float, memory: tuple[Any, ...], noise: Draws) -> Step:
        out = self.predictor.step(model, x, t, s, memory, noise)
        x = out.x
        if model.path.sigma(s) == 0:
            return Step(x)
        for _ in range(self.n):
            x = self._langevin(model, x, s, noise) if self.corrector == "langevin" else self._bridge(model, x, s, noise)
        if not isinstance(self.predictor, Linear):
            return Step(x, out.memory)
        return Step(x, tuple(m for m in out.memory if m[0] != s))  # outputs at the old x_s are stale

    def _langevin(self, model: Network, x: Tensor, s: float, noise: Draws) -> Tensor:
        e = min(2 * self.snr**2, 1.0) * model.path.sigma(s) ** 2
        return Row(1.0, (e,), math.sqrt(2 * e))(x, [model(x, s, "score")], lambda k: noise(x, s, s))

    def _bridge(self, model: Network, x: Tensor, s: float, noise: Draws) -> Tensor:
        row = model.path.bridge(s, s, std=math.sqrt(self.delta) * model.path.sigma(s))
        return row(x, [model(x, s, "x0")], lambda k: noise(x, s, s))
