"""The paths people use: variance preserving, sub-VP, variance exploding, rectified flow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoreflow._core.alpha_bar import AlphaBar, Cosine, LinearBeta, Nodes
from scoreflow._core.chain import DDPMChain
from scoreflow._core.check import number, whole
from scoreflow._core.deprecated import renamed
from scoreflow._core.elementary import clip, constant, exp, expm1, log, log1p, sigmoid, softplus
from scoreflow._core.gaussian import GaussianPath, bisect
from scoreflow._core.known import dual, once


class VPSDE(GaussianPath):
    """The variance preserving SDE `dx = −½ β(t) x dt + √β(t) dw`: `α² + σ² = 1`, `ᾱ = α²`, `β = −d log ᾱ/dt`.

    `VPSDE(beta_min, beta_max)` has linear β(t); `VPSDE.cosine()` and `VPSDE.from_betas(betas)` are the others.

    Raises:
        ValueError: not 0 < beta_min ≤ beta_max.

    Reference:
        Song et al. (2021), Eqs. 11 and 33.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        self.noise_schedule: AlphaBar = LinearBeta(beta_min, beta_max)

    @classmethod
    def cosine(cls, s: float = 0.008) -> VPSDE:
        """`ᾱ(t) = cos²((t + s)/(1 + s) · π/2)`, normalised. ᾱ(1) = 0: an ε-network must start below t = 1.

        Reference:
            Nichol & Dhariwal (2021), Eq. 17; the chain with clipped β is `DDPMChain.cosine`.
        """
        return cls._of(Cosine(s))

    @classmethod
    def from_betas(cls, betas: Sequence[float] | np.ndarray | Tensor) -> VPSDE:
        """The path through a DDPM chain: node i of T stands at t = i/T, where ᾱ is the chain's to the last digit.

        Between the nodes log ᾱ is a monotone cubic, so β(t) is continuous and positive. If the last β is 1, ᾱ(1) = 0: x0-, v-
        and flow-networks start there, an ε-network must start below t = 1.

        Raises:
            ValueError: as for `DDPMChain`.
        """
        chain = DDPMChain(betas)
        path = cls._of(Nodes(chain))
        path.T = chain.T
        return path

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Sequence[float] | np.ndarray | Tensor) -> VPSDE:
        """The path through a DDPM chain given by its ᾱ_1 … ᾱ_T, the last of which may be 0; as `from_betas`.

        Raises:
            ValueError, TypeError: as for `DDPMChain.from_alphas_cumprod`.
        """
        return cls.from_betas(DDPMChain.from_alphas_cumprod(alphas_cumprod).beta)

    @classmethod
    def _of(cls, schedule: AlphaBar) -> VPSDE:
        path = cls.__new__(cls)
        path.noise_schedule = schedule
        return path

    schedule = renamed("schedule", "noise_schedule")

    def __repr__(self) -> str:
        return once(self, ("repr",), lambda: f"{type(self).__name__}{self.noise_schedule}")

    def discretize(self, N: int) -> DDPMChain:
        """The DDPM chain of N steps with this path's ᾱ at t = i/N: `β_i = 1 − ᾱ(t_i)/ᾱ(t_{i−1})`, never β(t)/N.

        Where ᾱ(1) = 0 its last β is 1.

        Raises:
            ValueError: N < 1. TypeError: N is no whole number.
        """
        N = whole("N", N)
        log_alpha_bar = 2 * self.log_alpha(torch.arange(N + 1, dtype=torch.float64) / N)
        return DDPMChain(-expm1(log_alpha_bar.diff()))

    @dual
    def log_alpha(self, t: Any) -> Any:
        """½ log ᾱ."""
        return self.noise_schedule.log_alpha_bar(t) / 2

    @dual
    def log_sigma(self, t: Any) -> Any:
        """½ log(1 − ᾱ)."""
        return log(-expm1(2 * self.log_alpha(t))) / 2

    @dual
    def f(self, t: Any) -> Any:
        """−β/2."""
        return -self.noise_schedule.beta(t) / 2

    @dual
    def g2(self, t: Any) -> Any:
        """β."""
        return self.noise_schedule.beta(t)

    @dual
    def alpha_slope(self, t: Any) -> Any:
        """−½ β α."""
        return self.noise_schedule.alpha_slope(t)

    @dual
    def sigma_slope(self, t: Any) -> Any:
        """−α α'/σ."""
        return -self.alpha(t) * self.alpha_slope(t) / self.sigma(t)

    @dual
    def time(self, lam: Any) -> Any:
        """From `log ᾱ = −log(1 + e^{−2λ})`."""
        return clip(self.noise_schedule.time(-softplus(-2 * lam)))


class SubVPSDE(VPSDE):
    """The sub-VP SDE: α as in `VPSDE`, `σ = 1 − ᾱ`, `g² = β (1 − ᾱ²)`.

    Reference:
        Song et al. (2021), Eqs. 13 and 33.
    """

    @dual
    def log_sigma(self, t: Any) -> Any:
        """log(1 − ᾱ)."""
        return log(-expm1(2 * self.log_alpha(t)))

    @dual
    def g2(self, t: Any) -> Any:
        """β (1 − ᾱ²)."""
        return self.noise_schedule.beta(t) * -expm1(2 * self.noise_schedule.log_alpha_bar(t))

    @dual
    def sigma_slope(self, t: Any) -> Any:
        """−2 α α'."""
        return -2 * self.alpha(t) * self.alpha_slope(t)

    @dual
    def time(self, lam: Any) -> Any:
        """By bisection."""
        return bisect(self.lam, lam, constant(0.0, lam), constant(1.0, lam))


class VESDE(GaussianPath):
    """The variance exploding SDE: α = 1, `σ² = σ_min² ((σ_max/σ_min)^{2t} − 1)`.

    This is the SDE's own transition from t = 0, so σ(0) = 0 as on every path here; published code leaves out the −1.

    Raises:
        ValueError: not 0 < sigma_min < sigma_max.

    Reference:
        Song et al. (2021), Eqs. 9 and 30.
    """

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0) -> None:
        self.sigma_min, self.sigma_max = number("sigma_min", sigma_min, above=0), number("sigma_max", sigma_max, above=0)
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"need 0 < sigma_min < sigma_max, got sigma_min={sigma_min}, sigma_max={sigma_max}")

    @property
    def rate(self) -> float:
        """log of σ_max over σ_min."""
        return math.log(self.sigma_max / self.sigma_min)

    def __repr__(self) -> str:
        return f"VESDE(sigma_min={self.sigma_min}, sigma_max={self.sigma_max})"

    @dual
    def log_alpha(self, t: Any) -> Any:
        """0."""
        return constant(0.0, t)

    @dual
    def log_sigma(self, t: Any) -> Any:
        """log σ."""
        return math.log(self.sigma_min) + log(expm1(2 * self.rate * t)) / 2

    @dual
    def f(self, t: Any) -> Any:
        """0."""
        return constant(0.0, t)

    @dual
    def g2(self, t: Any) -> Any:
        """dσ²/dt."""
        return 2 * self.rate * self.sigma_min**2 * exp(2 * self.rate * t)

    @dual
    def time(self, lam: Any) -> Any:
        """From σ = e^{−λ}."""
        return clip(log1p(exp(-2 * lam) / self.sigma_min**2) / (2 * self.rate))


class Flow(GaussianPath):
    """Rectified flow: `α = 1 − t`, `σ = t`, so that x_t moves from x_0 to ε on a straight line.

    α(1) = 0: an ε-network must start below t = 1; x0-, v- and flow-networks need not.

    Reference:
        Flow Straight and Fast (Liu et al., 2023); Flow Matching for Generative Modeling (Lipman et al., 2023).
    """

    @dual
    def log_alpha(self, t: Any) -> Any:
        """log(1 − t)."""
        return log1p(-t)

    @dual
    def log_sigma(self, t: Any) -> Any:
        """log t."""
        return log(t)

    @dual
    def f(self, t: Any) -> Any:
        """−1/(1 − t)."""
        return -1 / (1 - t)

    @dual
    def g2(self, t: Any) -> Any:
        """2t/(1 − t)."""
        return 2 * t / (1 - t)

    @dual
    def alpha_slope(self, t: Any) -> Any:
        """−1."""
        return constant(-1.0, t)

    @dual
    def sigma_slope(self, t: Any) -> Any:
        """1."""
        return constant(1.0, t)

    @dual
    def time(self, lam: Any) -> Any:
        """`1/(1 + e^λ)`."""
        return sigmoid(-lam)


PATHS: dict[str, Callable[[], GaussianPath]] = {
    "vp": VPSDE,
    "cosine": lambda: VPSDE.from_betas(DDPMChain.cosine().beta),
    "ddpm": lambda: VPSDE.from_betas(DDPMChain.linear().beta),
    "sub-vp": SubVPSDE,
    "ve": VESDE,
    "flow": Flow,
}
"""Paths by name; ddpm and cosine are the published chains of 1000 steps."""
