"""Samplers that undo themselves: the same step, taken upwards, leads back to the state it came from.

Their state is more than x: the state before it, or a second one. That is their memory, and with it the way back is exact
for any network. `scoreflow.invert` walks up and keeps it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scoreflow._core.check import number
from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.noise import Draws
from scoreflow._samplers.plan import Network
from scoreflow._samplers.step import Sampler, Step, family


@dataclass(frozen=True, repr=False)
class Invertible(Sampler):
    """A sampler of the probability-flow ODE whose step from t up to s > t, with its memory, undoes the step from s down to t.

    Attributes:
        evaluations_per_step: network evaluations a step.
        from_data: whether it can leave σ = 0 upwards, as the network is evaluated at the upper end of a step.
    """

    evaluations_per_step: int = 1
    from_data: bool = False

    @property
    def stochastic(self) -> bool:
        return False

    def evaluations(self, path: GaussianPath, times: tuple[float, ...]) -> int:
        return self.evaluations_per_step * (len(times) - 1) - (self.analytic is not None)


@family("bdia-ddim")
def bdia_ddim(gamma: float = 1.0) -> Sampler:
    """`x_s = DDIM_{t→s}(x_t) + γ (x_u − DDIM_{t→u}(x_t))`, with x_u the state before x_t and one ε̂(x_t, t) for both.

    DDIM leads down to s and back up to u; what it misses at u is added at s. Solved for x_u it is the step back. γ = 1 is
    symmetric in time and of order 2; under 1, down to 0 (not included), the way back multiplies errors by 1/γ a step. The
    authors' repository writes 1 − γ for this γ. The first step is DDIM. The step to σ = 0 is x̂_0 with the same correction.

    Reference:
        Exact Diffusion Inversion via Bi-directional Integration Approximation (Zhang et al., 2023), Eqs. 17–19.
    """
    number("gamma", gamma, above=0, most=1)
    return BDIA(order=2 if gamma == 1 else 1, cites=("zhang2023bdia",), gamma=gamma)


@dataclass(frozen=True, repr=False)
class BDIA(Invertible):
    """Its memory is ((u, x_u),): a neighbour of x_t in time; or already the state at s, where a walk turns around."""

    gamma: float = 1.0

    def step(self, model: Network, x: Tensor, t: float, s: float, memory: tuple[Any, ...], noise: Draws) -> Step:
        for u, x_u in memory:
            if u == s:
                return Step(x_u, ((t, x),))
        # In v the rows are finite at both ends of a path.
        v, to_x0 = model(x, t, "v"), model.path.convert("v", "x0", t)
        x_s = model.path.bridge(t, s).through(*to_x0)(x, [v])
        for u, x_u in memory:
            missed = x_u - model.path.bridge(t, u).through(*to_x0)(x, [v])
            x_s = x_s + (self.gamma if s < t else 1 / self.gamma) * missed
        return Step(x_s, ((t, x),))


@family("edict")
def edict(p: float = 0.93) -> Sampler:
    """Two states, each moved by DDIM, `x ← (α_s/α_t) x + b ε̂(y, t)`, with the other's ε̂, `b = α_s (κ_s − κ_t)`; then mixed:

    - `x' = DDIM(x_t, ε̂(y_t, t))`, `y' = DDIM(y_t, ε̂(x', t))`;
    - `x_s = p x' + (1 − p) y'`, `y_s = p y' + (1 − p) x_s`.

    Each line is solved for what it changed, last first. 0 < p ≤ 1; the way back multiplies x − y by 1/p² a step. A run
    begins with y = x; x is the result. Two evaluations a step, to σ = 0 too. The order is 1. The published code moves y
    before x in every other step.

    Reference:
        EDICT: Exact Diffusion Inversion via Coupled Transformations (Wallace et al., 2023), Eqs. 14–15.
    """
    number("p", p, above=0, most=1)
    return EDICT(order=1, cites=("wallace2023edict",), evaluations_per_step=2, from_data=True, p=p)


@dataclass(frozen=True, repr=False)
class EDICT(Invertible):
    """Its memory is ((t, y_t),): the second state."""

    p: float = 0.93

    def step(self, model: Network, x: Tensor, t: float, s: float, memory: tuple[Any, ...], noise: Draws) -> Step:
        path, p, upper = model.path, self.p, max(t, s)
        if path.alpha(upper) == 0:
            raise ValueError(f"edict divides by alpha, and alpha=0 at t={upper}: use a start below it, or bdia-ddim")
        a, (b,), _ = path.bridge(upper, min(t, s)).through(*path.convert("eps", "x0", upper))
        y = next((y for u, y in memory if u == t), x)
        if s < t:
            x = a * x + b * model(y, t)
            y = a * y + b * model(x, t)
            x = p * x + (1 - p) * y
            y = p * y + (1 - p) * x
        else:
            y = (y - (1 - p) * x) / p
            x = (x - (1 - p) * y) / p
            y = (y - b * model(x, s)) / a
            x = (x - b * model(y, s)) / a
        return Step(x, ((s, y),))
