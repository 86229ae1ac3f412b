"""Between latents, and from images to images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from scoreflow._core import check
from scoreflow._core.check import check_state
from scoreflow._core.noise import White, check_seed
from scoreflow._core.row import double, double_on, flat
from scoreflow._run.auto import AUTO
from scoreflow._run.picard import Picard
from scoreflow._run.schedule import Grid, Schedule, explicit
from scoreflow._run.solution import Solution
from scoreflow._run.solve import carry, prepare
from scoreflow._run.source import Noise
from scoreflow._run.walk import State
from scoreflow._samplers.plan import Plan
from scoreflow._samplers.step import Sampler
from scoreflow._score.model import ScoreModel, check_model

KINDS = ("spherical", "linear")


def interpolate(z_0: Tensor, z_1: Tensor, weights: int | float | Sequence[float] | Tensor, kind: str = "spherical") -> Tensor:
    """States between z_0 and z_1, (K, B, ...).

    spherical: `sin((1−w) θ)/sin θ z_0 + sin(w θ)/sin θ z_1`, θ the angle between the two, sample by sample: between draws of
    a standard normal it keeps their length. linear: `(1−w) z_0 + w z_1`, which is shorter between them.

    Args:
        z_0, z_1: latents (B, ...). weights: w, one or several, as floats; or how many, even from 0 to 1, ends included.

    Raises:
        ValueError, TypeError: other shapes, fewer than two weights, an unknown kind.

    Reference:
        Denoising Diffusion Implicit Models (Song et al., 2021), Appendix D.5.
    """
    check_state("z_0", z_0)
    check_state("z_1", z_1)
    check.one_of("kind", kind, KINDS)
    if z_0.shape != z_1.shape:
        raise ValueError(f"z_0 and z_1 must have one shape, got {tuple(z_0.shape)} and {tuple(z_1.shape)}")
    w = _weights(weights).to(z_0.device, double_on(z_0.device))
    a, b = flat(double(z_0)), flat(double(z_1))
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-30)
    angle = cosine.clamp(-1, 1).arccos()
    left, right = (1 - w)[:, None].expand(-1, len(a)), w[:, None].expand(-1, len(a))
    if kind == "spherical":
        small = angle.sin() < 1e-6  # along one line there is no arc
        left, right = (torch.where(small, v, (v * angle).sin() / angle.sin().clamp(min=1e-12)) for v in (left, right))
    out = left[:, :, None] * a + right[:, :, None] * b
    return out.reshape(len(w), *z_0.shape).to(z_0.dtype)


def _weights(given: int | float | Sequence[float] | Tensor) -> Tensor:
    """As a tensor (K,): how many, even from 0 to 1, or the weights themselves."""
    if check.is_whole(given):
        return torch.linspace(0, 1, check.whole("weights", given, 2), dtype=torch.float64)
    if isinstance(given, Tensor) and given.is_floating_point():
        return given.reshape(-1)
    weights = [check.number("weights", w) for w in check.listed(given)]
    if not weights:
        raise ValueError(f"weights must be a number, numbers, or how many, got {given!r}")
    return torch.tensor(weights, dtype=torch.float64)


def image_to_image(
    model: ScoreModel,
    x_0: Tensor,
    sampler: str | Sampler | Plan = AUTO,
    *,
    start: float | None = None,
    steps: int | None = None,
    nfe: int | None = None,
    grid: Grid = None,
    stop: float = 0.0,
    denoise: bool = False,
    parallel: int | Picard | None = None,
    seed: int | Sequence[int] | None = None,
    noise: Noise = None,
    trajectory: bool = False,
    callback: Callable[[State], object] | None = None,
    progress: bool = False,
    grad: bool = False,
    conditions: Mapping[str, Any] | None = None,
    **keywords: Any,
) -> Solution:
    """SDEdit: noise the images to the time `start`, `x_t = α x_0 + σ ε`, and solve from there.

    The lower `start`, the nearer the result stays to x_0. With another condition, or a model of other images, it is an edit.

    Args:
        x_0: images (B, ...). start: 0 < start ≤ 1, 0.5 if None; a plan and explicit times in `grid` have their own, and so
            may a chain's grid, whose first node is taken. All else as of `solve`.

    Raises:
        As `solve`; ValueError for a start at 0, or one given beside a plan or explicit times.

    Reference:
        SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations (Meng et al., 2022), Algorithm 1.
    """
    check_model(model)
    check_state("x_0", x_0)
    own = "a plan" if isinstance(sampler, Plan) else "explicit times in grid" if explicit(grid) else ""
    if own and start is not None:
        raise ValueError(f"start={start} and {own} exclude each other: the times say it all")
    begin = 1.0 if own else 0.5 if start is None else check.time("start", start)
    if not begin > 0:
        raise ValueError(f"start must lie above 0, got {begin}: at 0 the image is as it is")
    prepared = prepare(model, sampler, Schedule(steps, nfe, grid, begin, stop, denoise), keywords, conditions)
    kept = check_seed(seed, len(x_0))
    x_t = model.path.q_sample(x_0, prepared.times[0], White(kept).draws("prior")(x_0))
    source, _ = prepared.source(noise, kept, len(x_0), model.path)
    return carry(
        model, x_t, prepared, source,
        parallel=parallel, seed=kept, trajectory=trajectory, callback=callback, progress=progress, grad=grad,
    )  # fmt: skip
