"""x̂_0 at a state, and products with what the network says of the variance of x_0."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from scoreflow._core.noise import Draws
from scoreflow._core.row import Row, double, flat, per_sample
from scoreflow._score.model import ScoreModel
from scoreflow.guidance.base import Guided


class Denoised:
    """`D = E[x_0 | x_t]` at states x (B, *event), and `C v = (σ²/α) (∂D/∂x)ᵀ v`, the covariance of x_0 given x_t on vectors.

    Attributes:
        x: the states. x_0: D. kappa2: κ² = σ²/α², a number or one a sample.
        backward: backward passes through the network.
        most: the largest κ at which C is the network's; above it is that of N(m, I) data, `κ²/(1 + κ²) I`.
        residual: of the last system that was solved, relative, (B,).
        s, row: of the step that is taken, where it leads to and its row for x̂_0, for methods that are told.
        draw: the next standard normal, in the shape of a state, for methods that draw.
    """

    s: float
    row: Row
    draw: Draws

    def __init__(
        self, model: ScoreModel, x: Tensor, t: float | Tensor, conditions: dict[str, Any], gradient: bool,
        most: float = math.inf,
    ) -> None:  # fmt: skip
        path = model.path
        self.x, self.t, self.path, self.backward = x, t, path, 0
        self.residual = torch.zeros(len(x), device=x.device)
        level: Any = double(t).reshape(-1) if isinstance(t, Tensor) else t
        self._kappa2 = path.kappa(level) ** 2
        self.kappa2 = self._like(self._kappa2, x)
        self._gain = self._like(path.alpha(level), x) * self.kappa2  # σ²/α
        above = self.kappa2 > most**2
        self._above = above if isinstance(above, Tensor) else bool(above)
        """Where C is that of N(m, I) data; a bool, or one a sample."""
        self._whole = torch.is_grad_enabled() and x.requires_grad
        """Whether the run itself is differentiated."""
        if not gradient or self._above is True:
            self.x_0 = model.x0(x, t, **conditions)
            return
        with torch.inference_mode(False), torch.enable_grad():
            self._x = x if self._whole else x.detach().clone().requires_grad_()
            output, _ = model.evaluate(self._x, t, **conditions)
            if not output.requires_grad:  # x̂_0 of an ε-network has one all the same, by its x
                raise ValueError("this method differentiates the network, and its output has no gradient: no_grad within it?")
            self._D = model.express(output, self._x, t, "x0")
        self.x_0 = self._D if self._whole else self._D.detach()

    @staticmethod
    def _like(value: Any, x: Tensor) -> Any:
        return per_sample(value, x) if isinstance(value, Tensor) else value

    def cov(self, v: Tensor) -> Tensor:
        """`C v`, in the shape of a state: one backward pass, or none where `κ > most` for all samples."""
        if self._above is True:
            return self.shrunk(1.0, v) * v
        own = self._gain * self.pull(v)
        return own if self._above is False else torch.where(self._above, self.shrunk(1.0, v) * v, own)

    def pull(self, v: Tensor) -> Tensor:
        """`(∂D/∂x)ᵀ v`, in the shape of a state: one backward pass."""
        self.backward += 1
        (back,) = torch.autograd.grad(self._D, self._x, v, retain_graph=True, create_graph=self._whole)
        return back

    @property
    def eps(self) -> Tensor:
        """ε̂ = (x − α D)/σ."""
        a, b = self.path.convert("x0", "eps", float(self.t))
        return a * self.x + b * self.x_0

    @property
    def kappa_s(self) -> float:
        """κ where the step leads to."""
        return self.path.kappa(self.s)

    @property
    def alpha_s(self) -> float:
        """α where the step leads to."""
        return self.path.alpha(self.s)

    def shrunk(self, v: Any, x: Tensor) -> Any:
        """`v κ²/(v + κ²)` for x (B, ...): the variance of x_0 given x_t of N(m, v I) data; v a number or one a direction."""
        kappa2 = self._like(self._kappa2, x)
        return v * kappa2 / (v + kappa2)

    def data_cov(self, cov: Tensor, x: Tensor) -> Tensor:
        """`(Σ⁻¹ + κ⁻² I)⁻¹ x` of a covariance that is a number, variances of a state's shape, or (d, d)."""
        cov, y = cov.to(x), flat(x)
        if cov.ndim == 0 or cov.shape == x.shape[1:]:
            return self.shrunk(cov, x) * x
        if cov.shape != (y.shape[1],) * 2:
            raise ValueError(f"cov must be a number, {tuple(x.shape[1:])} or {(y.shape[1],) * 2}, got shape {tuple(cov.shape)}")
        var, eigenvectors = torch.linalg.eigh(cov)
        return (((y @ eigenvectors) * self.shrunk(var, y)) @ eigenvectors.mT).reshape(x.shape)


KAPPA_MAX = 5.0


def trusted(model: ScoreModel) -> float:
    """The largest κ at which C is taken from the network, if nothing else is said: 5 for ε- and score-networks, else no limit.

    `C = κ² (I − σ ∂ε̂/∂x)`, so that what such a network's derivative errs is multiplied by κ².
    """
    return KAPPA_MAX if innermost(model).prediction in ("eps", "score") else math.inf


def innermost(model: ScoreModel) -> ScoreModel:
    """The model that all wrappers stand on."""
    while isinstance(model, Guided):
        model = model.model
    return model
