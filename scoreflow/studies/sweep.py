"""Step count against quality, from one call: which sampler at which budget, and how sure is that?"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoreflow._core import NUMERICS
from scoreflow._core.check import flag, listed, number, whole
from scoreflow._core.grid import check_ends
from scoreflow._extras import named
from scoreflow._run.kept import PREFIX, is_kept
from scoreflow._samplers.step import Linear, Sampler
from scoreflow._score.fingerprint import digest
from scoreflow._score.flow_map import FlowMap
from scoreflow._score.model import ScoreModel
from scoreflow.studies import draw, report
from scoreflow.studies.answers import Answer
from scoreflow.studies.features import Features
from scoreflow.studies.findings import findings
from scoreflow.studies.metrics import Metric, get_metric
from scoreflow.studies.named import subject
from scoreflow.studies.results import Results
from scoreflow.studies.spec import MAPPED, Spec, parse, specs, typed
from scoreflow.studies.store import Done, Store
from scoreflow.studies.subject import NO_ODE, Subject, is_map
from scoreflow.studies.work import Job, Lockstep, fill, said

__all__ = ["FLOORS", "Answer", "Study", "study"]

FLOORS = 32
"""Blocks of data against data."""
FINE = 113
"""Evaluations of a reference that has no tolerance; its coarse run takes half of them. A prime, so that no cell that one would
ask for has its nodes: on the same nodes two samplers err alike, and their distance is too small."""


class Study(Results):
    """A study's store, and what it says. `Study.open("study/")` reads one that was written."""

    @classmethod
    def open(cls, out: str | Path) -> Study:
        """The study in a folder, or in a file.

        Raises:
            FileNotFoundError: there is none. ValueError: it is no study, or is damaged.
        """
        return cls(Store(_file(out)))

    def merge(self, *others: Study) -> Study:
        """A study in memory with the cells of this one and of others of the same model, data and version.

        Raises:
            ValueError: one is of something else; what differs is named. Or a file of a plan was not the same for all.
        """
        store = Store(None, {k: v for k, v in self.store.identity.items() if k != "format"})
        for one in (self, *others):
            store.take(one.store)
        if other := store.rows("SELECT sampler, nfe FROM cell WHERE kind = 'cell' AND error IS NULL AND sampler LIKE ? "
                               "GROUP BY sampler, nfe HAVING count(DISTINCT plan) > 1", f"{PREFIX}%"):  # fmt: skip
            raise ValueError(f"{other[0]['sampler']!r} at nfe={other[0]['nfe']} was not the same plan in all of these studies")
        return Study(store)

    def findings(self, figure: str | None = None) -> list[str]:
        """What the figures say, in sentences computed from them."""
        return findings(self, self._figure(figure))

    def _repr_html_(self) -> str:
        return report.card(self)

    @named()
    def plot(self, figure: str | None = None, ax: Any = None) -> Any:
        """Draw a figure against evaluations with matplotlib: intervals, floor, reference. Returns the axes."""
        return draw.plot(self, self._figure(figure), ax)

    @named()
    def report(self, file: str | Path, figures: str | Sequence[str] | None = None, *, light: bool = False) -> Path:
        """Write one self-contained HTML file: curves, tables, samples, findings, what was run, citations.

        Args:
            file: its name. figures: those that it shows; None: all.
            light: a file of a tenth of the size, without scripts: the curves are pictures, and the table does not sort.
        """
        return report.write(self, Path(file), [self._figure(f) for f in listed(figures or self.figures)], flag("light", light))


def study(
    model: str | ScoreModel | Subject,
    samplers: str | Sampler | Iterable[str | Sampler],
    *,
    nfe: int | Iterable[int] | None = None,
    steps: int | Iterable[int] | None = None,
    grids: str | Iterable[str] | None = None,
    metrics: str | Metric | Iterable[str | Metric] | None = None,
    n: int = 64,
    seeds: int | Sequence[int] = 8,
    reference: str | Sampler | None = None,
    shape: tuple[int, ...] | None = None,
    data: Tensor | None = None,
    features: str | Features | None = None,
    conditions: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    start: float | None = None,
    stop: float | None = None,
    simulated: int | None = None,
    flow_map: str | FlowMap | None = None,
    out: str | Path | None = None,
    executor: Executor | None = None,
    batch: int | None = None,
    progress: bool = False,
) -> Study:
    """Run every sampler at every budget from the same seeds, and measure.

    A cell is a sampler with its options, a grid, a budget and a block of `n` samples from one seed. All cells have the same
    seeds, and samplers with noise go along the same Brownian paths at every budget. Statistics are over blocks. A cell is
    written when it is done; a study that was stopped goes on where it was, and one with more samplers, budgets, seeds or
    metrics runs what is new.

    Args:
        model: a score model, a `Subject`, or a name: `zoo:digits`, `oracle:ring`, `package.module:factory`.
        samplers: names with options and a grid as typed, `ddim(eta=0.5)@karras`, or samplers of `get_sampler`. One that goes
            by a tolerance runs once, at whatever evaluations that takes. "plan:file" and "plan:folder" run at those of the
            budgets that they are for, and anew where a file has changed.
        nfe, steps: the budgets, in evaluations or in steps: one of the two. Here as in the other lists one may stand alone.
        grids: every sampler runs on each; None for its own.
        metrics: names or `Metric`s. None: "trajectory", and by what there is "sliced-w2", "kid", "modes", "w2-exact"; with
            simulated measurements "sbc", "tarp" and "coverage".
        n: samples in a block. seeds: of the blocks, or how many.
        reference: what converges to the probability-flow ODE. A sampler with a tolerance is run again at 10 times that, any
            other takes 113 evaluations, and again 56; the distance between the two runs is shown as its own error. It is
            mostly that of the coarser one. None: UniPC of order 3, and in float64 DOP853 with rtol = atol = 1e-9.
        shape, data, features, conditions, dtype, start, stop, simulated: of the `Subject`.
        flow_map: of the `Subject`, or its name, as of the model: a flow map beside its teacher. "flow-map" and "consistency",
            by these names, run on it, the other samplers and the reference on the model.
        out: a folder; None keeps all in memory.
        executor: where cells run, any of `concurrent.futures`; None: in this process.
        batch: in this process, run the cells of a block together, up to so many states in one network call; None: one after
            the other. Results are the same to rounding: networks are not the same to the last digit in other batches.
        progress: show a bar with the time left.

    Raises:
        ValueError: empty lists, wrong names, options or grids, metrics that need what there is not, all reported at once before
            anything runs; a store of another model, data or version; a damaged store. OSError: a full disk; what was
            finished is safe. A cell that fails is recorded with its error, and the rest goes on.
    """
    if missing := [name for name in ("ot", "pandas", "scipy") if find_spec(name) is None]:
        raise ModuleNotFoundError(f"studies need {', '.join(missing)}: pip install 'scoreflow[study]'")
    flag("progress", progress)
    if executor is not None and not hasattr(executor, "submit"):
        raise TypeError(f"executor must have submit, as those of concurrent.futures have, got {executor!r}")
    if batch is not None:
        if executor is not None:
            raise ValueError(f"batch={batch} and executor exclude each other: cells run together in this process only")
        executor = Lockstep(whole("batch", batch))
    ends = {name: number(name, t, 0, 1) for name, t in (("start", start), ("stop", stop)) if t is not None}
    beside = dict(data=data, features=features, conditions=conditions, dtype=dtype, simulated=simulated, flow_map=flow_map)
    what = subject(model, shape, **beside, **ends)
    check_ends(what.start, what.stop)
    what.model.check_conditions(dict(what.conditions), ())
    wrong = list[str]()
    found = _collect(wrong, lambda: specs(samplers, nfe, steps, grids, what.model.path)) or []
    chosen = _collect(wrong, lambda: _metrics(metrics, what)) or []
    exact, coarse = _collect(wrong, lambda: _reference(reference, what)) or (None, None)
    blocks = _collect(wrong, lambda: _blocks(seeds)) or []
    n = _collect(wrong, lambda: whole("n", n, 2)) or 2
    wrong += what.lacks(chosen)
    if any("data" in m.needs for m in chosen) and "data" in what.has():
        _collect(wrong, lambda: what.block(n, 0))
    if what.simulated:
        _collect(wrong, lambda: what.simulate(n, 0))
    for spec in found:
        if is_kept(spec.sampler):  # it may be of another model, or from another time on
            _collect(wrong, lambda spec=spec: spec.prepared(what.model, what.start, what.stop))  # type: ignore[misc]
    begun = (file := _file(out)) is not None and file.is_file()  # one that goes on may have others run on the map already
    if found and not begun and what.flow_map is not None and not any(spec.mapped for spec in found):
        wrong.append(f"flow_map is run by the samplers {' and '.join(MAPPED)}, and samplers has neither")
    lost = [spec.label for spec in found if chosen and not _apply(chosen, spec, what)]
    wrong += [f"no metric asked for applies to {label}" for label in lost]
    if wrong:
        raise ValueError("; ".join(dict.fromkeys(wrong)))
    identity = {**versions(), **what.identity(), "n": str(n), "reference": str(exact or "none")}
    store = Store(_file(out, make=True), identity)
    first, second = _jobs(what, identity, found, chosen, exact, coarse, blocks, n)
    for spec in found:
        if is_kept(spec.sampler) and (plan := spec.prepared(what.model, what.start, what.stop).plan) is not None:
            store.forget(spec, said(spec, plan))
    if not progress:
        fill(store, first, executor, _nobody)
        fill(store, second, executor, _nobody)
        return Study(store)
    from tqdm.auto import tqdm

    with tqdm(total=sum(map(_weight, [*first, *second])), unit=" evaluations", desc="study", unit_scale=True) as bar:

        def tell(job: Job, done: Done | None) -> None:
            if done is None:
                bar.total = (bar.total or 0) - _weight(job)
                bar.refresh()
            else:
                bar.set_postfix_str(str(job.spec), refresh=False)
                bar.update(_weight(job))

        fill(store, first, executor, tell)
        fill(store, second, executor, tell)
        bar.leave = bool(bar.total)  # where all was there already, nothing is shown
    return Study(store)


def versions() -> dict[str, str]:
    """Of what figures depend on."""
    return {"numerics": str(NUMERICS), "torch": torch.__version__}


def _metrics(metrics: str | Metric | Iterable[str | Metric] | None, what: Subject) -> list[Metric]:
    if metrics is None:
        has = what.has()
        defaults = {
            "trajectory": "reference",
            "sliced-w2": "data",
            "kid": "features",
            "modes": "mixture",
            "w2-exact": "gaussian",
            **dict.fromkeys(("sbc", "tarp", "coverage"), "simulated"),
        }
        metrics = [name for name, need in defaults.items() if need in has and set(get_metric(name).needs) <= has]
        metrics = metrics or ["trajectory"]  # what it needs is said then
    names = listed(metrics)
    if not names:
        raise ValueError("metrics is empty: give one or more")
    wrong: list[str] = []
    found = [_collect(wrong, lambda name=name: get_metric(name)) for name in names]  # type: ignore[misc]
    if wrong:
        raise ValueError("; ".join(wrong))
    chosen = list(dict.fromkeys(metric for metric in found if metric is not None))
    names = [metric.name for metric in chosen]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"metrics has two of the name {twice[0]!r}: give each its own")
    return chosen


def _reference(reference: str | Sampler | None, what: Subject) -> tuple[Spec, Spec | None] | None:
    """The run that cells are compared to, and a coarser one, whose distance to it is its stated error; None for no ODE."""
    path = what.model.path
    if what.ode is None:
        if reference is not None:
            raise ValueError(f"reference={reference!r}: {NO_ODE}")
        return None
    if reference is None:
        form = "noise" if path.alpha(what.start) > 0 else "data"  # noise form begins where α > 0
        fine = what.precision == torch.float64
        reference = "scipy(method=DOP853, rtol=1e-09, atol=1e-09)" if fine else f"unipc(order=3, form={form})"
    if not isinstance(reference, str | Sampler):
        raise TypeError(f"reference must be a sampler or its name, got {reference!r}")
    (exact,) = specs([typed(reference)], [FINE], None, None, path)
    if what.flow_map is not None and exact.mapped:
        raise ValueError(f"reference is of the model, and {exact.sampler} runs on the flow map: give ddim, or another")
    if exact.nfe is not None:
        if exact.noisy(path):
            raise ValueError(f"reference must converge to the probability-flow ODE, and {exact.sampler} draws noise")
        return exact, exact._replace(nfe=FINE // 2)
    name, options, _ = parse(exact.sampler)
    tolerances = {k: 10 * v for k, v in options.items() if k in ("rtol", "atol")}
    if not tolerances:
        return exact, None
    inside = ", ".join(f"{k}={v!r}" for k, v in {**options, **tolerances}.items())
    return exact, exact._replace(sampler=f"{name}({inside})")


def _blocks(seeds: int | Sequence[int]) -> list[int]:
    if hasattr(seeds, "__index__"):
        return list(range(whole("seeds", seeds)))
    found = list(dict.fromkeys(whole("seeds", s, 0) for s in listed(seeds)))
    if not found:
        raise ValueError("seeds is empty: give one or more")
    return found


def _apply(metrics: list[Metric], spec: Spec, what: Subject) -> list[Metric]:
    """The metrics that this sampler can be measured by."""
    noisy, rows = spec.noisy(what.model.path), isinstance(spec.made(), Linear | str) and not is_map(what.runner(spec))
    finer = noisy and bool(spec.budget) and not is_kept(spec.sampler)
    can = {"deterministic": not noisy, "finest": finer, "rows": rows, "evidence": noisy and rows}
    return [metric for metric in metrics if all(can.get(need, True) for need in metric.needs)]


def _jobs(
    what: Subject,
    identity: dict[str, str],
    found: list[Spec],
    metrics: list[Metric],
    exact: Spec | None,
    coarse: Spec | None,
    blocks: list[int],
    n: int,
) -> tuple[list[Job], list[Job]]:
    """What the cells are compared to, and the cells, block by block."""
    who, ends = digest(*(f"{k}={v}" for k, v in sorted(identity.items()))), (what.start, what.stop)
    contents = functools.cache(lambda spec, model: spec.content(model, *ends))

    def job(kind: str, spec: Spec, seed: int, measured: Iterable[Metric], **more: Any) -> Job:
        # The name is part of the key: one plan may have two, and each is a line of the table.
        content = contents(spec, what.ode if kind == "reference" else what.runner(spec))
        return Job(digest(who, kind, str(spec), content, str(seed)), kind, spec, seed, n, what, tuple(measured), **more)

    on_data = [m for m in metrics if {"data", "features", "oracle", "mixture", "posterior", "simulated"} & set(m.needs)]
    to_ode = [m for m in metrics if "reference" in m.needs]
    first = [job("floor", Spec("data"), seed, on_data) for seed in range(FLOORS)] if on_data and what.has_floor() else []
    if pictures := what.pictures(n, min(blocks)):
        first += [job(kind, Spec(kind), min(blocks), ()) for kind in pictures]
    references, finest = dict[int, Job](), dict[tuple[Spec, int], Job]()
    if exact is not None and (to_ode or on_data):
        measured = [*(to_ode if coarse else []), *on_data]
        references = {seed: job("reference", exact, seed, measured, coarse=coarse) for seed in blocks}
    most = 4 * max(spec.size for spec in found)
    second = []
    for seed in blocks:
        for spec in found:
            wanted, others = _apply(metrics, spec, what), dict[str, str]()
            if any("reference" in m.needs for m in wanted):
                others["reference"] = references[seed].key
            if any("finest" in m.needs for m in wanted):
                fine = spec._replace(nfe=most) if spec.nfe else spec._replace(steps=most)
                others["finest"] = finest.setdefault((fine, seed), job("finest", fine, seed, ())).key
            second.append(job("cell", spec, seed, wanted, **others))
    return [*first, *references.values(), *finest.values()], second


def _weight(job: Job) -> int:
    return job.spec.size or (1 if job.kind in ("floor", "truth", "measurement") else 300)


def _nobody(job: Job, done: Done | None) -> None:
    """Progress that nobody sees."""


def _collect(wrong: list[str], call: Callable[[], Any]) -> Any:
    """What the call gives, or its complaint put with the others."""
    try:
        return call()
    except (ValueError, TypeError) as error:
        wrong.append(str(error))
        return None


def _file(out: str | Path | None, make: bool = False) -> Path | None:
    if out is None:
        return None
    if not isinstance(out, str | os.PathLike):
        raise TypeError(f"out must be the name of a folder, got {out!r}")
    out = Path(out)
    if out.suffix == ".sqlite":
        return out
    if out.is_file():
        raise ValueError(f"out must be a folder, and {out} is a file")
    if make:
        out.mkdir(parents=True, exist_ok=True)
    return out / "study.sqlite"
