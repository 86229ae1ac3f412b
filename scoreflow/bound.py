"""The variational bound: what DDPM was derived from, term by term, and its limit in continuous time.

    −log p(x_0) ≤ L_T + Σ L_{t−1} + L_0,
    L_T = KL(q(x_T∣x_0) ‖ p(x_T)),  L_{t−1} = E KL(q(x_s∣x_t, x_0) ‖ p(x_s∣x_t)),  L_0 = −E log p(x_0∣x_1).

Reference:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), Eq. 5; Variational Diffusion Models (Kingma et al., 2021),
    Eqs. 11 to 18.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoreflow.chain import discretised_nll, gaussian_kl
from scoreflow.check import one_of, whole
from scoreflow.grid import check_times, inner_ends
from scoreflow.grid import grid as make_grid
from scoreflow.model import ScoreModel
from scoreflow.noise import White, check_seed
from scoreflow.path import GaussianPath
from scoreflow.solve import check_model, check_state
from scoreflow.variance import Levels

VARIANCES = ("posterior", "beta", "interpolated", "learned", "analytic")
DECODERS = ("discrete", "gaussian")


class Bound(NamedTuple):
    """An upper bound on −log p, in nats a sample, float64.

    Attributes:
        value: (B,), the sum of the three. error: its standard error over the draws, (B,); NaN where one draw was made.
        prior: L_T, (B,). diffusion: the sum of the L_{t−1}, (B,). decoder: L_0, (B,).
        terms: every L_{t−1}, (N − 1, B), from the prior down; None in continuous time.
        times: the N + 1 times, falling; in continuous time the two ends.
        nfe: network evaluations a sample.
    """

    value: Tensor
    error: Tensor
    prior: Tensor
    diffusion: Tensor
    decoder: Tensor
    terms: Tensor | None
    times: tuple[float, ...]
    nfe: int
    entries: int

    @property
    def bits_per_dim(self) -> Tensor:
        """The value in bits an entry, (B,): of the data's own levels with the discrete decoder, of a density with the other."""
        return self.value / (self.entries * math.log(2))


def vlb(
    model: ScoreModel,
    x_0: Tensor,
    *,
    variance: str = "posterior",
    levels: Levels | None = None,
    steps: int | None = None,
    grid: str | Sequence[float] | None = None,
    decoder: str = "discrete",
    bins: int = 256,
    draws: int = 1,
    seed: int | Sequence[int] = 0,
    **conditions: Any,
) -> Bound:
    """The bound of the chain of N steps of `ddpm` on this path, every term with its own draw of noise.

    Args:
        model: any score model.
        x_0: data (B, ...).
        variance: of a step: "posterior" β̃, "beta", "interpolated" between the two by the network's word, "learned" as that
            word says, or "analytic", the best one scalar, from `levels` (`estimate_variance`).
        steps, grid: of the chain; by default all its own nodes. The last time must be 0.
        decoder: "discrete", the mass of x_0's bin among `bins` levels from −1 to 1; "gaussian", the density of the last step.
        draws: of the noise, for every term.
        seed: of the draws.

    Raises:
        ValueError, TypeError: values that are not allowed; a variance that the network does not speak of.
    """
    check_model(model)
    check_state("x_0", x_0)
    one_of("variance", variance, VARIANCES)
    one_of("decoder", decoder, DECODERS)
    if (variance == "analytic") != (levels is not None):
        raise ValueError(
            f"variance={variance!r} and levels={levels!r}: analytic takes levels=estimate_variance(...), others none"
        )
    path, n = model.path, whole("draws", draws)
    if grid is None or isinstance(grid, str):
        length = path.T if steps is None else whole("steps", steps)
        if length is None:
            raise ValueError(f"steps=None: {path} has no chain of its own; give steps")
        times = make_grid(path, length, grid, start=inner_ends(path)[1], stop=0.0)
    else:
        times = check_times(grid)
    if times[-1] != 0:
        raise ValueError(f"the chain must end at the data, t=0, got {times[-1]}")
    noise = White(check_seed(seed, len(x_0))).draws("probe")
    before, terms, last = model.nfe, list[Tensor](), list[Tensor]()
    first = float(path.posterior_std(times[-3], times[-2])) if len(times) > 2 else 0.0
    with torch.no_grad():
        for t, s in pairwise(times):
            seen = [_term(model, x_0, noise(x_0), t, s, variance, levels, decoder, bins, conditions, first) for _ in range(n)]
            (last if s == 0 else terms).append(torch.stack(seen))
    each = torch.stack(terms) if terms else x_0.new_zeros((0, n, len(x_0)), dtype=torch.float64)
    sums = each.sum(0) + last[0]
    prior = prior_term(path, x_0, times[0])
    error = sums.std(0) / math.sqrt(n) if n > 1 else torch.full_like(prior, math.nan)
    return Bound(
        prior + sums.mean(0), error, prior, each.mean(1).sum(0), last[0].mean(0), each.mean(1), tuple(times),
        model.nfe - before, x_0[0].numel(),
    )  # fmt: skip


def continuous_bound(
    model: ScoreModel,
    x_0: Tensor,
    *,
    points: int = 128,
    decoder: str = "discrete",
    bins: int = 256,
    start: float | None = None,
    stop: float | None = None,
    repeats: int = 4,
    seed: int | Sequence[int] = 0,
    **conditions: Any,
) -> Bound:
    """The limit of ever more steps: `L_T + ∫ ‖ε − ε̂‖² dλ + L_0`, the integral over λ from `start` to `stop`.

    It is taken at `points` places, one in each of as many even parts of λ, `repeats` times over, which gives the error.

    Args:
        decoder, bins: as of `vlb`, for the step from `stop` to the data.
        start, stop: by default the ends that networks are trained on.

    Raises:
        ValueError, TypeError: values that are not allowed.
    """
    check_model(model)
    check_state("x_0", x_0)
    one_of("decoder", decoder, DECODERS)
    path = model.path
    low, high = inner_ends(path)
    low, high = low if stop is None else stop, high if start is None else start
    n, k = whole("points", points), whole("repeats", repeats)
    noise, generator = White(check_seed(seed, len(x_0))).draws("probe"), torch.Generator().manual_seed(0)
    span, before, sums = path.lam(low) - path.lam(high), model.nfe, list[Tensor]()
    with torch.no_grad():
        for _ in range(k):
            total = torch.zeros(len(x_0), dtype=torch.float64, device=x_0.device)
            for i in range(n):
                u = (i + torch.rand(len(x_0), generator=generator, dtype=torch.float64)) / n
                t = path.time(path.lam(high) + span * u).to(x_0.device)
                eps = noise(x_0)
                x_t = _like(path.alpha(t), x_0) * x_0 + _like(path.sigma(t), x_0) * eps
                total += (model.eps(x_t, t, **conditions) - eps).double().flatten(1).square().sum(1)
            decoded = _term(model, x_0, noise(x_0), low, 0.0, "beta", None, decoder, bins, conditions)
            sums.append(torch.stack([span * total / n, decoded]))
    found, prior = torch.stack(sums), prior_term(path, x_0, high)
    each = found.sum(1)
    error = each.std(0) / math.sqrt(k) if k > 1 else torch.full_like(prior, math.nan)
    diffusion, last = found.mean(0)
    value = prior + diffusion + last
    return Bound(value, error, prior, diffusion, last, None, (high, low, 0.0), model.nfe - before, x_0[0].numel())


def decoder_term(model: ScoreModel, x_0: Tensor, x_t: Tensor, t: float, bins: int = 256, **conditions: Any) -> Tensor:
    """`−log P(x_0∣x_t)`, the mass of x_0's bin under the step from t to the data, of variance β, (B,)."""
    with torch.no_grad():
        row, beta = model.path.bridge(t, 0.0, 1.0), model.path.forward(0.0, t).z
        guess = row._replace(z=0.0)(x_t, [model.x0(x_t, t, **conditions)]).double()
    return discretised_nll(x_0.double(), guess, torch.full_like(guess, math.log(beta)), bins).flatten(1).sum(1)


def prior_term(path: GaussianPath, x_0: Tensor, t: float) -> Tensor:
    """`KL(N(α x_0, σ² I) ‖ N(0, (α² + σ²) I))` at t, (B,)."""
    mean, zero = path.alpha(t) * x_0.double(), torch.zeros_like(x_0, dtype=torch.float64)
    here, there = (torch.full_like(zero, 2 * math.log(std)) for std in (path.sigma(t), path.prior_std(t)))
    return gaussian_kl(mean, here, zero, there).flatten(1).sum(1)


def _term(
    model: ScoreModel, x_0: Tensor, eps: Tensor, t: float, s: float, variance: str, levels: Levels | None, decoder: str,
    bins: int, conditions: dict[str, Any], first: float = 0.0,
) -> Tensor:  # fmt: skip
    """L_{t−1} or, at s = 0, L_0, of one draw of x_t, (B,)."""
    path = model.path
    x_t = path.alpha(t) * x_0 + path.sigma(t) * eps
    output, word = model.evaluate(x_t, t, **conditions)
    row, beta = path.bridge(t, s, 1.0), path.forward(s, t).z
    guess, known = (row._replace(z=0.0)(x_t, [x]).double() for x in (model.express(output, x_t, t, "x0"), x_0))
    log_var = _log_variance(path, word, float(row.z), float(beta), first or float(beta), t, s, variance, levels, known)
    if s > 0:
        return gaussian_kl(known, torch.full_like(known, 2 * math.log(row.z)), guess, log_var).flatten(1).sum(1)
    if decoder == "discrete":
        return discretised_nll(x_0.double(), guess, log_var / 2, bins).flatten(1).sum(1)
    off = (x_0.double() - guess).square() * (-log_var).exp()
    return (0.5 * (off + log_var + math.log(2 * math.pi))).flatten(1).sum(1)


def _log_variance(
    path: GaussianPath, word: Tensor | None, std: float, beta: float, first: float, t: float, s: float, variance: str,
    levels: Levels | None, like: Tensor,
) -> Tensor:  # fmt: skip
    """Of the step, entry by entry. At the data, where β̃ = 0, it is β: the decoder must have a width. The interpolation has
    the β̃ of the step before there, √ of which is `first`, as in the authors' code."""
    if variance in ("interpolated", "learned"):
        if word is None:
            raise ValueError(f"variance={variance!r} needs a network with twice the channels; use posterior, beta or analytic")
        if variance == "learned":
            return word.double()
        low = 2 * math.log(std or first)
        share = (word.double() + 1) / 2
        return share * 2 * math.log(beta) + (1 - share) * low
    if variance == "analytic":
        assert levels is not None
        m = float(path.bridge(t, s, 1.0).m[0])
        return torch.full_like(like, math.log(std**2 + m**2 * levels(path, t)))
    return torch.full_like(like, 2 * math.log(beta if variance == "beta" or not std else std))


def _like(weight: Tensor, x: Tensor) -> Tensor:
    return weight.to(x).reshape(-1, *[1] * (x.ndim - 1))
