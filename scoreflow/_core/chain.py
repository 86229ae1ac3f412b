"""The DDPM chain as printed in the textbook: β, α, ᾱ, β̃, and μ_θ both ways.

Nothing here knows of an SDE. `VPSDE.from_betas` puts a continuous path through a chain, `VPSDE.discretize` reads a
chain off a path, and the tests show that the samplers of the one are the formulas of the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from scoreflow._core.check import number, one_of, whole

Variance = Literal["posterior", "beta", "interpolated", "learned"]
VARIANCES: tuple[Variance, ...] = ("posterior", "beta", "interpolated", "learned")


@dataclass(frozen=True, eq=False)
class DDPMChain:
    """The forward chain `q(x_t | x_{t−1}) = N(√(1−β_t) x_{t−1}, β_t I)`, t = 1…T, and its posteriors.

    Args:
        betas: β_1 … β_T, each strictly between 0 and 1; a sequence, an array or a one-dimensional tensor. The last may be 1:
            then ᾱ_T = 0, and x_T is noise alone (`zero_terminal_snr`).

    Attributes:
        beta, alpha, alpha_bar, posterior_variance: float64 tensors of shape (T,); entry t − 1 belongs to step t.
            `alpha = 1 − β`, `alpha_bar = Π α`, `posterior_variance = β̃_t = β_t (1 − ᾱ_{t−1}) / (1 − ᾱ_t)`.

    Every method takes steps `t`, an int or an integer tensor of shape (B,), each in 1…T, and states of shape
    (B, ...); it returns the dtype and device of the state. Coefficients are formed in float64.

    Raises:
        ValueError: no betas, or one that is not strictly between 0 and 1 (NaN included), unless the last is 1. A step t with
            ᾱ_t = 0 for what reads x̂_0 from ε. TypeError: betas that are no numbers.

    Reference:
        Denoising Diffusion Probabilistic Models (Ho et al., 2020), Eqs. 2, 4, 7, 11.
    """

    beta: Tensor
    alpha: Tensor = field(init=False)
    alpha_bar: Tensor = field(init=False)
    posterior_variance: Tensor = field(init=False)
    log_alpha_bar: Tensor = field(init=False, repr=False)

    def __init__(self, betas: Sequence[float] | np.ndarray | Tensor) -> None:
        beta = _vector("betas", betas)
        wrong = np.flatnonzero(~((beta > 0) & (beta < 1)))
        if wrong.size and not (wrong[0] == beta.size - 1 and beta[-1] == 1):
            raise ValueError(
                f"betas must lie strictly between 0 and 1, got {beta[wrong[0]]} at index {wrong[0]}"
                f" ({wrong.size} of {beta.size} are outside; only the last may be 1)"
            )
        # Long double keeps the sum of 4000 logarithms good to the last digit of float64.
        with np.errstate(divide="ignore"):  # log 0 = −∞ where the last β is 1
            log_alpha_bar = np.cumsum(np.log1p(-beta.astype(np.longdouble))).astype(np.float64)
        before = np.concatenate(([0.0], log_alpha_bar[:-1]))
        tilde = beta * np.expm1(before) / np.expm1(log_alpha_bar)
        for name, array in {
            "beta": beta,
            "alpha": 1 - beta,
            "alpha_bar": np.exp(log_alpha_bar),
            "posterior_variance": tilde,
            "log_alpha_bar": log_alpha_bar,
        }.items():
            object.__setattr__(self, name, torch.from_numpy(array.copy()))

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Sequence[float] | np.ndarray | Tensor) -> DDPMChain:
        """The chain with these ᾱ_1 … ᾱ_T, `β_t = 1 − ᾱ_t/ᾱ_{t−1}`; the last may be 0.

        Raises:
            ValueError: none, or not strictly falling between 1 and 0. TypeError: no numbers.
        """
        bar = _vector("alphas_cumprod", alphas_cumprod)
        before = np.concatenate(([1.0], bar[:-1]))
        wrong = np.flatnonzero(~((bar < before) & (bar >= 0)))
        if wrong.size:
            raise ValueError(
                f"alphas_cumprod must fall strictly, from below 1 to no less than 0, got {bar[wrong[0]]} at index {wrong[0]}, "
                f"after {before[wrong[0]]}"
            )
        return cls((before - bar) / before)

    @classmethod
    def linear(cls, T: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02) -> DDPMChain:
        """β rises linearly from `beta_min` to `beta_max` in T steps (Ho et al., 2020, Section 4)."""
        return cls(np.linspace(_beta("beta_min", beta_min), _beta("beta_max", beta_max), whole("T", T)))

    @classmethod
    def scaled_linear(cls, T: int = 1000, beta_min: float = 0.00085, beta_max: float = 0.012) -> DDPMChain:
        """√β rises linearly from `√beta_min` to `√beta_max` in T steps (Rombach et al., 2022)."""
        return cls(np.linspace(_beta("beta_min", beta_min) ** 0.5, _beta("beta_max", beta_max) ** 0.5, whole("T", T)) ** 2)

    @classmethod
    def cosine(cls, T: int = 1000, s: float = 0.008, beta_max: float = 0.999) -> DDPMChain:
        """`ᾱ_t = cos²((t/T + s)/(1 + s) · π/2)`, normalised, β held under `beta_max` (Nichol & Dhariwal, 2021, Eq. 17)."""
        T, s = whole("T", T), number("s", s, least=0)
        angle = (np.arange(T + 1) / T + s) / (1 + s) * math.pi / 2
        return cls(np.minimum(1 - (np.cos(angle[1:]) / np.cos(angle[:-1])) ** 2, _beta("beta_max", beta_max)))

    def zero_terminal_snr(self) -> DDPMChain:
        """The chain rescaled to ᾱ_T = 0, `√ᾱ_t ← (√ᾱ_t − √ᾱ_T) √ᾱ_1/(√ᾱ_1 − √ᾱ_T)`: for v- and x0-networks.

        Raises:
            ValueError: a chain of one step, which has no other end to keep.

        Reference:
            Common Diffusion Noise Schedules and Sample Steps are Flawed (Lin et al., 2024), Algorithm 1.
        """
        if self.T < 2:
            raise ValueError("zero_terminal_snr keeps the first step and moves the last: it needs T ≥ 2, got T=1")
        root = self.alpha_bar.sqrt()
        return self.from_alphas_cumprod(((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2)

    def __len__(self) -> int:
        return self.beta.numel()

    @property
    def T(self) -> int:
        """The number of steps."""
        return len(self)

    def q_sample(self, x_0: Tensor, t: int | Tensor, eps: Tensor) -> Tensor:
        """`x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε` (Ho et al., 2020, Eq. 4)."""
        bar, _ = self._log_alpha_bar(t)
        return _times(bar.mul(0.5).exp(), x_0) + _times((-bar.expm1()).sqrt(), eps)

    def posterior_mean(self, x_t: Tensor, x_0: Tensor, t: int | Tensor) -> Tensor:
        """`μ̃_t = √ᾱ_{t−1} β_t/(1−ᾱ_t) x_0 + √α_t (1−ᾱ_{t−1})/(1−ᾱ_t) x_t` (Ho et al., 2020, Eq. 7)."""
        bar, before = self._log_alpha_bar(t)
        beta = self._at(self.beta, t)
        on_x_0 = before.mul(0.5).exp() * beta / -bar.expm1()
        on_x_t = (1 - beta).sqrt() * before.expm1() / bar.expm1()
        return _times(on_x_0, x_0) + _times(on_x_t, x_t)

    def mean_by_substitution(self, x_t: Tensor, eps: Tensor, t: int | Tensor) -> Tensor:
        """The posterior mean μ̃_t with `x̂_0 = (x_t − √(1−ᾱ_t) ε)/√ᾱ_t` put in for x_0 (Ho et al., 2020, Section 3.2)."""
        bar = self._from_eps(t)
        x_0 = _times(bar.mul(-0.5).exp(), x_t) - _times((-bar.expm1()).sqrt() * bar.mul(-0.5).exp(), eps)
        return self.posterior_mean(x_t, x_0, t)

    def mean_from_eps(self, x_t: Tensor, eps: Tensor, t: int | Tensor) -> Tensor:
        """The closed form `μ_θ = (x_t − β_t/√(1−ᾱ_t) ε)/√α_t` (Ho et al., 2020, Eq. 11)."""
        bar = self._from_eps(t)
        beta = self._at(self.beta, t)
        root = (1 - beta).sqrt()
        return _times(1 / root, x_t) - _times(beta / ((-bar.expm1()).sqrt() * root), eps)

    def variance(self, kind: Variance, t: int | Tensor, v: Tensor | float | None = None) -> Tensor:
        """The variance of the reverse step t, by name, in float64.

        Args:
            kind: "beta" β_t; "posterior" β̃_t; "interpolated" `exp(v log β_t + (1−v) log β̃_t)`; "learned" `exp(v)`, the
                diagonal whose logarithm the network gives.
            t: the step, an int or (B,).
            v: for the last two, a number or a tensor of shape (B, ...), e.g. that of the state.

        At t = 1, where β̃ = 0, the interpolation has β̃_2 (β_1 when T = 1) for it, as in the authors' code.

        Raises:
            ValueError: an unknown kind, or one that needs `v` without it.

        Reference:
            Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal, 2021), Eq. 15.
        """
        one_of("variance", kind, VARIANCES)
        if kind == "beta":
            return self._at(self.beta, t)
        if kind == "posterior":
            return self._at(self.posterior_variance, t)
        if v is None:
            raise ValueError(f"variance {kind!r} needs v, got None")
        value = torch.as_tensor(v if isinstance(v, Tensor) else number("v", v), dtype=torch.float64)
        if kind == "learned":
            return value.exp()
        clipped = torch.cat([(self.posterior_variance if self.T > 1 else self.beta)[:2][-1:], self.posterior_variance[1:]])
        low, high = self._at(clipped, t).log().to(value.device), self._at(self.beta, t).log().to(value.device)
        if high.ndim:
            low, high = (c.reshape(-1, *[1] * (value.ndim - 1)) for c in (low, high))
        return (value * high + (1 - value) * low).exp()

    def _at(self, table: Tensor, t: int | Tensor) -> Tensor:
        try:
            steps = torch.as_tensor(t)
            fits = not (steps.is_floating_point() or steps.is_complex() or steps.dtype is torch.bool) and steps.ndim < 2
        except (TypeError, ValueError, RuntimeError):
            fits = False
        if not fits:
            raise TypeError(f"t must be an int or an integer tensor of shape (B,), got {t!r}")
        if steps.device.type != "meta" and bool(((steps < 1) | (steps > self.T)).any()):
            raise ValueError(f"t must lie in 1…{self.T}, got {t!r}")
        return table.to(steps.device)[steps.long() - 1]

    def _log_alpha_bar(self, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """log ᾱ_t and log ᾱ_{t−1}."""
        before = torch.cat([torch.zeros(1, dtype=torch.float64), self.log_alpha_bar[:-1]])
        return self._at(self.log_alpha_bar, t), self._at(before, t)

    def _from_eps(self, t: int | Tensor) -> Tensor:
        """log ᾱ_t, where it is finite."""
        bar, _ = self._log_alpha_bar(t)
        if self.alpha_bar[-1] == 0 and bool((bar == -math.inf).any()):
            raise ValueError(f"t={t!r}: ᾱ_t = 0 at t = {self.T}, where ε says nothing of x_0; use posterior_mean with an x̂_0")
        return bar


def _vector(name: str, given: Sequence[float] | np.ndarray | Tensor) -> np.ndarray:
    """Numbers in a row, as float64."""
    try:
        values = given.numpy(force=True) if isinstance(given, Tensor) else np.asarray(given)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be numbers in one dimension, got {given!r}") from error
    if values.dtype.kind not in "fiu":
        raise TypeError(f"{name} must be numbers in one dimension, got {given!r}")
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"{name} must be one-dimensional and not empty, got shape {tuple(values.shape)}")
    return values.astype(np.float64)


def _beta(name: str, value: float) -> float:
    return number(name, value, above=0, most=1)


def _times(coefficient: Tensor, x: Tensor) -> Tensor:
    """One coefficient for all samples, or one a sample, times a state of shape (B, ...), in the state's dtype."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"states must be floating-point, got {x.dtype if isinstance(x, Tensor) else repr(x)}")
    if coefficient.ndim:
        coefficient = coefficient.reshape(-1, *[1] * (x.ndim - 1))
    return coefficient.to(x) * x


def gaussian_kl(mean: Tensor, log_var: Tensor, other: Tensor, other_log_var: Tensor) -> Tensor:
    """`KL(N(m, v) ‖ N(m', v')) = ½ (log v'/v − 1 + v/v' + (m − m')²/v')`, in nats, entry by entry."""
    ratio = log_var - other_log_var
    return 0.5 * (-ratio - 1 + ratio.exp() + (mean - other).square() * (-other_log_var).exp())


def gaussian_nll(x: Tensor, mean: Tensor | float, log_var: Tensor | float) -> Tensor:
    """`−log N(x; m, v) = ½ (log 2πv + (x − m)²/v)`, in nats, entry by entry."""
    log_var = torch.as_tensor(log_var, dtype=x.dtype, device=x.device)
    return 0.5 * (math.log(2 * math.pi) + log_var + (x - mean).square() * (-log_var).exp())


def discretised_nll(x_0: Tensor, mean: Tensor, log_std: Tensor, bins: int = 256) -> Tensor:
    """`−log ∫ N(x; m, s²) dx` over the bin of x_0 among `bins` levels from −1 to 1, in nats, entry by entry.

    The first and last bin reach to −∞ and ∞ (Ho et al., 2020, Eq. 13).
    """
    half, scale = 1 / (bins - 1), (-log_std).exp()
    below, above = (x_0 - half - mean) * scale, (x_0 + half - mean) * scale
    # Φ(b) − Φ(a) = Φ(−a) − Φ(−b): on the side where both are small.
    flip = below + above > 0
    low, high = torch.where(flip, -above, below), torch.where(flip, -below, above)
    low = torch.where((x_0 < -1 + half) & ~flip | (x_0 > 1 - half) & flip, -math.inf, low)
    high = torch.where((x_0 > 1 - half) & ~flip | (x_0 < -1 + half) & flip, math.inf, high)
    small, large = torch.special.log_ndtr(low.clamp(min=-1e4)), torch.special.log_ndtr(high.clamp(max=1e4))
    return -(large + torch.log1p(-(small - large).exp().clamp(max=1 - 1e-7)))
