"""Trained networks that ship with the package, and the data they were trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scoreflow import data
from scoreflow.chain import DDPMChain
from scoreflow.checkpoint import load, save
from scoreflow.model import ScoreModel
from scoreflow.nets import Classifier
from scoreflow.sde import VPSDE

__all__ = ["Digits", "digits", "digits_classifier", "digits_data", "digits_features", "load", "save"]


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
    """A classifier of 8×8 digits, trained by `examples/train_features.py`; 98.6 % right on those held out."""
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
    found: Any = data.digits()
    return Digits(found.train.x, found.train.y, found.held_out.x, found.held_out.y)
