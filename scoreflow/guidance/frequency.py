"""Classifier-free guidance with a scale for each band of frequencies of an image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

from scoreflow._core.row import per_sample
from scoreflow._score.model import ScoreModel
from scoreflow.guidance.base import Scale, check_scale, scale_at
from scoreflow.guidance.classifier_free import ClassifierFree


class FDG(ClassifierFree):
    """Frequency-decoupled guidance: `c + Σ_k (scale_k − 1) Δ_k`, the Δ_k the levels of a Laplacian pyramid of `Δ = c − u`.

    The levels add up to Δ, so scales that are all alike are classifier-free guidance. It is linear: the same in ε, x̂_0, score,
    v and flow. Low scales for low frequencies keep variety and colours, high ones for high frequencies sharpen.

    Args:
        model, null, interval, batched: as of `ClassifierFree`.
        scale: one for each level, from coarse to fine, such as `(w_low, w_high)`; each a number or a function of t. A level
            halves the size of the image before it, which must be 3 × 3 at least.

    States are images (B, C, H, W) of any size; odd sizes are halved downwards, and nothing is padded to a power of two.

    Raises:
        TypeError, ValueError: as of `ClassifierFree`; a scale that is no sequence; on a call, states that are no images, or too
            small for so many levels.

    Reference:
        Guidance in the Frequency Domain Enables High-Fidelity Sampling at Low CFG Scales (Sadat et al., 2025), Eqs. 5 and 6,
        Algorithm 2; the pyramid: The Laplacian Pyramid as a Compact Image Code (Burt & Adelson, 1983).
    """

    works: tuple[str, ...] = ("sadat2025fdg", "ho2022classifierfree")

    def __init__(
        self, model: ScoreModel, scale: Sequence[Scale], *, null: Mapping[str, Any] | None = None,
        interval: Sequence[float] | None = None, batched: bool = True,
    ) -> None:  # fmt: skip
        if not isinstance(scale, Sequence) or isinstance(scale, str) or not scale:
            raise TypeError(f"scale must be a sequence of scales from coarse to fine, such as (1.5, 4.0), got {scale!r}")
        for one in scale:
            check_scale(one)
        super().__init__(model, scale[0], null=null, interval=interval, batched=batched)
        self.scales = tuple(scale)
        self.options["scale"] = self.scales

    def scales_at(self, t: float | Tensor) -> list[float | Tensor]:
        """The scales at t, from coarse to fine; each as of `scale_at`."""
        return [scale_at(one, self.interval, t) for one in self.scales]

    def scale_at(self, t: float | Tensor) -> float | Tensor:
        """The scale that all levels have at t; NaN where they differ."""
        first, *rest = self.scales_at(t)
        for one in rest:
            if isinstance(first, Tensor):
                first = torch.where(first == one, first, math.nan)
            elif first != one:
                return math.nan
        return first

    def combine(self, ours: Tensor, other: Tensor, w: float | Tensor, x: Tensor, t: float | Tensor) -> Tensor:
        levels = pyramid(ours - other, len(self.scales))
        added = [(per_sample(one, x) - 1) * level for one, level in zip(self.scales_at(t), levels, strict=True)]
        return ours + assembled(added)


def pyramid(x: Tensor, levels: int) -> list[Tensor]:
    """The Laplacian pyramid of images (B, C, H, W), from coarse to fine: the last image left, then what each halving left out.

    Raises:
        ValueError: no images, or too small ones.
    """
    if x.ndim != 4:
        raise ValueError(f"scales by frequency need images (B, C, H, W), and the states are of shape {tuple(x.shape)}")
    out: list[Tensor] = []
    for k in range(levels - 1):
        if min(x.shape[2:]) < 3:
            raise ValueError(f"scale has {levels} levels, and these images are too small for more than {k + 1}")
        half = interpolate(blurred(x), size=(x.shape[2] // 2, x.shape[3] // 2), mode="bilinear", align_corners=False)
        out.insert(0, x - enlarged(half, x))
        x = half
    return [x, *out]


def assembled(levels: Sequence[Tensor]) -> Tensor:
    """The images of a pyramid, from coarse to fine."""
    x, *finer = levels
    for level in finer:
        x = enlarged(x, level) + level
    return x


def enlarged(x: Tensor, like: Tensor) -> Tensor:
    """Images twice as large, or of the size of `like`."""
    return blurred(interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False))


def blurred(x: Tensor) -> Tensor:
    """With the weights (1, 4, 6, 4, 1)/16 in both directions; mirrored at the edges."""
    weights = x.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    planes = pad(x.flatten(0, 1)[:, None], (2, 2, 2, 2), mode="reflect")
    return conv2d(planes, torch.outer(weights, weights)[None, None]).reshape(x.shape)
