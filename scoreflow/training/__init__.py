"""Training a score network: the loss, which levels it sees, and the loop."""

from scoreflow._uses.shards import Pairs
from scoreflow.training.config import Setup, parse, setup
from scoreflow.training.map_losses import MAP_LOSSES, MapLoss
from scoreflow.training.maps import LOSSES, MapObjective, get_objective
from scoreflow.training.objective import Draw, Loss, Objective
from scoreflow.training.pairs import pairs
from scoreflow.training.recipe import Recipe
from scoreflow.training.times import QUANTILES, LossHistory
from scoreflow.training.trainer import Progress, train
from scoreflow.training.weighting import WEIGHTINGS, get_weighting

__all__ = [
    "LOSSES", "MAP_LOSSES", "QUANTILES", "WEIGHTINGS", "Draw", "Loss", "LossHistory", "MapLoss", "MapObjective", "Objective",
    "Pairs", "Progress", "Recipe", "Setup", "get_objective", "get_weighting", "pairs", "parse", "setup", "train",
]  # fmt: skip
