"""Where the noise of a run comes from: what was given as seed and noise."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from scoreflow._core.check import one_of
from scoreflow._core.noise import Brownian, Replay, Source, White, check_seed
from scoreflow._samplers.step import Sampler

Noise = str | Tensor | White | Replay | None


def source_of(
    noise: Noise, seed: int | Sequence[int] | None, batch: int, sampler: Sampler | None, drawn: bool = True,
    times: tuple[float, ...] | None = None,
) -> tuple[Source, int | tuple[int, ...] | None]:  # fmt: skip
    """The noise source of a run, and the seed to remember; `times` are its own, if all are known."""
    if noise is None or isinstance(noise, str):
        if noise is not None:
            one_of("noise", noise, ("white", "brownian"))
        if seed is None and noise is None and not drawn:
            return White(0), None  # nothing is drawn, and torch's generator stays where it is
        kept = check_seed(seed, batch)
        along = noise == "brownian" or (noise is None and sampler is not None and sampler.brownian)
        return (Brownian(kept, times=times) if along else White(kept)), kept
    if seed is not None and sampler is not None:
        raise ValueError(f"seed={seed!r} and noise exclude each other: a source has its own seeds, draws need none")
    if isinstance(noise, White):
        check_seed(noise.seeds, batch)
        return noise, None
    if isinstance(noise, Replay):
        return noise, None
    if isinstance(noise, Tensor):
        return Replay(noise), None
    raise TypeError(f"noise must be white, brownian, a source or a tensor of draws, got {type(noise).__name__}")
