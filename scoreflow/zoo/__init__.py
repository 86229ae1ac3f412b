"""Trained networks that ship with the package, and the data they were trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scoreflow.chain import DDPMChain
from scoreflow.model import ScoreModel
from scoreflow.nets import Classifier, UNet
from scoreflow.sde import VPSDE

__all__ = ["Digits", "digits", "digits_classifier", "digits_data", "digits_features", "load", "save"]

NETWORKS: dict[str, type[nn.Module]] = {"Classifier": Classifier, "UNet": UNet}


def digits(*, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32) -> ScoreModel:
    """The ε-network for 8×8 handwritten digits, on the linear DDPM chain of 1000 steps.

    A class-conditional U-Net of 0.67 M parameters, trained by `examples/train_digits.py` on 1297 of the images of
    `digits_data()` with L_simple. Pass classes as `y=` (integers 0…9, shape (B,)); without `y` it runs
    unconditionally. States have shape (B, 1, 8, 8) and values about −1 (paper) to 1 (ink).

    Args:
        device, dtype: where and in what precision the network runs.
    """
    net = load(Path(__file__).with_name("digits.safetensors")).to(device=device, dtype=dtype)
    return ScoreModel(net, VPSDE.from_betas(DDPMChain.linear().beta), prediction="eps", time="index")


def digits_classifier() -> Classifier:
    """A classifier of 8×8 digits, trained by `examples/train_digits_features.py`; 98.6 % right on those held out."""
    net = load(Path(__file__).with_name("digits_features.safetensors"))
    assert isinstance(net, Classifier)
    return net


class DigitsFeatures(nn.Module):
    """The 32 features of `digits_classifier`: states (n, 1, 8, 8) to (n, 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = digits_classifier()

    def forward(self, x: Tensor) -> Tensor:
        return self.net.features(x)


def digits_features() -> DigitsFeatures:
    """The feature space in which digits are judged."""
    return DigitsFeatures()


class Digits(NamedTuple):
    """Images (N, 1, 8, 8) in float32 from −1 to 1, and classes (N,), for training and held out."""

    train: Tensor
    train_labels: Tensor
    held_out: Tensor
    held_out_labels: Tensor


def digits_data() -> Digits:
    """The 1797 digits of scikit-learn, shuffled once for all: 1297 to train on, 500 held out.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed (the extra `scoreflow[data]`).

    Reference:
        Optical Recognition of Handwritten Digits (Alpaydin & Kaynak, 1998), UCI Machine Learning Repository.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(0))
    images = torch.from_numpy(data.images / 8 - 1).float()[order, None]
    labels = torch.from_numpy(data.target).long()[order]
    return Digits(images[500:], labels[500:], images[:500], labels[:500])


def save(net: nn.Module, file: str | Path) -> None:
    """Write a network of `scoreflow.nets` as safetensors: its weights, its class and its configuration."""
    from safetensors.torch import save_file

    weights = {name: value.detach().contiguous() for name, value in net.state_dict().items()}
    save_file(weights, file, metadata={"network": type(net).__name__, "config": json.dumps(net.config)})


def load(file: str | Path) -> nn.Module:
    """Read what `save` wrote, in evaluation mode. Only safetensors are read; nothing is unpickled.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is cut short or no safetensors file, names no known network, or its weights have other
            names or shapes than the network's.
    """
    from safetensors import SafetensorError, safe_open

    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"no checkpoint at {file}")
    try:
        with safe_open(file, framework="pt") as opened:
            metadata: dict[str, str] = opened.metadata() or {}
            weights: dict[str, Tensor] = {name: opened.get_tensor(name) for name in opened.keys()}
    except SafetensorError as error:
        raise ValueError(f"{file} is not a whole safetensors file: {error}") from error
    if metadata.get("network") not in NETWORKS:
        raise ValueError(f"{file} names the network {metadata.get('network')!r}; known are {', '.join(NETWORKS)}")
    try:
        config: dict[str, Any] = json.loads(metadata["config"])
        net = NETWORKS[metadata["network"]](**config)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} has no config that makes a {metadata['network']}: {error!r}") from error
    expected = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if expected != found:
        wrong = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        missing, extra = (sum(n not in d for n in wrong) for d in (found, expected))
        raise ValueError(
            f"{file} does not fit {metadata['network']}: {missing} weights missing, {extra} unknown, "
            f"{len(wrong) - missing - extra} of another shape; first {wrong[0]!r}: "
            f"expected {expected.get(wrong[0])}, found {found.get(wrong[0])}"
        )
    net.load_state_dict(weights)
    return net.eval()
