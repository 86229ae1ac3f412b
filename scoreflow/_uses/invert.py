"""From data to a latent, and back: the samplers of the probability-flow ODE, walked up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scoreflow._core.check import check_state, whole
from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.grid import default_t_min
from scoreflow._core.noise import White
from scoreflow._core.row import Row
from scoreflow._run.schedule import Grid, Schedule
from scoreflow._run.solution import Solution
from scoreflow._run.solve import Prepared, carry, check_conditions, options_of, per_call
from scoreflow._run.walk import State
from scoreflow._samplers.invertible import Invertible
from scoreflow._samplers.step import Linear, Sampler, get_sampler
from scoreflow._score.model import ScoreModel, check_model


@dataclass(frozen=True, repr=False)
class Inversion(Solution):
    """A latent, and what it takes to come back from it. As a `Solution`, with rising times; `x` is the latent.

    Attributes:
        memory: of the invertible samplers, the rest of their state; empty for others.
        path: that of the model, as text.
    """

    path: str = ""

    def decode(
        self,
        model: ScoreModel,
        *,
        trajectory: bool = False,
        callback: Callable[[State], object] | None = None,
        progress: bool = False,
        grad: bool = False,
        **conditions: Any,
    ) -> Solution:
        """The way back, by the same sampler on the same times. With the model and conditions of the way up, an invertible
        sampler gives x_0 again, to rounding, whatever the network; other conditions edit it.

        Args:
            model, trajectory, callback, progress, grad, conditions: as of `solve`.

        Raises:
            As `solve`.
        """
        check_model(model)
        if self.path != repr(model.path):
            raise ValueError(f"the latent stands on {self.path}, the model on {model.path}")
        times, told = self.times[::-1], check_conditions(model, self.sampler, conditions)
        plan = self.sampler.plan(model.path, times) if isinstance(self.sampler, Linear) else None
        return carry(
            model, self.x, Prepared(self.sampler, times, plan, told, self.memory), White(0),
            trajectory=trajectory, callback=callback, progress=progress, grad=grad,
        )  # fmt: skip


def invert(
    model: ScoreModel,
    x_0: Tensor,
    sampler: str | Sampler = "bdia-ddim",
    *,
    steps: int | None = None,
    nfe: int | None = None,
    grid: Grid = None,
    start: float = 1.0,
    stop: float | None = None,
    iterations: int = 0,
    trajectory: bool = False,
    callback: Callable[[State], object] | None = None,
    progress: bool = False,
    grad: bool = False,
    **keywords: Any,
) -> Inversion:
    """Carry the data x_0 up, from `stop` to `start`: the latent from which the sampler makes them.

    `bdia-ddim` and `edict` come back exactly. Any other deterministic sampler made of rows takes its rows upwards, where the
    network is evaluated at the state that is known: with `ddim` that is DDIM inversion, `x_t = α_t x̂_0(x_s) + σ_t ε̂(x_s)`, and
    the way back misses x_0 by O(h²) a step.

    Args:
        x_0: data (B, ...), taken for states at `stop`.
        sampler: a name (its options may stand among the keywords), or a sampler.
        steps, nfe, grid: the times as of `solve`, decreasing, to be gone in reverse.
        stop: where the data stand. By default the chain's first node, or 1e-3: at σ = 0, where a network knows nothing of
            its noise, only `edict` can begin.
        start: where the latent stands.
        iterations: with `ddim`, how often `x_s = DDIM_{t→s}(x_t)` is solved further for x_t, by the fixed-point iteration
            `x_t ← (α_t/α_s) x_s + α_t (κ_t − κ_s) ε̂(x_t, t)`, one evaluation each. Each gains an order.
        trajectory, callback, progress, grad, keywords: as of `solve`.

    Raises:
        ValueError: a sampler that draws noise or has no rows, `analytic`, data at σ = 0, `iterations` without DDIM, and as
            `solve`. TypeError: as `solve`.

    Reference:
        DDIM inversion: Denoising Diffusion Implicit Models (Song et al., 2021), Section 4.3; fixed points: Effective Real Image
        Editing with Accelerated Iterative Diffusion Inversion (Pan et al., 2023).
    """
    check_model(model)
    check_state("x_0", x_0)
    path = model.path
    options = options_of(sampler, keywords)
    chosen = get_sampler(sampler, **options)
    rising = ascent(path, chosen, whole("iterations", iterations, 0))
    told = check_conditions(model, chosen, {k: v for k, v in keywords.items() if k not in options})
    low = (default_t_min(path) if grid is None or isinstance(grid, str) or callable(grid) else 0.0) if stop is None else stop
    times = Schedule(steps, nfe, grid, start, low).times(rising, path, per_call(model))[::-1]
    if path.sigma(times[0]) == 0 and not (isinstance(rising, Invertible) and rising.from_data):
        raise ValueError(
            f"{chosen!r} cannot leave t={times[0]} upwards, where sigma=0 and the network knows nothing of its noise: "
            "let stop, or the last time of the grid, be > 0, or use edict"
        )
    prepared = Prepared(chosen, times, rising.plan(path, times) if isinstance(rising, Linear) else None, told)
    way = carry(
        model, x_0, prepared, White(0), steps=rising, trajectory=trajectory, callback=callback, progress=progress, grad=grad
    )
    kept = {field.name: getattr(way, field.name) for field in dataclasses.fields(way)}
    memory = way.memory if isinstance(rising, Invertible) else ()
    return Inversion(**kept | {"memory": memory, "path": repr(path)})


def ascent(path: GaussianPath, sampler: Sampler, iterations: int) -> Sampler:
    """What takes the steps upwards.

    Raises:
        ValueError: as `invert`.
    """
    if sampler.analytic is not None:
        raise ValueError(f"analytic={sampler.analytic} replaces the first output of a run from the prior, not of one from data")
    if iterations:
        if sampler != get_sampler("ddim"):
            raise ValueError(f"iterations={iterations} corrects the inversion of ddim with eta=0, not of {sampler!r}")
        rows = FixedPoint(iterations)
        return Linear(
            name="ddim", options=sampler.options, order=1, cites=sampler.cites, rows=rows, prediction="eps", lands=True
        )
    if not isinstance(sampler, Linear | Invertible):
        raise ValueError(f"{sampler!r} is not made of rows: invert with ddim, another deterministic sampler, or bdia-ddim")
    if sampler.stochastic_on(path):
        raise ValueError(f"{sampler!r} draws noise, and only a deterministic sampler can be inverted")
    return sampler


@dataclass(frozen=True)
class FixedPoint:
    """Rows of a step of DDIM whose output is evaluated again, `iterations` times, at the state that it led to."""

    iterations: int

    def __call__(self, path: GaussianPath, times: tuple[float, ...], s: float, **_: Any) -> list[tuple[float, Row]]:
        row = path.bridge(times[0], s).through(*path.convert("eps", "x0", times[0]))
        return [(s, row)] * (self.iterations + 1)
