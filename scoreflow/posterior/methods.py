"""Methods: each is what it adds to x̂_0 = D so that it becomes E[x_0 | x_t, y], exactly or nearly.

By Tweedie's formula `D_y = D + (σ²/α) ∇_x log p(y | x_t)`, and with p(y | x_t) ≈ N(A D, Σ_y + A V Aᵀ) the methods differ in V,
the variance of x_0 given x_t, and in whether they differentiate the network. The network's own is C = (σ²/α) ∂D/∂x_tᵀ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoreflow._core.check import number, whole
from scoreflow._score.observation import Observation
from scoreflow._score.oracle import numbers
from scoreflow.posterior.denoised import Denoised
from scoreflow.posterior.solve import conjugate_gradients, gmres

Correction = Callable[..., Tensor]
Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Method:
    """A method.

    Attributes:
        correct: `correct(at, observation, **options)`, D_y − D.
        gradient: whether it differentiates the network.
        linear: whether A has to be linear.
        cites: keys of its works.
        options: with what they are if nothing is said.
        step: whether it is published as a change of the state after a step: it is then told the step's row, and runs on
            samplers of one evaluation and one row a step.
        replaces: whether the network sees states whose measured part is `α y + σ z`, z a draw.
        spread: `spread(at, **options)`, V on vectors, of methods that have a V.
    """

    correct: Correction
    gradient: bool
    linear: bool
    cites: tuple[str, ...]
    options: dict[str, Any]
    step: bool = False
    replaces: bool = False
    spread: Callable[..., Map] | None = None

    @property
    def follows(self) -> bool:
        """Whether it depends on the run."""
        return self.step or self.replaces


METHODS: dict[str, Method] = {}


def method(
    name: str,
    *cites: str,
    gradient: bool = False,
    linear: bool = True,
    step: bool = False,
    replaces: bool = False,
    spread: Callable[..., Map] | None = None,
) -> Callable[[Correction], Correction]:
    """Register a method; its options are the keywords of the function."""

    def register(correct: Correction) -> Correction:
        if name in METHODS:
            raise ValueError(f"a method is called {name!r} already")
        METHODS[name] = Method(correct, gradient, linear, cites, dict(correct.__kwdefaults__ or {}), step, replaces, spread)
        return correct

    return register


def _own(at: Denoised, **options: Any) -> Map:
    return at.cov


def _isotropic(at: Denoised, *, v: float = 1.0, **options: Any) -> Map:
    number("v", v, above=0)
    return lambda x: at.shrunk(v, x) * x


def _data(at: Denoised, *, cov: float | Tensor = 1.0, **options: Any) -> Map:
    spread = numbers("cov", cov)
    if not spread.ndim:
        number("cov", float(spread), above=0)
    return lambda x: at.data_cov(spread, x)


def _level(at: Denoised, *, weight: float = 8.0, **options: Any) -> Map:
    number("weight", weight, above=0)
    gain = at.kappa2 / weight
    return lambda x: gain * x


@method("mmps", "rozet2024learning", gradient=True, spread=_own)
def mmps(at: Denoised, seen: Observation, *, iterations: int | None = 5, rtol: float = 1e-6) -> Tensor:
    """Moment matching: V = C. `D_y − D = C Aᵀ (Σ_y + A C Aᵀ)⁻¹ (y − A D)`, by GMRES.

    An iteration is one backward pass, and so is the end. Exact on Gaussian data where the system is solved, which takes at
    most as many iterations as there are measurements: `iterations=None`. C of a network is not symmetric, and not positive:
    conjugate gradients go astray there.

    Reference:
        Learning Diffusion Priors from Observations by Expectation Maximization (Rozet et al., 2024), Section 4.2.
    """
    number("rtol", rtol, least=0)
    r = seen.residual(at.x_0)
    most = r.shape[1] if iterations is None else whole("iterations", iterations, 0)
    u, at.residual = gmres(lambda u: seen.covary(u) + seen.measure(at.cov(seen.adjoint(u, at.x_0))), r, most, rtol)
    return at.cov(seen.adjoint(u, at.x_0))


@method("tmpd", "boys2023tweedie", gradient=True)
def tmpd(at: Denoised, seen: Observation) -> Tensor:
    """Tweedie moment projection: of A C Aᵀ the sums of its rows, as a diagonal.

    `D_y − D = C Aᵀ (y − A D)/(σ_y² + A C Aᵀ 1)`. Exact on Gaussian data where A C Aᵀ is diagonal. Two backward passes.

    Reference:
        Tweedie Moment Projected Diffusions for Inverse Problems (Boys et al., 2023), Section 3.
    """
    r = seen.residual(at.x_0)
    ones = torch.ones_like(r)
    spread = seen.covary(ones) + seen.measure(at.cov(seen.adjoint(ones, at.x_0)))
    return at.cov(seen.adjoint(r / spread, at.x_0))


@method("pigdm", "song2023pigdm", gradient=True, spread=_isotropic)
def pigdm(at: Denoised, seen: Observation, *, v: float = 1.0, rtol: float = 1e-6) -> Tensor:
    """ΠGDM: V = r² I, `r² = v κ²/(v + κ²)`. `D_y − D = C Aᵀ (Σ_y + r² A Aᵀ)⁻¹ (y − A D)`, one backward pass.

    r² is the variance of x_0 given x_t of N(m, v I) data, for which it is exact.

    Reference:
        Pseudoinverse-Guided Diffusion Models for Inverse Problems (Song et al., 2023), Section 3, where v = 1.
    """
    return at.cov(seen.adjoint(_inverse(at, seen, _isotropic(at, v=v), rtol), at.x_0))


@method("jfps", spread=_data)
def jfps(at: Denoised, seen: Observation, *, cov: float | Tensor = 1.0, rtol: float = 1e-6) -> Tensor:
    """Without a gradient: `V = (Σ_x⁻¹ + κ⁻² I)⁻¹`. `D_y − D = V Aᵀ (Σ_y + A V Aᵀ)⁻¹ (y − A D)`.

    Σ_x is `cov`, the covariance of the data: a number, variances of the shape of a state, or (d, d). With that of Gaussian
    data it is `mmps`, and exact.
    """
    V = _data(at, cov=cov)
    return V(seen.adjoint(_inverse(at, seen, V, rtol), at.x_0))


@method("diffpir", "zhu2023diffpir", spread=_level)
def diffpir(at: Denoised, seen: Observation, *, weight: float = 8.0, rtol: float = 1e-6) -> Tensor:
    """DiffPIR's proximal step: V = (κ²/λ) I. `D_y − D = V Aᵀ (Σ_y + A V Aᵀ)⁻¹ (y − A D)`, λ the `weight`, 1 to 25.

    It is the least of `‖y − A x‖²/σ_y² + λ‖x − D‖²/κ²`.

    Reference:
        Denoising Diffusion Models for Plug-and-Play Image Restoration (Zhu et al., 2023), Algorithm 1.
    """
    V = _level(at, weight=weight)
    if seen.prox is not None and not seen.noise.ndim and not seen.is_exact:
        return seen.proximal(at.x_0, at.kappa2 / (weight * float(seen.noise) ** 2)) - at.x_0
    return V(seen.adjoint(_inverse(at, seen, V, rtol), at.x_0))


@method("ddnm", "wang2023ddnm")
def ddnm(at: Denoised, seen: Observation, *, rtol: float = 1e-6) -> Tensor:
    """Null space: `D_y = D + A⁺ (y − A D)`, as if nothing were measured wrong.

    Reference:
        Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model (Wang et al., 2023), Eq. 13.
    """
    off, at.residual = pseudo_inverse(seen, seen.residual(at.x_0), at.x_0, rtol)
    return off


def pseudo_inverse(seen: Observation, r: Tensor, x: Tensor, rtol: float) -> tuple[Tensor, Tensor]:
    """`A⁺ r` of (B, m), `A⁺ = Aᵀ (A Aᵀ)⁻¹`, in the shape of x: the observation's own, or solved to `rtol`; and the residual."""
    number("rtol", rtol, least=0)
    if (known := seen.inverse(r, x)) is not None:
        return known, torch.zeros(len(x), device=x.device)
    u, residual = conjugate_gradients(lambda u: seen.measure(seen.adjoint(u, x)), r, 4 * r.shape[1], rtol)
    return seen.adjoint(u, x), residual


def _inverse(at: Denoised, seen: Observation, V: Callable[[Tensor], Tensor], rtol: float) -> Tensor:
    """`(Σ_y + A V Aᵀ)⁻¹ (y − A D)`; A and V cost little, so that it is solved to `rtol`."""
    number("rtol", rtol, least=0)
    r = seen.residual(at.x_0)
    u, at.residual = conjugate_gradients(
        lambda u: seen.covary(u) + seen.measure(V(seen.adjoint(u, at.x_0))), r, 4 * r.shape[1], rtol
    )
    return u
