"""`tune`: a plan fitted to a model and a budget, held to what was there before on seeds of its own."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

import numpy as np

from scoreflow._core import NUMERICS
from scoreflow._core.check import flag, listed, number, one_of, whole
from scoreflow._core.grid import check_ends
from scoreflow._run.auto import AUTO
from scoreflow._run.solve import ARGUMENTS
from scoreflow._run.solve import plan as sampler_plan
from scoreflow._samplers.step import get_sampler
from scoreflow._score.fingerprint import fingerprint, identity
from scoreflow._score.model import ScoreModel, check_model, check_settled
from scoreflow.studies.spec import parse
from scoreflow.tuning.fit import ITERATIONS, Asked
from scoreflow.tuning.problem import PARTS, TEACHER, Problem
from scoreflow.tuning.result import Tuned
from scoreflow.tuning.student import PREDICTION
from scoreflow.tuning.work import Report, Work, write


@overload
def tune(model: ScoreModel, nfe: int, **more: Any) -> Tuned: ...
@overload
def tune(model: ScoreModel, nfe: Sequence[int], **more: Any) -> dict[int, Tuned]: ...
def tune(  # type: ignore[misc]
    model: ScoreModel,
    nfe: int | Sequence[int],
    *,
    shape: Sequence[int] | None = None,
    conditions: Mapping[str, Any] | None = None,
    seeds: tuple[int, int, int] = (256, 256, 512),
    seed: int = 0,
    start: float = 1.0,
    stop: float = 0.0,
    form: str | None = None,
    history: int = 4,
    free: bool = False,
    weights: bool = True,
    labels: bool = True,
    analytic: bool = True,
    candidates: Sequence[str] | None = None,
    starts: int = 3,
    iterations: int | None = None,
    batch: int | None = None,
    teacher: int | None = None,
    budget_s: float | None = None,
    out: str | Path | None = None,
    executor: Executor | None = None,
    progress: bool = False,
) -> Tuned | dict[int, Tuned]:
    """A plan for a model and a budget, its times and multistep weights fitted so that runs end where the ODE leads.

    All deterministic samplers made of rows, on all grids, are run on a few seeds, and the best in full. From the times of the
    best, weights are found by least squares, each step from the state that the steps before it lead to; then times and weights
    move together by L-BFGS. Of several budgets, one of the fits begins from the plan of the budget before. On seeds of its own
    the fitted plan is held to the best sampler: it is returned if both the median and the 90 % quantile of its errors are
    smaller, at 95 % by a paired bootstrap; if not, the best sampler's plan is, and `reason` says so. The figures in `test` are
    of seeds that nothing was chosen by.

    Args:
        model: a network, an oracle or a guided model; guidance that follows a run (momentum, CFG++) cannot be fitted.
        nfe: a budget of evaluations, or several.
        shape: of one state; of an oracle it is known.
        conditions: of the network, by name. Of a tensor each sample takes the row that its seed draws, so `{"y":
            torch.arange(10)}` fits to all classes; a function `(n, seed) → value` makes them; all else is told as it is.
        seeds: how many states to fit to, to decide by, and to report on. seed: the first; the parts are disjoint.
        start, stop: as of `solve`.
        form: "noise" or "data", which prediction is weighed. None: noise, or data for guided models and from α = 0.
        history: how many outputs a step weighs.
        free: give up `Σ_j w_j = 1`, so that rows no longer carry `x_t = α_t x_0 + σ_t ε` to `x_s`.
        weights: False fits the times alone, with the weights of even steps.
        labels: fit what the network is told of the times too, as learned scores are off in time.
        analytic: try the exact answer of N(0, v I) data in place of the first evaluation, v fitted too.
        candidates: the samplers to hold it to and to begin from, as typed, such as "unipc@karras"; "auto" is always one. None:
            all.
        starts: how many first fits, each from the times of another candidate. iterations: of L-BFGS, on all states that are
            fitted to, from the best of them; they have a quarter, and 64 states. None: 100 for a network, 400 for an oracle.
        batch: states in a call that is differentiated; four times as many in one that is not. None: 32 for a network, all for
            an oracle.
        teacher: steps of UniPC-3 that stand for the ODE. None: 113 for a network, 400 for an oracle.
        budget_s: seconds for each budget; what it gives then depends on the machine. None: all iterations.
        out: a folder: what was found is kept there, and a run that was stopped goes on from it.
        executor: where candidates and fits run, any of `concurrent.futures`; the model must be picklable.
        progress: show a bar.

    Returns:
        The result, or those of several budgets by budget.

    Raises:
        ValueError, TypeError: values that are not allowed; a folder that holds another problem.

    Reference:
        S4S: Solving for a Diffusion Model Solver (Frankel et al., 2025); Learning to Discretize Denoising Diffusion ODEs
        (Tong et al., 2025). Both fit to the ODE as here; the decision on other seeds is ours.
    """
    model = alone(model)
    budgets = [whole("nfe", n, 2) for n in ([nfe] if isinstance(nfe, int) else nfe)]
    first, last = check_ends(start, stop)
    if form is not None:
        one_of("form", form, PREDICTION)
    for name, value in (
        ("free", free),
        ("weights", weights),
        ("labels", labels),
        ("analytic", analytic),
        ("progress", progress),
    ):
        flag(name, value)
    whole("history", history), whole("starts", starts)
    if budget_s is not None:
        number("budget_s", budget_s, above=0)
    told = model.check_conditions({} if conditions is None else dict(conditions), ARGUMENTS)
    problem = problem_of(model, shape, told, seeds, seed, first, last, batch, teacher)
    exact = model.oracle is not None
    most = ITERATIONS["oracle" if exact else "network"] if iterations is None else whole("iterations", iterations, 0)
    default: Any = "data" if model.guided or model.path.alpha(first) == 0 else "noise"
    asked = Asked(form or default, history, free, weights, labels, most, 0.0)  # type: ignore[arg-type]
    if asked.form == "noise" and model.path.alpha(first) == 0:
        raise ValueError(f"form='noise' begins where alpha > 0, and {model.path} has alpha=0 at start={first}: use form='data'")
    asked = asked._replace(labels=labels and model.time != "label")
    named = None if candidates is None else [str(one) for one in listed(candidates)]
    for name, options, _ in map(parse, named or ()):
        if name != AUTO:
            get_sampler(name, **options)
    folder = folder_of(out, problem, asked, named)
    work = Work(problem, asked, analytic and first == 1.0, named, starts, budget_s, folder, executor)
    with bars(sorted({*budgets}), progress) as reports:
        done = {n: work.budget(n, report) for n, report in zip(sorted({*budgets}), reports, strict=True)}
    return done[budgets[0]] if isinstance(nfe, int) else {n: done[n] for n in budgets}


def alone(model: ScoreModel) -> ScoreModel:
    """The model without its plans, so that "auto" is what it is without them.

    Raises:
        TypeError: it is none. ValueError: its guidance follows its run.
    """
    check_model(model)
    check_settled(model)
    model = copy.copy(model)
    model.plans = ()
    if model.begin(sampler_plan("ddim", model.path, 4, start=0.9, stop=0.1)) is not model:
        raise ValueError(f"{model!r} follows its run, and a plan that is being fitted has none: tune the model it guides")
    return model


def problem_of(
    model: ScoreModel, shape: Sequence[int] | None, told: Mapping[str, Any], seeds: Sequence[int], seed: int, start: float,
    stop: float, batch: int | None, teacher: int | None,
) -> Problem:  # fmt: skip
    """What is to be fitted to, of arguments as of `tune`.

    Raises:
        ValueError, TypeError: values that are not allowed.
    """
    counts = tuple(whole("seeds", n, 2) for n in seeds)
    if len(counts) != len(PARTS):
        raise ValueError(f"seeds must be three numbers, of states to fit to, to decide by and to report on, got {seeds}")
    exact = model.oracle is not None
    if shape is None:
        if model.oracle is None:
            raise ValueError(
                "shape=None, and only an oracle knows the shape of its states: give that of one state, such as (3, 32, 32)"
            )
        shape = model.oracle.event
    at, ends = whole("seed", seed, 0), np.cumsum((0, *counts)).tolist()
    return Problem(
        model, tuple(whole("shape", n) for n in shape), told,
        {part: range(at + a, at + b) for part, a, b in zip(PARTS, ends, ends[1:], strict=False)}, start, stop,
        TEACHER["oracle" if exact else "network"] if teacher is None else whole("teacher", teacher, 8),
        (counts[0] if exact else 32) if batch is None else whole("batch", batch),
    )  # fmt: skip


@contextmanager
def bars(budgets: Sequence[int], progress: bool) -> Iterator[list[Report]]:
    """What is told of each stage."""
    if not progress:
        yield [lambda stage: None] * len(budgets)
        return
    from tqdm.auto import tqdm

    with tqdm(total=4 * len(budgets)) as bar:

        def report(n: int) -> Report:
            def tell(stage: str) -> None:
                bar.set_description(f"{n} evaluations: {stage}")
                bar.update()

            return tell

        yield [report(n) for n in budgets]


def folder_of(out: str | Path | None, problem: Problem, asked: Asked, named: list[str] | None) -> Path | None:
    """The folder, made, and marked with the problem that it holds.

    Raises:
        ValueError: it holds another.
    """
    if out is None:
        return None
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    seeds = {part: [s[0], s[-1]] for part, s in problem.seeds.items()}
    what = {
        "model": identity(problem.model), "described": repr(problem.model), "shape": list(problem.shape),
        "conditions": fingerprint(dict(problem.conditions)), "seeds": seeds, "ends": [problem.start, problem.stop],
        "teacher": problem.teacher, "batch": problem.batch, "asked": list(asked), "candidates": named,
        "numerics": NUMERICS,
    }  # fmt: skip
    file = folder / "problem.json"
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        if other := [name for name in what if before.get(name) != what[name]]:
            raise ValueError(
                f"out={str(folder)!r} holds another problem: {other[0]} was {before.get(other[0])!r} and is {what[other[0]]!r}"
            )
    write(file, json.dumps(what, indent=1))
    return folder
