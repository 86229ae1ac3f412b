"""What a stochastic step makes of the states before it: a Gaussian, whose density is known."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from scoreflow._core.chain import gaussian_nll
from scoreflow._core.row import double, double_on, flat
from scoreflow._samplers.plan import Plan, PlannedStep, Stage


class Transition(NamedTuple):
    """The Gaussian `N(mean, std² I)` that a state was drawn from, given the states before it.

    Attributes:
        mean: (B, ...). std: a number > 0.
        log_prob: (B,), float64, the log-density of the state, summed over its entries.
    """

    mean: Tensor
    std: float
    log_prob: Tensor


def split(step: PlannedStep, plan: Plan) -> tuple[PlannedStep, float]:
    """A step without its noise, and the standard deviation of the noise.

    Raises:
        ValueError: a draw goes through the network, so that the step is no Gaussian.
    """
    *stages, (s, last) = step.stages
    if any(row.draws for _, row in stages):
        raise ValueError(
            f"the step {step.t:.6g} → {step.s:.6g} of {plan.sampler!r} puts a draw through the network, at the state of a "
            "stage: given the state before it, its result is no Gaussian and has no density in closed form"
        )
    std = math.sqrt(sum(float(z) ** 2 for _, z in last.draws))
    return step._replace(stages=(*stages, Stage(s, last._replace(z=0.0)))), std


def log_density(x: Tensor, mean: Tensor, std: float) -> Tensor:
    """Of N(mean, std² I) at x, sample by sample (B,), float64: the sum over entries is large, differences of it are not."""
    if std == 0:
        return x.new_full((len(x),), math.nan, dtype=double_on(x.device))
    return -flat(gaussian_nll(double(x), double(mean), 2 * math.log(std))).sum(1)
