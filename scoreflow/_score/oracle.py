"""Data distributions whose denoiser, score and density are known exactly, under any Gaussian path.

They are the project's instruments: a sampler run on an oracle has no model error. All arithmetic is float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoreflow._core.check import whole
from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.row import double, double_on
from scoreflow._score.exact_map import GaussianMap, QuantileMap
from scoreflow._score.flow_map import FlowMap
from scoreflow._score.model import ScoreModel
from scoreflow._score.observation import Observation

Level = float | Tensor
LEAST = -700.0
"""The log of a weight that counts for none, to the largest."""
FLAT = 1e-7
"""A standard deviation that is rounding, to the largest."""
CATEGORIES = 2**24
"""The most that `torch.multinomial` chooses among."""


def numbers(name: str, value: Any) -> Tensor:
    """The value as a float64 tensor. Raises TypeError unless it holds real numbers, ValueError if it is empty or not finite."""
    try:
        if (kind := torch.as_tensor(value).dtype).is_complex or kind == torch.bool:
            raise TypeError
        found = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a tensor of real numbers, got {value!r}") from error
    if not found.numel():
        raise ValueError(f"{name} must not be empty, got shape {tuple(found.shape)}")
    if bad := int((~found.isfinite()).sum()):
        raise ValueError(f"{name} must be finite, and {bad} of its {found.numel()} numbers are not")
    return found


class GaussianMixture:
    """`Σ_k w_k N(μ_k, Σ_k)` over states of any shape; under a path, `Σ_k w_k N(α μ_k, α² Σ_k + σ² I)`.

    Args:
        weights: (K,), positive; scaled to sum 1.
        means: (K, *event).
        cov: the covariance of x_0: a number or (K,) for variances in all directions, (K, *event) for diagonals,
            (K, d, d) for full matrices over the d flattened entries.

    Raises:
        ValueError: shapes that do not fit, what is empty or not finite, weights ≤ 0, or covariances that are not symmetric and
            ≥ 0. TypeError: no numbers.
    """

    def __init__(self, weights: Tensor, means: Tensor, cov: float | Tensor) -> None:
        weights, means, cov = numbers("weights", weights), numbers("means", means), numbers("cov", cov)
        if means.ndim < 2 or weights.shape != means.shape[:1]:
            raise ValueError(f"means must be (K, *event) and weights (K,), got {tuple(means.shape)}, {tuple(weights.shape)}")
        if not bool((weights > 0).all()):
            raise ValueError(f"weights must be positive, got {weights.tolist()}")
        self.event = tuple(means.shape[1:])
        self.means, self.log_weights = means.flatten(1), (weights / weights.sum()).log()
        K, d = self.means.shape
        self._eigenvectors: Tensor | None = None
        if cov.shape in ((), (K,)):
            self._var = cov.reshape(-1, 1).expand(K, d)
        elif cov.shape == means.shape:
            self._var = cov.flatten(1)
        elif cov.shape == (K, d, d) and torch.allclose(cov, cov.mT):
            self._var, self._eigenvectors = torch.linalg.eigh(cov)
            self._var = self._var.clamp(min=0) if bool((self._var > -1e-6 * self._var.amax()).all()) else self._var
        else:
            raise ValueError(
                f"cov must be a number, ({K},), {tuple(means.shape)} or symmetric {(K, d, d)}, got shape {tuple(cov.shape)}"
            )
        if not bool((self._var >= 0).all()):
            raise ValueError("cov must not be negative in any direction")

    def model(self, path: GaussianPath) -> ScoreModel:
        """The exact score model on a path; its `oracle` is this distribution."""
        model = ScoreModel(Denoiser(self, path), path, prediction="x0")
        model.oracle = self
        return model

    def flow_map(self, path: GaussianPath) -> FlowMap:
        """The exact flow map on a path, of a mixture in one dimension: `Φ_{t→r} = F_r⁻¹ ∘ F_t`, as the ODE keeps quantiles.

        Raises:
            ValueError: states of more than one number, for which `ProductMixture` and `Gaussian` have one; a component without
                variance.
        """
        if self.means.shape[1] > 1:
            raise ValueError(
                f"the flow map of a mixture is known for states of one number, and these have {self.means.shape[1]}: use "
                "ProductMixture"
            )
        return self._mapped(QuantileMap([self._line()], None, path), path)

    def _line(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights, means and variances in one dimension, (K,)."""
        if not bool((self._var > 0).all()):
            raise ValueError("a component without variance has no quantiles to keep: its cov must be above 0")
        return self.log_weights, self.means[:, 0], self._var[:, 0]

    def _mapped(self, net: Any, path: GaussianPath) -> FlowMap:
        found = FlowMap(net, path, "x0")
        found.oracle = self
        return found

    def denoise(self, x: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """`E[x_0 | x_t = x]` for states (B, *event) and levels that are numbers or (B,); in the dtype of x."""
        alpha, sigma = _level(alpha, x), _level(sigma, x)
        joint, gain = self._joint(x, alpha, sigma)
        mean = self.means.to(alpha) + self._back(gain)
        x_0 = (joint.softmax(1).unsqueeze(-1) * mean).sum(1)
        clean = (double(x).flatten(1) / alpha).nan_to_num()
        return torch.where(sigma > 0, x_0, clean).reshape(x.shape).to(x.dtype)

    def log_prob(self, x: Tensor, alpha: Level = 1.0, sigma: Level = 0.0) -> Tensor:
        """`log p_t(x)` for states (B, *event), in float64, of shape (B,); at α = 1, σ = 0 that of the data."""
        joint, _ = self._joint(x, _level(alpha, x), _level(sigma, x))
        return joint.logsumexp(1)

    @property
    def weights(self) -> Tensor:
        """w_k, (K,)."""
        return self.log_weights.exp()

    def mode(self, x: Tensor) -> Tensor:
        """The component that most likely made each x_0, (B,)."""
        return self._joint(x, _level(1.0, x), _level(0.0, x))[0].argmax(1)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n draws of x_0, float64, of shape (n, *event).

        Raises:
            TypeError, ValueError: n or the seed is no whole number ≥ 0.
        """
        generator = torch.Generator().manual_seed(whole("seed", seed, 0))
        # It draws one or more.
        k = _chosen(self.weights, max(1, whole("n", n, 0)), generator)[:n]
        z = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64) * self._var[k].sqrt()
        if self._eigenvectors is not None:
            z = (self._eigenvectors[k] @ z.unsqueeze(-1)).squeeze(-1)
        return (self.means[k] + z).reshape(n, *self.event)

    def posterior(self, observation: Observation) -> GaussianMixture:
        """The law of x_0 given y, a mixture again: `N(μ_k + K_k (y − A μ_k), Σ_k − K_k A Σ_k)`, `K_k = Σ_k Aᵀ (A Σ_k Aᵀ +
        Σ_y)⁻¹`.

        The weights are in proportion to `w_k N(y; A μ_k, A Σ_k Aᵀ + Σ_y)`. Its model is the exact conditional score at every t.

        Raises:
            ValueError: A is not linear; y is not one for all; y cannot be, as without noise in a direction without variance.
        """
        log_weights, gains, A, off = self._given(observation)
        means = self.means + (gains @ off.unsqueeze(-1)).squeeze(-1)
        covs = self.covs - gains @ A @ self.covs
        kept = log_weights > log_weights.max() + LEAST
        weights = (log_weights[kept] - log_weights.max()).exp()
        return self._posterior(weights, means[kept].reshape(-1, *self.event), (covs[kept] + covs[kept].mT) / 2)

    def _posterior(self, weights: Tensor, means: Tensor, covs: Tensor) -> GaussianMixture:
        return GaussianMixture(weights, means, covs)

    def evidence(self, observation: Observation) -> float:
        """`log p(y)`.

        Raises:
            ValueError: as of `posterior`.
        """
        return float(self._given(observation)[0].logsumexp(0))

    @property
    def covs(self) -> Tensor:
        """Σ_k as matrices, (K, d, d)."""
        if self._eigenvectors is None:
            return torch.diag_embed(self._var)
        return (self._eigenvectors * self._var.unsqueeze(1)) @ self._eigenvectors.mT

    def _given(self, observation: Observation) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """log w_k N(y; …), (K,); K_k, (K, d, m); A, (m, d); y − A μ_k, (K, m)."""
        A, y = observation.matrix(self.event), self._y(observation)
        spread = A @ self.covs @ A.mT + observation.covariance(len(A))
        factor, wrong = torch.linalg.cholesky_ex(spread)
        std = factor.diagonal(dim1=1, dim2=2)
        if bool((wrong > 0).any() or (std.amin(1) < FLAT * std.amax(1)).any()):
            raise ValueError(f"{observation!r} has directions without variance and without noise: give noise > 0")
        off = y - self.means @ A.mT
        white = torch.linalg.solve_triangular(factor, off.unsqueeze(-1), upper=False).squeeze(-1)
        log_det = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
        density = -0.5 * (white.square().sum(1) + log_det + len(A) * math.log(2 * math.pi))
        gains = torch.cholesky_solve(A @ self.covs, factor).mT
        return self.log_weights + density, gains, A, off

    def _y(self, observation: Observation) -> Tensor:
        y = observation.values(torch.zeros(1, *self.event, dtype=torch.float64))
        return y[0]

    def _joint(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """log w_k N(x; …), of shape (B, K), and `α Σ_k (α² Σ_k + σ²)^{-1} (x − α μ_k)` in eigen-coordinates, (B, K, d)."""
        self._fits(x)
        alpha, sigma = alpha.unsqueeze(-1), sigma.unsqueeze(-1)
        r = double(x).flatten(1).unsqueeze(1) - alpha * self.means.to(alpha)
        if self._eigenvectors is not None:
            r = torch.einsum("kij,bki->bkj", self._eigenvectors.to(r), r)
        spread = self._var.to(r)
        var = alpha**2 * spread + sigma**2
        density = -0.5 * (r**2 / var + var.log() + math.log(2 * math.pi)).sum(-1)
        return self.log_weights.to(r) + density, (alpha * spread / var).nan_to_num() * r

    def _fits(self, x: Tensor) -> None:
        if tuple(x.shape[1:]) != self.event:
            raise ValueError(f"states must be (B, {', '.join(map(str, self.event))}), got {tuple(x.shape)}")

    def _back(self, r: Tensor) -> Tensor:
        return r if self._eigenvectors is None else torch.einsum("kij,bkj->bki", self._eigenvectors.to(r), r)


@dataclass(frozen=True)
class Denoiser:
    """`E[x_0 | x_t]` as a network `net(x, t)`."""

    oracle: GaussianMixture
    path: GaussianPath

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.oracle.denoise(x, self.path.alpha(t), self.path.sigma(t))


class Gaussian(GaussianMixture):
    """N(μ, Σ).

    Args:
        mean: μ, of any shape *event.
        cov: a number, a diagonal of shape *event, or a full (d, d) matrix over the d flattened entries.

    Attributes:
        mean, cov: μ flattened to (d,) and Σ as a full (d, d) matrix, float64.
    """

    def __init__(self, mean: Tensor, cov: float | Tensor = 1.0) -> None:
        mean, cov = numbers("mean", mean), numbers("cov", cov)
        mean = mean.reshape(1) if mean.ndim == 0 else mean
        super().__init__(torch.ones(1), mean[None], cov if cov.ndim == 0 else cov[None])
        self.mean = self.means[0]
        eigenvectors = torch.eye(len(self.mean), dtype=torch.float64) if self._eigenvectors is None else self._eigenvectors[0]
        self.cov = (eigenvectors * self._var[0]) @ eigenvectors.mT

    def _posterior(self, weights: Tensor, means: Tensor, covs: Tensor) -> GaussianMixture:
        return Gaussian(means[0], covs[0])

    def flow_map(self, path: GaussianPath) -> FlowMap:
        """The exact flow map on a path: `Φ_{t→r}(x) = α_r μ + √((α_r² Σ + σ_r²)/(α_t² Σ + σ_t²)) (x − α_t μ)`."""
        eigenvectors = None if self._eigenvectors is None else self._eigenvectors[0]
        return self._mapped(GaussianMap(self.mean, self._var[0], eigenvectors, path), path)

    def flow(self, path: GaussianPath, x: Tensor, t: float, s: float) -> Tensor:
        """The exact solution of the probability-flow ODE from states (B, *event) at t to s.

        `x_s − α_s μ = √((α_s² Σ + σ_s²)/(α_t² Σ + σ_t²)) (x_t − α_t μ)`.
        """
        state = double(x).flatten(1)
        mean, var = self.mean.to(state), self._var[0].to(state)
        eigenvectors = (torch.eye(len(mean)) if self._eigenvectors is None else self._eigenvectors[0]).to(state)
        (a, b), (c, d) = ((path.alpha(u), path.sigma(u)) for u in (t, s))
        ratio = ((c**2 * var + d**2) / (a**2 * var + b**2)).sqrt()
        y = c * mean + ((state - a * mean) @ eigenvectors * ratio) @ eigenvectors.mT
        return y.reshape(x.shape).to(x.dtype)


class Empirical(GaussianMixture):
    """The data themselves: `E[x_0 | x_t]` is a softmax over the data set.

    Args:
        data: (N, *event). Its `log_prob` is that of the noised data and needs σ > 0.
        weights: (N,), positive. None: equal.
    """

    def __init__(self, data: Tensor, weights: Tensor | None = None) -> None:
        data = numbers("data", data)
        if data.ndim < 2:
            raise ValueError(f"data must be (N, *event), got {tuple(data.shape)}")
        super().__init__(torch.ones(len(data)) if weights is None else weights, data, 0.0)

    def posterior(self, observation: Observation) -> Empirical:
        """The data again, weighed by their likelihoods `N(y; A x_n, Σ_y)`; those below e^−700 of the largest are left out.

        A may be any map, since it is applied to the data alone.

        Raises:
            ValueError: y is not one for all; there is no noise.
        """
        log_weights = self._likelihoods(observation)
        kept = log_weights > log_weights.max() + LEAST
        weights = (log_weights[kept] - log_weights.max()).exp()
        return Empirical(self.means[kept].reshape(-1, *self.event), weights)

    def evidence(self, observation: Observation) -> float:
        """`log p(y)`, `p(y) = Σ_n w_n N(y; A x_n, Σ_y)`."""
        return float(self._likelihoods(observation).logsumexp(0))

    def _likelihoods(self, observation: Observation) -> Tensor:
        """log w_n N(y; A x_n, Σ_y), (N,)."""
        self._y(observation)  # one for all
        return self.log_weights + observation.log_likelihood(self.means.reshape(-1, *self.event))

    def _joint(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        # The squared distances by one matrix product: no (B, N, d) tensor.
        self._fits(x)
        y = double(x).flatten(1)
        data = self.means.to(y)
        square = y.square().sum(1, keepdim=True) - 2 * alpha * (y @ data.mT) + alpha**2 * data.square().sum(1)
        density = -0.5 * (square.clamp(min=0) / sigma**2 + data.shape[1] * (2 * sigma.log() + math.log(2 * math.pi)))
        return self.log_weights.to(y) + density, density.new_zeros(())

    def denoise(self, x: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """`Σ_n softmax_n(−‖x − α x_n‖²/(2σ²)) x_n`."""
        alpha, sigma = _level(alpha, x), _level(sigma, x)
        x_0 = self._joint(x, alpha, sigma)[0].softmax(1) @ self.means.to(alpha)
        clean = (double(x).flatten(1) / alpha).nan_to_num()
        return torch.where(sigma > 0, x_0, clean).reshape(x.shape).to(x.dtype)


def _chosen(weights: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """n numbers of components, by weight."""
    if len(weights) <= CATEGORIES:
        return torch.multinomial(weights, n, replacement=True, generator=generator)
    u = torch.rand(n, dtype=torch.float64, generator=generator)
    return torch.searchsorted(weights.cumsum(0), u, right=True).clamp(max=len(weights) - 1)


def _level(value: Level, x: Tensor) -> Tensor:
    """A level as (1, 1) or (B, 1) in float64."""
    return torch.as_tensor(value, dtype=double_on(x.device), device=x.device).reshape(-1, 1)
