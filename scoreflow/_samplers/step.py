"""The protocol of a sampler, the linear ones made of rows, and the registry of names."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Hashable, ItemsView, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from scoreflow._core import check
from scoreflow._core.aliases import ALIASES, PLAIN, REASONS, elsewhere, plain
from scoreflow._core.gaussian import GaussianPath, Prediction
from scoreflow._core.grid import GRIDS, named
from scoreflow._core.noise import Draws
from scoreflow._core.path import VPSDE
from scoreflow._core.row import Row
from scoreflow._samplers.plan import Draw, Network, Plan, PlannedStep, Stage, Stages, advance, drive
from scoreflow._samplers.works import short

Rows = Callable[..., Row | list[tuple[float, Row]] | Stages]
GROWTH = 4.0
"""The most by which the weights of a last row may exceed their sum, `Σ|m_j| ≤ GROWTH |Σ m_j|`."""


class Step(NamedTuple):
    """What a step hands to the loop: the state x_s, what the next step may use, an error estimate or None."""

    x: Tensor
    memory: tuple[Any, ...] = ()
    error: Tensor | None = None


class Options(Mapping[str, Any]):
    """Options by name: a mapping that cannot be changed, hashable and picklable."""

    def __init__(self, **options: Any) -> None:
        self._pairs = tuple(sorted(options.items()))

    def __getitem__(self, name: str) -> Any:
        return dict(self._pairs)[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._pairs)

    def items(self) -> ItemsView[str, Any]:
        return dict(self._pairs).items()

    def __len__(self) -> int:
        return len(self._pairs)

    def __hash__(self) -> int:
        return hash(self._pairs)

    def __repr__(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self._pairs if value is not None)


class Doc:
    """The docstring of a class, whose instances have a page of their own: what `help` shows of them."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __get__(self, sampler: Sampler | None, owner: type) -> str:
        return self.text if sampler is None else sampler.doc


@dataclass(frozen=True)
class Sampler:
    """A way to step from t to s. Immutable: all that changes during a run is in its arguments.

    Attributes:
        name, options: as registered, and as chosen.
        order: of convergence, to the probability-flow ODE, or weakly to the reverse SDE; None where the tolerance
            rules or there is no such limit.
        cites: keys of references.bib.
        default_steps: the grid intervals when neither steps nor a budget is given; None for as few as it needs.
        brownian: whether its noise must be a Brownian path.
    """

    name: str = ""
    options: Options = field(default_factory=Options)
    order: int | None = None
    cites: tuple[str, ...] = ()
    default_steps: int | None = 50
    brownian: bool = False

    def __repr__(self) -> str:
        return f"{self.name}({self.options!r})"

    def __call__(self, **options: Any) -> Sampler:
        """The same sampler with other options."""
        return get_sampler(self.name, **{**self.options, **options})

    @property
    def doc(self) -> str:
        """Its page, as text: formula, options, order, cost, noise, citation, file and tests. `help(sampler)` shows it."""
        if self.name not in SAMPLERS:
            return f"{self!r}, made of rows that are not registered"
        entry, path = SAMPLERS[self.name], VPSDE()
        few, more = (self.evaluations(path, tuple(1 - k / 10 for k in range(n))) for n in (6, 7))
        each = None if few is None or more is None else more - few
        cost = "what its run takes" if each is None else f"{each} evaluation{'s' * (each > 1)} of the network a step"
        also = [*(name for name, (base, _) in VARIANTS.items() if base == self.name), *elsewhere(self.name)]
        facts = {
            "options": ", ".join(f"{name}={self.options.get(name, p.default)!r}" for name, p in entry.options.items()),
            "order": "by tolerance" if self.order is None else str(self.order),
            "cost": cost,
            "noise": "drawn at every step" if self.stochastic else "none after the prior",
            "names": ", ".join((self.name, *also)),
            "cite": "; ".join(f"{short(key)} ({key})" for key in self.cites),
            "file": entry.place,
            "tests": f'pytest -k "{self.name}"',
        }
        return "\n".join([f"{self!r}", "", entry.doc, "", *(f"{name:8} {fact}" for name, fact in facts.items())])

    def __init_subclass__(cls) -> None:
        cls.__doc__ = Doc(inspect.cleandoc(cls.__doc__ or ""))  # type: ignore[assignment]

    @property
    def analytic(self) -> float | None:
        """The data variance v, if the first evaluation is to be the exact one of N(0, v I) data; else None."""
        return self.options.get("analytic")

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise after the prior."""
        raise NotImplementedError

    def stochastic_on(self, path: GaussianPath) -> bool:
        """Whether it does on this path."""
        return self.stochastic

    def default_grid(self, path: GaussianPath) -> str | None:
        """The grid of a run that names none; None for the chain's nodes, or uniform t where there is no chain."""
        return None

    def step(self, model: Network, x: Tensor, t: float, s: float, memory: tuple[Any, ...], noise: Draws) -> Step:
        """From the state x (B, ...) at t to s < t."""
        raise NotImplementedError

    def evaluations(self, path: GaussianPath, times: tuple[float, ...]) -> int | None:
        """Network evaluations of a run on this grid; None if only the run can tell."""
        return None


@dataclass(frozen=True, repr=False)
class Linear(Sampler):
    """A sampler given by its rows.

    Attributes:
        rows: `(path, times, s, **options)` → a Row, or for several stages a list of (time, Row), the last at s. `times`
            are when the network was evaluated, newest first; `times[0]` is t.
        prediction: the one that its rows weigh.
        history: how many of the outputs of the network it looks back on.
        reuse: whether the output at a stage that stands at s opens the next step.
        lands: whether its rows hold at σ_s = 0. If not, the step to σ = 0 is x̂_0 (`landing`).
        marginal: whether its rows carry every Gaussian marginal over exactly when x̂_0 is right.
    """

    rows: Rows = field(default=lambda path, times, s: [])
    prediction: Prediction = "x0"
    history: int = 1
    reuse: bool = False
    lands: bool = False
    marginal: bool = True

    @property
    def stochastic(self) -> bool:
        return self.stochastic_on(VPSDE())

    def stochastic_on(self, path: GaussianPath) -> bool:
        return self.plan(path, (0.6, 0.5)).noise_count > 0

    def default_grid(self, path: GaussianPath) -> str | None:
        """`ode` for the deterministic ones of order 2 and above."""
        return "ode" if self.order is not None and self.order >= 2 and not self.stochastic_on(path) else None

    def plan(self, path: GaussianPath, times: tuple[float, ...]) -> Plan:
        """The rows of a whole run on this grid; no network, no state, no randomness. The last few plans are kept."""
        try:
            return _plan(self, path, times, path.stamp)
        except TypeError:  # an option that has no hash
            return self._build_all(path, times)

    def _build_all(self, path: GaussianPath, times: tuple[float, ...]) -> Plan:
        steps: list[PlannedStep] = []
        evaluated: tuple[float, ...] = ()
        for t, s in pairwise(times):
            for step in self.build(path, evaluated, t, s):
                steps.append(step)
                evaluated = self._evaluated(step, evaluated)
        return self._planned(path, tuple(steps))

    def step(self, model: Network, x: Tensor, t: float, s: float, memory: tuple[Any, ...], noise: Draws) -> Step:
        plan, lower = self._planned(None, self.build(model.path, tuple(u for u, _ in memory), t, s)), None
        for planned in plan.steps:
            x, memory, lower = drive(advance(planned, plan, model, x, memory, noise), model)
        return Step(x, memory, None if lower is None else x - lower)

    def evaluations(self, path: GaussianPath, times: tuple[float, ...]) -> int:
        return self.plan(path, times).nfe

    def rows_at(self, path: GaussianPath, times: tuple[float, ...], s: float) -> Row | list[tuple[float, Row]] | Stages:
        """`rows` with the sampler's options."""
        return self.rows(path, times, s, **{name: value for name, value in self.options.items() if name != "analytic"})

    def build(self, path: GaussianPath, evaluated: tuple[float, ...], t: float, s: float) -> tuple[PlannedStep, ...]:
        """One step of the grid, given when the network was evaluated, newest first: a planned step, or several."""
        evaluates = not evaluated or evaluated[0] != t
        seen = ((t, *evaluated) if evaluates else evaluated)[: self.history]
        if path.sigma(s) > 0:
            out = self.rows_at(path, seen, s)
        else:
            out = self._last(path, seen, s) if self.lands else landing(path, t, s, self.prediction)
        rows, draws = out if isinstance(out, Stages) else ([(s, out)] if isinstance(out, Row) else out, (Draw(t, s),))
        noisy = any(row.draws for _, row in rows)
        return (PlannedStep(t, s, evaluates, tuple(Stage(u, row) for u, row in rows), draws if noisy else ()),)

    def _last(self, path: GaussianPath, times: tuple[float, ...], s: float) -> Row | list[tuple[float, Row]] | Stages:
        """The rows to σ = 0: of first order, x̂_0, where this step is longer in κ than the one before, else of the highest order
        whose weights grow to no more than `GROWTH`.

        A long step after short ones extrapolates, and multiplies what errors the network has.
        """
        here, before = (path.kappa(times[min(k, len(times) - 1)]) for k in (0, 1))
        for k in range(len(times) if here <= before - here else 1, 0, -1):
            out = self.rows_at(path, times[:k], s)
            if k == 1 or not isinstance(out, Row):
                break
            m = [float(weight) for weight in out.m]
            if sum(map(abs, m)) <= GROWTH * abs(sum(m)):
                break
        return out

    def _planned(self, path: GaussianPath | None, steps: tuple[PlannedStep, ...]) -> Plan:
        text, options = "" if path is None else repr(path), tuple(self.options.items())
        return Plan(self.name, text, self.prediction, steps, self.history, self.reuse, options, self.analytic, path)

    def _evaluated(self, step: PlannedStep, evaluated: tuple[float, ...]) -> tuple[float, ...]:
        """When the network was evaluated, after a step."""
        evaluated = ((step.t, *evaluated) if step.evaluates else evaluated)[: self.history]
        ahead = [u for u, _ in step.stages[:-1] if u == step.s] if self.reuse else []
        return (*reversed(ahead), *evaluated)


@functools.lru_cache(maxsize=32)
def _plan(sampler: Linear, path: GaussianPath, times: tuple[float, ...], stamp: Hashable) -> Plan:
    return sampler._build_all(path, times)


def landing(path: GaussianPath, t: float, s: float, prediction: Prediction) -> Row:
    """The exact last row, `x_s = α_s x̂_0` at σ_s = 0, as `prediction`: the end of every run to data."""
    return path.bridge(t, s).through(*path.convert(prediction, "x0", t))


# -- names ---------------------------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """What the registry knows of a name: how to build the sampler, its options, its docstring, its file and line."""

    build: Callable[..., Sampler]
    options: dict[str, inspect.Parameter]
    doc: str
    place: str


SAMPLERS: dict[str, Entry] = {}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {}
"""Names of their own for a sampler with some options set, such as `unipc-2`."""
ANALYTIC = inspect.Parameter("analytic", inspect.Parameter.KEYWORD_ONLY, default=None)
"""The option of every sampler."""
LISTED = "sf.samplers() lists all (in a shell: scoreflow samplers)"
F = TypeVar("F", bound=Callable[..., Any])


def sampler(name: str, also: Mapping[str, dict[str, Any]] | None = None, **traits: Any) -> Callable[[F], F]:
    """Register rows `(path, times, s, *, **options)` as the linear sampler of this name; traits as of `Linear`.

    `also` gives further names to some of its options.
    """

    def register(rows: F) -> F:
        options = {k: p for k, p in inspect.signature(rows, eval_str=True).parameters.items() if p.kind is p.KEYWORD_ONLY}

        def build(**chosen: Any) -> Linear:
            return Linear(name=name, options=Options(**chosen), rows=rows, **traits)

        _enter(name, build, options, rows, also)
        return rows

    return register


def family(name: str, also: Mapping[str, dict[str, Any]] | None = None) -> Callable[[F], F]:
    """Register a function of options only that returns the sampler they choose; `also` names some of these."""

    def register(choose: F) -> F:
        def build(analytic: float | None = None, **chosen: Any) -> Sampler:
            made: Sampler = choose(**chosen)
            return dataclasses.replace(made, name=name, options=Options(**chosen, analytic=analytic))

        _enter(name, build, dict(inspect.signature(choose, eval_str=True).parameters), choose, also)
        return choose

    return register


def resolve(name: str) -> tuple[str, dict[str, Any]]:
    """The registered name and options that a name means: itself, or an alias (`_core.aliases`).

    Raises:
        ValueError: nothing has the name; the near ones are named. TypeError: it is no text.
    """
    if not isinstance(name, str):
        raise TypeError(f"sampler must be a name or a Sampler, got {type(name).__name__}")
    known = {**{own: (own, {}) for own in SAMPLERS}, **VARIANTS}
    if name in known:
        return known[name]
    if name == "auto":
        raise ValueError("auto is chosen by the budget: give it to solve, sample or plan")
    same = {plain(own): meant for own, meant in known.items()}
    if (meant := same.get(plain(name), PLAIN.get(plain(name)))) is None:
        if reason := REASONS.get(plain(name)):
            raise ValueError(f"no sampler here has the update of {name!r}: {reason}")
        words = name.split(" ")
        for k in range(1, len(words)):  # as in "DPM++ 2M Karras"
            first, last = " ".join(words[:k]), " ".join(words[k:])
            if named(last) in GRIDS:
                raise ValueError(
                    f"no sampler is called {name!r}: {last!r} is a grid, so give {first!r} and grid={last.lower()!r}"
                )
        raise ValueError(f"no sampler is called {name!r}{check.suggestion(name, known, LISTED, ('auto', *ALIASES))}")
    return meant


def get_sampler(name: str | Sampler, **options: Any) -> Sampler:
    """The sampler of this name, or of what the name means elsewhere, with these options; the rest at their defaults.

    Raises:
        ValueError: no sampler has the name (the near ones are named), or an option has a value it cannot have.
        TypeError: the sampler has no such option (its options are named).
    """
    if isinstance(name, Sampler):
        return name(**options) if options else name
    name, meant = resolve(name)
    entry = SAMPLERS[name]
    check.options(f"sampler {name!r}", options, entry.options)
    chosen = {**{k: p.default for k, p in entry.options.items()}, **meant, **{k: check.scalar(v) for k, v in options.items()}}
    if chosen["analytic"] is not None:
        # True stands for the variance 1 that data are scaled to.
        chosen["analytic"] = check.number("analytic", 1.0 if chosen["analytic"] is True else chosen["analytic"], least=0)
    return entry.build(**chosen)


def _enter(
    name: str,
    build: Callable[..., Sampler],
    options: dict[str, inspect.Parameter],
    source: Callable[..., Any],
    also: Mapping[str, dict[str, Any]] | None,
) -> None:
    for new in (name, *(also or ())):
        if new in SAMPLERS or new in VARIANTS:
            raise ValueError(f"the sampler name {new!r} is taken")
    place = f"{str(source.__module__).replace('.', '/')}.py:{source.__code__.co_firstlineno}"
    SAMPLERS[name] = Entry(build, {**options, "analytic": ANALYTIC}, inspect.getdoc(source) or "", place)
    VARIANTS.update({new: (name, chosen) for new, chosen in (also or {}).items()})
