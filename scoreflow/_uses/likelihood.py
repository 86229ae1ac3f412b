"""Exact likelihood by the probability-flow ODE, and the way to the prior and back.

With `y = x/α` and `u = log κ` the ODE is `dy/du = κ ε̂(α y, t)`, and along it the log-density of y falls by the trace of
`∂(κ ε̂)/∂y`. So

    log p_s(x_s) = log p_T(x_T) + d log(α_T/α_s) + ∫_s^T σ tr(∂ε̂/∂x) du.

Reference:
    Score-Based Generative Modeling through SDEs (Song et al., 2021), Section 4.3; FFJORD (Grathwohl et al., 2019).
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoreflow._core.chain import gaussian_nll
from scoreflow._core.check import check_state, flag, number, one_of, whole
from scoreflow._core.control import Control
from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.grid import check_ends, default_t_min
from scoreflow._core.noise import White, check_seed
from scoreflow._core.row import double, double_on, flat, per_sample, standard_error, wide
from scoreflow._run.walk import Run
from scoreflow._samplers.runge_kutta import TABLEAUS, Tableau
from scoreflow._score.model import ScoreModel, check_model, check_settled

DOPRI5 = Tableau(
    (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    5,
)
"""Dormand & Prince (1980); its last stage is the first of the next step."""
LOWER = (5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40)
"""The weights of the embedded solution of order 4."""
CONTROL = Control(0.7 / 5, 0.4 / 5)
Slope = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
METHODS = ("dopri5", *TABLEAUS)
DIVERGENCES = ("hutchinson", "exact")


class LogProb(NamedTuple):
    """A log-density by the ODE.

    Attributes:
        value: log p at x, in nats, (B,), float64.
        error: its standard error over the probes, (B,): 0 with the exact divergence, NaN with a single probe.
        latent: where the ODE leads to at the prior, (B, ...).
        nfe: network evaluations; the most of any sample. Score and divergence share each; the divergence takes as many passes
            back through the network as there are probes, or entries where it is exact.
    """

    value: Tensor
    error: Tensor
    latent: Tensor
    nfe: int

    def bits_per_dim(self, levels: int = 256, low: float = -1.0, high: float = 1.0) -> Tensor:
        """`−log₂ p/d − log₂ Δ`, Δ = (high − low)/(levels − 1): bits an entry, (B,), of data with `levels` values from low to
        high, when x has uniform noise in their bins."""
        d = flat(self.latent).shape[1]
        width = (number("high", high, above=number("low", low)) - low) / (whole("levels", levels, 2) - 1)
        return -self.value / (d * math.log(2)) - math.log2(width)


def log_prob(
    model: ScoreModel,
    x: Tensor,
    *,
    method: str = "dopri5",
    steps: int | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    divergence: str = "hutchinson",
    probes: int = 1,
    prior: Callable[[Tensor], Tensor] | None = None,
    start: float = 1.0,
    stop: float | None = None,
    seed: int | Sequence[int] = 0,
    grad: bool = False,
    **conditions: Any,
) -> LogProb:
    """The log-density at time `stop` of what the probability-flow ODE makes of the prior at `start`.

    Args:
        model: any score model, guided or not.
        x: states at `stop`, (B, ...).
        method: "dopri5", whose steps are set by the error of each sample; or euler, midpoint, heun, rk4 with `steps` of even
            length in λ.
        rtol, atol: of dopri5, for x/α and for the log-density. steps: of the others.
        divergence: "exact", one pass back for every entry; or "hutchinson", `vᵀ (∂ε̂/∂x) v` with `probes` vectors v of ±1 a
            sample, the same along the whole way.
        prior: log-density of the states at `start`, (B, ...) to (B,); `N(0, (α² + σ²) I)` if None. The data's own law there is
            another, and what lies between the two is in the value: about 1e-2 nat on a VP path, however small the tolerance.
        start, stop: by default stop is the chain's first node, or 1e-3, where the density is that of the data with the noise
            σ(stop).
        seed: of the probes; a sequence is one a sample, so that none depends on its batch-mates.
        grad: record for differentiation, by the states and by the network's weights.
        conditions: of the network.

    Raises:
        ValueError, TypeError: values that are not allowed; a start where α = 0; stop where σ = 0. FloatingPointError: an output
            that is not finite. RuntimeError: an output that has no gradient by x.
    """
    chosen: dict[str, Any] = {"method": method, "steps": steps, "rtol": rtol, "atol": atol}
    flow = _Flow.of(model, x, **chosen, start=start, stop=stop, grad=grad, **conditions)
    one_of("divergence", divergence, DIVERGENCES)
    if prior is not None and not callable(prior):
        raise TypeError(f"prior must be a function from states (B, ...) to log-densities (B,), got {prior!r}")
    vectors: Tensor | None = None
    if divergence == "hutchinson":
        noise = White(check_seed(seed, len(x))).draws("probe")
        vectors = torch.stack([noise(wide(x)).sign() for _ in range(whole("probes", probes))])
    with torch.set_grad_enabled(grad):
        y, trace = flow.up(x, vectors, divergence == "exact")
        x_T = y * flow.path.alpha(start)
        density = standard(x_T, flow.path.prior_std(start)) if prior is None else prior(x_T)
        if not isinstance(density, Tensor) or density.shape != (len(x),):
            got = tuple(density.shape) if isinstance(density, Tensor) else type(density).__name__
            raise ValueError(f"prior must give one log-density a sample, a tensor of shape ({len(x)},), got {got}")
        scale = flat(x).shape[1] * (flow.path.log_alpha(start) - flow.path.log_alpha(flow.stop))
        each = double(density)[:, None] + scale + trace
    error = torch.zeros_like(each[:, 0]) if vectors is None else standard_error(each.detach().mT)
    return LogProb(each.mean(1), error, x_T.to(x.dtype), int(flow.run.counts.max(initial=0)))


ARGUMENTS = tuple(inspect.signature(log_prob).parameters)[2:-1]
"""Of `log_prob`, `encode` and `decode`: what is no condition of the network."""


def encode(model: ScoreModel, x: Tensor, **keywords: Any) -> Tensor:
    """The latents of states x at `stop`: where the ODE leads to at `start`.

    Args:
        keywords: method, steps, rtol, atol, start, stop, grad and conditions, as of `log_prob`, whose errors it has.
    """
    flow = _Flow.of(model, x, **keywords)
    with torch.set_grad_enabled(flow.grad):
        return (flow.up(x, None, False)[0] * flow.path.alpha(flow.start)).to(x.dtype)


def decode(model: ScoreModel, z: Tensor, **keywords: Any) -> Tensor:
    """The states at `stop` of latents z at `start`, by the same ODE; keywords and errors as of `encode`."""
    flow = _Flow.of(model, z, **keywords)
    with torch.set_grad_enabled(flow.grad):
        return (flow.down(z) * flow.path.alpha(flow.stop)).to(z.dtype)


def standard(x: Tensor, std: float) -> Tensor:
    """`log N(x; 0, std² I)`, (B,), float64."""
    return -flat(gaussian_nll(double(x), 0.0, 2 * math.log(std))).sum(1)


@dataclass
class _Flow:
    """The ODE of one call: dy/du with the trace that goes with it, and its solution between two values of u."""

    run: Run
    path: GaussianPath
    tableau: Tableau
    steps: int | None
    rtol: float
    atol: float
    start: float
    stop: float
    grad: bool

    @classmethod
    def of(
        cls, model: ScoreModel, x: Tensor, *, method: str = "dopri5", steps: int | None = None, rtol: float = 1e-5,
        atol: float = 1e-5, start: float = 1.0, stop: float | None = None, grad: bool = False, **conditions: Any,
    ) -> _Flow:  # fmt: skip
        """Checked."""
        check_model(model)
        check_state("x", x)
        conditions = model.check_conditions(conditions, ARGUMENTS)
        path, low = model.path, default_t_min(model.path) if stop is None else stop
        check_ends(start, low)
        if path.sigma(low) == 0:
            raise ValueError(f"stop={low}: the density of noiseless data has no score there; use a stop above it, such as 1e-3")
        if path.alpha(start) == 0:
            raise ValueError(f"start={start}: alpha=0 there, and the states say nothing of x/alpha; use a start below it")
        one_of("method", method, METHODS)
        adaptive = method == "dopri5"
        if adaptive == (steps is not None):
            rule = "sets its own steps: give rtol and atol" if adaptive else "has no error estimate: give steps"
            raise ValueError(f"steps={steps}: method {method!r} {rule}")
        number("rtol", rtol, 0), number("atol", atol, above=0), flag("grad", grad)
        check_settled(model, grad)
        chosen = DOPRI5 if adaptive else TABLEAUS[method]
        length = None if steps is None else whole("steps", steps)
        return cls(Run(model.begin(None), conditions, len(x)), path, chosen, length, rtol, atol, start, low, grad)

    def up(self, x: Tensor, vectors: Tensor | None, exact: bool) -> tuple[Tensor, Tensor]:
        """From states at stop: y at start, and the integral of the trace, (B, probes)."""
        y = wide(x) / self.path.alpha(self.stop)
        return self._solve(y, -self.path.lam(self.stop), -self.path.lam(self.start), vectors, exact)

    def down(self, z: Tensor) -> Tensor:
        """From latents at start: y at stop."""
        begin, end = -self.path.lam(self.start), -self.path.lam(self.stop)
        y = wide(z) / self.path.alpha(self.start)
        return self._solve(y, begin, end, None, False)[0]

    def slope(self, y: Tensor, u: Tensor, at: Tensor, vectors: Tensor | None, exact: bool) -> tuple[Tensor, Tensor]:
        """`κ ε̂` and its divergence by y, `σ tr(∂ε̂/∂x)`, of the samples `at`, at y (n, ...) and u (n,)."""
        t = self.path.time(-u).clamp(self.stop, self.start)
        alpha, kappa = self.path.alpha(t), self.path.kappa(t)
        if len(t):
            self.run.finite_check.step, self.run.finite_check.span = self.run.rounds + 1, (float(t.max()), float(t.min()))
        x = per_sample(alpha, y) * y
        if vectors is None and not exact:
            eps = self.run.express(self.run.evaluate_samples(x, t, at), x, t, "eps")
            return per_sample(kappa, y) * eps.to(y), u.new_zeros(len(y), 1)
        with torch.enable_grad():
            state = x if self.grad and x.requires_grad else x.detach().requires_grad_()
            output = self.run.evaluate_samples(state, t, at)
            traces = []
            for v in _basis(state) if exact else vectors[:, at]:  # type: ignore[index]
                back = self._back(output, state, v)
                traces.append(double(flat(self.run.express(back, v, t, "eps") * v).sum(1)))  # linear in both
            eps = self.run.express(output, state, t, "eps")
        trace = torch.stack(traces, 1)
        if not self.grad:
            eps, trace = eps.detach(), trace.detach()
        trace = trace.sum(1, keepdim=True) if exact else trace
        return per_sample(kappa, y) * eps.to(y), self.path.sigma(t)[:, None] * trace

    def _back(self, output: Tensor, state: Tensor, v: Tensor) -> Tensor:
        """`vᵀ ∂output/∂x`."""
        back = None
        if output.requires_grad:
            (back,) = torch.autograd.grad(output, state, v, retain_graph=True, create_graph=self.grad, allow_unused=True)
        if back is None:
            raise RuntimeError(
                "the network's output has no gradient by x: it detaches x, or runs under no_grad or inference_mode"
            )
        return back

    def _solve(self, y: Tensor, begin: float, end: float, vectors: Tensor | None, exact: bool) -> tuple[Tensor, Tensor]:
        """y and the integral of the trace, from one u to the other."""
        everyone = torch.arange(len(y), device=y.device)
        total = torch.zeros(len(y), 1 if vectors is None else len(vectors), dtype=double_on(y.device), device=y.device)

        def slope(y: Tensor, u: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
            return self.slope(y, u, at, vectors, exact)

        if self.steps is not None:
            nodes = np.linspace(begin, end, self.steps + 1)
            for a, b in itertools.pairwise(nodes):
                u, h = (torch.full((len(y),), v, dtype=double_on(y.device), device=y.device) for v in (a, b - a))
                slopes = self._stages(y, u, h, everyone, [slope(y, u, everyone)], slope)
                y, total = (
                    _joined(v, h, self.tableau.b, parts) for v, parts in zip((y, total), zip(*slopes, strict=True), strict=True)
                )
        else:
            y, total = self._adaptive(y, total, begin, end, everyone, slope)
        self.run.finite_check.close()
        return y, total

    def _stages(
        self, y: Tensor, u: Tensor, h: Tensor, at: Tensor, slopes: list[tuple[Tensor, Tensor]], slope: Slope
    ) -> list[tuple[Tensor, Tensor]]:  # fmt: skip
        """The slopes of all stages, of which the first is known."""
        for c, a in zip(self.tableau.c[1:], self.tableau.a[1:], strict=True):
            slopes.append(slope(_joined(y, h, a, [k for k, _ in slopes]), u + c * h, at))
        return slopes

    def _adaptive(
        self, y: Tensor, total: Tensor, begin: float, end: float, everyone: Tensor, slope: Slope
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Dormand–Prince with steps of their own for every sample; who has arrived leaves the batch."""
        u = torch.full((len(y),), begin, dtype=double_on(y.device), device=y.device)
        h, before, refused = torch.full_like(u, (end - begin) / 50), torch.ones_like(u), torch.zeros(len(y), dtype=torch.bool)
        first = slope(y, u, everyone) if len(y) else (y, total)
        error_weights = [b - low for b, low in zip(DOPRI5.b, LOWER, strict=True)]
        while len(at := (u != end).nonzero().flatten()):
            left = end - u[at]
            step = torch.where(h[at].abs() * 1.1 >= left.abs(), left, h[at])
            old, trace = y[at], total[at]
            slopes = self._stages(old, u[at], step, at, [(first[0][at], first[1][at])], slope)
            (ks, ts) = zip(*slopes, strict=True)
            new, sums = _joined(old, step, DOPRI5.b, ks), _joined(trace, step, DOPRI5.b, ts)
            with torch.no_grad():
                off = self._off(old, new, _joined(torch.zeros_like(old), step, error_weights, ks))
                off = torch.maximum(off, self._off(trace, sums, _joined(torch.zeros_like(trace), step, error_weights, ts)))
                off = torch.where(off.isfinite(), off, math.inf)
                taken = off <= 1
                states = zip(off.tolist(), before[at].tolist(), refused[at.to("cpu")].tolist(), strict=True)
                h[at] = step * torch.tensor([CONTROL.factor(*one) for one in states], dtype=step.dtype, device=step.device)
                refused[at.to("cpu")] = ~taken.to("cpu")
                if bool((h[at].abs() < 1e-9 * abs(end - begin)).any()):
                    raise RuntimeError("a sample takes no step that is short enough: raise rtol or atol, or stop earlier")
            kept = at[taken]
            u[kept] = torch.where(step[taken] == left[taken], end, u[kept] + step[taken])
            before[kept] = off[taken].clamp(min=1e-4)
            y, total = y.index_put((kept,), new[taken]), total.index_put((kept,), sums[taken])
            first = tuple(f.index_put((kept,), k[taken]) for f, k in zip(first, slopes[-1], strict=True))  # type: ignore[assignment]
        return y, total

    def _off(self, old: Tensor, new: Tensor, error: Tensor) -> Tensor:
        scale = self.atol + self.rtol * double(torch.maximum(old.abs(), new.abs()))
        return flat(double(error) / scale).square().mean(1).sqrt()


def _basis(x: Tensor) -> Iterator[Tensor]:
    """The unit vectors of a state, each for all samples."""
    for k in range(flat(x).shape[1]):
        one = torch.zeros_like(flat(x))
        one[:, k] = 1
        yield one.reshape(x.shape)


def _joined(y: Tensor, h: Tensor, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """`y + h Σ w_i k_i`, h (n,)."""
    return y + per_sample(h, y) * sum(w * k for w, k in zip(weights, slopes, strict=False) if w)
