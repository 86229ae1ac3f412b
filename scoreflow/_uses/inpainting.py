"""Images given a part of them: inpainting, outpainting, super-resolution, colourisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from scoreflow._core.check import check_state, flag, number, whole
from scoreflow._core.noise import White, check_seed
from scoreflow._run.schedule import Grid, Schedule, explicit
from scoreflow._run.solution import Solution
from scoreflow._run.solve import carry, prepare
from scoreflow._run.walk import State
from scoreflow._samplers.plan import Plan
from scoreflow._samplers.step import Sampler
from scoreflow._score.model import ScoreModel, check_model
from scoreflow._score.observation import Observation
from scoreflow.posterior import Posterior, downsample, grayscale

SAMPLER, STEPS = "sde-dpm-solver++", 25
"""What is run if nothing is said: with noise, which makes good a part of what approximate methods err (docs/posterior.md)."""
FARTHEST = 1000.0
"""The κ where a run begins on paths with α = 0 at t = 1."""


def inpaint(
    model: ScoreModel,
    image: Tensor,
    mask: Tensor,
    sampler: str | Sampler | Plan = SAMPLER,
    *,
    method: str = "mmps",
    noise: float = 0.01,
    paste: bool = True,
    method_options: Mapping[str, Any] | None = None,
    steps: int | None = None,
    nfe: int | None = None,
    grid: Grid = None,
    start: float | None = None,
    seed: int | Sequence[int] | None = None,
    trajectory: bool = False,
    callback: Callable[[State], object] | None = None,
    progress: bool = False,
    conditions: Mapping[str, Any] | None = None,
    **keywords: Any,
) -> Solution:
    """Fill in the part of the images that the mask shows, by `Posterior`: samples of it given the rest.

    Between 0 and 1 the mask is soft: a pixel counts as measured with variance `noise² + m/(1 − m)`, so that of a pixel of
    variance 1 the share 1 − m is the image's.

    Args:
        model: of such images; guided and conditional ones too.
        image: (B, *event); where the mask is 1 it may hold any finite numbers. Several samples of an image: the image repeated.
        mask: what to fill in: True, or 1, of the shape of an image or one that broadcasts to it; one for all.
        sampler: as of `solve`; `sde-dpm-solver++` by itself, of 25 steps.
        method: of `Posterior`; method_options: its options.
        noise: σ_y of what is kept; 0 for methods that take it as exact.
        paste: put the pixels whose mask is 0 back at the end, as they are.
        start: the first time; if None 1, or where κ = 1000 if the path has α = 0 at 1.
        steps, nfe, grid, seed, trajectory, callback, progress, conditions: as of `solve`; keywords: options of the sampler
            and conditions of the network. One that is called `image` or `mask` goes in as `conditions={"image": ...}`.

    Raises:
        ValueError: a mask outside [0, 1], of another shape, with nothing to fill in, or nothing kept; and as `solve` and
            `Posterior`. TypeError: no images, no mask.
    """
    check_model(model)
    check_state("image", image)
    flag("paste", paste)
    shown = _mask(mask, image)
    kept = shown < 1
    if not bool(kept.any()):
        raise ValueError("mask is 1 everywhere, and nothing is kept: use sample")
    if not bool((shown > 0).any()):
        raise ValueError("mask is 0 everywhere, and there is nothing to fill in")
    m = shown[kept].double()
    number("noise", noise, least=0)
    std = (noise**2 + m / (1 - m)).sqrt() if bool((m > 0).any()) else torch.as_tensor(noise, dtype=torch.float64)
    seen = Observation(kept, torch.where(kept, image, 0.0), std)
    sol = _restored(
        model, seen, image, sampler, method, method_options, Schedule(**_times(sampler, model, steps, nfe, grid, start)), seed,
        keywords, conditions, trajectory=trajectory, callback=callback, progress=progress,
    )  # fmt: skip
    return replace(sol, x=torch.where(shown > 0, sol.x, image.to(sol.x))) if paste else sol


def outpaint(
    model: ScoreModel, image: Tensor, padding: Sequence[int], sampler: str | Sampler | Plan = SAMPLER, **keywords: Any
) -> Solution:
    """Continue the images beyond their edges: `inpaint` of the frame.

    Args:
        image: (B, C, h, w). padding: pixels to add (left, right, top, bottom); the model is of images of the whole size.
        sampler, keywords: as of `inpaint`.

    Raises:
        ValueError: no four whole numbers ≥ 0, or all 0; and as `inpaint`.
    """
    check_state("image", image)
    left, right, top, bottom = sides = [whole("padding", side, 0) for side in padding] if len(padding) == 4 else [0] * 4
    if image.ndim != 4 or not any(sides):
        raise ValueError(
            f"padding must be (left, right, top, bottom), not all 0, and images (B, C, h, w); got {padding!r} and "
            f"{tuple(image.shape)}"
        )
    whole_image = torch.nn.functional.pad(image, (left, right, top, bottom))
    frame = torch.ones(whole_image.shape[1:], dtype=torch.bool, device=image.device)
    frame[:, top : top + image.shape[2], left : left + image.shape[3]] = False
    return inpaint(model, whole_image, frame, sampler, **keywords)


def super_resolution(
    model: ScoreModel, image: Tensor, factor: int, sampler: str | Sampler | Plan = SAMPLER, **keywords: Any
) -> Solution:
    """Images of `factor` times the height and width whose means over squares of pixels are these.

    Args:
        image: (B, C, h, w). factor: of the size. sampler, keywords: as of `inpaint`, without `paste`.

    Raises:
        As `inpaint`.
    """
    check_state("image", image)
    if image.ndim != 4:
        raise ValueError(f"image must be (B, C, h, w), got {tuple(image.shape)}")
    batch, channels, height, width = image.shape
    like = image.new_empty(batch, channels, factor * height, factor * width)
    return _seen(model, downsample(factor), image, like, sampler, **keywords)


def colourise(
    model: ScoreModel,
    image: Tensor,
    sampler: str | Sampler | Plan = SAMPLER,
    *,
    weights: Sequence[float] = grayscale().weights,
    **keywords: Any,
) -> Solution:
    """Images of as many channels as there are `weights` whose weighted sums are these.

    Args:
        image: (B, 1, h, w). weights: of the channels in the grey image; by default the luma of ITU-R BT.601.
        sampler, keywords: as of `inpaint`, without `paste`.

    Raises:
        As `inpaint`.
    """
    check_state("image", image)
    if image.ndim != 4 or image.shape[1] != 1:
        raise ValueError(f"image must be (B, 1, h, w), got {tuple(image.shape)}")
    like = image.new_empty(len(image), len(weights), *image.shape[2:])
    return _seen(model, grayscale(tuple(weights)), image, like, sampler, **keywords)


def _seen(
    model: ScoreModel, A: Any, image: Tensor, like: Tensor, sampler: str | Sampler | Plan, *, method: str = "mmps",
    noise: float = 0.01, method_options: Mapping[str, Any] | None = None, steps: int | None = None, nfe: int | None = None,
    grid: Grid = None, start: float | None = None, seed: int | Sequence[int] | None = None, trajectory: bool = False,
    callback: Callable[[State], object] | None = None, progress: bool = False, conditions: Mapping[str, Any] | None = None,
    **keywords: Any,
) -> Solution:  # fmt: skip
    """States like these given A of them."""
    check_model(model)
    return _restored(
        model, Observation(A, image, noise), like, sampler, method, method_options,
        Schedule(**_times(sampler, model, steps, nfe, grid, start)), seed, keywords, conditions, trajectory=trajectory,
        callback=callback, progress=progress,
    )  # fmt: skip


def _restored(
    model: ScoreModel, seen: Observation, like: Tensor, sampler: str | Sampler | Plan, method: str,
    method_options: Mapping[str, Any] | None, schedule: Schedule, seed: int | Sequence[int] | None, keywords: dict[str, Any],
    conditions: Mapping[str, Any] | None, **how: Any,
) -> Solution:  # fmt: skip
    """A run of the `Posterior` from the prior."""
    posterior = Posterior(model, seen, method, **(method_options or {}))
    prepared = prepare(posterior, sampler, schedule, keywords, conditions)
    kept = check_seed(seed, len(like))
    x_T = White(kept).draws("prior")(like) * model.path.prior_std(prepared.times[0])
    source, _ = prepared.source(None, kept, len(like), model.path)
    return carry(posterior, x_T, prepared, source, seed=kept, **how)


def _times(
    sampler: str | Sampler | Plan, model: ScoreModel, steps: int | None, nfe: int | None, grid: Grid, start: float | None
) -> dict[str, Any]:
    """As arguments of `Schedule`."""
    if isinstance(sampler, Plan) or explicit(grid):
        return {"steps": steps, "nfe": nfe, "grid": grid, **({} if start is None else {"start": start})}
    first = 1.0 if model.path.alpha(1.0) > 0 else model.path.time(-math.log(FARTHEST))
    steps = STEPS if sampler == SAMPLER and steps is None and nfe is None else steps
    return {"steps": steps, "nfe": nfe, "grid": grid, "start": first if start is None else start}


def _mask(mask: Any, image: Tensor) -> Tensor:
    """What to fill in, from 0 to 1, of the shape of one image."""
    if not isinstance(mask, Tensor) or mask.is_complex():
        raise TypeError(f"mask must be a tensor, of booleans or from 0 to 1, got {type(mask).__name__}")
    event = tuple(image.shape[1:])
    try:
        shown = mask.to(image.device).expand(event)
    except RuntimeError:
        raise ValueError(f"mask must have the shape {event} of an image, or broadcast to it, got {tuple(mask.shape)}") from None
    shown = shown.to(image.dtype)
    if not bool(((shown >= 0) & (shown <= 1)).all()):
        raise ValueError(f"mask must lie between 0 (kept) and 1 (filled in), got {float(shown.min())} to {float(shown.max())}")
    return shown
