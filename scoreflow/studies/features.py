"""Feature spaces by name: where images are judged by kid, frechet and manifold."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from torch import Tensor, nn

from scoreflow import zoo
from scoreflow._core.check import suggestion
from scoreflow._score.fingerprint import fingerprint

Features = Callable[[Tensor], Tensor]
"""States (n, ...) to features (n, d)."""


class Inception(nn.Module):
    """The 2048 pooled features of the Inception network that FID and KID are defined by: images (n, 1 or 3, H, W) to (n, 2048).

    Images have values from −1 to 1. They are rounded to 8 bits, what is outside cut off, as when written to a file; one
    channel is repeated to three; TensorFlow's bilinear rule scales them to 299×299. float32 inside, always in evaluation
    mode; 32 images at a time.

    Args:
        weights: a file of torch-fidelity's, `weights-inception-2015-12-05-6726825d.pth`; None: it downloads it once.

    Raises:
        ModuleNotFoundError: torch-fidelity is not installed. FileNotFoundError: no such file. RuntimeError: weights of
            another network. ValueError, when called: not images.

    Reference:
        GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium (Heusel et al., 2017).
    """

    def __init__(self, weights: str | Path | None = None) -> None:
        super().__init__()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"features='inception' need scoreflow[inception]: {error}", name=error.name) from error
        if weights is not None:
            if not Path(weights).is_file():
                raise FileNotFoundError(f"no weights at {weights}")
            torch.load(weights, map_location="cpu", weights_only=True)  # torch-fidelity would unpickle anything
        self.net = FeatureExtractorInceptionV3("inception", ["2048"], str(weights) if weights is not None else None)
        self.eval()

    def train(self, mode: bool = True) -> Inception:
        """Never: the statistics of its normalisations are part of the definition."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ValueError(f"features='inception' need images (n, 1 or 3, H, W) from −1 to 1, got {tuple(x.shape)}")
        self.to(x.device)
        pixels = ((x.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1)
        return torch.cat([self.net(pixels[i : i + 32])[0] for i in range(0, len(pixels), 32)])


FEATURES: dict[str, Callable[[], Features]] = {
    "digits": zoo.digits_features, "mnist": zoo.mnist_features, "inception": Inception,
}  # fmt: skip


def get_features(value: str | Features) -> Features:
    """The feature space of this name; a function is given back.

    Raises:
        ValueError: nothing has the name; the near ones are named. TypeError: neither a name nor a function.
    """
    if isinstance(value, str):
        if value not in FEATURES:
            raise ValueError(f"no features are called {value!r}{suggestion(value, FEATURES)}")
        return FEATURES[value]()
    if not callable(value):
        raise TypeError(f"features must be a name or a function from states to features, got {value!r}")
    return value


KEEP = 4
_kept: OrderedDict[str, np.ndarray] = OrderedDict()
_lock = Lock()


def featured(features: Features, *batches: Tensor) -> list[np.ndarray]:
    """The features of each batch on the host, (n, d) float64.

    Several metrics, and all cells of a block, ask for the same: those that a module gave last are kept, found by the content
    of module and batch.
    """
    who, found = fingerprint(features) if isinstance(features, nn.Module) else None, []
    for x in batches:
        key = "" if who is None else who + fingerprint(x)
        with _lock:
            f = _kept.pop(key, None)
        if f is None:
            with torch.no_grad():
                f = features(x).detach().to("cpu", torch.float64).flatten(1).numpy()
        if key:
            with _lock:
                _kept[key] = f
                while len(_kept) > KEEP:
                    _kept.popitem(last=False)
        found.append(f.copy())
    return found
