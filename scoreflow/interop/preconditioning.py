"""EDM's preconditioning: what stands around a raw network that is told c_noise and sees states of variance 1."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scoreflow._core.row import per_sample, wide
from scoreflow._score.network import attribute


class Preconditioning(NamedTuple):
    """`x̂_0 = c_skip x + c_out F(c_in x, c_noise)` at `x = x_0 + σ ε`, with σ_d the standard deviation of the data::

        c_skip = σ_d²/(σ² + σ_d²)    c_out = ± σ σ_d/√(σ² + σ_d²)    c_in = 1/√(σ² + σ_d²)    c_noise = ¼ log σ

    F is told `2/π arctan σ` instead where `arctan`. The minus of c_out is for `v_prediction`, where F is v of data and noise at
    variance 1, `α = σ_d/√(σ² + σ_d²)`.

    Attributes:
        sigma_data: σ_d. sign: of c_out. arctan: what F is told.

    Reference:
        Karras et al. (2022), Table 1; arctan: k-diffusion's `VDenoiser`, for the cosine schedule.
    """

    sigma_data: float
    sign: int = 1
    arctan: bool = False

    def given(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """`c_in x` for states (B, ...), σ a number or (B,)."""
        return (wide(x) / self._size(x, sigma)[1]).to(x.dtype)

    def x0(self, output: Tensor, x: Tensor, sigma: float | Tensor) -> Tensor:
        """`c_skip x + c_out F`, in the dtype of x."""
        c_skip, c_out = self._scalings(x, sigma)
        return (c_skip * wide(x) + c_out * wide(output)).to(x.dtype)

    def inside(self, x_0: Tensor, x: Tensor, sigma: float | Tensor) -> Tensor:
        """The F of an x̂_0, in the dtype of x."""
        c_skip, c_out = self._scalings(x, sigma)
        return ((wide(x_0) - c_skip * wide(x)) / c_out).to(x.dtype)

    def label(self, sigma: Tensor) -> Tensor:
        """c_noise."""
        return sigma.atan() * (2 / math.pi) if self.arctan else sigma.log() / 4

    def sigma(self, label: Tensor) -> Tensor:
        """The σ of a c_noise."""
        return (label * (math.pi / 2)).tan() if self.arctan else (4 * label).exp()

    def _scalings(self, x: Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        """c_skip and c_out, over the states."""
        sigma, size = self._size(x, sigma)
        return (self.sigma_data / size) ** 2, self.sign * self.sigma_data * sigma / size

    def _size(self, x: Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        """σ and `√(σ² + σ_d²)`, over the states."""
        like = wide(x)
        sigma = per_sample(torch.as_tensor(sigma, dtype=like.dtype, device=like.device), like)
        return sigma, torch.hypot(sigma, torch.full_like(sigma, self.sigma_data))


class Preconditioned(nn.Module):
    """A raw network as a denoiser, `net(x, σ, **conditions)` → x̂_0."""

    def __init__(self, net: Any, preconditioning: Preconditioning) -> None:
        super().__init__()
        self.net, self.preconditioning, self.null = net, preconditioning, attribute(net, "null")
        self.training = bool(getattr(net, "training", False))

    def forward(self, x: Tensor, sigma: Tensor, **conditions: Any) -> Tensor:
        raw = self.net(self.preconditioning.given(x, sigma), self.preconditioning.label(sigma), **conditions)
        return self.preconditioning.x0(raw, x, sigma)
