"""The variational bound: what DDPM was derived from, term by term, and its limit in continuous time.

    −log p(x_0) ≤ L_T + Σ L_{t−1} + L_0,
    L_T = KL(q(x_T∣x_0) ‖ p(x_T)),  L_{t−1} = E KL(q(x_s∣x_t, x_0) ‖ p(x_s∣x_t)),  L_0 = −E log p(x_0∣x_1).

Reference:
    Denoising Diffusion Probabilistic Models (Ho et al., 2020), Eq. 5; Variational Diffusion Models (Kingma et al., 2021),
    Eqs. 11 to 18.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoreflow._core.chain import discretised_nll, gaussian_kl, gaussian_nll
from scoreflow._core.check import check_state, flag, one_of, whole
from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.grid import check_ends, check_times, inner_ends
from scoreflow._core.grid import grid as make_grid
from scoreflow._core.noise import White, check_seed
from scoreflow._core.row import double, double_on, flat, per_sample, standard_error, wide
from scoreflow._run.walk import FiniteCheck, shown
from scoreflow._score.model import ScoreModel, check_model, check_settled
from scoreflow._score.variance import Levels

VARIANCES = ("posterior", "beta", "interpolated", "learned", "analytic")
DECODERS = ("discrete", "gaussian")


class Bound(NamedTuple):
    """An upper bound on −log p, in nats a sample, float64.

    Attributes:
        value: (B,), the sum of the three. error: its standard error over the draws, (B,); NaN where one draw was made.
        prior: L_T, (B,). diffusion: the sum of the L_{t−1}, (B,). decoder: L_0, (B,).
        terms: every L_{t−1}, (N − 1, B), from the prior down; None in continuous time.
        times: the N + 1 times, falling; in continuous time the two ends.
        nfe: network evaluations; the most of any sample.
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
    progress: bool = False,
    **conditions: Any,
) -> Bound:
    """The bound of the chain of N steps of `ddpm` on this path, every term with its own draw of noise.

    Args:
        model: any score model.
        x_0: data (B, ...).
        variance: of a step: "posterior" β̃, "beta", "interpolated" between the two by the network's variance output,
            "learned", that output as log σ², or "analytic", the best one scalar, from `levels` (`estimate_variance`).
        steps, grid: of the chain; by default all its own nodes. The last time must be 0.
        decoder: "discrete", the mass of x_0's bin among `bins` levels from −1 to 1; "gaussian", the density of the last step.
        draws: of the noise, for every term.
        seed: of the draws. progress: show a bar.

    Raises:
        ValueError, TypeError: values that are not allowed; a variance that the network does not speak of. FloatingPointError:
            an output that is not finite.
    """
    check_model(model)
    check_state("x_0", x_0)
    x_0 = wide(x_0)
    conditions = model.check_conditions(conditions, tuple(inspect.signature(vlb).parameters))
    flag("progress", progress)
    check_settled(model)
    one_of("variance", variance, VARIANCES)
    one_of("decoder", decoder, DECODERS)
    if (variance == "analytic") != (levels is not None):
        raise ValueError(
            f"variance={variance!r} and levels={levels!r}: analytic takes levels=estimate_variance(...), others none"
        )
    if levels is not None and not isinstance(levels, Levels):
        raise TypeError(f"levels must be of estimate_variance(...), got {levels!r}")
    path, n = model.path, whole("draws", draws)
    if grid is None or isinstance(grid, str):
        length = path.T if steps is None else whole("steps", steps)
        if length is None:
            raise ValueError(f"steps=None: {path} has no chain of its own; give steps")
        times = make_grid(path, length, grid, start=inner_ends(path)[1], stop=0.0)
    elif steps is not None:
        raise ValueError(f"steps={steps} and explicit times in grid exclude each other: the times say it all")
    else:
        times = check_times(grid)
    if times[-1] != 0:
        raise ValueError(f"the chain must end at the data, t=0, got {times[-1]}")
    noise = White(check_seed(seed, len(x_0))).draws("probe")
    terms, last = list[Tensor](), list[Tensor]()
    first = path.posterior_std(times[-3], times[-2]) if len(times) > 2 else path.forward(0.0, times[-2]).z
    finite_check, bins = FiniteCheck(), whole("bins", bins, 2)
    how: dict[str, Any] = {"finite_check": finite_check, "first": first, "levels": levels, "decoder": decoder, "bins": bins}
    if levels is not None and levels(path, times[-2]) == 0:
        raise ValueError(f"levels has variance 0 at t={times[-2]}, and a decoder needs a width: estimate_variance(by='error')")
    with torch.no_grad():
        prior = prior_term(path, x_0, times[0])
        for i, (t, s) in enumerate(shown(pairwise(times), len(times) - 1, "bound", progress)):
            finite_check.step, finite_check.span = i + 1, (t, s)
            seen = [_term(model, x_0, noise(x_0), t, s, variance, conditions, **how) for _ in range(n)]
            (last if s == 0 else terms).append(torch.stack(seen))
    each = torch.stack(terms) if terms else x_0.new_zeros((0, n, len(x_0)), dtype=double_on(x_0.device))
    finite_check.close()
    sums = each.sum(0) + last[0]
    return Bound(
        prior + sums.mean(0), standard_error(sums), prior, each.mean(1).sum(0), last[0].mean(0), each.mean(1), tuple(times),
        n * sum(int(model.evaluations(t)) for t in times[:-1]), flat(x_0).shape[1],
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
    progress: bool = False,
    **conditions: Any,
) -> Bound:
    """The limit of ever more steps: `L_T + ∫ ‖ε − ε̂‖² dλ + L_0`, the integral over λ from `start` to `stop`.

    It is taken at `points` places, one in each of as many even parts of λ, `repeats` times over, which gives the error.

    Args:
        decoder, bins: as of `vlb`, for the step from `stop` to the data.
        start, stop: by default the ends that networks are trained on.
        seed: of the places and the draws. progress: show a bar.

    Raises:
        ValueError, TypeError: values that are not allowed. FloatingPointError: an output that is not finite.
    """
    check_model(model)
    check_state("x_0", x_0)
    x_0 = wide(x_0)
    conditions = model.check_conditions(conditions, tuple(inspect.signature(continuous_bound).parameters))
    flag("progress", progress)
    check_settled(model)
    one_of("decoder", decoder, DECODERS)
    path = model.path
    low, high = inner_ends(path)
    low, high = low if stop is None else stop, high if start is None else start
    check_ends(high, low)
    if path.sigma(low) == 0 or path.alpha(high) == 0:
        raise ValueError(f"start={high}, stop={low}: lambda is infinite at an end of {path}; use 0 < stop < start, start < 1")
    n, k, bins, finite_check = whole("points", points), whole("repeats", repeats), whole("bins", bins, 2), FiniteCheck()
    finite_check.span = (high, low)
    source = White(check_seed(seed, len(x_0)))
    noise, place = source.draws("probe"), torch.empty(len(x_0), 1, dtype=double_on(x_0.device), device=x_0.device)
    span, sums = path.lam(low) - path.lam(high), list[Tensor]()
    counts = torch.full((len(x_0),), k * int(model.evaluations(low)), device=x_0.device)
    with torch.no_grad():
        prior = prior_term(path, x_0, high)
        for repeat in range(k):
            total = torch.zeros(len(x_0), dtype=double_on(x_0.device), device=x_0.device)
            for i in shown(range(n), n, f"bound {repeat + 1} of {k}", progress):
                u = (i + torch.special.ndtr(source.normal(place, "place", repeat, i)).flatten()) / n
                t, eps = path.time(path.lam(high) + span * u), noise(x_0)
                off = model.eps(path.q_sample(x_0, t, eps), t, **conditions) - eps
                counts = counts + model.evaluations(t)
                finite_check.step += 1
                finite_check.look(off, "the network's output")
                total += flat(double(off)).square().sum(1)
            decoded = _term(
                model, x_0, noise(x_0), low, 0.0, "beta", conditions, finite_check=finite_check, decoder=decoder, bins=bins
            )
            sums.append(torch.stack([span * total / n, decoded]))
    finite_check.close()
    found = torch.stack(sums)
    diffusion, last = found.mean(0)
    value = prior + diffusion + last
    return Bound(
        value, standard_error(found.sum(1)), prior, diffusion, last, None, (high, low, 0.0), max(counts.tolist(), default=0),
        flat(x_0).shape[1],
    )  # fmt: skip


def _term(
    model: ScoreModel, x_0: Tensor, eps: Tensor, t: float, s: float, variance: str, conditions: dict[str, Any], *,
    finite_check: FiniteCheck, **how: Any,
) -> Tensor:  # fmt: skip
    """`step_term` of one draw of x_t, (B,), float64."""
    x_t = model.path.q_sample(x_0, t, eps)
    output, variance_output = model.evaluate(x_t, t, **conditions)
    finite_check.look(output, "the network's output")
    guess = model.express(output, x_t, t, "x0")
    variance_output = None if variance_output is None else double(variance_output)
    return step_term(
        model.path, double(x_0), double(x_t), double(guess), t, s, variance, variance_output=variance_output, **how
    )


def prior_term(path: GaussianPath, x_0: Tensor, t: float) -> Tensor:
    """`KL(N(α x_0, σ² I) ‖ N(0, (α² + σ²) I))` at t, (B,)."""
    zero = torch.zeros_like(double(x_0))
    mean = path.q_sample(double(x_0), t, zero)
    here, there = (torch.full_like(zero, 2 * math.log(std)) for std in (path.sigma(t), path.prior_std(t)))
    return flat(gaussian_kl(mean, here, zero, there)).sum(1)


def step_term(
    path: GaussianPath,
    x_0: Tensor,
    x_t: Tensor,
    guess: Tensor,
    t: float | Tensor,
    s: float | Tensor,
    variance: str = "posterior",
    *,
    variance_output: Tensor | None = None,
    first: float | None = None,
    levels: Levels | None = None,
    decoder: str = "discrete",
    bins: int = 256,
) -> Tensor:
    """`KL(q(x_s∣x_t, x_0) ‖ N(μ, v))`, μ the mean of `ddpm` with x̂_0 = `guess`; at s = 0 `−log p(x_0∣x_t)`. In nats, (B,).

    Args:
        x_0, x_t, guess: (B, ...), of one dtype, which the arithmetic has. t, s: numbers, or one a sample, (B,).
        variance, levels, decoder, bins: as of `vlb`. At s = 0, where β̃ = 0, the posterior's is β: the decoder has a width.
        variance_output: the network's, for "interpolated" and "learned".
        first: √β̃ of the step before the last, which the interpolation has for β̃ at s = 0, as in the authors' code; of the
            chain if None.

    Raises:
        ValueError: a variance output or levels that are wanted and None.
    """
    t, s = (torch.as_tensor(u, dtype=double_on(x_0.device), device=x_0.device).reshape(-1) for u in (t, s))
    row, last = path.bridge(t, s, 1.0), s == 0
    beta, std = path.forward(s, t).z, row.z
    known, mean = (row._replace(z=0.0)(x_t, [x]) for x in (x_0, guess))

    def log(std: Any) -> Any:
        return 2 * per_sample(torch.as_tensor(std).log(), x_0)

    if variance in ("interpolated", "learned"):
        if variance_output is None:
            raise ValueError(f"variance={variance!r} needs a network with twice the channels; use posterior, beta or analytic")
        if first is None:
            first = path.posterior_std(2 / path.T, 1 / path.T) if path.T and path.T > 1 else beta
        low = log(torch.where(last, first, std))
        log_var = variance_output if variance == "learned" else low + (variance_output + 1) / 2 * (log(beta) - low)
    elif variance == "analytic":
        if levels is None:
            raise ValueError("levels=None: variance='analytic' takes estimate_variance(...)")
        left = torch.tensor([levels(path, float(u)) for u in t], dtype=t.dtype, device=t.device)
        log_var = log((std**2 + row.m[0] ** 2 * left).sqrt())
    else:
        log_var = log(beta if variance == "beta" else torch.where(last, beta, std))
    log_var = log_var.expand_as(mean)
    kl = gaussian_kl(known, log(torch.where(last, beta, std)), mean, log_var)
    if len(last) == 1 and not last:
        return flat(kl).sum(1)
    nll = discretised_nll(x_0, mean, log_var / 2, bins) if decoder == "discrete" else gaussian_nll(x_0, mean, log_var)
    return flat(torch.where(per_sample(last, x_0).bool(), nll, kl)).sum(1)
