"""Plans whose numbers are fitted to a model and a budget, and never worse than what was there before."""

from scoreflow.tuning.front import tune
from scoreflow.tuning.noise import TunedNoise, tune_noise
from scoreflow.tuning.result import Tuned

__all__ = ["Tuned", "TunedNoise", "tune", "tune_noise"]
