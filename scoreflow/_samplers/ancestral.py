"""Samplers that step by the bridge `x_s ~ q(x_s | x_t, x̂_0)`: DDPM and DDIM."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from scoreflow._core.chain import VARIANCES, Variance
from scoreflow._core.check import number, one_of
from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.noise import Draws
from scoreflow._core.row import Row
from scoreflow._samplers.plan import Network
from scoreflow._samplers.step import Linear, Sampler, Step, family, sampler
from scoreflow._score.variance import Levels


@family("ddpm")
def ddpm(variance: Variance = "posterior", v: float | None = None) -> Sampler:
    """`x_s ~ N(μ̃, c²)`, with `μ̃` the mean of the posterior `q(x_s | x_t, x_0 = x̂_0)`.

    On a chain and its own grid this is `μ_θ = (x_t − β_t/√(1−ᾱ_t) ε_θ)/√α_t`; on a stride of it, the posterior of the
    stride. The variance c² is, by name:

    - posterior: `β̃ = σ_s² (1 − e^{−2h})`, right when the data are a point;
    - beta: `β = σ_t² − (α_t/α_s)² σ_s²`, on a chain β_t, right when the data are N(0, I);
    - interpolated: `exp(v log β + (1−v) log β̃)`, v the option or, if None, `(o + 1)/2` of the network's second output o;
    - learned: `exp(o)`, o the network's second output.

    The last step, to σ = 0, adds no noise.

    Reference:
        Denoising Diffusion Probabilistic Models (Ho et al., 2020), Eqs. 7 and 11, Algorithm 2; interpolated and learned:
        Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal, 2021), Eq. 15.
    """
    one_of("variance", variance, VARIANCES)
    if v is not None and variance != "interpolated":
        raise ValueError(f"v belongs to variance='interpolated', got v={v} with variance={variance!r}")
    if v is not None:
        number("v", v, least=0, most=1)
    if variance == "learned" or (variance == "interpolated" and v is None):
        return LearnedVariance(order=1, cites=("ho2020ddpm", "nichol2021improved"), default_steps=1000, variance=variance)
    cites = ("ho2020ddpm",) if variance != "interpolated" else ("ho2020ddpm", "nichol2021improved")
    return Linear(
        rows=ddpm_row, order=1, cites=cites, default_steps=1000, lands=True, marginal=variance == "posterior"
    )  # fmt: skip


def ddpm_row(
    path: GaussianPath, times: tuple[float, ...], s: float, *, variance: Variance = "posterior", v: float | None = None
) -> Row:
    """The row of `ddpm`; its output is x̂_0."""
    t = times[0]
    posterior = path.bridge(t, s, eta=1.0)
    if variance == "posterior" or path.sigma(s) == 0:
        return posterior
    beta = path.forward(s, t).z
    share = 1.0 if variance == "beta" else float(v or 0.0)
    return posterior._replace(z=float(beta) ** share * float(posterior.z) ** (1 - share))


@dataclass(frozen=True, repr=False)
class LearnedVariance(Sampler):
    """`ddpm` with a variance that the network gives for every entry: one evaluation, a row for the mean, its own noise."""

    variance: Variance = "learned"

    @property
    def stochastic(self) -> bool:
        return True

    def evaluations(self, path: GaussianPath, times: tuple[float, ...]) -> int:
        return len(times) - 1

    def step(self, model: Network, x: Tensor, t: float, s: float, memory: tuple[()], noise: Draws) -> Step:
        path = model.path
        output, variance_output = model.evaluate(x, t)
        if variance_output is None:
            raise ValueError(
                f"variance={self.variance!r} needs a network with twice the channels; this one returned the shape of "
                "its input. Use variance='posterior', 'beta', or 'interpolated' with v="
            )
        row = path.bridge(t, s, eta=1.0)
        x_s = row._replace(z=0.0)(x, [model.express(output, x, t, "x0")])
        if path.sigma(s) == 0:
            return Step(x_s)
        if self.variance == "learned":
            std = (variance_output / 2).exp()
        else:
            share = (variance_output + 1) / 2
            std = float(path.forward(s, t).z) ** share * float(row.z) ** (1 - share)
        return Step(x_s.add_(std * noise(x, t, s)))


@sampler("ddim", also={"euler-ancestral": {"eta": 1.0}, "flow-map": {"eta": 0.0}}, order=1, cites=("song2021ddim",), lands=True)
def ddim(path: GaussianPath, times: tuple[float, ...], s: float, *, eta: float = 0.0) -> Row:
    """`x_s = α_s x̂_0 + √(σ_s² − c²) ε̂ + c ε`, `c = η σ_s √(1 − e^{−2h})`, `ε̂ = (x_t − α_t x̂_0)/σ_t`.

    η = 0 is the first-order exponential step of the probability-flow ODE; η = 1 is `ddpm`. Exact where x̂_0 does not
    change along the step, so the last step to σ = 0 loses nothing. With a `FlowMap` η = 0 is the jump from t to s: `flow-map`.

    Reference:
        Denoising Diffusion Implicit Models (Song et al., 2021), Eqs. 12 and 16.
    """
    return path.bridge(times[0], s, eta)


@sampler("consistency", cites=("song2023consistency",), default_steps=1, lands=True)
def consistency(path: GaussianPath, times: tuple[float, ...], s: float) -> Row:
    """`x_s = α_s x̂_0 + σ_s ε`: to data, and noise again. Of a `FlowMap` x̂_0 is the jump to t = 0.

    Multistep sampling of consistency models: with the exact map every step has the law of the data at s, so more steps gain
    nothing; with a learned one they mend what a jump errs. Of a score model x̂_0 is the mean, and the law is too narrow.

    Reference:
        Consistency Models (Song et al., 2023), Algorithm 1.
    """
    return Row(0.0, (path.alpha(s),), path.sigma(s))


@family("analytic-dpm")
def analytic_dpm(eta: float = 1.0, levels: Levels | None = None, v: float = 1.0) -> Sampler:
    """Analytic-DPM: the mean of `ddim` with η, and the best variance, `c² + m² E tr Cov[x_0 | x_t]/d`.

    m is the row's weight of x̂_0, `c = η σ_s √(1 − e^{−2h})`. The variance of x_0 comes from `levels`, made by
    `estimate_variance(model, data)`; without them from N(0, v I) data, where it is `v σ_t²/(α_t² v + σ_t²)`. On isotropic
    Gaussian data every step is exact. The last step, to σ = 0, adds no noise.

    Reference:
        Analytic-DPM: an Analytic Estimate of the Optimal Reverse Variance (Bao et al., 2022), Theorem 1.
    """
    number("eta", eta, least=0)
    number("v", v, least=0)
    if levels is not None and not isinstance(levels, Levels):
        raise TypeError(f"levels must be what estimate_variance gives, got {type(levels).__name__}")
    return AnalyticDPM(rows=analytic_dpm_row, order=1, cites=("bao2022analytic",), lands=True, marginal=False)


@dataclass(frozen=True, repr=False)
class AnalyticDPM(Linear):
    """Its levels are known on one path only, so that whether it draws noise is read off its options."""

    def stochastic_on(self, path: GaussianPath) -> bool:
        return bool(self.options["eta"] > 0 or self.options["levels"] is not None or self.options["v"] > 0)


def analytic_dpm_row(
    path: GaussianPath, times: tuple[float, ...], s: float, *, eta: float, levels: Levels | None, v: float
) -> Row:
    """The row of `analytic-dpm`."""
    t = times[0]
    row = path.bridge(t, s, eta)
    if path.sigma(s) == 0:
        return row._replace(z=0.0)
    left = path.posterior_variance(t, v) if levels is None else levels(path, t)
    return row._replace(z=math.hypot(row.z, float(row.m[0]) * math.sqrt(left)))
