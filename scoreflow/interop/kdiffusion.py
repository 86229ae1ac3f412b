"""Our samplers as `sample_*` functions of k-diffusion, which ComfyUI and A1111 call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from scoreflow._core.check import flag
from scoreflow._core.grid import sigmas as times_at
from scoreflow._core.path import VESDE, Flow
from scoreflow._run.asked import ask
from scoreflow._run.walk import shown
from scoreflow._samplers.step import Linear, Sampler, get_sampler
from scoreflow.interop.paths import sigmas_path


def k_sampler(sampler: str | Sampler, *, flow: bool = False, **options: Any) -> Callable[..., Tensor]:
    """A function `sample(model, x, sigmas, extra_args=None, callback=None, disable=None)` as k-diffusion has them.

    The model is a denoiser, `model(x, σ (B,), **extra_args)` → x̂_0; x begins as noise times σ_0, and the steps go through the σ
    that are given, the last of which may be 0. At each evaluation the callback gets x, i, sigma, sigma_hat and denoised. `seed`
    is that of the noise of stochastic samplers, an int or one for each sample; without it torch's global generator draws.

    Args:
        sampler: its name, or a sampler made of rows.
        flow: whether σ is that of a flow, `x = (1 − σ) x_0 + σ ε`, as ComfyUI has it for SD3 and Flux. options: of the sampler.

    Raises:
        ValueError: a sampler that is not made of rows, or an unknown one. TypeError: as `get_sampler`.
    """
    flag("flow", flow)
    chosen = get_sampler(sampler, **options)
    if not isinstance(chosen, Linear):
        raise ValueError(f"{chosen!r} is not made of rows: it calls its network by itself, and is no function of given sigmas")

    def sample(
        model: Callable[..., Tensor],
        x: Tensor,
        sigmas: Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], object] | None = None,
        disable: bool | None = None,
        seed: Any = None,
        **more: Any,
    ) -> Tensor:
        stepper = chosen(**more) if more else chosen
        path, times = flow_times(sigmas) if flow else times_of(sigmas)
        run = ask(stepper, x, path=path, prediction="x0", time="sigma", grid=times, seed=seed)
        told, count = dict(extra_args or {}), run.plan.nfe
        with torch.no_grad():
            for _ in shown(range(count), count, chosen.name, not disable):
                step = run.step
                sigma = float(path.sigma(run.t))  # on a flow it is t
                at = run.x
                denoised = model(at, at.new_full((len(at),), sigma), **told)
                if callback is not None:
                    level = float(path.sigma(run.plan.steps[step].t))
                    callback({"x": at, "i": step, "sigma": level, "sigma_hat": sigma, "denoised": denoised})
                run.tell(denoised)
        return run.x

    sample.__name__ = f"sample_{chosen.name.replace('-', '_').replace('+', 'p')}"
    sample.__doc__ = f"{chosen!r}, as k-diffusion calls samplers.\n\n{chosen.doc}"
    return sample


def flow_times(sigmas: Tensor) -> tuple[Flow, list[float]]:
    """The path of a flow, whose times are its σ."""
    return Flow(), [float(s) for s in sigmas]


def times_of(sigmas: Tensor) -> tuple[VESDE, list[float]]:
    """A VE path from the first σ, and the times of all on it."""
    levels = [float(s) for s in sigmas]
    if len(levels) < 2 or any(not b < a for a, b in pairwise(levels)) or levels[-1] < 0:
        raise ValueError(f"sigmas must fall, two or more, the last 0 or above; got {levels}")
    path = sigmas_path(min(levels[0] / 10, *(s / 10 for s in levels if s > 0)), levels[0])
    return path, [1.0, *times_at(path, levels[1:])]
