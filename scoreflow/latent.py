"""Latent diffusion: diffuse what an autoencoder makes of the data, and decode what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from scoreflow._core.check import whole
from scoreflow._run.solve import sample
from scoreflow._score.model import ScoreModel, check_model
from scoreflow._score.network import unwrapped
from scoreflow.data import Images, read


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
        check_model(model)
        self.model, self.autoencoder = model, check_autoencoder(autoencoder)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """States (B, ...) to latents (B, ...), of their dtype; the autoencoder works in its own."""
        return self.autoencoder.encode(_own(self.autoencoder, x)).to(x.dtype)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Latents to states, of their dtype."""
        return self.autoencoder.decode(_own(self.autoencoder, z)).to(z.dtype)

    def sample(self, shape: Sequence[int], *arguments: Any, **keywords: Any) -> Tensor:
        """Decoded samples; `shape` is that of the latents, (B, ...), the rest is as of `scoreflow.sample`."""
        return self.decode(sample(self.model, shape, *arguments, **keywords))


@torch.no_grad()
def latents(autoencoder: Autoencoder, data: Dataset[Any], batch: int = 256) -> Images:
    """The data encoded once for all, in the order they have, with their classes: what a score model of latents trains on.

    Args:
        data: a dataset of x or (x, class). batch: how many at once.

    Raises:
        TypeError: items with other conditions, or a `Data`, which has two datasets.
    """
    autoencoder = check_autoencoder(autoencoder)
    if not hasattr(data, "__getitem__"):
        raise TypeError(f"data must be a dataset, such as .train of a Data, got {type(data).__name__}")
    parts, classes = list[Tensor](), list[Tensor]()
    for items in DataLoader(data, batch_size=whole("batch", batch)):
        x, conditions = read(items)
        if set(conditions) - {"y"}:
            raise TypeError(f"data must give x or (x, class), got the conditions {', '.join(conditions)}")
        parts.append(autoencoder.encode(_own(autoencoder, x)))
        classes += conditions.values()
    return Images(torch.cat(parts), torch.cat(classes) if classes else None)


def _own(autoencoder: Autoencoder, x: Tensor) -> Tensor:
    """x in the dtype of the autoencoder's weights, if it is a module that has any."""
    weight = next(autoencoder.parameters(), None) if isinstance(autoencoder, nn.Module) else None
    return x if weight is None else x.to(weight.dtype)


def check_autoencoder(autoencoder: Any) -> Autoencoder:
    """The autoencoder, inside what spreads it over devices. Raises TypeError unless it can encode and decode."""
    for found in (autoencoder, unwrapped(autoencoder)):
        if all(callable(getattr(found, name, None)) for name in ("encode", "decode")):
            return found
    raise TypeError(f"autoencoder must have encode(x) and decode(z), got {type(autoencoder).__name__}")
