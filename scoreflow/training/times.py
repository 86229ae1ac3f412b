"""Which noise levels a batch sees: times from uniform numbers, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scoreflow._core import check
from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.grid import inner_ends

Quantile = Callable[..., Tensor]
"""(path, u) to times, u uniform on (0, 1), (B,) in float64."""


def uniform(path: GaussianPath, u: Tensor) -> Tensor:
    """t uniform between the ends; on a chain, on its nodes."""
    low, high = inner_ends(path)
    return (u * path.T).ceil().clamp(min=1) / path.T if path.T else low + (high - low) * u


def log_normal(path: GaussianPath, u: Tensor, *, mean: float = -1.2, std: float = 1.2) -> Tensor:
    """log κ normal (Karras et al., 2022, Table 1)."""
    return _within(path, path.time(-(mean + std * torch.special.ndtri(u))))


def logit_normal(path: GaussianPath, u: Tensor, *, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """logit t normal (Esser et al., 2024, Section 3.1)."""
    return _within(path, torch.sigmoid(mean + std * torch.special.ndtri(u)))


def uniform_lambda(path: GaussianPath, u: Tensor) -> Tensor:
    """λ uniform between the ends."""
    low, high = inner_ends(path)
    return _within(path, path.time(path.lam(high) + (path.lam(low) - path.lam(high)) * u))


QUANTILES: dict[str, Quantile] = {
    "uniform": uniform, "stratified": uniform, "log-normal": log_normal, "logit-normal": logit_normal,
    "uniform-lambda": uniform_lambda, "importance": uniform,
}  # fmt: skip
"""By name. "stratified" is uniform with `u_i = (u + i)/B`, so that a batch covers all levels evenly (Kingma et al., 2021,
Appendix I.1); "importance" draws levels as often as their losses are large (`LossHistory`)."""
OPTIONS = {"log-normal": ("mean", "std"), "logit-normal": ("mean", "std")}


def check_times_options(times: str, options: dict[str, Any]) -> None:
    """Raise unless the name and its options are allowed."""
    check.one_of("times", times, QUANTILES)
    check.options(f"times {times!r}", options, OPTIONS.get(times, ()))
    for name, value in options.items():
        check.number(name, value, above=0 if name == "std" else -math.inf)


def draw_times(
    path: GaussianPath, n: int, times: str, options: dict[str, Any], generator: torch.Generator, history: LossHistory | None
) -> tuple[Tensor, Tensor]:
    """n times in float64, and what each sample's loss is to be multiplied by, so that its expectation is the uniform one."""
    u = torch.rand(n, dtype=torch.float64, generator=generator)
    if times == "stratified":
        u = (u[0] + torch.arange(n, dtype=torch.float64)) / n
    weight = torch.ones(n, dtype=torch.float64)
    if times == "importance" and history is not None and history.warm:
        share = history.shares()
        k = torch.multinomial(share, n, replacement=True, generator=generator)
        u, weight = (k + u) / len(share), 1 / (share[k] * len(share))
    return QUANTILES[times](path, u.clamp(1e-12, 1 - 1e-12), **options), weight


class LossHistory:
    """The mean loss, and the mean of its square, at each of `bins` even parts of [0, 1] in t; of late more than before.

    Attributes:
        state: (3, bins) in float64: the count, and the two means.
    """

    def __init__(self, bins: int = 50, keep: float = 0.99) -> None:
        self.state, self.keep = torch.zeros(3, bins, dtype=torch.float64), keep

    @property
    def warm(self) -> bool:
        """Whether every part has ten losses."""
        return bool((self.state[0] >= 10).all())

    def sums(self, t: Tensor, loss: Tensor) -> Tensor:
        """Of losses (B,) at times (B,): their number, sum and sum of squares in each part, (3, bins)."""
        bins = self.state.shape[1]
        k = (t.double() * bins - 1e-9).long().clamp(0, bins - 1)
        return torch.stack([torch.bincount(k, loss.double() ** power, minlength=bins) for power in range(3)])

    def update(self, sums: Tensor) -> None:
        """Take in what `sums` gave, here or added up over processes."""
        n = sums[0]
        self.state[0] += n
        rate = torch.maximum(1 - self.keep**n, n / self.state[0].clamp(min=1))
        self.state[1:] += rate * (sums[1:] / n.clamp(min=1) - self.state[1:])

    def shares(self) -> Tensor:
        """`p_k ∝ √E[L²]`, with a thousandth spread evenly (Nichol & Dhariwal, 2021, Eq. 18)."""
        root = self.state[2].sqrt()
        return 0.999 * root / root.sum() + 0.001 / len(root)

    def curve(self) -> tuple[Tensor, Tensor]:
        """The middles of the parts that have a loss, and their means."""
        seen = self.state[0] > 0
        middle = (torch.arange(len(seen), dtype=torch.float64) + 0.5) / len(seen)
        return middle[seen], self.state[1][seen]


def _within(path: GaussianPath, t: Tensor) -> Tensor:
    return t.clamp(*inner_ends(path))
