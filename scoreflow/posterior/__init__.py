"""Conditioning by measurements: score models of x_0 given `y = A x_0 + e`."""

from scoreflow._score.observation import Observation, Singular
from scoreflow.posterior.model import Posterior
from scoreflow.posterior.operators import blur, crop, downsample, grayscale
from scoreflow.posterior.stepwise import METHODS

__all__ = ["METHODS", "Observation", "Posterior", "Singular", "blur", "crop", "downsample", "grayscale"]
