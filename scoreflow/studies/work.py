"""Running cells: one function that any executor can call, and the loop that hands them out and writes what comes back."""

from __future__ import annotations

import functools
import os
import pickle
import platform
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from contextlib import suppress
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoreflow._core.noise import Brownian, White
from scoreflow._run.kept import is_kept
from scoreflow._run.lockstep import solve_many
from scoreflow._run.solution import Solution
from scoreflow._run.solve import solve
from scoreflow._samplers.plan import Plan
from scoreflow._score.fingerprint import digest, fingerprint
from scoreflow._score.model import ScoreModel
from scoreflow.studies.metrics import Metric, MetricInput
from scoreflow.studies.spec import Spec
from scoreflow.studies.store import HEALTH, Done, Measured, Store
from scoreflow.studies.subject import Subject, is_map


class Job(NamedTuple):
    """One block of a cell, with all that a process needs to run it.

    Attributes:
        kind: "cell"; "reference", run again at `coarse` for its own error; "finest", for strong errors; "floor", data; "truth"
            and "measurement", pictures of what a posterior is of.
        metrics: those to measure. kept: samples from before, if the cell is only to be measured.
        reference, finest: keys of what it is compared to; `others` are their samples, put in by `fill`.
    """

    key: str
    kind: str
    spec: Spec
    seed: int
    n: int
    subject: Subject
    metrics: tuple[Metric, ...]
    coarse: Spec | None = None
    reference: str | None = None
    finest: str | None = None
    kept: np.ndarray | None = None
    others: tuple[np.ndarray | None, np.ndarray | None] = (None, None)

    @property
    def model(self) -> ScoreModel:
        """What runs: the subject's model or flow map; for the reference, what it solves the ODE of."""
        model = self.subject.ode if self.kind == "reference" else self.subject.runner(self.spec)
        assert model is not None
        return model


@functools.cache
def metric_fingerprint(metric: Metric) -> str:
    """Its fingerprint: a metric whose code changed is measured again."""
    return fingerprint(metric.measure)


Solved = Mapping[Spec, tuple[Solution, float]]
"""Runs that are done already, and their seconds."""


def work(job: Job, solved: Solved = MappingProxyType({})) -> Done:
    """Run and measure; what goes wrong is recorded."""
    try:
        if job.kind in ("truth", "measurement"):
            return Done(None, 0.0, _array(job.subject.pictures(job.n, job.seed)[job.kind]), (), job.kind, machine=machine())
        return _floor(job) if job.kind == "floor" else _run(job, solved)
    except Exception as error:
        return Done(None, 0.0, None, (), error=_text(error), machine=machine())


def machine() -> str:
    """Where this ran."""
    counts = (os.cpu_count(), "core"), (torch.get_num_threads(), "torch thread")
    cores, threads = (f"{n} {what}{'s' * (n != 1)}" for n, what in counts)
    return f"{platform.system()} {platform.machine()}, {cores}, {threads}"


def _floor(job: Job) -> Done:
    x = job.subject.block(job.n, job.seed)
    return Done(None, 0.0, _array(x), _measured(job, _inputs(job, x)), "data", machine=machine())


def _run(job: Job, solved: Solved) -> Done:
    subject, model = job.subject, job.model
    prepared = job.spec.prepared(model, subject.start, subject.stop)
    plan = prepared.plan
    if job.kept is not None:
        x = torch.from_numpy(job.kept).to(subject.model.device, subject.precision)
        return Done(None, 0.0, None, _measured(job, _inputs(job, x, plan=plan)), machine=machine())
    if plan is not None and job.kind == "cell" and not any(metric.samples for metric in job.metrics):
        cites = tuple(dict.fromkeys((*prepared.sampler.cites, *model.cites)))
        inputs = MetricInput(
            torch.empty(0), job.seed, oracle=subject.oracle, path=subject.model.path, plan=plan, posterior=subject.posterior
        )
        nfe = sum(int(model.evaluations(t)) for t in plan.evaluation_times)
        measured = *_measured(job, inputs), *_checked(job, plan)
        return Done(nfe, 0.0, None, measured, said(job.spec, plan), cites, machine=machine())
    sol, seconds = solved.get(job.spec) or _solve(job, job.spec)
    evaluation = _evaluation(job, sol.x) if any("timed" in m.needs for m in job.metrics) else 0.0
    measured = _measured(job, _inputs(job, sol.x, plan=sol.plan, seconds=seconds, evaluation=evaluation), solved)
    counted = float(np.mean(sol.nfe_per_sample))
    ran = said(job.spec, sol.plan) if sol.plan is not None else f"{sol.sampler!r}, {len(sol.times) - 1} steps"
    measured = (*measured, *_checked(job, sol.plan))
    return Done(counted, seconds, _array(sol.x), measured, ran, sol.cites, machine=machine(), backward=sol.backward)


def _measured(job: Job, inputs: MetricInput, solved: Solved = MappingProxyType({})) -> tuple[Measured, ...]:
    """What each metric gives; one that fails takes no other with it."""
    found = []
    for metric in job.metrics:
        try:
            if job.kind == "reference" and "reference" in metric.needs:
                assert job.coarse is not None
                coarse, _ = solved.get(job.coarse) or _solve(job, job.coarse)
                figures = metric(inputs._replace(x=coarse.x, reference=inputs.x))
            else:
                for other in {"reference", "finest"} & set(metric.needs):
                    if getattr(inputs, other) is None:
                        raise ValueError(f"the {other} run that it is compared to has failed")
                figures = metric(inputs)
            found.append(Measured(metric.name, _fingerprint(job, metric), figures))
        except Exception as error:
            found.append(Measured(metric.name, _fingerprint(job, metric), {}, f"metric {metric.name!r}: {_text(error)}"))
    return tuple(found)


def _checked(job: Job, plan: Plan | None) -> tuple[Measured, ...]:
    """What the rows say of themselves; of a flow map they do not say what comes out."""
    return () if plan is None or is_map(job.model) else (Measured(HEALTH, "", plan.check()._asdict()),)


def _fingerprint(job: Job, metric: Metric) -> str:
    """What its figures depend on beside the run: the metric, and how fine the run is that it compares with."""
    return f"{metric_fingerprint(metric)} {job.finest}" if "finest" in metric.needs else metric_fingerprint(metric)


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _solve(job: Job, spec: Spec) -> tuple[Solution, float]:
    """The run and its seconds."""
    begun = time.perf_counter()
    model = job.subject.posed(job.n, job.seed, job.model)
    sol = solve(model, _prior(job), **_keywords(job, spec), **job.subject.conditioned(job.n, job.seed))
    return sol, time.perf_counter() - begun


def _prior(job: Job) -> Tensor:
    """x_T of the block."""
    subject = job.subject
    like = torch.empty(job.n, *subject.shape, dtype=subject.precision, device=subject.model.device)
    return White(job.seed).draws("prior")(like) * subject.model.path.prior_std(subject.start)


def _keywords(job: Job, spec: Spec) -> dict[str, Any]:
    """A run as keywords of `solve`; conditions apart."""
    subject, noisy = job.subject, spec.noisy(job.subject.model.path)
    drawn = {"noise": Brownian(job.seed)} if noisy else {"seed": job.seed}  # a path that runs of all budgets have to its end
    return {"sampler": spec.made(), "grid": spec.grid, "start": subject.start, "stop": subject.stop, **spec.budget, **drawn}


def _evaluation(job: Job, x: Tensor) -> float:
    """Seconds of one evaluation of the batch: the least of three."""
    subject, spent = job.subject, []
    model = subject.posed(job.n, job.seed, job.model)
    with torch.no_grad():
        for _ in range(3):
            begun = time.perf_counter()
            model(x, (subject.start + subject.stop) / 2, model.prediction, **subject.conditioned(job.n, job.seed))
            spent.append(time.perf_counter() - begun)
    return min(spent)


def _inputs(job: Job, x: Tensor, **more: Any) -> MetricInput:
    subject = job.subject
    reference, finest = (None if other is None else torch.from_numpy(other).to(x) for other in job.others)
    needs = {need for metric in job.metrics for need in metric.needs}
    truth = subject.truth(job.seed) if {"data", "features", "posterior"} & needs else None
    if subject.simulated and {"simulated", "posterior"} & needs:
        more["simulated"] = subject.simulate(job.n, job.seed)
    return MetricInput(
        x, job.seed, reference, finest, None if truth is None else truth.to(x), subject.features, subject.oracle,
        subject.model.path, posterior=subject.posterior, **more,
    )  # fmt: skip


def _array(x: Tensor) -> np.ndarray:
    """On the host; float32 where numpy has no such dtype."""
    x = x.detach().to("cpu")
    return (x.float() if x.dtype.itemsize < 4 else x).numpy()


def said(spec: Spec, plan: Plan) -> str:
    """What ran, in a line; of a plan from a file with a mark of its numbers."""
    head = str(plan).partition("\n")[0]
    return f"{head}; mark {digest(plan.to_json())[:8]}" if is_kept(spec.sampler) else head


class Here(Executor):
    """Runs what it is given at once, in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As of `Executor`."""
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class Pending:
    """A cell that waits for others to run with; it has of a `Future` what `fill` uses."""

    def __init__(self, lockstep: Lockstep, job: Job) -> None:
        self.lockstep, self.job = lockstep, job
        self.answer: Done | None = None

    def done(self) -> bool:
        """True: whoever asks sets off all that wait."""
        self.lockstep.run()
        return True

    def result(self) -> Done:
        """What the cell gave."""
        assert self.answer is not None
        return self.answer

    def cancel(self) -> None:
        """Nothing to stop."""


class Lockstep(Executor):
    """Cells of one block run together, in this process: their states in one network call, of `batch` states at most. Those of
    the flow map are a block of their own.

    A cell that is timed runs alone. Where one of them fails, each of the block runs alone.
    """

    _max_workers = 16

    def __init__(self, batch: int) -> None:
        self.batch, self.waiting = batch, list[Pending]()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Puts a job of `work` with those that wait."""
        self.waiting.append(Pending(self, *args))
        return self.waiting[-1]

    def run(self) -> None:
        """All that wait."""
        blocks = dict[tuple[int, int], list[tuple[Pending, Spec]]]()  # of a seed and a model
        for one in self.waiting:
            runs = one.job.kind in ("cell", "reference", "finest")
            if runs and one.job.kept is None and not any("timed" in m.needs for m in one.job.metrics):
                specs = [one.job.spec, *([one.job.coarse] if one.job.coarse else [])]
                blocks.setdefault((one.job.seed, id(one.job.model)), []).extend((one, spec) for spec in specs)
        solved = dict[Pending, dict[Spec, tuple[Solution, float]]]()
        for (seed, _), together in blocks.items():
            job, begun = together[0][0].job, time.perf_counter()
            with suppress(Exception):  # each runs alone then, and the one at fault is recorded
                keywords = [_keywords(one.job, spec) for one, spec in together]
                given = job.subject.conditioned(job.n, seed)
                model = job.subject.posed(job.n, seed, job.model)
                found = solve_many(keywords, model, _prior(job), batch=self.batch, conditions=given)
                each = (time.perf_counter() - begun) / len(together)
                for (one, spec), sol in zip(together, found, strict=True):
                    solved.setdefault(one, {})[spec] = sol, each
        for one in self.waiting:
            one.answer = work(one.job, solved.get(one, {}))
        self.waiting = []


def fill(store: Store, jobs: Iterable[Job], executor: Executor | None, tell: Callable[[Job, Done | None], object]) -> None:
    """Run what the store has not, and write each cell as it is done; `tell` hears of each, None if it was there.

    Cells that another process is at are waited for.

    Raises:
        ValueError: the model cannot be sent to the executor's processes. RuntimeError: one of them died.
    """
    waiting, running, passed = deque(jobs), dict[Future[Done], tuple[Job, tuple[Metric, ...]]](), 0
    claimed = set[str]()
    pool = executor or Here()
    # Enough to keep it busy, and no more: what is handed out is claimed, and others may share the file.
    width = 1 if executor is None else 2 * getattr(executor, "_max_workers", 64)
    if waiting and isinstance(executor, ProcessPoolExecutor):
        _check_sent(waiting[0])
    try:
        while waiting or running:
            while waiting and len(running) < width and passed < len(waiting):
                job = waiting.popleft()
                have = store.measured(job.key)
                missing = tuple(m for m in job.metrics if have is None or (m.name, _fingerprint(job, m)) not in have)
                if have is not None and not missing:
                    tell(job, None)
                elif store.claim(job.key):
                    if store.measured(job.key) != have:  # another process has been at it since that look
                        store.release([job.key])
                        waiting.appendleft(job)
                        continue
                    claimed.add(job.key)
                    kept = store.samples(job.key) if have is not None and not any("timed" in m.needs for m in missing) else None
                    others = _samples(store, job.reference), _samples(store, job.finest)
                    sent = job._replace(metrics=missing, kept=kept, others=others)
                    running[pool.submit(work, sent)] = job, missing if have is not None else ()
                else:
                    waiting.append(job)
                    passed += 1
                    continue
                passed = 0
            for future in _finished(running):
                (job, again), done = running.pop(future), _result(future)
                if done.error and again:  # the cell stays; what it was measured by again is what failed
                    wrong = f"{done.error}"
                    measured = tuple(Measured(m.name, _fingerprint(job, m), {}, f"metric {m.name!r}: {wrong}") for m in again)
                    done = done._replace(error=None, measured=measured)
                store.put(job.key, job.kind, job.spec, job.seed, done)
                claimed.discard(job.key)
                tell(job, done)
            if passed and not running:
                time.sleep(0.1)
            passed = 0
    finally:
        for future in running:
            future.cancel()
        with suppress(OSError, ValueError):
            store.release(claimed)


def _finished(running: Mapping[Future[Done], Any]) -> Iterable[Future[Done]]:
    """Those that are done, once any is. What is no `Future`, such as submitit's jobs, is asked now and then."""
    if all(isinstance(future, Future) for future in running):
        return wait(running, return_when=FIRST_COMPLETED).done
    while not (done := [future for future in running if future.done()]):
        time.sleep(0.1)
    return done


def _result(future: Future[Done]) -> Done:
    try:
        return future.result()
    except BrokenExecutor as error:
        raise RuntimeError(
            "a worker process died, perhaps for lack of memory; finished cells are safe, and the same call goes on from there"
        ) from error
    except Exception as error:  # the executor's own: a cell's are in what it returns
        return Done(None, 0.0, None, (), error=_text(error), machine=machine())


def _check_sent(job: Job) -> None:
    """Raise ValueError unless a process pool can send the job to another process."""
    try:
        pickle.dumps(job)
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise ValueError(
            f"executor: the model cannot be sent to another process ({error}): define its network, features and metrics at "
            "the top of a module, or run without executor"
        ) from error


def _samples(store: Store, key: str | None) -> np.ndarray | None:
    return None if key is None else store.samples(key)
