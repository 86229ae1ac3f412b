"""The samplers, one chapter a file. Importing this package registers every name."""

from scoreflow.samplers import (
    ancestral,
    blackbox,
    corrector,
    edm,
    er_sde,
    exponential,
    families,
    invertible,
    multistep,
    reverse,
    runge_kutta,
    sde_singlestep,
    stochastic,
)

__all__ = [
    "ancestral",
    "blackbox",
    "corrector",
    "edm",
    "er_sde",
    "exponential",
    "families",
    "invertible",
    "multistep",
    "reverse",
    "runge_kutta",
    "sde_singlestep",
    "stochastic",
]
