"""Between latents, and from images to images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scoreflow import check
from scoreflow.auto import AUTO
from scoreflow.model import ScoreModel
from scoreflow.noise import White, check_seed
from scoreflow.plan import Plan
from scoreflow.solve import Solution, check_model, check_state, solve
from scoreflow.step import Sampler

KINDS = ("spherical", "linear")


def interpolate(z_0: Tensor, z_1: Tensor, weights: int | Sequence[float] | Tensor, kind: str = "spherical") -> Tensor:
    """States between z_0 and z_1, (K, B, ...).

    spherical: `sin((1−w) θ)/sin θ z_0 + sin(w θ)/sin θ z_1`, θ the angle between the two, sample by sample: between draws of
    a standard normal it keeps their length. linear: `(1−w) z_0 + w z_1`, which is shorter between them.

    Args:
        z_0, z_1: latents (B, ...). weights: w, or how many, even from 0 to 1, ends included.

    Raises:
        ValueError, TypeError: other shapes, fewer than two weights, an unknown kind.

    Reference:
        Denoising Diffusion Implicit Models (Song et al., 2021), Appendix D.5.
    """
    check_state("z_0", z_0)
    check_state("z_1", z_1)
    check.one_of("kind", kind, KINDS)
    if z_0.shape != z_1.shape:
        raise ValueError(f"z_0 and z_1 must have one shape, got {tuple(z_0.shape)} and {tuple(z_1.shape)}")
    given = torch.linspace(0, 1, check.whole("weights", weights, 2)) if isinstance(weights, int) else torch.as_tensor(weights)
    w = given.to(z_0.device, torch.float64)
    a, b = z_0.double().flatten(1), z_1.double().flatten(1)
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-300)
    angle = cosine.clamp(-1, 1).arccos()
    left, right = (1 - w)[:, None].expand(-1, len(a)), w[:, None].expand(-1, len(a))
    if kind == "spherical":
        small = angle.sin() < 1e-6  # along one line there is no arc
        left, right = (torch.where(small, v, (v * angle).sin() / angle.sin().clamp(min=1e-12)) for v in (left, right))
    out = left[:, :, None] * a + right[:, :, None] * b
    return out.reshape(len(w), *z_0.shape).to(z_0.dtype)


def image_to_image(
    model: ScoreModel,
    x_0: Tensor,
    sampler: str | Sampler | Plan = AUTO,
    *,
    start: float = 0.5,
    seed: int | Sequence[int] | None = None,
    **keywords: Any,
) -> Solution:
    """SDEdit: noise the images to the time `start`, `x_t = α x_0 + σ ε`, and solve from there.

    The lower `start`, the nearer the result stays to x_0. With another condition, or a model of other images, it is an edit.

    Args:
        x_0: images (B, ...). start: 0 < start ≤ 1. model, sampler, seed, keywords: as of `solve`.

    Raises:
        As `solve`; ValueError for a start at 0.

    Reference:
        SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations (Meng et al., 2022), Algorithm 1.
    """
    check_model(model)
    check_state("x_0", x_0)
    if not check.time("start", start) > 0:
        raise ValueError(f"start must lie above 0, got {start}: at 0 the image is as it is")
    kept = check_seed(seed, len(x_0))
    x_t = model.path.noised(x_0, start, White(kept).draws("prior")(x_0))
    return solve(model, x_t, sampler, start=start, seed=kept, **keywords)
