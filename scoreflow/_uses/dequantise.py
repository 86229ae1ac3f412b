"""Bits per dimension of data with a finite number of levels: dequantised, and judged by the density of the ODE."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scoreflow._core.chain import gaussian_nll
from scoreflow._core.check import check_state, flag, number, one_of, whole
from scoreflow._core.grid import default_t_min
from scoreflow._core.noise import White, check_seed, fold_in
from scoreflow._core.row import double, double_on, flat, standard_error, wide
from scoreflow._score.model import ScoreModel, check_model
from scoreflow._uses.bound import step_term
from scoreflow._uses.likelihood import ARGUMENTS, log_prob, standard

BinNoise = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(x_0, ε) to x_0 with noise within its bin, and the log-density of that noise, (B,)."""
NAMES = ("uniform", "forward")


class Bits(NamedTuple):
    """An upper bound on `−log₂ P(x_0)/d`.

    Attributes:
        value: bits an entry, (B,), float64. error: its standard error over the draws, (B,); NaN with one.
        nfe: network evaluations of a draw.
    """

    value: Tensor
    error: Tensor
    nfe: int


def bits_per_dim(
    model: ScoreModel,
    x_0: Tensor,
    *,
    levels: int = 256,
    low: float = -1.0,
    high: float = 1.0,
    dequantise: str | BinNoise = "uniform",
    draws: int = 1,
    stop: float | None = None,
    seed: int | Sequence[int] = 0,
    **options: Any,
) -> Bits:
    """Bits an entry of data whose entries are one of `levels` values, even from `low` to `high`, Δ apart.

    `P(x_0) = ∫ p(x_0 + u) du` over a bin, so for noise u of any density q within it
    `−log P(x_0) ≤ E[log q(u) − log p(x_0 + u)]` (Ho et al., 2019, Flow++, Eq. 12).

    Args:
        dequantise: "uniform" noise, `q = Δ^{−d}`; a function or a trained `Dequantiser`, which is variational; or "forward",
            the path's own noise at `stop` with the decoder of the last step:
            `−log P(x_0) ≤ E[log q(x_t∣x_0) − log p_t(x_t) − log P(x_0∣x_t)]`.
        draws: of the noise.
        stop, options: as of `log_prob`. Data with noise in their bins are taken for states at `stop`.
        seed: of the draws and of the probes.

    Raises:
        ValueError, TypeError: values that are not allowed.
    """
    check_model(model)
    check_state("x_0", x_0)
    x_0 = wide(x_0)  # noise within a bin is below what 16 bits hold
    if not callable(dequantise):
        one_of("dequantise", dequantise, NAMES)
    if dequantise == "forward" and (low, high) != (-1.0, 1.0):
        raise ValueError(
            f"low={low}, high={high}: the decoder of dequantise='forward' has its levels from -1 to 1; scale the data"
        )
    width = (number("high", high, above=number("low", low)) - low) / (whole("levels", levels, 2) - 1)
    path, d = model.path, flat(x_0).shape[1]
    t, seeds = default_t_min(path) if stop is None else stop, check_seed(seed, len(x_0))
    named = {name: value for name, value in options.items() if name not in ARGUMENTS or name == "conditions"}
    conditions = model.check_conditions(named, (*ARGUMENTS, *inspect.signature(bits_per_dim).parameters))
    nats, nfe = list[Tensor](), 0
    for k in range(whole("draws", draws)):
        own = fold_in(seeds, "draw", k)  # no draw has another's noise or probes
        eps = White(own).draws("data")(x_0)
        with torch.set_grad_enabled(flag("grad", options.get("grad", False))):
            if callable(dequantise):
                x, log_q = dequantise(x_0, eps)
                if x.shape != x_0.shape or log_q.shape != (len(x_0),):
                    raise ValueError(
                        f"dequantise must give states {tuple(x_0.shape)} and log-densities ({len(x_0)},), "
                        f"got {tuple(x.shape)} and {tuple(log_q.shape)}"
                    )
                rest = double(log_q)
            elif dequantise == "uniform":
                x = x_0 + width * (torch.special.ndtr(double(eps)) - 0.5).to(x_0)
                rest = torch.full((len(x_0),), -d * math.log(width), dtype=double_on(x_0.device), device=x_0.device)
            else:
                x = path.q_sample(x_0, t, eps)
                guess = model.x0(x, t, **conditions)
                log_q = standard(path.sigma(t) * double(eps), path.sigma(t))
                rest = log_q + step_term(path, double(x_0), double(x), double(guess), t, 0.0, "beta", bins=levels)
            found = log_prob(model, x, stop=t, seed=own, **options)
        nats.append(rest - found.value)
        nfe = max(nfe, found.nfe + (dequantise == "forward"))
    bits = torch.stack(nats) / (d * math.log(2))
    return Bits(bits.mean(0), standard_error(bits), nfe)


class Dequantiser(nn.Module):
    """Variational dequantisation: noise `u = Δ (sigmoid(m + e^r ε) − ½)` with m and r from a network of x_0.

    Train it on `E[log q − log p]`, which `bits_per_dim(..., grad=True)` gives.

    Args:
        net: x_0 (B, C, ...) to twice the channels, m and r. width: Δ.

    Called with x_0 and standard normals ε of its shape, it gives x_0 + u and log q(u), (B,).

    Reference:
        Flow++ (Ho et al., 2019), Section 3.1.
    """

    def __init__(self, net: nn.Module, width: float) -> None:
        super().__init__()
        self.net, self.width = net, number("width", width, above=0)

    def forward(self, x_0: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """x_0 + u, and log q(u)."""
        mean, log_scale = self.net(x_0).chunk(2, dim=1)
        z = mean + log_scale.exp() * eps
        u = torch.sigmoid(z)
        slope = nn.functional.logsigmoid(z) + nn.functional.logsigmoid(-z) + math.log(self.width)  # log du/dz
        return x_0 + self.width * (u - 0.5), -flat(gaussian_nll(z, mean, 2 * log_scale) + slope).sum(1)
