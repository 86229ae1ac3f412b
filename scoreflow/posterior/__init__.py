"""Conditioning by measurements: score models of x_0 given `y = A x_0 + e`."""

from scoreflow._score.observation import Observation
from scoreflow.posterior.methods import METHODS
from scoreflow.posterior.model import Posterior
from scoreflow.posterior.operators import blur, crop, downsample, grayscale

__all__ = ["METHODS", "Observation", "Posterior", "blur", "crop", "downsample", "grayscale"]
