"""A run in the hands of its caller: it says what it asks of the network, and is told the output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from scoreflow._core.check import check_state, flag
from scoreflow._core.gaussian import GaussianPath, Prediction
from scoreflow._core.grid import check_path
from scoreflow._core.noise import Draws, Replay, White
from scoreflow._core.projection import Project, free, projection
from scoreflow._core.row import wide
from scoreflow._run.kept import is_kept, kept
from scoreflow._run.schedule import Grid, Schedule
from scoreflow._run.solve import Prepared, prepare
from scoreflow._run.source import Noise
from scoreflow._run.walk import FiniteCheck
from scoreflow._samplers.plan import Memory, Plan, advance, drive
from scoreflow._samplers.step import Sampler
from scoreflow._samplers.transition import Transition, log_density, split
from scoreflow._score.labels import TimeLabel
from scoreflow._score.model import ScoreModel

Taken = tuple[int, Tensor, Memory, tuple[Tensor, ...], Tensor]
"""A step that was taken: its number, the state and memory before it, the outputs it was given, the state after it."""


class AskedRun:
    """A run that waits for the network's output::

        run = sf.ask("unipc", x_T, path=path, nfe=10)
        while not run.done:
            run.tell(net(run.x, run.label))
        x = run.x

    It is a value between two calls: `copy.copy` gives another run from here on, and it is pickled as what it is, wherever it
    stands. With the outputs that `solve` has it gives what `solve` gives, to the bit.

    Attributes:
        plan: its rows.
        step: how many steps are taken.
        nfe: how many outputs it was told.
        memory: what the next step may use.
    """

    def __init__(
        self, model: ScoreModel, prepared: Prepared, x: Tensor, draws: Draws, grad: bool = False, project: Project = free
    ) -> None:
        assert prepared.plan is not None
        self.plan, self.step, self.nfe = prepared.plan, 0, 0
        self._model, self._grad, self._kept = model, grad, x.dtype
        self._project, self._draws = project, draws
        self._state = self._start(x)
        self.memory: Memory = prepared.memory
        self._analytic = next((i for i, step in enumerate(self.plan.steps) if step.nfe), -1)
        """The step that begins with the exact answer of N(0, v I) data, if the plan has one."""
        self._last: tuple[Tensor, Tensor, float] | None = None
        self._told = list[Tensor]()
        """The outputs of the step at hand, in the prediction of its rows."""
        self._taken = list[Taken]()
        """The steps with noise that the last output has led to."""
        self._check = FiniteCheck()
        self._begin()

    @property
    def done(self) -> bool:
        """Whether it has come to its end; `x` is the result then."""
        return self.step == len(self.plan.steps)

    @property
    def x(self) -> Tensor:
        """The states (B, ...) that the network is to be given; at the end those at the last time, in the dtype of x_T."""
        return self._state.to(self._kept) if self.done else self._question[0]

    @property
    def t(self) -> float:
        """Their time, from 1 (prior) to 0 (data)."""
        return self.plan.times[-1] if self.done else self._question[1]

    @property
    def label(self) -> Tensor:
        """What the network is to be told of the time, (B,), as `time` says.

        Raises:
            ValueError: the run is done.
        """
        self._check_waits()
        return self._model.label(*self._question[:2])

    @property
    def x0(self) -> Tensor | None:
        """x̂_0 (B, ...) of the output that it was told last, for a preview; None before."""
        return None if self._last is None else self._model.express(*self._last, "x0")

    @property
    def transition(self) -> Transition | None:
        """The Gaussian that the state at hand was drawn from, as `step_log_prob` has it; None if it was not drawn.

        It was drawn if the last output has led to the end of a step with noise. Within a step of several stages, and after a
        step without noise, it was not. With `grad=True` the gradient is that of the mean: the state that was reached is a
        constant. `run.replace(run.x.detach())` makes the next step begin from a constant too, as policy gradients want it.

        Raises:
            ValueError: the step puts a draw through the network, so that its result is no Gaussian; or the output has led over
                two steps with noise, one of which asks nothing; or the run has a `project`.
        """
        if not self._taken:
            return None
        if self._project is not free:
            raise ValueError("the states of a run with project lie in a subspace, where this Gaussian has no density")
        if len(self._taken) > 1:
            raise ValueError(
                f"the last output has led over {len(self._taken)} steps with noise of {self.plan.sampler!r}: sf.step_log_prob "
                "has the density of each"
            )
        number, x, memory, answers, x_s = self._taken[0]
        quiet, std = split(self.plan.steps[number], self.plan)
        told = iter(answers)
        with torch.set_grad_enabled(self._grad):
            step = advance(quiet, self.plan, self._model, x, memory, White(0).draws())
            mean, *_ = drive(step, lambda *question: next(told))
            return Transition(mean, std, log_density(x_s.detach(), mean, std))

    @property
    def noise_count(self) -> int:
        """Draws made up to the beginning of the step at hand."""
        return self._draws.count

    def tell(self, output: Tensor) -> None:
        """Go on with the network's output at `x`, `t`, to where it is asked next, or to the end.

        Args:
            output: in the shape of x, or with twice its channels, of which the second half, on the variance, is left out.

        Raises:
            ValueError: the run is done; an output of another shape. TypeError: no tensor. FloatingPointError: an output or a
                state that is not finite; names the step and its times.
        """
        self._check_waits()
        x, t, prediction = self._question
        self._taken = []
        with torch.set_grad_enabled(self._grad):
            own, _ = self._model.read(output, x)
            self._check.output(own, t)
            self._last = (own, x, t)
            self._told.append(self._model.express(own, x, t, prediction))
            self.nfe += 1
            if not self._on(self._told[-1]):
                self._begin()

    def replace(self, x: Tensor) -> None:
        """Go on from these states instead, projected: an edit between two steps, such as inpainting by hand.

        Args:
            x: in the shape of the states.

        Raises:
            ValueError: the run is done or within a step of several stages; another shape.
        """
        self._check_waits()
        if self._told:
            raise ValueError(f"x can be replaced between steps, and step {self.step + 1} has had {len(self._told)} outputs")
        if x.shape != self._state.shape:
            raise ValueError(f"x must be of shape {tuple(self._state.shape)}, got {tuple(x.shape)}")
        self._state = self._start(x)
        self._begin()

    def _start(self, x: Tensor) -> Tensor:
        """The states to go on from: their own, so that what the caller does to x stays there."""
        with torch.set_grad_enabled(self._grad):
            return self._project(wide(x if self._grad else x.detach()).clone())

    def _check_waits(self) -> None:
        if self.done:
            raise ValueError(f"the run is done: it has taken its {self.step} steps, and x is the result")

    def _begin(self) -> None:
        """From the beginning of a step to the next question."""
        with torch.set_grad_enabled(self._grad):
            while not self.done:
                step, path = self.plan.steps[self.step], self._model.path
                self._check.step, self._check.span = self.step + 1, (step.t, step.s)
                self._ahead, self._answers = self._draws.fork(), list[Tensor]()
                self._asking = advance(step, self.plan, self._model, self._state, self.memory, self._ahead, self._project)
                if not self._on(None):
                    continue
                if self.plan.analytic is None or self.step != self._analytic:
                    return
                x, t, prediction = self._question
                if self._on(x * path.gaussian(t, prediction, self.plan.analytic)):
                    return

    def _on(self, output: Tensor | None) -> bool:
        """Whether the step asks again, once it has this output; if not, it is taken."""
        if output is not None:
            self._answers.append(output)
        try:
            self._question = self._asking.send(output)  # type: ignore[arg-type]
            return True
        except StopIteration as end:
            before = self._state, self.memory, tuple(self._answers)
            self._state, self.memory, _ = end.value
        if self.plan.steps[self.step].noise_count:
            self._taken.append((self.step, *before, self._state))
        self._draws, self.step = self._ahead, self.step + 1
        self._told.clear()
        self._check.state(self._state, last=True)
        if self.done:
            self._check.close()
        return False

    def __getstate__(self) -> dict[str, Any]:
        begun = ("_asking", "_question", "_ahead", "_answers")
        state = {name: value for name, value in vars(self).items() if name not in begun}
        return state | {"_told": list(self._told), "_taken": list(self._taken), "_draws": self._draws.fork()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()
        with torch.set_grad_enabled(self._grad):
            for output in self._told:
                self._on(output)

    def __repr__(self) -> str:
        at = "done" if self.done else f"asks at t={self.t:g}"
        return f"{type(self).__name__}({self.plan.sampler}, step {self.step} of {len(self.plan.steps)}, {at})"


def ask(
    sampler: str | Sampler | Plan,
    x_T: Tensor,
    *,
    path: GaussianPath,
    prediction: Prediction = "eps",
    time: TimeLabel | Callable[[Tensor], Tensor] = "unit",
    steps: int | None = None,
    nfe: int | None = None,
    grid: Grid = None,
    start: float = 1.0,
    stop: float = 0.0,
    denoise: bool = False,
    seed: int | Sequence[int] | None = None,
    noise: Noise = None,
    grad: bool = False,
    project: Project | None = None,
    **options: Any,
) -> AskedRun:
    """A run that the caller drives: it asks for the network's output, and is told it. Nothing is evaluated here.

    Args:
        sampler: "auto", a name (its options may stand among the keywords), a sampler, or a plan, also as "plan:file"; made of
            rows. Whether a fitted plan is for this network, the caller knows.
        x_T: states (B, ...) at the first time.
        path, prediction, time: those of the network, as of `ScoreModel`.
        steps, nfe, grid, start, stop, denoise, seed, noise, grad, project: as of `solve`.

    Raises:
        ValueError: a sampler that is not made of rows, such as an adaptive one or a solver of another library, which calls the
            network by itself; and as `solve`. TypeError: as `solve`.
    """
    check_path(path)
    check_state("x_T", x_T)
    model = ScoreModel(nobody, path, prediction, time)
    schedule = Schedule(steps, nfe, grid, start, stop, denoise)
    if is_kept(sampler):
        sampler, schedule = kept(str(sampler), schedule)
    sampler = sampler.anyway() if isinstance(sampler, Plan) else sampler  # whose network it is, the caller knows
    prepared = prepare(model, sampler, schedule, options)
    if prepared.plan is None:
        raise ValueError(f"{prepared.sampler!r} is not made of rows: it calls its network by itself, and cannot be asked")
    source, _ = prepared.source(noise, seed, len(x_T), path)
    if isinstance(source, Replay):
        source.fit(x_T, prepared.plan.noise_count)
    return AskedRun(model, prepared, x_T, source.draws("step"), flag("grad", grad), projection(project))


def nobody(x: Tensor, t: Tensor) -> Tensor:
    """The network of a run that is asked: it is the caller's."""
    raise AssertionError
