"""Trained networks that ship with the package, and the data they were trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scoreflow import data
from scoreflow._core.chain import DDPMChain
from scoreflow._core.path import VPSDE
from scoreflow._run.kept import load_plan
from scoreflow._score.flow_map import FlowMap
from scoreflow._score.model import ScoreModel
from scoreflow.checkpoint import load, load_model, moved, save
from scoreflow.nets import Classifier

__all__ = [
    "Digits", "Features", "digits", "digits_classifier", "digits_data", "digits_features", "digits_map", "load", "mnist",
    "mnist_classifier", "mnist_features", "mnist_map", "save",
]  # fmt: skip

PLANS = Path(__file__).with_name("plans")
"""As `tune` leaves them, a folder a network: docs/tune.md has the commands."""


def digits(*, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32) -> ScoreModel:
    """The ε-network for 8×8 handwritten digits, on the linear DDPM chain of 1000 steps.

    A class-conditional U-Net of 0.67 M parameters, trained by `examples/train_digits.py` on 1297 of the images of
    `digits_data()` with L_simple. Pass classes as `y=` (integers 0…9, shape (B,)); without `y` it runs
    unconditionally. States have shape (B, 1, 8, 8) and values about −1 (paper) to 1 (ink). In float32 it has plans of `tune`
    for 5, 6, 8, 10 and 15 evaluations, with a class and without, which "auto" takes.

    Args:
        device, dtype: where and in what precision the network runs.
    """
    net = moved(load(_file("digits")), device, dtype)
    return _planned(ScoreModel(net, VPSDE.from_betas(DDPMChain.linear().beta), prediction="eps", time="index"), "digits")


def mnist(*, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32) -> ScoreModel:
    """The ε-network for 28×28 handwritten digits, on the linear DDPM chain of 1000 steps.

    A class-conditional U-Net of 1.5 M parameters on 2×2 patches, trained by `scoreflow train --config examples/mnist.toml` on
    the 4000 images of `data.mnist()`, kept in half precision. Pass classes as `y=`; without `y` it runs unconditionally. States
    have shape (B, 1, 28, 28) and values about −1 (paper) to 1 (ink). In float32 it has plans of `tune` for 5, 6, 8, 10 and 15
    evaluations, with a class and without, which "auto" takes.

    Args:
        device, dtype: where and in what precision the network runs.
    """
    return _planned(load_model(_file("mnist"), device=device, dtype=dtype), "mnist")


def digits_map(*, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32) -> FlowMap:
    """A flow map of `digits()`: digits in one evaluation or a few, with a class and a guidance scale.

    Its network gives v̄ and takes both times, `y=`, and `scale=` from 1 to 4 (1 if none is given). It began with the weights of
    `digits()` and learned by `examples/train_maps.py` with the loss `progressive`; it is kept in half precision.

    Args:
        device, dtype: where and in what precision the network runs.
    """
    return _map("digits_map", device, dtype)


def mnist_map(*, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32) -> FlowMap:
    """A flow map of `mnist()`, by `examples/train_maps.py --data mnist`; else as `digits_map`."""
    return _map("mnist_map", device, dtype)


def digits_classifier() -> Classifier:
    """A classifier of 8×8 digits, trained by `examples/train_features.py`; 98.6 % right on those held out."""
    return _classifier("digits")


def mnist_classifier() -> Classifier:
    """A classifier of 28×28 digits, trained by `examples/train_features.py --data mnist`; 98.6 % right on those held out."""
    return _classifier("mnist")


class Features(nn.Module):
    """The 32 features of a classifier: states (n, C, H, W) to (n, 32)."""

    def __init__(self, net: Classifier) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net.features(x)


def digits_features() -> Features:
    """The feature space in which 8×8 digits are judged."""
    return Features(digits_classifier())


def mnist_features() -> Features:
    """The feature space in which 28×28 digits are judged."""
    return Features(mnist_classifier())


def _file(name: str) -> Path:
    return Path(__file__).with_name(f"{name}.safetensors")


def _map(name: str, device: torch.device | str | None, dtype: torch.dtype) -> FlowMap:
    found = load_model(_file(name), device=device, dtype=dtype)
    assert isinstance(found, FlowMap)
    return found


def _planned(model: ScoreModel, name: str) -> ScoreModel:
    """With the plans of `tune`, for networks told nothing and told a class."""
    files = sorted(file for folder in (name, f"{name}-y") for file in (PLANS / folder).glob("plan-*.json"))
    model.plans = tuple(map(load_plan, files))
    return model


def _classifier(name: str) -> Classifier:
    net = load(_file(f"{name}_features"))
    assert isinstance(net, Classifier)
    return net


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
