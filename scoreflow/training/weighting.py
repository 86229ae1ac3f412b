"""How much each noise level counts: weights on the ε-error `‖ε̂ − ε‖²`, by name.

Every loss of denoising score matching is one of these. A network that gives another prediction is off by `b (ε̂ − ε)`, with
(a, b) from `path.convert("eps", prediction, t)`: so its plain squared error has the weight b² on the ε-error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from scoreflow._core import check
from scoreflow._core.gaussian import PREDICTIONS, GaussianPath, Prediction
from scoreflow._core.grid import inner_ends

Weighting = Callable[..., Tensor]
"""(path, t) to weights, t of shape (B,) in float64."""


def plain(path: GaussianPath, t: Tensor, *, prediction: Prediction) -> Tensor:
    """b², so that the loss is the squared error of this prediction; 1 for ε."""
    return path.convert("eps", prediction, t)[1] ** 2


def vlb(path: GaussianPath, t: Tensor) -> Tensor:
    """`−dλ/dt`: with t uniform on [0, 1], the variational bound in nats an entry, up to a constant.

    Reference:
        Variational Diffusion Models (Kingma et al., 2021), Eq. 17, where γ = −2λ.
    """
    return -path.lam_slope(t)


def uniform_lambda(path: GaussianPath, t: Tensor) -> Tensor:
    """`−dλ/dt` over the range of λ that training sees: with t uniform, every λ counts alike, and the mean weight is 1."""
    low, high = inner_ends(path)
    return -path.lam_slope(t) * (high - low) / (path.lam(low) - path.lam(high))


def min_snr(path: GaussianPath, t: Tensor, *, gamma: float = 5.0) -> Tensor:
    """`min(SNR, γ)/SNR`, SNR = α²/σ²; on the x_0-error it is min(SNR, γ).

    Reference:
        Efficient Diffusion Training via Min-SNR Weighting Strategy (Hang et al., 2023), Section 3.4.
    """
    return (gamma * path.kappa(t) ** 2).clamp(max=1.0)


def p2(path: GaussianPath, t: Tensor, *, gamma: float = 1.0, k: float = 1.0) -> Tensor:
    """`(k + SNR)^−γ`.

    Reference:
        Perception Prioritized Training of Diffusion Models (Choi et al., 2022), Eq. 8.
    """
    return (k + (2 * path.lam(t)).exp()) ** -gamma


def edm(path: GaussianPath, t: Tensor, *, sigma_data: float = 0.5) -> Tensor:
    """`(κ² + σ_d²)/σ_d²`; on the x_0-error it is EDM's `(κ² + σ_d²)/(κ σ_d)²`.

    Reference:
        Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022), Table 1.
    """
    return 1 + (path.kappa(t) / sigma_data) ** 2


def sigmoid(path: GaussianPath, t: Tensor, *, bias: float = 0.0) -> Tensor:
    """`−dλ/dt · sigmoid(b − 2λ)`.

    Reference:
        Understanding Diffusion Objectives as the ELBO with Simple Data Augmentation (Kingma & Gao, 2023), Section 5.
    """
    return -path.lam_slope(t) * torch.sigmoid(bias - 2 * path.lam(t))


WEIGHTINGS: dict[str, Weighting] = {
    "simple": partial(plain, prediction="eps"),
    **{kind: partial(plain, prediction=kind) for kind in PREDICTIONS},
    "vlb": vlb, "uniform-lambda": uniform_lambda, "min-snr": min_snr, "p2": p2, "edm": edm, "sigmoid": sigmoid,
}  # fmt: skip
"""By name: "simple" is L_simple of Ho et al. (2020), a prediction's name the plain error of that prediction."""
OPTIONS = {"min-snr": ("gamma",), "p2": ("gamma", "k"), "edm": ("sigma_data",), "sigmoid": ("bias",)}


def get_weighting(weighting: str | Weighting, **options: float) -> Weighting:
    """The weights of a name, with its options set; a function is itself.

    Raises:
        ValueError: no such name, or an option out of range. TypeError: an option that it does not have.
    """
    if callable(weighting):
        if options:
            raise TypeError(f"options {', '.join(options)} go with the name of a weighting; give the function with them bound")
        return weighting
    check.one_of("weighting", weighting, WEIGHTINGS)
    check.options(f"weighting {weighting!r}", options, OPTIONS.get(weighting, ()))
    for name, value in options.items():
        check.number(name, value, above=-math.inf if name == "bias" else 0)
    return partial(WEIGHTINGS[weighting], **options) if options else WEIGHTINGS[weighting]
