"""The protocol of a sampler, the linear ones made of rows, and the registry of names."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from scoreflow.aliases import PLAIN, plain
from scoreflow.check import suggestion
from scoreflow.noise import Draws
from scoreflow.path import GaussianPath, Prediction
from scoreflow.plan import Model, Plan, PlannedStep, Stage, advance
from scoreflow.row import Row
from scoreflow.sde import VPSDE

Rows = Callable[..., Row | list[tuple[float, Row]]]


class Step(NamedTuple):
    """What a step hands to the loop: the state x_s, what the next step may want, an error estimate or None."""

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

    def __len__(self) -> int:
        return len(self._pairs)

    def __hash__(self) -> int:
        return hash(self._pairs)

    def __repr__(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self._pairs if value is not None)


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
    def stochastic(self) -> bool:
        """Whether it draws noise after the prior."""
        raise NotImplementedError

    def step(self, model: Model, x: Tensor, t: float, s: float, memory: tuple[Any, ...], noise: Draws) -> Step:
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
            are when the network has spoken, newest first; `times[0]` is t.
        wants: the prediction that its rows weigh.
        history: how many of the network's words it looks back on.
        reuse: whether the word spoken at a stage that stands at s opens the next step.
        lands: whether its rows hold at σ_s = 0. If not, the step to σ = 0 is x̂_0 (`landing`).
        marginal: whether its rows carry every Gaussian marginal over exactly when x̂_0 is right.
    """

    rows: Rows = field(default=lambda path, times, s: [])
    wants: Prediction = "x0"
    history: int = 1
    reuse: bool = False
    lands: bool = False
    marginal: bool = True

    @property
    def stochastic(self) -> bool:
        return self._lay(VPSDE(), (0.6,), 0.5).noisy

    def plan(self, path: GaussianPath, times: tuple[float, ...]) -> Plan:
        """The rows of a whole run on this grid; no network, no state, no randomness."""
        steps: list[PlannedStep] = []
        spoken: tuple[float, ...] = ()
        for t, s in pairwise(times):
            steps.append(self._lay(path, spoken, s, t))
            spoken = self._spoken(steps[-1], spoken)
        return Plan(self.name, repr(path), self.wants, tuple(steps), self.history, self.reuse, tuple(self.options.items()))

    def step(self, model: Model, x: Tensor, t: float, s: float, memory: tuple[Any, ...], noise: Draws) -> Step:
        planned = self._lay(model.path, tuple(u for u, _ in memory), s, t)
        plan = Plan(self.name, "", self.wants, (planned,), self.history, self.reuse)
        return Step(*advance(planned, plan, model, x, memory, noise))

    def evaluations(self, path: GaussianPath, times: tuple[float, ...]) -> int:
        return self.plan(path, times).nfe

    def _lay(self, path: GaussianPath, spoken: tuple[float, ...], s: float, t: float | None = None) -> PlannedStep:
        t = spoken[0] if t is None else t
        asks = not spoken or spoken[0] != t
        seen = ((t, *spoken) if asks else spoken)[: self.history]
        if path.sigma(s) == 0 and not self.lands:
            rows: list[tuple[float, Row]] = [(s, landing(path, t, s, self.wants, len(seen)))]
        else:
            out = self.rows(path, seen, s, **self.options)
            rows = out if isinstance(out, list) else [(s, out)]
        return PlannedStep(t, s, asks, tuple(Stage(u, row) for u, row in rows))

    def _spoken(self, step: PlannedStep, spoken: tuple[float, ...]) -> tuple[float, ...]:
        """When the network has spoken, after a step."""
        spoken = ((step.t, *spoken) if step.asks else spoken)[: self.history]
        ahead = [u for u, _ in step.stages[:-1] if u == step.s] if self.reuse else []
        return (*reversed(ahead), *spoken)


def landing(path: GaussianPath, t: float, s: float, wants: Prediction, seen: int = 1) -> Row:
    """The exact last row, `x_s = α_s x̂_0` at σ_s = 0, said in the prediction `wants`: the end of every run to data."""
    row = path.bridge(t, s).through(*path.convert(wants, "x0", t))
    return row._replace(m=(*row.m, *[0.0] * (seen - 1)))


# -- names ---------------------------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """What the registry knows of a name: how to build the sampler, its options, its docstring."""

    build: Callable[..., Sampler]
    options: dict[str, inspect.Parameter]
    doc: str


SAMPLERS: dict[str, Entry] = {}
F = TypeVar("F", bound=Callable[..., Any])


def sampler(name: str, **traits: Any) -> Callable[[F], F]:
    """Register rows `(path, times, s, *, **options)` as the linear sampler of this name; traits as of `Linear`."""

    def register(rows: F) -> F:
        options = {k: p for k, p in inspect.signature(rows).parameters.items() if p.kind is p.KEYWORD_ONLY}

        def build(**chosen: Any) -> Linear:
            return Linear(name=name, options=Options(**chosen), rows=rows, **traits)

        _enter(name, build, options, rows)
        return rows

    return register


def family(name: str) -> Callable[[F], F]:
    """Register a function of options only that returns the sampler they choose."""

    def register(choose: F) -> F:
        def build(**chosen: Any) -> Sampler:
            made: Sampler = choose(**chosen)
            return dataclasses.replace(made, name=name, options=Options(**chosen))

        _enter(name, build, dict(inspect.signature(choose).parameters), choose)
        return choose

    return register


def resolve(name: str) -> tuple[str, dict[str, Any]]:
    """The registered name and options that a name means: itself, or an alias of `scoreflow.aliases`.

    Raises:
        ValueError: nothing has the name; the near ones are named. TypeError: it is no text.
    """
    if not isinstance(name, str):
        raise TypeError(f"sampler must be a name or a Sampler, got {type(name).__name__}")
    if name in SAMPLERS:
        return name, {}
    same = {plain(known): known for known in SAMPLERS}
    if plain(name) in same:
        return same[plain(name)], {}
    if plain(name) in PLAIN:
        return PLAIN[plain(name)]
    raise ValueError(f"no sampler is called {name!r}{suggestion(name, SAMPLERS)}")


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
    for option in options:
        if option not in entry.options:
            raise TypeError(f"sampler {name!r} has no option {option!r}; it has {', '.join(entry.options) or 'none'}")
    defaults = {k: p.default for k, p in entry.options.items()}
    return entry.build(**{**defaults, **meant, **options})


def _enter(name: str, build: Callable[..., Sampler], options: dict[str, inspect.Parameter], doc: Any) -> None:
    if name in SAMPLERS:
        raise ValueError(f"the sampler name {name!r} is taken")
    SAMPLERS[name] = Entry(build, options, inspect.getdoc(doc) or "")
