"""How to train: steps, rates, the average, precision, what is written when."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scoreflow._core.check import number, one_of, whole

PRECISIONS = (
    "32-true", "64-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed", "transformer-engine", "transformer-engine-float16",
    "64", "32", "16", "bf16",
)  # fmt: skip
"""As Lightning Fabric names them."""


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        steps: optimiser steps. batch: samples a step, of all processes together.
        rate: the learning rate after `warmup` steps of rise, 200 or a tenth of all if None; `decay`: "cosine", falling to 0,
            "linear", or "constant".
        weight_decay: of AdamW. clip: the largest norm of the gradient; 0 for any.
        ema: what the average of the weights keeps at a step, at most; after n steps (1 + n)/(10 + n), so that it forgets
            the weights it began with.
        precision: one of `PRECISIONS`, as of Lightning Fabric: "32-true", "bf16-mixed", …
        seed: of all chance.
        workers: processes that read data. save_every: steps between checkpoints. show_every: steps between losses on held-out
            data, sample sheets and curves. shown: samples on a sheet.

    Raises:
        ValueError, TypeError: a value that is not allowed.
    """

    steps: int = 10_000
    batch: int = 64
    rate: float = 1e-3
    warmup: int | None = None
    decay: str = "cosine"
    weight_decay: float = 1e-3
    clip: float = 1.0
    ema: float = 0.999
    precision: str = "32-true"
    seed: int = 0
    workers: int = 0
    save_every: int = 500
    show_every: int = 1000
    shown: int = 32

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch": 1, "save_every": 1, "show_every": 1, "shown": 1, "warmup": 0, "workers": 0, "seed": 0}
        for name, low in least.items():
            if getattr(self, name) is not None or name != "warmup":  # numbers of numpy as Python's, for JSON
                object.__setattr__(self, name, whole(name, getattr(self, name), low))
        object.__setattr__(self, "rate", number("rate", self.rate, above=0))
        for name, most in (("weight_decay", math.inf), ("clip", math.inf), ("ema", 1)):
            object.__setattr__(self, name, number(name, getattr(self, name), 0, most))
        one_of("decay", self.decay, ("cosine", "linear", "constant"))
        one_of("precision", self.precision, PRECISIONS)

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        left = 1 - step / self.steps
        fall = {"cosine": 0.5 * (1 + math.cos(math.pi * (1 - left))), "linear": left, "constant": 1.0}[self.decay]
        rise = min(200, self.steps // 10) if self.warmup is None else self.warmup
        return self.rate * min((step + 1) / max(1, rise), fall)
