"""A small convolutional autoencoder, for latent diffusion."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from scoreflow._core.check import whole


class Autoencoder(nn.Module):
    """`encode`: (B, C, H, W) to latents (B, latent, H/4, W/4) for two widths, at half the resolution for each; `decode` back.

    Latents are `(e(x) − shift)·scale`, and `fit` sets both so that on data they have mean 0 and variance 1.

    Args:
        channels: C. latent: channels of the latents. widths: the features of each halving, multiples of 8.

    Reference:
        Rombach et al. (2022), Section 3.1, with the scale factor of its appendix.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, channels: int = 1, latent: int = 4, widths: Sequence[int] = (32, 64)) -> None:
        super().__init__()
        self.config = dict(channels=channels, latent=latent, widths=list(widths))
        whole("channels", channels), whole("latent", latent)
        if not widths or any(whole("widths", w) % 8 for w in widths):
            raise ValueError(f"widths must be multiples of 8, one or more, got {list(widths)}")
        down: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1)]
        for before, width in zip((widths[0], *widths), widths, strict=False):
            down += [*_layer(before, width), nn.Conv2d(width, width, 3, stride=2, padding=1)]
        up: list[nn.Module] = [nn.Conv2d(latent, widths[-1], 3, padding=1)]
        for width, after in zip(widths[::-1], (*widths[-2::-1], widths[0]), strict=False):
            up += [*_layer(width, width), nn.Upsample(scale_factor=2), nn.Conv2d(width, after, 3, padding=1)]
        self.encoder = nn.Sequential(*down, *_layer(widths[-1], widths[-1]), nn.Conv2d(widths[-1], latent, 1))
        self.decoder = nn.Sequential(*up, *_layer(widths[0], widths[0]), nn.Conv2d(widths[0], channels, 3, padding=1))
        self.register_buffer("shift", torch.zeros(1, latent, 1, 1))
        self.register_buffer("scale", torch.ones(1, latent, 1, 1))
        self.step = 2 ** len(widths)

    def encode(self, x: Tensor) -> Tensor:
        """Latents of states.

        Raises:
            ValueError: a height or width that is not a multiple of 2 for each halving.
        """
        if x.shape[-2] % self.step or x.shape[-1] % self.step:
            raise ValueError(f"height and width must be multiples of {self.step}, got states of shape {tuple(x.shape)}")
        return (self.encoder(x) - self.shift) * self.scale

    def decode(self, z: Tensor) -> Tensor:
        """States of latents."""
        return self.decoder(z / self.scale + self.shift)

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Set shift and scale so that the latents of these states have mean 0 and variance 1 in every channel.

        Raises:
            ValueError: a channel that is the same for all of them, or not finite.
        """
        z = torch.cat([self.encoder(part) for part in torch.split(x, 256)])
        variance, mean = torch.var_mean(z, (0, 2, 3), keepdim=True)
        if not bool((variance.isfinite() & (variance > 0)).all()):
            raise ValueError(f"latents must vary in every channel, got the variances {variance.flatten().tolist()}")
        self.shift.copy_(mean)
        self.scale.copy_(variance.rsqrt())

    def forward(self, x: Tensor) -> Tensor:
        """`decode(encode(x))`."""
        return self.decode(self.encode(x))


def _layer(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.GroupNorm(8, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1)]
