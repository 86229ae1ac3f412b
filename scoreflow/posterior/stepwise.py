"""Methods that are published as a change of the state after a step, written as what they add to x̂_0 = D.

A row is `x_s = x·x_t + m·D + z·ε`, so a shift of x_s by δ is one of D by δ/m. Each gives the published states, draw by draw.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoreflow._core.check import number
from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.noise import Draws
from scoreflow._score.observation import Observation
from scoreflow.posterior.denoised import Denoised
from scoreflow.posterior.methods import METHODS, method, pseudo_inverse


@method("replacement", "song2021sde", replaces=True)
def replacement(at: Denoised, seen: Observation, *, rtol: float = 1e-6) -> Tensor:
    """The measured part of every state is `α_t y + σ_t z`, z new at each: `x_t += A⁺ (α_t y + σ_t A z − A x_t)`.

    The network sees such states, and `D_y = D + A⁺ (y − A D)`. What is not measured hears of y through the network alone. With
    the sampler `repaint`, which goes up and down, it is RePaint. As if nothing were measured wrong.

    Reference:
        Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021), Section 5 and
        Appendix I.2; RePaint (Lugmayr et al., 2022), Algorithm 1.
    """
    off, at.residual = pseudo_inverse(seen, seen.residual(at.x_0), at.x_0, rtol)
    return off


@method("dps", "chung2023dps", gradient=True, linear=False, step=True)
def dps(at: Denoised, seen: Observation, *, scale: float = 1.0) -> Tensor:
    """After a step `x_s −= ζ ∇_{x_t} ‖y − A D‖`, so `D_y − D = (ζ/m) (∂D/∂x_t)ᵀ A'ᵀ r/‖r‖`, r = y − A D.

    ζ is the `scale`, and the norm that of each sample. A' is the Jacobian of A, which need not be linear. ζ is per step, so
    that more steps take more of it. One backward pass.

    Reference:
        Diffusion Posterior Sampling for General Noisy Inverse Problems (Chung et al., 2023), Algorithm 1.
    """
    number("scale", scale, least=0)
    r = seen.residual(at.x_0)
    size = r.norm(dim=1, keepdim=True).clamp(min=torch.finfo(r.dtype).tiny)
    return at.pull(seen.adjoint(r / size, at.x_0)) * (scale / at.row.m[0])


@method("mcg", "chung2022mcg", gradient=True, step=True, replaces=True)
def mcg(at: Denoised, seen: Observation, *, scale: float = 1.0, rtol: float = 1e-6) -> Tensor:
    """Manifold constrained gradient: `dps`, and the measured part replaced as by `replacement`.

    Reference:
        Improving Diffusion Models for Inverse Problems using Manifold Constraints (Chung et al., 2022), Section 3; ζ with the
        norm, not its square, as in the code of `dps`.
    """
    shift = dps(at, seen, scale=scale)
    off, at.residual = pseudo_inverse(seen, seen.residual(at.x_0 + shift), at.x_0, rtol)
    return shift + off


@method("ddrm", "kawar2022ddrm", step=True)
def ddrm(at: Denoised, seen: Observation, *, eta: float = 0.85, eta_b: float = 1.0) -> Tensor:
    """DDRM, in the singular vectors of `A = U diag(s) Vᵀ`, with ȳ = Uᵀy/s and D, ε̂ along V: the step to s is, over α_s,

    - not measured: `D + √(1−η²) κ_s ε̂ + η κ_s z`;
    - where s κ_s < σ_y: `D + √(1−η²) κ_s s (ȳ − D)/σ_y + η κ_s z`;
    - where s κ_s ≥ σ_y: `(1 − η_b) D + η_b ȳ + √(κ_s² − η_b² σ_y²/s²) z`.

    It draws z itself: for `ddim`, and other rows without noise. The run begins at the prior.

    Reference:
        Denoising Diffusion Restoration Models (Kawar et al., 2022), Eqs. 7 and 8.
    """
    number("eta", eta, 0, 1), number("eta_b", eta_b, 0, 1)
    if seen.noise.ndim:
        raise ValueError(f"ddrm needs a noise that is one number, got shape {tuple(seen.noise.shape)}")
    if at.row.draws:
        raise ValueError(f"ddrm draws its own noise, and the rows of this run add some of deviation {at.row.z}: use ddim")
    noise, kappa, alpha = float(seen.noise), at.kappa_s, at.alpha_s
    still = math.sqrt(1 - eta**2) * kappa
    z = at.draw(at.x_0)
    x_s = at.x_0 + still * at.eps + eta * kappa * z
    singular = seen.singular(at.x_0.shape[1:])
    s = singular.s.to(at.x_0)
    D, z = singular.V_adjoint(at.x_0), singular.V_adjoint(z)
    y = singular.U_adjoint(seen.values(at.x_0)) / s
    loud = D + (y - D) * (still * s / noise if noise else 0.0) + eta * kappa * z
    clear = (1 - eta_b) * D + eta_b * y + (kappa**2 - (eta_b * noise / s) ** 2).clamp(min=0).sqrt() * z
    measured = torch.where(s * kappa < noise, loud, clear)
    x_s = x_s + singular.V(measured - singular.V_adjoint(x_s))
    return (alpha * x_s - at.row.x * at.x) / at.row.m[0] - at.x_0


def replaced(seen: Observation, x: Tensor, path: GaussianPath, t: float, draw: Draws, rtol: float = 1e-6) -> Tensor:
    """States whose measured part is `α y + σ z`: `x + A⁺ (α y + σ A z − A x)`."""
    y = path.alpha(t) * seen.values(x) + path.sigma(t) * seen.measure(draw(x)) - seen.measure(x)
    return x + pseudo_inverse(seen, y, x, rtol)[0]


__all__ = ["METHODS", "ddrm", "dps", "mcg", "replaced", "replacement"]
