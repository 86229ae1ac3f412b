"""Small reference networks. Any torch module serves in their place."""

from scoreflow.nets.adapt import from_diffusers
from scoreflow.nets.autoencoder import Autoencoder
from scoreflow.nets.classifier import Classifier, NoisyClassifier
from scoreflow.nets.dit import DiT
from scoreflow.nets.embedding import Fourier, sinusoidal
from scoreflow.nets.mlp import MLP
from scoreflow.nets.times import two_times
from scoreflow.nets.unet import UNet

__all__ = [
    "MLP", "UNet", "DiT", "Autoencoder", "Classifier", "NoisyClassifier", "Fourier", "sinusoidal", "from_diffusers",
    "two_times",
]  # fmt: skip
