"""The density of a trajectory: what each stochastic step of a plan makes of the states before it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoreflow._core.check import check_state, flag
from scoreflow._core.noise import White
from scoreflow._run.kept import made_by
from scoreflow._run.solution import Solution
from scoreflow._run.solve import check_conditions
from scoreflow._run.walk import Run
from scoreflow._samplers.plan import Plan, advance, drive
from scoreflow._samplers.transition import log_density, split
from scoreflow._score.model import ScoreModel, check_model, check_settled


class Transitions(NamedTuple):
    """The Gaussians `N(mean, std² I)` that a trajectory's states were drawn from, given the states before them.

    Attributes:
        mean: (N, B, ...), one a step. std: N numbers; 0 for a step without noise.
        log_prob: (N, B), float64, the log-density of each state, summed over its entries; NaN for a step without noise, which
            has none.
    """

    mean: Tensor
    std: tuple[float, ...]
    log_prob: Tensor

    @property
    def total(self) -> Tensor:
        """The log-density of the path given its first state, (B,): the sum over the steps with noise."""
        return self.log_prob[[i for i, std in enumerate(self.std) if std > 0]].sum(0)


def step_log_prob(
    model: ScoreModel, plan: Plan | Solution, states: Tensor | None = None, *, grad: bool = False, **conditions: Any
) -> Transitions:
    """`log p(x_{i+1} | x_0 … x_i) = −‖x_{i+1} − mean_i‖²/(2 std_i²) − d log(std_i √(2π))` along a trajectory.

    The network is evaluated again along the given states, as in the run, memory included; steps without noise are taken to
    be as they are. The difference of two models' totals is the log of an importance weight; with `grad=True` the total's
    gradient is that of policy-gradient methods.

    Args:
        model: the score model whose steps are judged; it need not be the one that made the states.
        plan: of a stochastic sampler; or a solution, with its own states.
        states: (N + 1, B, ...), at the plan's times, such as `solve(..., trajectory=True).states`.
        grad: record for differentiation, in the network's parameters and in the states.
        conditions: of the network, such as `y=`.

    Raises:
        ValueError: a plan for another path, or without noise, or whose steps put a draw through the network, so that they are
            no Gaussians; states of another number. TypeError: what is given is no plan, or no states.
    """
    check_model(model)
    flag("grad", grad)
    check_settled(model, grad)
    if isinstance(plan, Solution):
        plan, states = _of(plan, states)
    if not isinstance(plan, Plan):
        raise TypeError(f"plan must be a Plan or a Solution, got {type(plan).__name__}")
    if plan.path != repr(model.path):
        raise ValueError(f"the plan was made for {plan.path}, the model stands on {model.path}")
    conditions = check_conditions(model, made_by(plan, model), conditions)
    quiet, std = zip(*(split(step, plan) for step in plan.steps), strict=True)
    if not any(std):
        raise ValueError(f"no step of this plan of {plan.sampler!r} draws noise: its paths have no density")
    if not isinstance(states, Tensor) or states.is_nested or not states.is_floating_point() or states.ndim < 2:
        raise TypeError("states must be a floating-point tensor of shape (N + 1, B, ...), as of solve(..., trajectory=True)")
    if len(states) != len(plan.times):
        raise ValueError(f"states must be {len(plan.times)}, one at each time of the plan, got {len(states)}")
    check_state("states", states.transpose(0, 1))
    run, none = Run(model.begin(plan), conditions, states.shape[1]), White(0).draws()
    run.analytic = plan.analytic
    means, memory = [], run.memory
    with torch.set_grad_enabled(grad):
        for i, step in enumerate(quiet):
            run.finite_check.step, run.finite_check.span = i + 1, (step.t, step.s)
            mean, memory, _ = drive(advance(step, plan, run, states[i], memory, none), run)
            means.append(mean)
        mean = torch.stack(means)
        log_prob = torch.stack([log_density(x, m, c) for x, m, c in zip(states[1:], mean, std, strict=True)])
    run.finite_check.close()
    return Transitions(mean, std, log_prob)


def _of(solution: Solution, states: Tensor | None) -> tuple[Plan, Tensor | None]:
    """A solution's plan, and its states unless others are given."""
    if solution.plan is None:
        raise ValueError(f"{solution.sampler!r} is not made of rows: the law of its steps is not known in closed form")
    if states is None and solution.states is None:
        raise ValueError("this solution kept no states: solve with trajectory=True")
    return solution.plan, solution.states if states is None else states
