"""Small reference networks. Any torch module serves in their place."""

from scoreflow.nets.classifier import Classifier
from scoreflow.nets.unet import UNet

__all__ = ["Classifier", "UNet"]
