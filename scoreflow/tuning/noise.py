"""`tune_noise`: a stochastic plan whose noise is fitted level by level to the law of the data."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

from torch import Tensor

from scoreflow._core.check import check_state, number, one_of, whole
from scoreflow._core.grid import check_ends
from scoreflow._run.solve import ARGUMENTS
from scoreflow._samplers.plan import Plan
from scoreflow._score.model import ScoreModel
from scoreflow._score.oracle import Gaussian
from scoreflow._score.variance import estimate_variance
from scoreflow.studies.metrics import squared_energy
from scoreflow.tuning.fit import lowest
from scoreflow.tuning.front import alone, problem_of
from scoreflow.tuning.laws import Exact, Sampled, nearer
from scoreflow.tuning.levels import Kind, Levelled, levelled
from scoreflow.tuning.problem import Problem
from scoreflow.tuning.screen import KEPT, different, grids, linear, planned

KINDS: tuple[Kind, ...] = ("variance", "churn")
SEEDS = {"network": (256, 256, 512), "oracle": (1024, 1024, 1024)}
FEW = 4
"""All candidates are run on this fraction of the states that are fitted to, the best `KEPT` on all."""
ETAS, CHURNS = (0.25, 0.5, 0.75), (2.0, 5.0, 10.0)
"""Of `ddim` and `edm-churn`, among the candidates."""
BEGIN = (0.1, 0.5)
"""Shares of fresh noise, or of the way up, that fits begin with at every level."""
SHORT = 4
"""A first fit has this fraction of the iterations; the best of them goes on."""
LEAST_LEVELS: dict[Kind, int] = {"variance": 1, "churn": 2}
"""From the start of a run no step goes up."""
LEVELS = 24
"""Levels at which the variance of x_0 given x_t is estimated."""
CITES: dict[Kind, tuple[str, ...]] = {"variance": ("bao2022analytic", "song2021ddim"), "churn": ("karras2022edm",)}


@dataclass(frozen=True)
class TunedNoise:
    """A stochastic plan for one model and budget, and why it is this one.

    Attributes:
        plan: what to give as `sampler=`: the fitted one, or the best of the stochastic samplers that were there before.
        nfe: the budget.
        judge: "W₂", exact on Gaussian data, or "energy", the squared energy distance between samples and data.
        accepted: whether it is the fitted one. reason: the decision as a sentence.
        candidates: those that were run in full, the best first: name and distance on the seeds fitted to.
        screened: how many there were.
        starts: of each fit its kind, where it began, its loss. curves: of each (call, loss).
        validation: the fitted plan's distance less the best candidate's, and both ends of its interval of 95 % by a bootstrap;
            exact figures have no width.
        test: on the test seeds, the distances of "returned" and "best"; the difference with its interval; and "floor", that of
            two halves of the samples of the law.
        cost: network evaluations of the fits, of one state each, and the seconds of all.
    """

    plan: Plan
    nfe: int
    judge: str
    accepted: bool
    reason: str
    candidates: tuple[dict[str, Any], ...]
    screened: int
    starts: tuple[dict[str, Any], ...] = field(repr=False)
    curves: tuple[tuple[tuple[int, float], ...], ...] = field(repr=False)
    validation: tuple[float, float, float]
    test: dict[str, Any]
    cost: dict[str, float]

    def save(self, folder: str | Path) -> Path:
        """Write `plan-NFE.json`, which `plan:FOLDER` finds; the file.

        Raises:
            FileNotFoundError: no such folder.
        """
        file = Path(folder) / f"plan-{self.nfe}.json"
        file.write_text(self.plan.to_json(), encoding="utf-8")
        return file

    def __str__(self) -> str:
        test, (off, low, high) = self.test, self.test["difference"]
        return "\n".join(
            [
                f"{self.nfe} evaluations: {self.reason}",
                f"{self.judge}: returned {test['returned']:.3g}, best {test['best']:.3g}, floor {test['floor']:.3g}; "
                f"returned − best {off:.3g} ({low:.3g} to {high:.3g})",
                f"{self.screened} candidates, {len(self.starts)} fits, {self.cost['seconds']:.0f} s",
            ]
        )


@overload
def tune_noise(model: ScoreModel, nfe: int, **more: Any) -> TunedNoise: ...
@overload
def tune_noise(model: ScoreModel, nfe: Sequence[int], **more: Any) -> dict[int, TunedNoise]: ...
def tune_noise(  # type: ignore[misc]
    model: ScoreModel,
    nfe: int | Sequence[int],
    *,
    kinds: Sequence[Kind] = KINDS,
    data: Tensor | None = None,
    shape: Sequence[int] | None = None,
    conditions: Mapping[str, Any] | None = None,
    seeds: tuple[int, int, int] | None = None,
    seed: int = 0,
    start: float = 1.0,
    stop: float = 0.0,
    iterations: int = 100,
    batch: int | None = None,
    teacher: int | None = None,
    budget_s: float | None = None,
) -> TunedNoise | dict[int, TunedNoise]:
    """A stochastic plan for a model and a budget, its noise fitted level by level so that samples have the law of the data.

    Of kind "variance" the noise of `ddim` has a number at each level, with or without the variance that `analytic-dpm` adds,
    estimated in the same run. Of kind "churn" each Heun step first goes up by noise, and how far is a number. All stochastic
    samplers made of rows are run on all grids first; the fits are on the times of the best. What is made small is the distance
    of the law of the samples: on Gaussian data W₂, exactly; else the squared energy distance to samples of the law. The fitted
    plan is returned if it is surely nearer on seeds of its own, at 95 % by a bootstrap; if not, the best sampler's plan is, and
    `reason` says so.

    Args:
        model, nfe, shape, conditions, seed, start, stop, batch, teacher, budget_s: as of `tune`.
        kinds: what is fitted.
        data: (N, ...) samples of the law, of which the three parts take a third each. None: an oracle's own, and of a network
            the ends of its probability-flow ODE from other seeds, so that the law is the network's. Which condition belongs to
            which of your data is not known: the variance of x_0 is estimated without conditions.
        seeds: how many states to fit to, to decide by, and to report on. None: 256, 256 and 512 for a network, 1024 each for an
            oracle: a distance between laws needs many.
        iterations: of L-BFGS from the best of the first fits, which have a quarter.

    Returns:
        The result, or those of several budgets by budget.

    Raises:
        ValueError, TypeError: values that are not allowed.

    Reference:
        Analytic-DPM (Bao et al., 2022) for the variances; Elucidating the Design Space of Diffusion-Based Generative Models
        (Karras et al., 2022) for the churn, which was searched by hand there.
    """
    model = alone(model)
    budgets = [whole("nfe", n, 2) for n in ([nfe] if isinstance(nfe, int) else nfe)]
    for kind in kinds:
        one_of("kinds", kind, KINDS)
    if not kinds:
        raise ValueError(f"kinds must name at least one of {', '.join(KINDS)}, got none")
    first, last = check_ends(start, stop)
    if model.path.alpha(first) == 0:
        raise ValueError(f"start={first}: alpha=0 there on {model.path}, and fresh noise says nothing; begin below it")
    whole("iterations", iterations, 0)
    if budget_s is not None:
        number("budget_s", budget_s, above=0)
    told = model.check_conditions({} if conditions is None else dict(conditions), ARGUMENTS)
    counts = SEEDS["network" if model.oracle is None else "oracle"] if seeds is None else seeds
    problem = problem_of(model, shape, told, counts, seed, first, last, batch, teacher)
    if data is not None:
        check_state("data", data)
        if tuple(data.shape[1:]) != problem.shape or len(data) < 6:
            raise ValueError(f"data must be (N, {', '.join(map(str, problem.shape))}), N ≥ 6, got {tuple(data.shape)}")
    work = Noise(problem, tuple(kinds), data, iterations, budget_s)
    done = {n: work.budget(n) for n in sorted({*budgets})}
    return done[budgets[0]] if isinstance(nfe, int) else {n: done[n] for n in budgets}


class Noise:
    """The stages, at several budgets."""

    def __init__(
        self, problem: Problem, kinds: tuple[Kind, ...], data: Tensor | None, iterations: int, budget_s: float | None
    ) -> None:
        self.problem, self.kinds, self.iterations, self.seconds = problem, kinds, iterations, budget_s
        model = problem.model
        self.exact = Exact(model, model.oracle) if isinstance(model.oracle, Gaussian) and data is None else None
        self.parts = {name: self.sampled(k, name, data) for k, name in enumerate(problem.seeds)}
        fit, size = self.parts["fit"], 4 * problem.batch
        levels: Any = LEVELS
        if model.time == "label" and (T := model.path.T) is not None:  # which is asked at its nodes alone
            levels = tuple(sorted({round(1 + (T - 1) * k / (LEVELS - 1)) / T for k in range(LEVELS)}, reverse=True))
        self.levels = estimate_variance(model, fit.target, levels, by="error", batch=size, **fit.of_target)

    def sampled(self, k: int, name: str, data: Tensor | None) -> Sampled:
        """A part: states, and samples of the law from other seeds, as many or a third of the data."""
        problem, (x, told) = self.problem, self.problem.states(name)
        seeds, of_target = [*problem.seeds[name]], dict[str, Any]()
        ahead = sum(len(some) for some in problem.seeds.values())
        others = replace(problem, seeds={name: [seed + ahead for seed in seeds]})
        if data is not None:
            target = data[k::3].to(x)
        elif problem.model.oracle is not None:
            target = problem.model.oracle.sample(len(x), seed=others.seeds[name][0]).to(x)
        else:
            noise, of_target = others.states(name)
            (target,), _ = others.ode(noise, of_target)
        return Sampled(problem, x, seeds, told, target, of_target)

    def candidates(self, nfe: int) -> Iterator[tuple[str, Plan]]:
        """The stochastic samplers within the budget, no two with the same rows."""
        more: list[tuple[str, str, dict[str, Any]]] = [(name, name, {}) for name in linear(self.problem, stochastic=True)]
        more += [(f"ddim(eta={eta})", "ddim", {"eta": eta}) for eta in ETAS]
        known = {"levels": self.levels}
        more += [(f"analytic-dpm(eta={eta}, levels)", "analytic-dpm", {"eta": eta, **known}) for eta in (0.0, 1.0)]
        more += [(f"edm-churn(S_churn={churn})", "edm-churn", {"S_churn": churn}) for churn in CHURNS]
        return different(
            (label if grid is None else f"{label}@{grid}", planned(self.problem, nfe, name, grid, **options))
            for grid in grids()
            for label, name, options in more
        )

    def budget(self, nfe: int) -> TunedNoise:
        """The result at one budget."""
        began, problem, count = time.monotonic(), self.problem, [0]
        until = math.inf if self.seconds is None else began + self.seconds
        judge, fitting = self.exact or self.parts["fit"], self.exact or self.parts["fit"]
        found = [(name, plan) for name, plan in self.candidates(nfe) if plan.noise_count]
        if not found:
            raise ValueError(f"no stochastic sampler made of rows runs {problem.model!r} within nfe={nfe}")
        best = self.screen(found, until)
        fits = list[tuple[float, Levelled, list[Tensor], str, list[tuple[int, float]]]]()
        begins = list(self.begins(nfe, [(name, plan) for name, plan, _ in best]))

        def fit(one: Levelled, name: str, most: int, ends: float) -> None:
            parameters = [p.requires_grad_() for p in one.parameters]
            loss, state, curve = lowest(parameters, lambda: fitting.loss_and_slopes(one, count), one.state, most, ends)
            fits.append((loss, one, state, name, curve))

        for k, (name, one) in enumerate(begins):
            now = time.monotonic()
            fit(one, name, self.iterations // SHORT, now + max(until - now, 0) / (SHORT + len(begins) - k))
        if fits:
            _, one, state, name, _ = min(fits, key=lambda line: line[0])
            one.load(state)
            fit(one, name, self.iterations, until)
            one.load(fits[-1][2])
        name, plan, _ = best[0]
        reason, accepted, validation = f"{name} stays: no fit has a place within the budget", False, (math.nan,) * 3
        if fits:
            fitted = one.plan(problem.fit(nfe, CITES[one.kind]))
            validation = self.difference("validate", fitted, plan)
            accepted = validation[2] < 0
            off = f"{self.judge} less by {-validation[0]:.3g} ({-validation[2]:.3g} to {-validation[1]:.3g})"
            against = f"{name}, the best of {len(found)} stochastic samplers on their grids"
            reason = (
                f"the fitted plan ({one.kind}) is nearer than {against}: {off}" if accepted
                else f"{against}, stays: the fitted plan ({one.kind}) is not surely nearer, {off}"
            )  # fmt: skip
        returned = fitted if accepted else replace(plan, fit=problem.fit(nfe))
        part = self.exact or self.parts["test"]
        test = {
            "returned": part.distance(returned), "best": part.distance(plan), "floor": self.floor(),
            "difference": self.difference("test", returned, plan),
        }  # fmt: skip
        return TunedNoise(
            returned, nfe, self.judge, accepted, reason,
            tuple({"name": label, "distance": judge.distance(one_plan)} for label, one_plan, _ in best), len(found),
            tuple({"kind": a.kind, "name": label, "loss": loss} for loss, a, _, label, _ in fits),
            tuple(tuple(curve) for *_, curve in fits), validation, test,
            {"evaluations": count[0], "seconds": time.monotonic() - began},
        )  # fmt: skip

    @property
    def judge(self) -> str:
        """What says how near a law is."""
        return "energy" if self.exact is None else "W₂"

    def screen(self, found: Sequence[tuple[str, Plan]], until: float) -> list[tuple[str, Plan, float]]:
        """The best, the best first."""
        now = time.monotonic()
        ends = now + max(until - now, 0) / 4
        fit = self.parts["fit"]
        rounds = [self.exact] if self.exact else [fit.few(max(len(fit.x) // FEW, 2)), fit]
        chosen, out = list(found), list[tuple[str, Plan, float]]()
        for judge in rounds:
            out = []
            for name, plan in chosen:
                if len(out) >= KEPT and time.monotonic() > ends:
                    break
                try:
                    out.append((name, plan, judge.distance(plan)))
                except (FloatingPointError, ValueError):  # a network of whole labels may not be asked at these times
                    continue
            out = sorted((one for one in out if math.isfinite(one[2])), key=lambda one: one[2])[:KEPT]
            chosen = [(name, plan) for name, plan, _ in out]
        if not out:
            raise ValueError(f"no stochastic sampler made of rows runs {self.problem.model!r} within this budget")
        return out

    def begins(self, nfe: int, found: Sequence[tuple[str, Plan]]) -> Iterator[tuple[str, Levelled]]:
        """On the times of the best candidates that have as many steps as the kind can pay for, each from few numbers."""
        path, stop = self.problem.model.path, self.problem.stop
        per_call = self.problem.model.evaluations(self.problem.start)
        calls = nfe // per_call if isinstance(per_call, int) else nfe
        lands = path.sigma(stop) == 0
        if "variance" in self.kinds:
            own = [(name, one) for name, plan in found if (one := levelled(path, plan)) is not None and len(one.numbers)]
            yield from own[:2]
        for kind in self.kinds:
            if kind == "churn" and self.problem.model.time == "label":
                continue  # whose steps up would leave the nodes
            steps = calls if kind == "variance" else (calls - lands) // 2 + lands
            times = [(name, nodes) for name, plan in found if len(nodes := nodes_of(plan)) == steps + 1][:2]
            even = planned(self.problem, nfe, "ddim" if kind == "variance" else "edm", None)
            if not times and even is not None and len(nodes := nodes_of(even)) == steps + 1:
                times = [(even.sampler, nodes)]
            for name, nodes in times:
                if len(nodes) - 1 - lands < LEAST_LEVELS[kind]:
                    continue
                variances = [self.levels(path, t) for t in nodes[: len(nodes) - 1 - lands]]
                for begin in BEGIN:
                    yield name, Levelled(path, nodes, kind, begin)
                    if kind == "variance":
                        yield f"{name}, analytic", Levelled(path, nodes, kind, begin, variances)

    def difference(self, name: str, ours: Plan, theirs: Plan) -> tuple[float, float, float]:
        """Of the distances of two plans, with its interval."""
        if self.exact is not None:
            off = self.exact.distance(ours) - self.exact.distance(theirs)
            return off, off, off
        part = self.parts[name]
        return nearer(part.ends(ours), part.ends(theirs), part.truth)

    def floor(self) -> float:
        """Of two halves of the law's samples."""
        if self.exact is not None:
            return 0.0
        truth = self.parts["test"].truth
        return float(squared_energy(truth[::2], truth[1::2]))


def nodes_of(plan: Plan) -> tuple[float, ...]:
    """The grid of a plan: its start and where its steps down lead."""
    return (plan.times[0], *(step.s for step in plan.steps if step.s < step.t))
