"""A run planned ahead: every row of a linear sampler on a grid, as plain numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from scoreflow._core.check import number, one_of
from scoreflow._core.deprecated import renamed
from scoreflow._core.gaussian import PREDICTIONS, GaussianPath, Prediction
from scoreflow._core.projection import Project, free
from scoreflow._core.row import Row
from scoreflow._html import card, table
from scoreflow._samplers.health import VARIANCES, Health, Symbolic, UnitVectors

Memory = tuple[tuple[float, Tensor], ...]


class Model(Protocol):
    """What a sampler asks of a model: its path, and a prediction at (x, t)."""

    @property
    def path(self) -> GaussianPath:
        """The path the model stands on."""
        ...

    @property
    def prediction(self) -> Prediction:
        """What its network gives."""
        ...

    def __call__(self, x: Tensor, t: float, prediction: Prediction = "eps") -> Tensor: ...


class Network(Model, Protocol):
    """What a sampler that is not made of rows may ask beside: a `ScoreModel`, or the run of one."""

    def evaluate(self, x: Tensor, t: float) -> tuple[Tensor, Tensor | None]:
        """The network's own prediction at states (B, ...) and a time, and its variance output or None."""
        ...

    def evaluate_samples(self, x: Tensor, t: Tensor, samples: Tensor) -> Tensor:
        """The network's own prediction at states (n, ...) and times (n,) of these samples of the batch, by number."""
        ...

    def express(self, output: Tensor, x: Tensor, t: float | Tensor, prediction: Prediction) -> Tensor:
        """The network's own prediction at (x, t) as `prediction`."""
        ...

    def part(self, start: int, stop: int) -> Network:
        """The same for these samples of the batch."""
        ...


class Stage(NamedTuple):
    """A row, and the time at which the state it makes stands."""

    t: float
    row: Row


class Draw(NamedTuple):
    """A standard normal that a step takes: the noise's increment from t to s over its standard deviation.

    With `area` the space-time area of the path between them, `∫ (W_u − its chord) du`, over its own; it is independent of
    the increment. On white noise every draw is a new one.
    """

    t: float
    s: float
    area: bool = False


class Stages(NamedTuple):
    """The rows of one step with the draws that they share, where these are not one increment from t to s."""

    rows: list[tuple[float, Row]]
    draws: tuple[Draw, ...]


class PlannedStep(NamedTuple):
    """One step t → s. It may go up, s > t, where noise is added.

    Attributes:
        evaluates: whether the network is evaluated at t first, or its last output already stands there, or is not needed.
        stages: rows in order. The network is evaluated at the state of each but the last, which is x_s. A row weighs the
            outputs in view, newest first: those of the earlier stages, then those remembered, as many as it has weights for.
        draws: what the rows' z weigh, shared by the stages.
    """

    t: float
    s: float
    evaluates: bool
    stages: tuple[Stage, ...]
    draws: tuple[Draw, ...] = ()

    @property
    def nfe(self) -> int:
        """Network evaluations."""
        return self.evaluates + len(self.stages) - 1

    @property
    def noise_count(self) -> int:
        """How many draws are taken; the stages of a step share them."""
        return len({k for _, row in self.stages for k, _ in row.draws})


class Fit(NamedTuple):
    """What the numbers of a plan were fitted to.

    Attributes:
        model: its identity, a hash of weights, path, prediction, time and guidance; "" for any.
        described: the same as text.
        nfe: the budget.
        conditions: names of what it was told.
        cites: keys of references.bib; none if a sampler's own rows were the best.
        ends: start and stop, as they were asked for; the plan's own times may begin below.
    """

    model: str
    described: str
    nfe: int
    conditions: tuple[str, ...] = ()
    cites: tuple[str, ...] = ()
    ends: tuple[float, float] = (1.0, 0.0)

    def __str__(self) -> str:
        how = "fitted to" if self.cites else "the best sampler's rows for"
        return f"{how} {self.described} at {self.nfe} evaluations, conditions {', '.join(self.conditions) or 'none'}"


@dataclass(frozen=True)
class Plan:
    """All rows of a run. Immutable, hashable, printable, JSON both ways; running it is running its sampler, to the bit.

    Attributes:
        sampler, options, path: what it was made from, as names and text.
        prediction: the one its rows weigh.
        history: how many of the outputs of the network a step may look back on.
        reuse: whether the output at a state that stands at s opens the next step (predict, evaluate, correct).
        analytic: if not None, the first evaluation is replaced by the exact one of N(0, v I) data, v this number.
        steps: the rows.
        path_object: the path itself, for `check`; no part of what a plan is, and not in its JSON.
        fit: what its numbers were fitted to, by `tune`; None where a sampler made them.
    """

    sampler: str
    path: str
    prediction: Prediction
    steps: tuple[PlannedStep, ...]
    history: int = 1
    reuse: bool = False
    options: tuple[tuple[str, Any], ...] = field(default=())
    analytic: float | None = None
    path_object: GaussianPath | None = field(default=None, compare=False, repr=False)
    fit: Fit | None = None

    def anyway(self) -> Plan:
        """The same plan for any model on its path, though it was fitted to one."""
        return self if self.fit is None else replace(self, fit=self.fit._replace(model=""))

    @cached_property
    def times(self) -> tuple[float, ...]:
        """The times it goes through: the grid, decreasing, unless a sampler adds steps of its own."""
        return (*(step.t for step in self.steps), self.steps[-1].s)

    @cached_property
    def nfe(self) -> int:
        """Network evaluations of the whole run."""
        return sum(step.nfe for step in self.steps) - (self.analytic is not None)

    wants, asked = renamed("wants", "prediction"), renamed("asked", "evaluation_times")

    @property
    def evaluation_times(self) -> tuple[float, ...]:
        """The times at which the network is evaluated, in order."""
        times = [u for step in self.steps for u in (*([step.t] if step.evaluates else []), *(u for u, _ in step.stages[:-1]))]
        return tuple(times[self.analytic is not None :])

    @cached_property
    def noise_count(self) -> int:
        """Draws of the size of the state that the run makes, without the prior."""
        return sum(step.noise_count for step in self.steps)

    @property
    def peak_tensors(self) -> int:
        """The most tensors of the size of the state that are alive at once, outside the network."""
        return max(self._alive())

    def _alive(self) -> Iterator[int]:
        remembered = 0
        for step in self.steps:
            remembered = min(remembered + step.evaluates, self.history)
            taken: set[int] = set()
            for i, (_, row) in enumerate(step.stages):
                taken |= {k for k, _ in row.draws}
                # x_t, what is remembered, the outputs of earlier stages, the state being made, the draws.
                yield 2 + remembered + i + len(taken)
            if self.reuse:
                remembered += any(u == step.s for u, _ in step.stages[:-1])

    def check(self, path: GaussianPath | None = None) -> Health:
        """What the run does to Gaussian data and to an error of the network: exact, from the rows, without a network.

        On N(0, v I) data a linear sampler is linear in x_T, its draws and the errors e_k of the outputs of the network,
        `x̂_0 = α v/(α² v + σ²) x + e_k`. The run goes once on these weights, for v = 1 and 0.01.

        Args:
            path: what it was made for; for a plan that was read from JSON, which keeps the path's text alone.

        Raises:
            ValueError: no path is known, or it is another one.
        """
        path = self.path_object if path is None else path
        if path is None:
            raise ValueError(f"a plan from JSON keeps its path as text: give check the path, {self.path}")
        if self.path != repr(path):
            raise ValueError(f"the plan was made for {self.path}, not for {path}")
        var, size = torch.tensor(VARIANCES, dtype=torch.float64), 2 + self.noise_count
        model = Symbolic(path, torch.zeros_like(var), var, size, self.analytic, self.nfe)
        x = torch.zeros(len(var), size + self.nfe, dtype=torch.float64)
        x[:, 1] = path.prior_std(self.times[0])
        memory, draws = (), UnitVectors()
        for step in self.steps:
            x, memory, _ = drive(advance(step, self, model, x, memory, draws), model)  # type: ignore[assignment]
        alpha, sigma = path.alpha(self.times[-1]), path.sigma(self.times[-1])
        std, std_tight = x[:, :size].square().sum(1).sqrt().nan_to_num(math.inf, math.inf).tolist()
        data, data_tight = (math.hypot(alpha * math.sqrt(v), sigma) for v in VARIANCES)
        errors = [0.0, *x[:, size:].abs().nan_to_num(math.inf, math.inf).amax(0).tolist()]
        k = errors.index(max(errors))
        at = self.evaluation_times[k - 1] if k else self.times[0]
        last_row = sum(abs(float(m)) for m in self.steps[-1].stages[-1].row.m)
        return Health(std, std_tight, data, data_tight, errors[k], at, last_row)

    def to_json(self) -> str:
        """The plan as JSON; numbers keep every digit.

        Raises:
            ValueError: an option is no text or number, such as a function, or a row's weights are tensors.
        """
        kept = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "path_object"}
        try:
            return json.dumps({**kept, "options": dict(self.options)})
        except TypeError as error:
            for name, value in self.options:
                if not _fits(value):
                    raise ValueError(f"the option {name}={value!r} of this plan does not fit into JSON") from error
            for k, step in enumerate(self.steps):
                if not _fits(step):
                    raise ValueError(
                        f"step {k + 1} of this plan ({step.t:g} → {step.s:g}) does not fit into JSON: the weights of its rows "
                        "are tensors, a value a sample, and only numbers can be written"
                    ) from error
            raise ValueError(f"this plan does not fit into JSON: {error}") from error

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote.

        Raises:
            ValueError: the text is no plan.
        """
        try:
            data = json.loads(text)
            if "wants" in data:  # as 0.1 wrote it
                data["prediction"] = data.pop("wants")
            steps = tuple(
                PlannedStep(
                    t, s, evaluates,
                    tuple(Stage(u, Row(x, tuple(m), tuple(z) if isinstance(z, list) else z)) for u, (x, m, z) in stages),
                    tuple(Draw(*draw) for draw in draws),
                )
                for t, s, evaluates, stages, draws in data.pop("steps")
            )  # fmt: skip
            if (fit := data.pop("fit", None)) is not None:
                data["fit"] = Fit(fit[0], fit[1], fit[2], tuple(fit[3]), tuple(fit[4]), *map(tuple, fit[5:]))
            options = tuple((name, tuple(v) if isinstance(v, list) else v) for name, v in data.pop("options").items())
            plan = cls(steps=steps, options=options, **data)
            one_of("prediction", plan.prediction, PREDICTIONS)
            if not steps or not all(step.stages for step in steps):
                raise ValueError("it has no steps, or a step without rows")
            for step in steps:
                for u, row in step.stages:
                    for value in (step.t, step.s, u, row.x, *row.m, *(row.z if isinstance(row.z, tuple) else (row.z,))):
                        number("a time or weight", value)
            return plan
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"this text is no plan: {error}") from error

    def __repr__(self) -> str:
        return f"Plan({self._made}: {self._size}{'' if self.fit is None else f'; {self.fit}'})"

    @property
    def _made(self) -> str:
        options = "".join(f", {name}={value}" for name, value in self.options if value is not None)
        return f"{self.sampler}{options} on {self.path}"

    @property
    def _size(self) -> str:
        return f"{len(self.steps)} steps, {self.nfe} evaluations, {self.noise_count} draws"

    def _repr_html_(self) -> str:
        facts = {
            "run": self._size,
            "each row": f"x_s = x·x_t + Σ m·{self.prediction} + z·ε; the newest output first",
            **({} if self.analytic is None else {"analytic": f"the first output is that of N(0, {self.analytic:g} I)"}),
            **({} if self.fit is None else {"fit": str(self.fit)}),
        }
        rows = [
            (k + 1, f"{step.t:.6g}", f"{stage.t:.6g}", *("  ".join(map(_weight, w)) for w in _weights(stage.row)))
            for k, step in enumerate(self.steps)
            for stage in step.stages
        ]
        return card(f"Plan of {self._made}", facts, table(("step", "t", "s", "x", "m", "z"), rows, most=20))

    def __str__(self) -> str:
        head = f"{self._made}: {self._size}; outputs are {self.prediction}"
        fit = [] if self.fit is None else [str(self.fit)]
        columns = f"{'t':>10} {'s':>10}  x_s = x·x_t + Σ m·{self.prediction} + z·ε"
        lines = [
            f"{step.t:10.6f} {stage.t:10.6f}  {stage.row.x:+.6e}·x "
            + " ".join(f"{m:+.6e}·{self.prediction}" for m in stage.row.m)
            + "".join(f" {z:+.6e}·ε{k + 1 if isinstance(stage.row.z, tuple) else ''}" for k, z in stage.row.draws)
            for step in self.steps
            for stage in step.stages
        ]
        return "\n".join([head, *fit, columns, *lines])


def _weights(row: Row) -> tuple[tuple[Any, ...], ...]:
    """Those of the state, of the outputs and of the draws."""
    return (row.x,), row.m, row.z if isinstance(row.z, tuple) else (row.z,)


def _weight(value: float | Tensor) -> str:
    return f"a value a sample, {tuple(value.shape)}" if isinstance(value, Tensor) and value.ndim else f"{float(value):+.6g}"


def _fits(value: Any) -> bool:
    """Whether it can be JSON."""
    try:
        return bool(json.dumps(value))
    except TypeError:
        return False


Question = tuple[Tensor, float, Prediction]
"""What a step asks: at the states x (B, ...) and the time t this prediction."""
Stepped = tuple[Tensor, Memory, Tensor | None]
"""The new state, what the next step may use, an embedded error estimate or None."""


def advance(
    step: PlannedStep,
    plan: Plan,
    model: Model,
    x: Tensor,
    memory: Memory,
    noise: Callable[[Tensor, float, float, bool], Tensor],
    project: Project = free,
) -> Generator[Question, Tensor, Stepped]:
    """Take one planned step. It yields what it asks of the network, is sent the output, and returns the step's end.

    Args:
        model: whose path the plan was made for, and what its network predicts. It is not called.
        project: of every state that a row makes, its noise included.
    """
    row = step.stages[0].row
    if step.evaluates and plan.history == len(step.stages) == len(row.m) == 1 and not plan.reuse:
        # No other step uses this output: weigh what the network gives, and convert nothing.
        a, b = model.path.convert(model.prediction, plan.prediction, step.t)
        if math.isfinite(a) and math.isfinite(b):
            row = row.through(a, b)
            output = yield x, step.t, model.prediction
            return project(row(x, [output], lambda k: noise(x, *step.draws[k]))), (), None
    seen = memory
    if step.evaluates:
        seen = ((step.t, (yield x, step.t, plan.prediction)), *memory)
    seen = seen[: plan.history]
    outputs, lower = [output for _, output in seen], None
    draws: dict[int, Tensor] = {}

    def draw(k: int) -> Tensor:
        if k not in draws:
            draws[k] = noise(x, *step.draws[k])
        return draws[k]

    for u, row in step.stages[:-1]:
        y = project(row(x, outputs[: len(row.m)], draw))
        outputs.insert(0, (yield y, u, plan.prediction))
        if u == step.s:
            lower = y  # a stage that lands on s is an embedded solution
            if plan.reuse:
                seen = ((u, outputs[0]), *seen)
    last = step.stages[-1].row
    x_s = project(last(x, outputs[: len(last.m)], draw))
    return x_s, seen, None if lower is None else x_s - lower


def drive(step: Generator[Question, Tensor, Stepped], model: Callable[[Tensor, float, Prediction], Tensor]) -> Stepped:
    """The end of a step whose questions the model answers."""
    try:
        question = next(step)
        while True:
            question = step.send(model(*question))
    except StopIteration as end:
        return end.value
