"""Linear maps of images (B, C, H, W) for `Observation`: what a mask, a smaller, a blurred, a cut or a grey image measures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoreflow._core.check import number, whole

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class downsample:
    """Means over squares of `factor` by `factor` pixels.

    Raises:
        ValueError: factor is no whole number ≥ 1, or on a call does not divide height and width.
    """

    factor: int

    def __post_init__(self) -> None:
        whole("factor", self.factor)

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[-1] % self.factor or x.shape[-2] % self.factor:
            raise ValueError(f"factor={self.factor} must divide height and width, got {tuple(x.shape[-2:])}")
        return torch.nn.functional.avg_pool2d(x, self.factor)


@dataclass(frozen=True)
class blur:
    """Convolution with a Gaussian of `std` pixels, cut off at `radius`; beyond the edge the image is 0.

    Raises:
        ValueError: std ≤ 0 or radius < 0.
    """

    std: float
    radius: int | None = None

    def __post_init__(self) -> None:
        number("std", self.std, above=0)
        if self.radius is not None:
            whole("radius", self.radius, 0)

    def __call__(self, x: Tensor) -> Tensor:
        radius = round(3 * self.std) if self.radius is None else self.radius
        at = torch.arange(-radius, radius + 1, dtype=torch.float64)
        line = torch.exp(-0.5 * (at / self.std) ** 2)
        line = (line / line.sum()).to(x)
        channels = x.shape[1]
        for shape, padding in (((1, 1, -1, 1), (radius, 0)), ((1, 1, 1, -1), (0, radius))):
            kernel = line.reshape(shape).expand(channels, 1, *line.reshape(shape).shape[2:])
            x = torch.nn.functional.conv2d(x, kernel, padding=padding, groups=channels)
        return x


@dataclass(frozen=True)
class crop:
    """`height` by `width` pixels from row `top` and column `left` on.

    Raises:
        ValueError: on a call, a part that does not lie within the image.
    """

    top: int
    left: int
    height: int
    width: int

    def __post_init__(self) -> None:
        for name, least in (("top", 0), ("left", 0), ("height", 1), ("width", 1)):
            whole(name, getattr(self, name), least)

    def __call__(self, x: Tensor) -> Tensor:
        if self.top + self.height > x.shape[-2] or self.left + self.width > x.shape[-1]:
            raise ValueError(f"{self} does not lie within images of {tuple(x.shape[-2:])}")
        return x[..., self.top : self.top + self.height, self.left : self.left + self.width]


@dataclass(frozen=True)
class grayscale:
    """One channel, a weighted sum of the channels: by default the luma of ITU-R BT.601.

    Raises:
        ValueError: on a call, as many channels as there are weights are needed.
    """

    weights: Sequence[float] = (0.299, 0.587, 0.114)

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[1] != len(self.weights):
            raise ValueError(f"grayscale has {len(self.weights)} weights, and images have {x.shape[1]} channels")
        return torch.einsum("bchw,c->bhw", x, torch.tensor(self.weights, dtype=torch.float64).to(x)).unsqueeze(1)


__all__ = ["blur", "crop", "downsample", "grayscale"]
