"""What can be said of a sampler without a network: its exact law on Gaussian data, its order, its stability, its weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoreflow._core.check import number, one_of, whole
from scoreflow._core.gaussian import GaussianPath, Prediction
from scoreflow._core.known import once
from scoreflow._core.noise import Brownian, Draws, White
from scoreflow._core.path import VESDE, VPSDE
from scoreflow._run.solve import plan as lay_out
from scoreflow._run.solve import solve
from scoreflow._samplers.health import Symbolic, UnitVectors
from scoreflow._samplers.plan import Plan, advance, drive
from scoreflow._samplers.step import Sampler, get_sampler
from scoreflow._score.model import ScoreModel
from scoreflow._score.oracle import Gaussian, GaussianMixture
from scoreflow._uses.straight import Straightness, straightness
from scoreflow.posterior import Posterior

__all__ = [
    "Law", "Order", "Straightness", "coefficients", "law", "order", "problem", "stability", "straightness",
]  # fmt: skip


class Law(NamedTuple):
    """What a linear sampler puts out on Gaussian data, from the prior N(0, prior_std² I): a Gaussian.

    Attributes:
        mean: (d,). cov: (d, d). Both float64.
        target: the data, or the exact posterior.
    """

    mean: Tensor
    cov: Tensor
    target: Gaussian

    @property
    def w2(self) -> float:
        """The Wasserstein-2 distance to the data, `|μ − μ'|² + min_U ‖C^{1/2} − C'^{1/2} U‖²` over orthogonal U, as a root."""
        ours, data = _root(self.cov), _root(self.target.cov)
        left, _, right = torch.linalg.svd(data @ ours)
        far = (self.mean - self.target.mean.flatten()).square().sum() + (ours - data @ left @ right).square().sum()
        return float(far.sqrt())

    @property
    def kl(self) -> float:
        """`KL(output ‖ data)` in nats; infinite where one of the two has no density."""
        if min(float(torch.linalg.eigvalsh(cov)[0]) for cov in (self.cov, self.target.cov)) <= 0:
            return float("inf")
        off = (self.mean - self.target.mean.flatten()).double()
        ratio = torch.linalg.solve(self.target.cov, self.cov)
        far = off @ torch.linalg.solve(self.target.cov, off)
        return float((ratio.trace() - len(off) + far - torch.linalg.slogdet(ratio)[1]) / 2)


def law(
    sampler: str | Sampler | Plan, path: GaussianPath, gaussian: Gaussian | Posterior, steps: int | None = None, **keywords: Any
) -> Law:
    """The exact output law on N(μ, Σ): each eigendirection of Σ is run on symbols.

    On Gaussian data a linear sampler is affine in x_T and its draws. The state of a direction is the vector of its
    weights on (1, x_T, draw 1, …, draw n), the k-th draw the k-th unit vector: no Monte Carlo. A `Posterior` mixes directions,
    so a draw is a unit vector for each entry.

    Args:
        sampler: a plan; or a sampler or its name, planned by `plan` with the steps and keywords: grid, nfe, start, ….
        path: the path.
        gaussian: the data; or a `Posterior` of a Gaussian's model, by a method that is affine in the state: all but `dps` and
            `mcg`, and `mmps` where its system is solved. The law is that of its samples, the target the exact posterior.

    Raises:
        ValueError: the plan was made for another path, or the sampler has none; a method that is not affine; and as `plan`.
    """
    if isinstance(sampler, Plan) and (steps is not None or keywords):
        raise ValueError(f"a plan has its steps, but {'steps' if steps is not None else next(iter(keywords))} was given too")
    plan = sampler if isinstance(sampler, Plan) else lay_out(sampler, path, steps, **keywords)
    if plan.path != repr(path):
        raise ValueError(f"the plan was made for {plan.path}, not for {path}")
    if isinstance(gaussian, Posterior):
        return _posterior_law(plan, gaussian)
    var, eigenvectors = torch.linalg.eigh(gaussian.cov)
    mean = eigenvectors.mT @ gaussian.mean
    size = plan.noise_count + 2
    model = Symbolic(path, mean, var, size, plan.analytic)
    x = torch.zeros(len(var), size, dtype=torch.float64)
    x[:, 1] = path.prior_std(plan.times[0])
    draws, memory = UnitVectors(), ()
    for step in plan.steps:
        x, memory, _ = drive(advance(step, plan, model, x, memory, draws), model)  # type: ignore[assignment]
    spread = x[:, 1:].square().sum(1)
    return Law(eigenvectors @ x[:, 0], (eigenvectors * spread) @ eigenvectors.mT, gaussian)


def _posterior_law(plan: Plan, model: Posterior) -> Law:
    """The law of a plan's samples from a `Posterior`."""
    if not isinstance(data := model.model.oracle, Gaussian):
        raise ValueError(f"gaussian must be a Gaussian, or a Posterior of a Gaussian's model, got {model!r}")
    if plan.path != repr(model.path):
        raise ValueError(f"the plan was made for {plan.path}, and the model stands on {model.path}")
    if not model.is_affine:
        raise ValueError(
            f"{model.kind} is not affine in the state, so that its samples are not Gaussian: mmps needs iterations=None"
        )
    affine = AffinePosterior(model, data, plan)
    x = torch.zeros(affine.d, affine.size, dtype=torch.float64)
    x[:, 1 : 1 + affine.d] = model.path.prior_std(plan.times[0]) * torch.eye(affine.d, dtype=torch.float64)
    draws, memory = UnitBlocks(), ()
    for step in plan.steps:
        x, memory, _ = drive(advance(step, plan, affine, x, memory, draws), affine)  # type: ignore[assignment]
    exact = data.posterior(model.observation)
    assert isinstance(exact, Gaussian)
    return Law(x[:, 0], x[:, 1:] @ x[:, 1:].mT, exact)


class UnitBlocks(Draws):
    """A noise whose k-th draw is the k-th block of unit vectors, one an entry, past the constant and x_T."""

    def __init__(self) -> None:
        super().__init__(White(0), "step")

    def _next(self, like: Tensor, t: float, s: float, area: bool) -> Tensor:
        draw, d = torch.zeros_like(like), len(like)
        draw[:, 1 + d * self.count : 1 + d * (self.count + 1)] = torch.eye(d, dtype=like.dtype)
        return draw


class GivenDraw(Draws):
    """The draw that it holds, or zeros."""

    held: Tensor | None = None

    def _next(self, like: Tensor, t: float, s: float, area: bool) -> Tensor:
        return torch.zeros_like(like) if self.held is None else self.held


class AffinePosterior:
    """A `Posterior` of a Gaussian's model on matrices of weights (d, size): on 1, x_T, the draws, and those of its own.

    What it does to a state x, `c + G x + H z`, z a draw of its own, is read off what it makes of unit vectors.
    """

    prediction: Prediction = "x0"

    def __init__(self, model: Posterior, data: Gaussian, plan: Plan) -> None:
        self.own = GivenDraw(White(0), "model")
        self.model, self.path, self.analytic = model.begin(plan).drawing(self.own), model.path, plan.analytic
        self.event, self.d = data.event, data.mean.numel()
        self.used = 1 + self.d * (1 + plan.noise_count)
        self.size = self.used + self.d * plan.nfe * model.method.follows

    def __call__(self, x: Tensor, t: float, prediction: Prediction = "eps") -> Tensor:
        if self.analytic is not None:
            v, self.analytic = self.analytic, None
            return x * self.path.gaussian(t, prediction, v)
        unit, before = torch.eye(self.d, dtype=torch.float64), self.own.count
        c, *rest = self._at(torch.cat([torch.zeros_like(unit[:1]), unit]), t)
        x_0 = (torch.stack(rest) - c).mT @ x
        x_0[:, 0] += c
        if self.own.count > before:
            self.own.held = unit.reshape(-1, *self.event)
            x_0[:, self.used : self.used + self.d] += (self._at(torch.zeros_like(unit), t) - c).mT
            self.own.held, self.used = None, self.used + self.d
        weight, m = self.path.convert("x0", prediction, t)
        return weight * x + m * x_0

    def _at(self, x: Tensor, t: float) -> Tensor:
        """x̂_0 given y at states (n, d)."""
        return self.model.x0(x.reshape(-1, *self.event), t).reshape(len(x), -1)


def _root(cov: Tensor) -> Tensor:
    var, eigenvectors = torch.linalg.eigh(cov)
    return (eigenvectors * var.clamp(min=0).sqrt()) @ eigenvectors.mT


# -- order ---------------------------------------------------------------------------------------------------------------


class Order(NamedTuple):
    """An observed order of convergence.

    Attributes:
        order: minus the slope of log error against log steps, by least squares.
        steps: the grid intervals. errors: one for each.
        kind: ode, weak or strong.
    """

    order: float
    steps: tuple[int, ...]
    errors: tuple[float, ...]
    kind: str


def problem(d: int = 3, components: int = 5, std: float = 0.3, seed: int = 0) -> GaussianMixture:
    """A Gaussian mixture with random means, on which `order` measures: on one Gaussian methods may superconverge."""
    whole("d", d), whole("components", components), number("std", std, least=0)
    g = torch.Generator().manual_seed(whole("seed", seed, 0))
    means = torch.randn(components, d, generator=g, dtype=torch.float64)
    weights = torch.rand(components, generator=g, dtype=torch.float64) + 0.5
    return GaussianMixture(weights, means, std**2)


def _exact(model: ScoreModel, x: Tensor, start: float, stop: float) -> Tensor:
    return solve(model, x, "scipy", method="DOP853", rtol=1e-11, atol=1e-11, grid=[start, stop]).x


def order(
    sampler: str | Sampler,
    path: GaussianPath | None = None,
    steps: Sequence[int] | None = None,
    *,
    kind: Literal["ode", "weak", "strong"] | None = None,
    grid: str = "uniform",
    start: float = 0.9,
    stop: float = 0.05,
    samples: int = 64,
    **options: Any,
) -> Order:
    """The observed order of a sampler, inside the path and with full-order steps.

    - ode: the median distance of `samples` states of a mixture (`problem`) to the probability-flow ODE's, by DOP853 at 1e-11;
    - weak: how far the exact laws of n and 2n steps on a Gaussian lie apart, mean and covariance: no Monte Carlo;
    - strong: how far the states of the mixture lie apart after n and 2n steps on one Brownian path.

    Args:
        sampler: a name (its options may stand among the keywords) or a sampler.
        path: `VPSDE()` if None. steps: two or more; by default as many as show the declared order.
        kind: ode for a deterministic sampler, else weak, if None.

    Raises:
        ValueError: fewer than two step counts, or laws of a sampler that is not made of rows.
    """
    chosen, path = get_sampler(sampler, **options), path or VPSDE()
    kind = kind or ("weak" if chosen.stochastic_on(path) else "ode")
    one_of("kind", kind, ("ode", "weak", "strong"))
    tail = [80, 120, 160, 240] if (chosen.order or 0) > 4 else [40, 80, 160] if chosen.order == 4 else [20, 40, 80, 160, 320]
    steps = tuple(whole("steps", n) for n in steps or (tail if kind == "ode" else [40, 80, 160]))
    if len(steps) < 2:
        raise ValueError(f"steps must be two numbers or more, got {steps}")
    keywords: dict[str, Any] = {"grid": grid, "start": start, "stop": stop}
    mixture, x = problem(), torch.randn(samples, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    if kind == "weak":
        spread = torch.tensor([[0.6, 0.3, 0.0], [0.3, 0.9, -0.2], [0.0, -0.2, 0.2]])
        gaussian = Gaussian(torch.tensor([0.7, -0.4, 0.1]), spread)
        laws = {n: law(chosen, path, gaussian, n, **keywords) for n in {m * k for m in steps for k in (1, 2)}}
        errors = [float((laws[n].cov - laws[2 * n].cov).norm() + (laws[n].mean - laws[2 * n].mean).norm()) for n in steps]
    else:
        model, noise = mixture.model(path), Brownian(0) if chosen.stochastic_on(path) else None
        counts = set(steps) if kind == "ode" else {m * k for m in steps for k in (1, 2)}
        ends = {n: solve(model, x, chosen, steps=n, noise=noise, **keywords).x for n in counts}
        if kind == "ode":
            exact = once(path, ("ode", start, stop, samples), lambda: _exact(model, x, start, stop))
            errors = [float((ends[n] - exact).norm(dim=1).median()) for n in steps]
        else:
            errors = [float((ends[n] - ends[2 * n]).norm(dim=1).mean()) for n in steps]
    slope = -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])
    return Order(slope, steps, tuple(errors), kind)


# -- stability and weights -----------------------------------------------------------------------------------------------


class Scaled:
    """A network whose exact flow is `x ∝ σ^μ`: `ε̂ = μ x/σ` where α = 1, for complex μ."""

    prediction: Prediction = "eps"

    def __init__(self, path: GaussianPath, mu: Tensor) -> None:
        self.path, self.mu = path, mu

    def __call__(self, x: Tensor, t: float, prediction: Prediction = "eps") -> Tensor:
        a, b = self.path.convert("eps", prediction, t)
        return a * x + b * self.mu / self.path.sigma(t) * x


def stability(sampler: str | Sampler, mu: Tensor, h: float = 0.5, steps: int = 60, **options: Any) -> Tensor:
    """By what factor a step of length h in λ multiplies the state, where `ε̂ = μ x/σ`: stable where it is at most 1.

    The flow of this linear network is `x ∝ σ^μ`, so the exact factor is `e^{−h Re μ}`; a component of the data of variance v
    has μ = σ²/(v + σ²), between 0 and 1, guidance and rough networks other ones. It is the factor of the last half of a run
    of so many equal steps, and so the largest root of a multistep method; its draws are left out.

    Args:
        mu: any shape, real or complex.

    Raises:
        ValueError: the sampler is not made of rows, or the steps are longer than a path can be.
    """
    ends = number("h", h, above=0) * whole("steps", steps, 2)
    if ends > 300:
        raise ValueError(f"h·steps must be at most 300, got h={h}, steps={steps}")
    path = VESDE(sigma_min=1.0, sigma_max=float(np.exp(ends)) * 2)
    chosen = get_sampler(sampler, **options)
    times = [path.time(-ends - 0.1 + h * k) for k in range(steps + 1)]
    plan = lay_out(chosen, path, grid=times)
    mu = torch.as_tensor(mu, dtype=torch.complex128)
    model, x, memory = Scaled(path, mu), torch.ones_like(mu), ()
    half = torch.ones(mu.shape, dtype=torch.float64)
    for i, step in enumerate(plan.steps):
        x, memory, _ = drive(advance(step, plan, model, x, memory, lambda x, *_: torch.zeros_like(x)), model)  # type: ignore[assignment]
        if i + 1 == steps // 2:
            half = x.abs()
    return (x.abs() / half) ** (1 / (steps - steps // 2))


def coefficients(plan: Plan, ax: Any = None) -> Any:
    """Draw the weights of a plan's last rows against t: on the state, on each output, newest first, and on the noise.

    Args:
        ax: a matplotlib axes to draw on; a new one if None. It is returned.
    """
    import matplotlib.pyplot as plt

    ax = ax or plt.subplots()[1]
    rows = [step.stages[-1].row for step in plan.steps]
    t = [step.t for step in plan.steps]
    ax.plot(t, [row.x for row in rows], label="state", color="black")
    for j in range(max(len(row.m) for row in rows)):
        ax.plot(t, [row.m[j] if j < len(row.m) else np.nan for row in rows], ".-", label=f"{plan.prediction} {j}")
    if plan.noise_count:
        ax.plot(t, [math.hypot(*(float(z) for _, z in row.draws)) for row in rows], ":", label="noise")
    ax.set(xlabel="t", ylabel="weight", title=plan.sampler)
    ax.invert_xaxis()
    ax.legend()
    return ax
