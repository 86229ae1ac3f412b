"""The samplers, one chapter a file. Importing this package registers every name."""

from scoreflow.samplers import (
    adaptive,
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
    sra,
    stochastic,
)

__all__ = [
    "adaptive",
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
    "sra",
    "stochastic",
]
