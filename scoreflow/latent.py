"""Latent diffusion: diffuse what an autoencoder makes of the data, and decode what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from scoreflow.check import whole
from scoreflow.data import Images
from scoreflow.model import ScoreModel
from scoreflow.solve import sample


class Autoencoder(Protocol):
    """What is asked of an autoencoder: states to latents and back. Latents should have mean 0 and variance 1 an entry."""

    def encode(self, x: Tensor) -> Tensor:
        """States (B, ...) to latents (B, ...)."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Latents to states."""
        ...


class Latent:
    """A score model of the latents of an autoencoder.

    Args:
        model: of latents. Anything that samples or studies a score model takes `latent.model` as it is.
        autoencoder: a module with `encode` and `decode`, such as `nets.Autoencoder`. One that gives latents of another scale
            is wrapped so: `encode` times the scale factor, `decode` of the latent over it.

    Raises:
        TypeError: it cannot encode and decode.

    Reference:
        High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2022); its scale factor is one over the
        standard deviation of the latents.
    """

    def __init__(self, model: ScoreModel, autoencoder: Autoencoder) -> None:
        check_autoencoder(autoencoder)
        self.model, self.autoencoder = model, autoencoder

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """States (B, ...) to latents (B, ...)."""
        return self.autoencoder.encode(x)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Latents to states."""
        return self.autoencoder.decode(z)

    def sample(self, shape: Sequence[int], *arguments: Any, **keywords: Any) -> Tensor:
        """Decoded samples; `shape` is that of the latents, (B, ...), the rest is as of `scoreflow.sample`."""
        return self.decode(sample(self.model, shape, *arguments, **keywords))


@torch.no_grad()
def latents(autoencoder: Autoencoder, data: Images, batch: int = 256) -> Images:
    """The data encoded once for all, in the order they have, with their classes: what a score model of latents trains on."""
    check_autoencoder(autoencoder)
    return Images(torch.cat([autoencoder.encode(x) for x in torch.split(data.x, whole("batch", batch))]), data.y)


def check_autoencoder(autoencoder: Any) -> None:
    """Raise TypeError unless it can encode and decode."""
    if not all(callable(getattr(autoencoder, name, None)) for name in ("encode", "decode")):
        raise TypeError(f"autoencoder must have encode(x) and decode(z), got {type(autoencoder).__name__}")
