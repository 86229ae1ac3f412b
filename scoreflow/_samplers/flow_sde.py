"""Stochastic samplers of reinforcement learning on flow models, where each step is a Gaussian policy."""

from __future__ import annotations

import math

from scoreflow._core.check import number
from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.row import Row
from scoreflow._samplers.step import Linear, Sampler, family


@family("flow-sde")
def flow_sde(a: float = 0.7) -> Sampler:
    """`x_s = x_t + (s − t) [v + η²g²/(2σ_t) ε̂] + η g √(t − s) ε`, v the flow, `η = a/√2`.

    Euler–Maruyama for the reverse SDE of level η; on `Flow()`, where `η g = a √(t/(1−t))`, it is Flow-GRPO's. Where α_t = 0 and
    g is infinite, `g² σ_t/σ_s` at s stands for it, as in their code; elsewhere it is `reverse-sde-euler` with `eta`.
    The step to σ = 0 is x̂_0. `AskedRun.transition` and `step_log_prob` have mean, std and log-density of every other step.

    Reference:
        Flow-GRPO: Training Flow Matching Models via Online RL (Liu et al., 2025), Eqs. 9 and 12.
    """
    number("a", a, least=0)
    return Linear(rows=flow_sde_row, order=1, cites=("liu2025flowgrpo",), prediction="flow", marginal=False)


def flow_sde_row(path: GaussianPath, times: tuple[float, ...], s: float, *, a: float) -> Row:
    """The row of `flow-sde`."""
    t, eta = times[0], a / math.sqrt(2)
    g2 = path.g2(t) if path.alpha(t) > 0 else path.g2(s) * path.sigma(t) / path.sigma(s)
    x, m = path.convert("flow", "eps", t)
    k = eta**2 * g2 / (2 * path.sigma(t))
    return Row(1 + k * x * (s - t), ((1 + k * m) * (s - t),), eta * math.sqrt(g2 * (t - s)))


@family("cps")
def cps(a: float = 0.7) -> Sampler:
    """`x_s = α_s x̂_0 + √(σ_s² − c²) ε̂ + c ε`, `c = σ_s sin(a π/2)`: DDIM with a share of its noise drawn anew.

    The share does not shrink with the step, so a finer grid does not lead to the law of the data: on N(0, 1) data and `Flow()`
    the variance tends to 0.727 of the data's at a = 0.7, where `flow-sde` and `ddim` with η = 1 tend to 1. a = 0 is `ddim`.

    Reference:
        Coefficients-Preserving Sampling for Reinforcement Learning with Flow Matching (Wang & Yu, 2025).
    """
    number("a", a, least=0, most=1)
    return Linear(rows=cps_row, order=None if a else 1, cites=("wang2025cps",), lands=True)


def cps_row(path: GaussianPath, times: tuple[float, ...], s: float, *, a: float) -> Row:
    """The row of `cps`."""
    t = times[0]
    share = math.sin(a * math.pi / 2)
    x = path.sigma(s) / path.sigma(t) * math.sqrt((1 - share) * (1 + share))
    return Row(x, (path.alpha(s) - x * path.alpha(t),), path.sigma(s) * share)
