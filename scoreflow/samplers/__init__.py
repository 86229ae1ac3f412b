"""The samplers, one chapter a file. Importing this package registers every name."""

from scoreflow.samplers import (
    ancestral,
    blackbox,
    corrector,
    exponential,
    families,
    invertible,
    reverse,
    runge_kutta,
    stochastic,
)

__all__ = [
    "ancestral", "blackbox", "corrector", "exponential", "families", "invertible", "reverse", "runge_kutta", "stochastic",
]  # fmt: skip
