"""The paths people use: variance preserving, sub-VP, variance exploding, rectified flow."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from scoreflow._core.chain import DDPMChain
from scoreflow._core.check import number, whole
from scoreflow._core.deprecated import renamed
from scoreflow._core.gaussian import GaussianPath, Parameters, _bisect, _once, curve


class AlphaBar(Parameters):
    """A noise schedule: log ᾱ, falling from 0, its rate and its inverse; on float64 tensors. As text it is how the path of
    this schedule is made."""

    def log_alpha_bar(self, t: Tensor) -> Tensor:
        """log ᾱ."""
        raise NotImplementedError

    def beta(self, t: Tensor) -> Tensor:
        """`β = −d log ᾱ/dt`."""
        raise NotImplementedError

    def time(self, log_alpha_bar: Tensor) -> Tensor:
        """The t with this log ᾱ."""
        raise NotImplementedError

    def alpha_slope(self, t: Tensor) -> Tensor:
        """`dα/dt = −½ β α`."""
        return -self.beta(t) / 2 * (self.log_alpha_bar(t) / 2).exp()


class LinearBeta(AlphaBar):
    """`β(t) = β_min + t (β_max − β_min)`."""

    def __str__(self) -> str:
        return f"(beta_min={self.beta_min}, beta_max={self.beta_max})"

    def __init__(self, beta_min: float, beta_max: float) -> None:
        self.beta_min, self.beta_max = number("beta_min", beta_min, above=0), number("beta_max", beta_max, above=0)
        if self.beta_min > self.beta_max:
            raise ValueError(f"need 0 < beta_min ≤ beta_max, got beta_min={beta_min}, beta_max={beta_max}")

    def log_alpha_bar(self, t: Tensor) -> Tensor:
        return -t * (self.beta_min + t / 2 * (self.beta_max - self.beta_min))

    def beta(self, t: Tensor) -> Tensor:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def time(self, log_alpha_bar: Tensor) -> Tensor:
        root = (self.beta_min**2 - 2 * (self.beta_max - self.beta_min) * log_alpha_bar).sqrt()
        return -2 * log_alpha_bar / (self.beta_min + root)


class Cosine(AlphaBar):
    """`ᾱ = cos²((t + s)/(1 + s) · π/2)`, normalised to 1 at t = 0; exactly 0 at t = 1."""

    def __init__(self, s: float) -> None:
        self.s = number("s", s, least=0)

    @property
    def rate(self) -> float:
        """π/2 over 1 + s."""
        return math.pi / 2 / (1 + self.s)

    def __str__(self) -> str:
        return f".cosine(s={self.s})"

    def log_alpha_bar(self, t: Tensor) -> Tensor:
        # cos a / cos b = 1 − (sin² ((a−b)/2) · 2 cos b + sin(a−b) sin b)/cos b keeps the digits near t = 0.
        start = self.s * self.rate
        near = torch.log1p(-2 * torch.sin(self.rate * t / 2) ** 2 - torch.sin(self.rate * t) * math.tan(start))
        far = torch.log(torch.sin(self.rate * (1 - t)) / math.cos(start))
        return 2 * torch.where(t < 0.5, near, far)

    def beta(self, t: Tensor) -> Tensor:
        return 2 * self.rate / torch.tan(self.rate * (1 - t))

    def alpha_slope(self, t: Tensor) -> Tensor:
        return -self.rate * torch.cos(self.rate * (1 - t)) / math.cos(self.s * self.rate)  # finite where β is not

    def time(self, log_alpha_bar: Tensor) -> Tensor:
        zero, one = torch.zeros_like(log_alpha_bar), torch.ones_like(log_alpha_bar)
        return _bisect(self.log_alpha_bar, log_alpha_bar, zero, one, self.beta)


class Nodes(AlphaBar):
    """log ᾱ through the nodes of a DDPM chain at t = i/T by monotone cubics: exact at the nodes, β continuous.

    Where the last β is 1, `log ᾱ = y + (d + 2) u + 2 log(1 − u)` in the last cell, u the place in it, y and d value and slope
    at its start: α falls to 0 at t = 1 as a straight line does, and log ᾱ is finite before.

    Reference:
        A Method for Constructing Local Monotone Piecewise Cubic Interpolants (Fritsch & Butland, 1984).
    """

    def __init__(self, chain: DDPMChain) -> None:
        y = np.concatenate(([0.0], chain.log_alpha_bar.numpy()))
        self.to_zero = bool(y[-1] == -math.inf)
        rise = np.diff(y)  # by node, negative throughout; the last may be −∞
        inner = 2 / (1 / rise[1:] + 1 / rise[:-1])
        if len(rise) > 1:
            # Three-point ends, held to the range in which the cubic stays monotone and β > 0.
            ends = [np.clip((3 * a - b) / 2, 3 * a, a / 3) for a, b in (rise[:2], rise[:-3:-1])]
        else:
            ends = [rise[0], rise[0]]
        d = np.concatenate(([ends[0]], inner, [ends[1]]))
        if self.to_zero:
            last = (d[-2] + 2 if len(rise) > 1 else 0.0, 0.0, 0.0)
            d[-1] = rise[-1] = 0.0
        cubic = (y[:-1], d[:-1], 3 * rise - 2 * d[:-1] - d[1:], d[:-1] + d[1:] - 2 * rise)
        if self.to_zero:
            for c, value in zip(cubic[1:], last, strict=True):
                c[-1] = value
        self.T, self.y, self.betas = chain.T, torch.from_numpy(y), chain.beta
        self.nodes = torch.arange(self.T + 1, dtype=torch.float64) / self.T
        self.cubic = torch.from_numpy(np.stack(cubic))

    def __str__(self) -> str:
        digest = hashlib.blake2b(self.betas.numpy().tobytes(), digest_size=4).hexdigest()
        return f".from_betas({self.T} betas from {self.betas[0]:.4g} to {self.betas[-1]:.4g}, {digest})"

    def _cell(self, t: Tensor) -> tuple[Tensor, ...]:
        """The place within its cell, and the cell's cubic."""
        nodes = self.nodes.to(t)  # t·T may miss a node by a rounding; i/T does not
        i = (torch.searchsorted(nodes, t.detach().contiguous(), right=True) - 1).clamp(0, self.T - 1)
        return ((t - nodes[i]) * self.T, *self.cubic.to(t)[:, i])

    def log_alpha_bar(self, t: Tensor) -> Tensor:
        u, y, b, c, d = self._cell(t)
        # The last node's value to the last digit, with the slope of its cell.
        end = y + (b + c + d) + (u - u.detach()) * (b + 2 * c + 3 * d)
        cubic = torch.where(u >= 1, end, y + u * (b + u * (c + u * d)))
        return cubic + 2 * self._line(t)[0].log() if self.to_zero else cubic

    def beta(self, t: Tensor) -> Tensor:
        u, _, b, c, d = self._cell(t)
        rate = -self.T * (b + u * (2 * c + 3 * u * d))
        if not self.to_zero:
            return rate
        line, slope = self._line(t)
        return rate - 2 * slope / line

    def alpha_slope(self, t: Tensor) -> Tensor:
        if not self.to_zero:
            return super().alpha_slope(t)
        u, y, b, c, d = self._cell(t)
        line, slope = self._line(t)
        rate = self.T * (b + u * (2 * c + 3 * u * d))
        return (rate / 2 * line + slope) * ((y + u * (b + u * (c + u * d))) / 2).exp()

    def _line(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The factor of α that falls from 1 to 0 in the last cell, and its slope; 1 and 0 before."""
        start = self.nodes[-2].to(t)
        u, left = (t - start) * self.T, (1 - t) * self.T
        line = torch.where(t > start, torch.where(u < 0.5, 1 - u, left), 1.0)
        return line, torch.where(t >= start, -self.T, 0.0).to(t)

    def time(self, log_alpha_bar: Tensor) -> Tensor:
        nodes, y = self.nodes.to(log_alpha_bar), self.y.to(log_alpha_bar)
        right = torch.searchsorted(-y, -log_alpha_bar.contiguous()).clamp(1, self.T)
        return _bisect(self.log_alpha_bar, log_alpha_bar, nodes[right - 1], nodes[right], self.beta)


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
        return _once(self, ("repr",), lambda: f"{type(self).__name__}{self.noise_schedule}")

    def discretize(self, N: int) -> DDPMChain:
        """The DDPM chain of N steps with this path's ᾱ at t = i/N: `β_i = 1 − ᾱ(t_i)/ᾱ(t_{i−1})`, never β(t)/N.

        Where ᾱ(1) = 0 its last β is 1.

        Raises:
            ValueError: N < 1. TypeError: N is no whole number.
        """
        N = whole("N", N)
        log_alpha_bar = 2 * self.log_alpha(torch.arange(N + 1, dtype=torch.float64) / N)
        return DDPMChain(-torch.expm1(log_alpha_bar.diff()))

    @curve
    def log_alpha(self, t: Tensor) -> Tensor:
        """½ log ᾱ."""
        return self.noise_schedule.log_alpha_bar(t) / 2

    @curve
    def log_sigma(self, t: Tensor) -> Tensor:
        """½ log(1 − ᾱ)."""
        return torch.log(-torch.expm1(self.noise_schedule.log_alpha_bar(t))) / 2

    @curve
    def f(self, t: Tensor) -> Tensor:
        """−β/2."""
        return -self.noise_schedule.beta(t) / 2

    @curve
    def g2(self, t: Tensor) -> Tensor:
        """β."""
        return self.noise_schedule.beta(t)

    @curve
    def alpha_slope(self, t: Tensor) -> Tensor:
        """−½ β α."""
        return self.noise_schedule.alpha_slope(t)

    @curve
    def sigma_slope(self, t: Tensor) -> Tensor:
        """−α α'/σ."""
        return -self.alpha(t) * self.alpha_slope(t) / self.sigma(t)

    @curve
    def time(self, lam: Tensor) -> Tensor:
        """From `log ᾱ = −log(1 + e^{−2λ})`."""
        return self.noise_schedule.time(-torch.nn.functional.softplus(-2 * lam, threshold=800)).clamp(0, 1)


class SubVPSDE(VPSDE):
    """The sub-VP SDE: α as in `VPSDE`, `σ = 1 − ᾱ`, `g² = β (1 − ᾱ²)`.

    Reference:
        Song et al. (2021), Eqs. 13 and 33.
    """

    @curve
    def log_sigma(self, t: Tensor) -> Tensor:
        """log(1 − ᾱ)."""
        return torch.log(-torch.expm1(self.noise_schedule.log_alpha_bar(t)))

    @curve
    def g2(self, t: Tensor) -> Tensor:
        """β (1 − ᾱ²)."""
        return self.noise_schedule.beta(t) * -torch.expm1(2 * self.noise_schedule.log_alpha_bar(t))

    @curve
    def sigma_slope(self, t: Tensor) -> Tensor:
        """−2 α α'."""
        return -2 * self.alpha(t) * self.alpha_slope(t)

    @curve
    def time(self, lam: Tensor) -> Tensor:
        """By bisection."""
        return _bisect(self.lam, lam, torch.zeros_like(lam), torch.ones_like(lam))


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

    @curve
    def log_alpha(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    @curve
    def log_sigma(self, t: Tensor) -> Tensor:
        """log σ."""
        return math.log(self.sigma_min) + torch.log(torch.expm1(2 * self.rate * t)) / 2

    @curve
    def f(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    @curve
    def g2(self, t: Tensor) -> Tensor:
        """dσ²/dt."""
        return 2 * self.rate * self.sigma_min**2 * torch.exp(2 * self.rate * t)

    @curve
    def time(self, lam: Tensor) -> Tensor:
        """From σ = e^{−λ}."""
        return (torch.log1p(torch.exp(-2 * lam) / self.sigma_min**2) / (2 * self.rate)).clamp(0, 1)


class Flow(GaussianPath):
    """Rectified flow: `α = 1 − t`, `σ = t`, so that x_t moves from x_0 to ε on a straight line.

    α(1) = 0: an ε-network must start below t = 1; x0-, v- and flow-networks need not.

    Reference:
        Flow Straight and Fast (Liu et al., 2023); Flow Matching for Generative Modeling (Lipman et al., 2023).
    """

    @curve
    def log_alpha(self, t: Tensor) -> Tensor:
        """log(1 − t)."""
        return torch.log1p(-t)

    @curve
    def log_sigma(self, t: Tensor) -> Tensor:
        """log t."""
        return torch.log(t)

    @curve
    def f(self, t: Tensor) -> Tensor:
        """−1/(1 − t)."""
        return -1 / (1 - t)

    @curve
    def g2(self, t: Tensor) -> Tensor:
        """2t/(1 − t)."""
        return 2 * t / (1 - t)

    @curve
    def alpha_slope(self, t: Tensor) -> Tensor:
        """−1."""
        return torch.full_like(t, -1.0)

    @curve
    def sigma_slope(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    @curve
    def time(self, lam: Tensor) -> Tensor:
        """`1/(1 + e^λ)`."""
        return torch.sigmoid(-lam)


PATHS: dict[str, Callable[[], GaussianPath]] = {
    "vp": VPSDE,
    "cosine": lambda: VPSDE.from_betas(DDPMChain.cosine().beta),
    "ddpm": lambda: VPSDE.from_betas(DDPMChain.linear().beta),
    "sub-vp": SubVPSDE,
    "ve": VESDE,
    "flow": Flow,
}
"""Paths by name; ddpm and cosine are the published chains of 1000 steps."""
