"""The two calls that people make: `solve` from a state, `sample` from the prior."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoreflow._core.check import check_state, flag, floating, placed, whole
from scoreflow._core.check import options as check_options
from scoreflow._core.gaussian import GaussianPath
from scoreflow._core.grid import check_path
from scoreflow._core.noise import Replay, Source, check_seed
from scoreflow._core.projection import Project, free, projection
from scoreflow._core.row import wide
from scoreflow._run.auto import AUTO, choose
from scoreflow._run.captured import captured
from scoreflow._run.kept import beside, is_kept, kept, made_by, on_path
from scoreflow._run.picard import Picard, picard
from scoreflow._run.schedule import Grid, Schedule
from scoreflow._run.solution import Solution
from scoreflow._run.source import Noise, source_of
from scoreflow._run.walk import Run, State, shown, walk
from scoreflow._samplers.plan import Plan
from scoreflow._samplers.step import SAMPLERS, Linear, Sampler, get_sampler, resolve
from scoreflow._score.model import ScoreModel, check_model, check_settled


def plan(
    sampler: str | Sampler,
    path: GaussianPath,
    steps: int | None = None,
    *,
    nfe: int | None = None,
    grid: Grid = None,
    start: float = 1.0,
    stop: float = 0.0,
    denoise: bool = False,
    **options: Any,
) -> Plan:
    """All rows of a linear sampler on a grid, before anything runs; arguments as of `solve`.

    "auto" is chosen for an unguided network; of its options there is `analytic`. "plan:file" is read, and stays as it is.

    Raises:
        ValueError: the sampler is not linear, and as `solve`. TypeError: an option it does not have.
    """
    check_path(path)
    schedule = Schedule(steps, nfe, grid, start, stop, denoise)
    if is_kept(sampler):
        check_options(f"sampler {sampler!r}", options, ())
        found, schedule = kept(str(sampler), schedule)
        return on_path(found, path, schedule)
    if sampler == AUTO:
        linear, times = choose(path, schedule, **options)
        return linear.plan(path, times)
    chosen = get_sampler(sampler, **options)
    if not isinstance(chosen, Linear):
        raise ValueError(f"{chosen!r} is not made of rows and has no plan")
    return chosen.plan(path, schedule.times(chosen, path))


def solve(
    model: ScoreModel,
    x_T: Tensor,
    sampler: str | Sampler | Plan = AUTO,
    *,
    steps: int | None = None,
    nfe: int | None = None,
    grid: Grid = None,
    start: float = 1.0,
    stop: float = 0.0,
    denoise: bool = False,
    parallel: int | Picard | None = None,
    seed: int | Sequence[int] | None = None,
    noise: Noise = None,
    trajectory: bool = False,
    callback: Callable[[State], object] | None = None,
    progress: bool = False,
    grad: bool = False,
    project: Project | None = None,
    capture: bool = False,
    conditions: Mapping[str, Any] | None = None,
    **keywords: Any,
) -> Solution:
    """Carry the states x_T from `start` to `stop`.

    Args:
        model: the score model, or an oracle's.
        x_T: states (B, ...), of any floating dtype and device; the run keeps both. Of 16 bits it is carried in 32.
        sampler: a name (its options may stand among the keywords), a sampler from `get_sampler`, or a `Plan`; "plan:file" reads
            one, "plan:folder" that of the budget among those that `tune` wrote. "auto" takes a plan that lies beside the
            model, else sampler and grid by the budget, and with its option `analytic=v` the first answer from N(0, v I) data;
            the solution's `plan` says what it took.
        steps: grid intervals. nfe: instead, a budget of network evaluations, of which the most is made. Neither: the
            sampler's default.
        grid: a name, a rule, or the times themselves. None: what "auto" takes; of a named ODE sampler of order 2 or more
            "ode"; of others the nodes of the chain or a stride of them, and without a chain uniform t.
        start, stop: the first and last time. A run to t = 0, where σ = 0, ends with x̂_0 of its last state; `deis` and
            `exponential-ab` in noise form end with a row of their own, which keeps their order.
        denoise: with stop > 0, step from there to x̂_0.
        parallel: take so many steps at once, by Picard iteration, with the sequential result; or `Picard(window, tol)`. For
            samplers made of rows.
        seed: an int, one stream for the batch; a sequence, one stream a sample; None, from torch's global generator.
        noise: "white" (the default), "brownian" (one path for all samplers, and for all step counts to a step of the
            coarser), a source, such as `Brownian(seed)` (one path to 2^−18 of [0, 1], at twenty times the cost), or the draws
            themselves, (count, B, ...), replayed in order.
        trajectory: keep all states.
        callback: called with the `State` at every time. The run goes on from what it leaves in `state.x`: an edit in place is
            inpainting by hand. x_T stays as it is, and with `parallel` edits are not seen.
        progress: show a bar.
        grad: record the run for differentiation.
        project: a function of the states (B, ...), such as `lambda x: x - x.mean(1, keepdim=True)`, that holds the run in a
            subspace: of x_T and of every state that the rows make, stages and noise included. For samplers made of rows.
        capture: play the run as one CUDA graph, which the first call captures and the model keeps for the next of the same
            plan, shape and kind of conditions. For samplers made of rows, on a CUDA device; the network must stand it. It was
            tested with a stand-in for CUDA's graphs, and not yet run on a GPU.
        conditions: of the network, by name: for names that are arguments here or options, such as `{"eta": 2.0}`.
        keywords: options of the sampler, if it was named, and conditions of the network, such as `y=`; `sf.each` and
            `sf.shared` say whether these have a row a sample.

    Raises:
        ValueError: an unknown name, a value that is not allowed, an ε-network started where α = 0, seeds or draws that
            do not fit. TypeError: an option or condition that neither the sampler nor the network takes.
        FloatingPointError: a state or an output that is not finite; names the step and its times.
    """
    check_model(model)
    check_state("x_T", x_T)
    prepared = prepare(model, sampler, Schedule(steps, nfe, grid, start, stop, denoise), keywords, conditions)
    source, kept = prepared.source(noise, seed, len(x_T), model.path)
    return carry(
        model, x_T, prepared, source,
        parallel=parallel, seed=kept, trajectory=trajectory, callback=callback, progress=progress, grad=grad,
        project=projection(project), capture=capture,
    )  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """A run, once all that was asked is checked.

    Attributes:
        sampler: what was asked for. times: those of the run. plan: its rows; None of a sampler that has none.
        conditions: of the network.
    """

    sampler: Sampler
    times: tuple[float, ...]
    plan: Plan | None
    conditions: dict[str, Any]
    memory: tuple[Any, ...] = ()
    """What the first step may use."""

    def source(
        self, noise: Noise, seed: int | Sequence[int] | None, batch: int, path: GaussianPath
    ) -> tuple[Source, int | tuple[int, ...] | None]:
        """The source of the run's noise, and the seed to remember."""
        drawn = self.sampler.stochastic_on(path) if self.plan is None else self.plan.noise_count > 0
        return source_of(noise, seed, batch, self.sampler, drawn, None if self.plan is None else self.times)

    def solution(
        self, model: ScoreModel, x: Tensor, counts: np.ndarray, noise_count: int, *, rounds: int | None = None, **more: Any
    ) -> Solution:
        """What the run gave; `counts` are the evaluations of each sample, (B,)."""
        nfe = int(counts.max(initial=0))
        return Solution(
            x=x,
            times=self.times,
            nfe=nfe,
            nfe_per_sample=tuple(counts.tolist()),
            noise_count=noise_count,
            sampler=self.sampler,
            plan=self.plan,
            rounds=nfe if rounds is None else rounds,
            model=repr(model),
            cites=tuple(dict.fromkeys((*self.sampler.cites, *model.cites))),
            **more,
        )


def prepare(
    model: ScoreModel,
    sampler: str | Sampler | Plan,
    schedule: Schedule,
    keywords: dict[str, Any],
    conditions: Mapping[str, Any] | None = None,
) -> Prepared:
    """What these arguments of `solve` mean for this model.

    Raises:
        ValueError, TypeError: as `solve`.
    """
    path = model.path
    if is_kept(sampler):
        sampler, schedule = kept(str(sampler), schedule)
    elif sampler == AUTO and model.plans and (plan := beside(model, schedule, {*keywords, *(conditions or ())})) is not None:
        sampler, schedule = plan, replace(schedule, nfe=None)
    if isinstance(sampler, Plan):
        plan, options = on_path(sampler, path, schedule), {}
        chosen = made_by(plan, model)
        times = plan.times
    else:
        options = options_of(sampler, keywords)
        chosen, times = meant(model, sampler, schedule, **options)
        plan = chosen.plan(path, times) if isinstance(chosen, Linear) else None
        times = times if plan is None else plan.times
    named = {name: value for name, value in keywords.items() if name not in options}
    told = check_conditions(model, chosen, named if conditions is None else {**named, "conditions": conditions})
    analytic = chosen.analytic if plan is None else plan.analytic
    if path.alpha(times[0]) == 0 and model.prediction in ("eps", "score") and analytic is None:
        raise ValueError(
            f"start={times[0]}: {path} has alpha=0 there, where an {model.prediction}-network says nothing of the data. "
            "Give a start below it, or analytic=1.0 for the first step, or use an x0-, v- or flow-network"
        )
    return Prepared(chosen, times, plan, told)


def carry(
    model: ScoreModel,
    x: Tensor,
    prepared: Prepared,
    source: Source,
    *,
    steps: Sampler | None = None,
    parallel: int | Picard | None = None,
    seed: int | tuple[int, ...] | None = None,
    trajectory: bool = False,
    callback: Callable[[State], object] | None = None,
    progress: bool = False,
    grad: bool = False,
    project: Project = free,
    capture: bool = False,
) -> Solution:
    """Walk, once all is checked; `steps` is what steps, if it is not the sampler that was asked for."""
    flag("trajectory", trajectory), flag("progress", progress), flag("grad", grad)
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be a function of a State, got {callback!r}")
    check_settled(model, grad)
    how = None if parallel is None else Picard.of(parallel)
    if how is not None and prepared.plan is None:
        raise ValueError(f"parallel={parallel} takes the steps of a plan, and {prepared.sampler!r} is not made of rows")
    if isinstance(source, Replay):
        source.fit(x, None if prepared.plan is None else prepared.plan.noise_count)
    if flag("capture", capture):
        others = {"parallel": parallel, "trajectory": trajectory, "callback": callback, "progress": progress, "grad": grad}
        if asked := [name for name, value in others.items() if value]:
            raise ValueError(f"capture=True plays a run as one graph, which has no {asked[0]}")
        return _played(model, x, prepared, source, project, seed)
    stepper = prepared.plan or steps or prepared.sampler
    begun, passes = model.begin(stepper).drawing(source.draws("model")), model.backward
    run, draws = Run(begun, prepared.conditions, len(x)), source.draws("step")
    run.memory = prepared.memory
    states, kept = list[Tensor](), x.dtype
    with torch.set_grad_enabled(grad):
        x = x if grad else x.detach()
        edited = project is not free or (callback is not None and how is None)  # in place, perhaps
        x = project(wide(x).clone() if edited else wide(x))
        if how is not None and prepared.plan is not None:
            walked = picard(run, prepared.plan, x, draws, how, project)
        else:
            walked = walk(run, stepper, prepared.times, x, draws, project)
        for state in chain([next(walked)], shown(walked, len(prepared.times) - 1, prepared.sampler.name, progress)):
            if callback is not None:
                callback(state if how is None else state._replace(x=state.x.clone()))
            if trajectory:
                states.append(state.x.to(kept))
        kept_states = torch.stack(states) if trajectory else None
    run.finite_check.close()
    if isinstance(source, Replay):
        source.fit(x, draws.count)
    return prepared.solution(
        model, state.x.to(kept), run.counts, draws.count,
        states=kept_states, memory=run.memory, seed=seed, rounds=None if how is None else run.rounds,
        backward=model.backward - passes,
    )  # fmt: skip


def _played(
    model: ScoreModel, x: Tensor, prepared: Prepared, source: Source, project: Project, seed: int | tuple[int, ...] | None
) -> Solution:
    """The run as a CUDA graph."""
    if prepared.plan is None:
        raise ValueError(f"capture=True plays the steps of a plan, and {prepared.sampler!r} is not made of rows")
    if x.device.type != "cuda":
        raise ValueError(f"capture=True needs states on a CUDA device, got {x.device.type}")
    kept, draws = x.dtype, source.draws("step")
    with torch.no_grad():
        x = project(wide(x.detach().clone()))
        graph = captured(model, prepared.plan, x, prepared.conditions, project)
        x = graph.play(x, prepared.conditions, draws)
    return prepared.solution(model, x.to(kept), graph.run.counts, draws.count, states=None, seed=seed)


def sample(
    model: ScoreModel,
    shape: Sequence[int],
    sampler: str | Sampler | Plan = AUTO,
    *,
    steps: int | None = None,
    nfe: int | None = None,
    grid: Grid = None,
    start: float = 1.0,
    stop: float = 0.0,
    denoise: bool = False,
    parallel: int | Picard | None = None,
    seed: int | Sequence[int] | None = None,
    noise: Noise = None,
    callback: Callable[[State], object] | None = None,
    progress: bool = False,
    grad: bool = False,
    project: Project | None = None,
    capture: bool = False,
    conditions: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    **keywords: Any,
) -> Tensor:
    """Draw from the prior and solve: samples of the given shape (B, ...).

    The prior at `start` is N(0, prior_std² I), drawn from its own stream of the seed, then projected. With draws given as
    `noise`, the first of them is the prior's.

    Args:
        shape: of the batch, B first.
        dtype, device: of the state; by default the network's, but a dtype of 32 bits at least.
        sampler, steps, nfe, grid, start, stop, denoise, parallel, seed, noise, callback, progress, grad, project, capture,
            conditions, keywords: as of `solve`.

    Raises:
        As `solve`.
    """
    check_model(model)
    if not isinstance(shape, Sequence) or isinstance(shape, str) or not shape:
        raise TypeError(f"shape must be a sequence of whole numbers, batch first, got {shape!r}")
    size = tuple(whole("shape", n, 0 if i == 0 else 1) for i, n in enumerate(shape))  # a batch of 0 gives 0 samples
    dtype = floating(dtype or model.state_dtype)
    prepared = prepare(model, sampler, Schedule(steps, nfe, grid, start, stop, denoise), keywords, conditions)
    like = torch.empty(size, dtype=dtype, device=placed(device) or model.device)
    if noise is None or isinstance(noise, str):
        seed = check_seed(seed, size[0])
    elif isinstance(noise, Tensor | Replay):
        noise = Replay(noise.given if isinstance(noise, Replay) else noise, prior=True)
        noise.fit(like, None)
    prior, _ = source_of(noise, seed, size[0], None)
    x_T = prior.draws("prior")(like) * model.path.prior_std(prepared.times[0])
    source, kept = prepared.source(noise, seed, size[0], model.path)
    return carry(
        model, x_T, prepared, source,
        parallel=parallel, seed=kept, callback=callback, progress=progress, grad=grad, project=projection(project),
        capture=capture,
    ).x  # fmt: skip


def options_of(sampler: str | Sampler, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the keywords that are options of the named sampler."""
    if not isinstance(sampler, str) or is_kept(sampler):
        return {}
    known = {"analytic"} if sampler == AUTO else set(SAMPLERS[resolve(sampler)[0]].options)
    return {name: value for name, value in keywords.items() if name in known}


def check_conditions(model: ScoreModel, sampler: Sampler, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The conditions of the network for a run of this sampler, as of `ScoreModel.check_conditions`."""
    for name in sampler.options:
        if name in keywords and name != "conditions":
            raise TypeError(f"{name!r} is an option of {sampler!r}, which was made before: set it there, in get_sampler")
    options = tuple(SAMPLERS[sampler.name].options) if sampler.name in SAMPLERS else ()
    where = f" of solve, nor an option of sampler {sampler.name!r} (it has {', '.join(options) or 'none'}),"
    return model.check_conditions(keywords, (*options, *ARGUMENTS), where)


ARGUMENTS = tuple(name for name in inspect.signature(solve).parameters if name not in ("model", "x_T", "keywords"))


def meant(model: ScoreModel, sampler: str | Sampler, schedule: Schedule, **options: Any) -> tuple[Sampler, tuple[float, ...]]:
    """The sampler and the times that were asked for of this model, whose guidance the budget pays for."""
    labels, pays = model.time == "label", per_call(model)
    sampler = model.default_sampler if sampler == AUTO else sampler
    if sampler == AUTO:
        exact = model.oracle is not None
        return choose(model.path, schedule, guided=model.guided, labels=labels, exact=exact, per_call=pays, **options)
    chosen = get_sampler(sampler, **options)
    return chosen, schedule.times(chosen, model.path, pays, labels and schedule.grid is None)


def per_call(model: ScoreModel) -> Callable[[float], int] | None:
    """Network evaluations of a call at t; None where it is 1."""
    return (lambda t: int(model.evaluations(t))) if model.guided else None
