"""Sequential Monte Carlo: samples of the posterior with weights, and the evidence, exact as the particles grow many."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoreflow._core.check import flag, meant, number, whole
from scoreflow._core.noise import Draws, White, check_seed
from scoreflow._core.row import Row, double, wide
from scoreflow._run.schedule import Grid, Schedule
from scoreflow._run.solve import prepare
from scoreflow._run.walk import shown
from scoreflow._samplers.cite import cite
from scoreflow._samplers.plan import Plan
from scoreflow._samplers.step import Sampler
from scoreflow._score.conditions import known, rows
from scoreflow._score.model import ScoreModel, check_model
from scoreflow._score.observation import Observation, log_normal
from scoreflow._score.steps import single_rows
from scoreflow.posterior import METHODS, Posterior
from scoreflow.posterior.denoised import Denoised

CITES = ("wu2023tds", "lee2018variance")


@dataclass(frozen=True)
class Particles:
    """What `smc` found: G groups, one an observation, of K particles.

    Attributes:
        x: the particles, (G, K, *event). log_weights: (G, K), of each group they add up to 1.
        log_evidence: log p(y) as the steps have it, (G,): 1/K Σ of the weights is without bias, its logarithm nearly so.
        log_evidence_error: its standard error, (G,), by the particles' ancestors; inf where all have one and the same.
        ess: the effective sample size `1/Σ w²` before each step and at the end, before resampling, (N + 1, G).
        resampled: how often each group was, (G,).
        times: of the run. nfe: network evaluations of a particle. backward: backward passes through the network, by call.
        sampler, plan, seed, model, cites: as of a `Solution`.

    The error is that of Variance estimation in the particle filter (Lee & Whiteley, 2018), which stands on multinomial
    resampling; what systematic resampling adds less is taken off.
    """

    x: Tensor
    log_weights: Tensor
    log_evidence: Tensor
    log_evidence_error: Tensor
    ess: Tensor = field(repr=False)
    resampled: Tensor = field(repr=False)
    times: tuple[float, ...] = field(repr=False)
    nfe: int
    backward: int
    sampler: Sampler
    plan: Plan = field(repr=False)
    seed: int | tuple[int, ...] | None
    model: str = field(default="", repr=False)
    cites: tuple[str, ...] = field(default=(), repr=False)

    def __repr__(self) -> str:
        groups, particles = self.log_weights.shape
        ess = ", ".join(f"{one:.3g}" for one in self.ess[-1, :4].tolist()) + (", …" if groups > 4 else "")
        evidence = ", ".join(
            f"{a:.4g} ± {b:.2g}" for a, b in zip(self.log_evidence[:4].tolist(), self.log_evidence_error.tolist(), strict=False)
        )
        return (
            f"{type(self).__name__}({groups} × {particles} of {tuple(self.x.shape[2:])}, log-evidence {evidence}"
            f"{', …' if groups > 4 else ''}, effective {ess}, nfe={self.nfe}, backward={self.backward})"
        )

    @property
    def weights(self) -> Tensor:
        """(G, K), of each group they add up to 1."""
        return self.log_weights.exp()

    @property
    def mean(self) -> Tensor:
        """Of each group, (G, *event)."""
        return torch.einsum("gk,gk...->g...", self.weights.to(self.x), self.x)

    @property
    def std(self) -> Tensor:
        """Entry by entry, of each group, (G, *event)."""
        return torch.einsum("gk,gk...->g...", self.weights.to(self.x), (self.x - self.mean[:, None]).square()).sqrt()

    def draw(self, n: int, seed: int = 0) -> Tensor:
        """n samples of each group with equal weights, (G, n, *event), by systematic resampling in an order of chance."""
        whole("n", n)
        source, like = White(whole("seed", seed, 0)), self.log_weights
        chosen = systematic(self.weights, uniform(source.draws("model"), like), n)
        order = source.normal(like.new_empty(n), "order").argsort()
        return _chosen(self.x, chosen[:, order])

    @property
    def citations(self) -> str:
        """BibTeX of the works that it rests on."""
        return cite(*self.cites)


def systematic(weights: Tensor, u: Tensor, n: int | None = None) -> Tensor:
    """Numbers of the particles that are kept, (G, n): of weight w, ⌊n w⌋ or ⌈n w⌉ times, from one uniform u (G,) a group.

    Reference:
        Comparison of Resampling Schemes for Particle Filtering (Douc & Cappé, 2005), Section 2.4.
    """
    particles = weights.shape[1]
    n = particles if n is None else n
    at = (torch.arange(n, dtype=weights.dtype, device=weights.device) + u.to(weights)[:, None]) / n
    total = weights.cumsum(1)
    return torch.searchsorted(total / total[:, -1:], at).clamp(max=particles - 1)


def uniform(draws: Draws, like: Tensor) -> Tensor:
    """A number in (0, 1) for each row of `like`."""
    return torch.special.ndtr(draws(like[:, :1]))[:, 0]


class Look(NamedTuple):
    """At states: D, what y adds to it, and the twist, log p̃(y | x_t), a number each."""

    x_0: Tensor
    shift: Tensor
    twist: Tensor


def smc(
    model: ScoreModel,
    observation: Observation,
    shape: Sequence[int],
    particles: int = 64,
    sampler: str | Sampler | Plan = "ddpm",
    *,
    twist: str = "mmps",
    twist_options: Mapping[str, Any] | None = None,
    threshold: float = 0.5,
    steps: int | None = None,
    nfe: int | None = None,
    grid: Grid = None,
    start: float = 1.0,
    seed: int | Sequence[int] | None = None,
    batch: int | None = None,
    progress: bool = False,
    conditions: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    **keywords: Any,
) -> Particles:
    """Samples of x_0 given y with weights: those of the sampler's own steps, given y, as the particles grow many.

    K particles go by `x_s ~ N(x·x_t + m·D_y, z²)`, and are weighed by
    `w ·= p(x_s | x_t) p̃(y | x_s) / (p̃(y | x_t) q(x_s | x_t, y))`, p with D in the place of D_y. At the end p̃ is p(y | x_0), the
    likelihood, and the last step, without noise, is to D. Where the effective sample size falls below `threshold` K, they
    are resampled, systematically. Whatever the twist p̃, the limit is exact; a good one needs few particles.

    Args:
        model: of x_0; guided and conditional ones too. observation: with a linear A and noise above 0 in all that is measured.
        shape: (G, *event), G groups: y one a group, or one for all. particles: K, of each group.
        sampler: with noise, of one evaluation and one row a step.
        twist: a method with a V: "mmps", with a backward pass for each number that is measured, and one; "pigdm", with one;
            "jfps" or "diffpir", with none. twist_options: of the method.
        steps, nfe, grid, start, progress, conditions: as of `sample`; keywords: options of the sampler, conditions of the
            network, of which rows belong to groups.
        seed: an int, or one a group: then a group depends on its own seed, y and conditions only.
        batch: the most states in one network call; None: all.
        dtype: of the states; the network's, 32 bits at least, if None.

    Raises:
        ValueError: a sampler without noise or of other steps, a run that does not end at data, a method without a V, noise
            of 0, conditions of which it is not known what belongs to a group. TypeError: as `sample`.

    Reference:
        Practical and Asymptotically Exact Conditional Sampling in Diffusion Models (Wu et al., 2023), Algorithm 1.
    """
    check_model(model)
    options = dict(twist_options or {})
    given = Posterior(model, observation, twist, **options)
    if METHODS[twist].spread is None:
        able = [name for name, one in METHODS.items() if one.spread is not None]
        raise ValueError(f"twist must be a method with a V, {', '.join(able)}, got {twist!r}{meant(twist, able)}")
    size, K = tuple(whole("shape", n) for n in shape), whole("particles", particles, 2)
    flag("progress", progress), number("threshold", threshold, 0, 1)
    prepared = prepare(model, sampler, Schedule(steps, nfe, grid, start), keywords, conditions)
    path, plan = model.path, prepared.plan
    way = _rows(plan, path, prepared.sampler)
    assert plan is not None
    if model.begin(plan) is not model:
        raise ValueError(f"smc weighs what a state alone says, and {model!r} depends on the run")
    seed, passes = check_seed(seed, size[0]), model.backward
    white, like = White(seed), torch.empty(size[0], K, *size[1:], dtype=dtype or model.state_dtype, device=model.device)
    x = wide(white.draws("prior")(like)) * path.prior_std(prepared.times[0])
    most = None if batch is None else whole("batch", batch)
    seen = Looking(given, twist, prepared.conditions, size[0], K, most, x)
    with torch.no_grad():
        cloud = _filter(seen, x, prepared.times[0], way, white, threshold, progress, prepared.sampler.name)
    cites = (*CITES, *METHODS[twist].cites, *prepared.sampler.cites, *model.cites)
    return Particles(
        x=cloud.x, log_weights=cloud.log_w - cloud.total[:, None], log_evidence=cloud.log_z + cloud.total,
        log_evidence_error=cloud.error, ess=torch.stack(cloud.ess), resampled=cloud.resampled, times=prepared.times,
        nfe=len(way), backward=seen.backward + model.backward - passes, sampler=prepared.sampler, plan=plan, seed=seed,
        model=repr(model), cites=tuple(dict.fromkeys(cites)),
    )  # fmt: skip


class Looking:
    """The model and what was measured, at all particles of all groups, in batches."""

    def __init__(
        self, given: Posterior, twist: str, told: dict[str, Any], groups: int, particles: int, batch: int | None, x: Tensor
    ) -> None:
        self.model, self.observation, self.twist, self.told = given.model, given.observation, twist, told
        self.method, self.options, self.kappa_max = given.method, given.given, given.kappa_max
        model, observation = self.model, self.observation
        self.groups, self.particles, self.batch = groups, particles, batch or groups * particles
        self.backward = 0
        if not known(told, groups, model.with_rows):
            raise ValueError("conditions: say which belong to groups and which to all, by sf.each and sf.shared")
        self.m = observation.measure(x[:, 0]).shape[1]
        observation.log_likelihood(x[:, 0])  # for its errors

    def __call__(self, x: Tensor, t: float | None) -> Look:
        """At states (G, K, *event) and time t; None: at data, where the twist is the likelihood."""
        owner, found = torch.arange(self.groups).repeat_interleave(self.particles), list[Look]()
        for mine, of in zip(torch.split(x.flatten(0, 1), self.batch), torch.split(owner, self.batch), strict=True):
            seen = self.observation.some(of, self.groups, mine)
            found.append(Look(mine, mine, seen.log_likelihood(mine)) if t is None else self._twisted(mine, t, of, seen))
        shape = self.groups, self.particles
        return Look(*(torch.cat(parts).reshape(*shape, *parts[0].shape[1:]) for parts in zip(*found, strict=True)))

    def _twisted(self, x: Tensor, t: float, of: Tensor, seen: Observation) -> Look:
        """With p̃(y | x_t) = N(A D, S), S = Σ_y + A V Aᵀ: `shift = C Aᵀ S⁻¹ r`, or V in the place of C, r = y − A D."""
        method = self.method
        given = rows(self.told, of, self.groups, self.model.with_rows)
        at = Denoised(self.model.of(of, self.groups, x), x, t, given, method.gradient, self.kappa_max)
        assert method.spread is not None
        V, r = method.spread(at, **self.options), seen.residual(at.x_0)
        eye = torch.eye(self.m, dtype=r.dtype, device=r.device)
        if self.twist == "mmps":  # V depends on the state: a backward pass for each number that is measured
            columns = [seen.measure(V(seen.adjoint(one.expand(len(r), -1), at.x_0))) for one in eye]
            var, vectors = torch.linalg.eigh(double(torch.stack(columns, -1)))  # of its lower half
            spread = (vectors * var.clamp(min=0)[:, None]) @ vectors.mT  # C of a network may have variances below 0
        else:
            spread = double(seen.measure(V(seen.adjoint(eye, at.x_0[:1].expand(self.m, *x.shape[1:])))))
        root = torch.linalg.cholesky(spread + double(seen.covary(eye)))
        u = torch.cholesky_solve(double(r)[..., None], root)[..., 0]
        shift = (at.cov if method.gradient else V)(seen.adjoint(u.to(r), at.x_0))
        self.backward += at.backward
        return Look(at.x_0.detach(), shift.detach(), log_normal(double(r), root).detach())


@dataclass
class Cloud:
    """Particles on their way; `eve` is the number of each one's ancestor among the first, `log_w` of weights with 1/K."""

    x: Tensor
    log_w: Tensor
    eve: Tensor
    log_z: Tensor
    resampled: Tensor
    spread: Tensor
    ess: list[Tensor] = field(default_factory=list)

    @property
    def total(self) -> Tensor:
        """The log of the mean weight since the group was resampled."""
        return self.log_w.logsumexp(1)

    @property
    def error(self) -> Tensor:
        """The standard error of the log-evidence: `K/(K−1) (Σ_e (Σ_{i of e} w_i)² − (1 + Σ φ)/K)`, e the ancestors, as a root.

        φ is the mean of f (1 − f) at a resampling, f the fractions of K w: how much of the spread of its offspring is its own.
        In multinomial resampling it is 1.
        """
        K, w = self.log_w.shape[1], self.log_w.softmax(1)
        shares = torch.zeros_like(w).scatter_add(1, self.eve, w).square().sum(1)
        relative = (shares - (1 + self.spread) / K) * K / (K - 1)
        return torch.where(shares > 1 - 1e-9, math.inf, relative.clamp(min=0).sqrt())


def _filter(
    seen: Looking, x: Tensor, t: float, way: Sequence[tuple[float, Row]], white: White, threshold: float, progress: bool,
    name: str,
) -> Cloud:  # fmt: skip
    """From the prior at t down all steps."""
    path, (groups, K), draws, turns = seen.model.path, x.shape[:2], white.draws("step"), white.draws("model")
    here = seen(x, t)
    zero, first = torch.zeros(groups, dtype=here.twist.dtype, device=x.device), torch.arange(K, device=x.device)
    cloud = Cloud(x, here.twist - math.log(K), first.expand(groups, K), zero, zero.long(), zero)
    for s, row in shown(way, len(way), name, progress):
        cloud.ess.append(_ess(cloud.log_w))
        few = cloud.ess[-1] < threshold * K
        turn = uniform(turns, cloud.log_w)
        if bool(few.any()):
            w = cloud.log_w.softmax(1)
            kept = torch.where(few[:, None], systematic(w, turn), first)
            cloud.spread = cloud.spread + few * ((K * w).frac() * (1 - (K * w).frac())).mean(1)
            here = Look(*(_chosen(one, kept) for one in here))
            cloud.x, cloud.eve = _chosen(cloud.x, kept), cloud.eve.gather(1, kept)
            cloud.log_z = torch.where(few, cloud.log_z + cloud.total, cloud.log_z)
            cloud.log_w = torch.where(few[:, None], -math.log(K), cloud.log_w)
            cloud.resampled = cloud.resampled + few
        m, z, ratio = float(row.m[0]), float(row.z), torch.zeros_like(cloud.log_w)
        cloud.x = row.x * cloud.x + m * here.x_0
        if z:
            noise, shift = draws(cloud.x, t, s), m / z * here.shift
            cloud.x = cloud.x + z * (shift + noise)
            ratio = -double(noise * shift + shift.square() / 2).flatten(2).sum(2)
        before, here, t = here.twist, seen(cloud.x, s if path.sigma(s) > 0 else None), s
        cloud.log_w = cloud.log_w + ratio + here.twist - before
    cloud.ess.append(_ess(cloud.log_w))
    return cloud


def _rows(plan: Plan | None, path: Any, sampler: Sampler) -> list[tuple[float, Any]]:
    """(s, row) of each step.

    Raises:
        ValueError: other steps than `smc` can weigh.
    """
    found = single_rows(plan, path, "smc")
    assert plan is not None
    if len(found) != len(plan.steps) or plan.analytic is not None:
        raise ValueError(f"smc goes down, an evaluation a step, and {sampler!r} does not: use ddpm, or ddim with eta above 0")
    if path.sigma(plan.times[-1]) > 0:
        raise ValueError(f"smc weighs data, and this run ends at t={plan.times[-1]}, above them")
    if not plan.noise_count:
        raise ValueError(f"smc needs a sampler with noise, and {sampler!r} draws none: use ddpm, or ddim with eta above 0")
    return list(found.values())


def _chosen(x: Tensor, kept: Tensor) -> Tensor:
    return x[torch.arange(len(x), device=x.device)[:, None], kept]


def _ess(log_w: Tensor) -> Tensor:
    return 1 / log_w.softmax(1).square().sum(1)
