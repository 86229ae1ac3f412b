"""Our samplers as a scheduler of diffusers: any pipeline takes it, and its state is a run that is asked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import SchedulerMixin
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from scoreflow._core.check import one_of, whole
from scoreflow._core.grid import sigmas as times_at
from scoreflow._core.noise import Draws
from scoreflow._core.path import Flow
from scoreflow._core.row import per_sample
from scoreflow._run.asked import AskedRun, nobody
from scoreflow._run.auto import AUTO
from scoreflow._run.schedule import Schedule
from scoreflow._run.solve import Prepared, prepare
from scoreflow._samplers.plan import Plan
from scoreflow._samplers.step import Linear, get_sampler
from scoreflow._samplers.transition import Transition
from scoreflow._score.model import ScoreModel
from scoreflow.interop.paths import describe

OWN = ("sampler", "nfe", "grid", "options")
DEFAULTS = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000}


@dataclass
class Output(SchedulerOutput):
    """`prev_sample`, the states that the network is to be given next, and `pred_original_sample`, x̂_0, for previews."""

    pred_original_sample: Tensor | None = None


class Generated(Draws):
    """Draws from the generator, or the generators, one a sample, that a pipeline hands to `step`."""

    def __init__(self) -> None:
        self.generator: torch.Generator | Sequence[torch.Generator] | None = None
        self.count = 0

    def __call__(self, like: Tensor, t: float = 1.0, s: float = 0.0, area: bool = False) -> Tensor:
        self.count += 1
        each = self.generator if isinstance(self.generator, Sequence) else None
        if each is None:
            return _randn(like.shape, self.generator, like)  # type: ignore[arg-type]
        if len(each) != len(like):
            raise ValueError(f"generator has {len(each)} for {len(like)} samples: give one, or one a sample")
        return torch.cat([_randn((1, *like.shape[1:]), one, like) for one in each])

    def fork(self) -> Generated:
        """The same: a generator cannot be turned back, and no draw is made twice."""
        return self


def _randn(shape: Sequence[int], generator: torch.Generator | None, like: Tensor) -> Tensor:
    where = like.device if generator is None else generator.device
    return torch.randn(tuple(shape), generator=generator, device=where, dtype=torch.float32).to(like)


class DiffusersScheduler(SchedulerMixin, ConfigMixin):
    """A sampler of ours as a scheduler of diffusers::

        pipe.scheduler = DiffusersScheduler.from_config(pipe.scheduler.config, sampler="unipc", nfe=10)

    `timesteps` has an entry for each call of the network, so samplers of several stages count right. The pipeline gives the
    network what `step` returned: the state of the next call, which for such samplers may be a stage, and at last the sample.

    Args:
        sampler: the name of a sampler made of rows, or "auto". Adaptive ones and solvers of other libraries call their network
            by themselves, and are refused.
        config: a scheduler of diffusers or its configuration; path and prediction are read from it.
        nfe: calls of the network; None: the pipeline's `num_inference_steps`.
        grid: a name; None as in `solve`, and for a flow the uniform times moved by its `shift` or `mu`.
        options: of the sampler.

    Raises:
        ValueError: as of `describe`, and for a sampler that is not made of rows. TypeError: an option that it does not have.
    """

    config_name = "scheduler_config.json"  # type: ignore[assignment]
    _compatibles = ()
    order = 1

    def __init__(
        self, sampler: str = AUTO, config: Any = None, *, nfe: int | None = None, grid: str | None = None, **options: Any
    ) -> None:
        source = DEFAULTS if config is None else dict(config if isinstance(config, Mapping) else getattr(config, "config", {}))
        if options.get("analytic") is not None:
            raise ValueError("analytic: a pipeline makes the first call in any case; give no first answer")
        if sampler != AUTO and not isinstance(get_sampler(sampler, **options), Linear):
            raise ValueError(f"sampler {sampler!r} is not made of rows: it calls its network by itself, and no pipeline can")
        described = describe(DEFAULTS if config is None else config)
        self.path, self.prediction, self.time, self.preconditioning = described
        kept = {name: value for name, value in source.items() if not name.startswith("_") and name not in OWN}
        source_class = source.get("source_class") or source.get("_class_name") or type(config).__name__
        own = {"sampler": sampler, "nfe": nfe, "grid": grid, "options": options}
        self.register_to_config(**{**kept, **own, "source_class": source_class})  # type: ignore[no-untyped-call]
        self.model = ScoreModel(nobody, self.path, self.prediction, self.time)
        self.init_noise_sigma = self.path.prior_std(1.0)
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(len(self) - 1, -1, -1)
        self.sigmas: Tensor | None = None
        self._begin, self._index = 0, 0
        self._prepared: Prepared | None = None
        self._run: AskedRun | None = None
        self._draws = Generated()

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **own: Any) -> Any:
        """A scheduler from another's configuration, or from one of ours; `sampler`, `nfe`, `grid` and options may be given.

        Raises:
            As the constructor.
        """
        source = dict(config) if isinstance(config, Mapping) else {"_class_name": type(config).__name__, **config.config}
        options = {**source.pop("options", {}), **own.pop("options", {})}
        chosen = {name: own.pop(name, source.pop(name, None)) for name in ("sampler", "nfe", "grid")}
        changed = {name: own.pop(name) for name in [*own] if name in source}  # such as prediction_type
        if source.get("source_class"):
            source["_class_name"] = source["source_class"]
        made = cls(chosen["sampler"] or AUTO, {**source, **changed}, nfe=chosen["nfe"], grid=chosen["grid"], **options, **own)
        return (made, {}) if return_unused_kwargs else made

    def __len__(self) -> int:
        return int(self.config.get("num_train_timesteps", 1000))

    # -- before a run ----------------------------------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Plan a run.

        Args:
            num_inference_steps: calls of the network, if `nfe` was not given.
            timesteps: labels to go through; a last step to the data follows.
            sigmas: κ of the steps (EDM's sigma), on a flow σ before the shift; a last 0 may be left out. On a flow
                1, 1 − 1/n, … 1/n, which Flux's pipeline always gives, is the same as num_inference_steps = n.
            mu: the logarithm of a flow's shift, as pipelines of SD3 and Flux compute it.

        Raises:
            ValueError: fewer calls than a step takes, and as of `solve`.
        """
        grid: Any = self.config["grid"]
        nfe = None
        if timesteps is not None:
            grid = self._times(torch.as_tensor(timesteps)).tolist()
            grid = [*grid, 0.0] if grid[-1] > 0 else grid
        elif sigmas is not None and not self._uniform(levels := [float(sigma) for sigma in sigmas]):
            grid = self._of_sigmas(levels, mu)
        else:
            nfe = whole("nfe", self.config["nfe"] or (num_inference_steps if sigmas is None else len(sigmas)))
            if grid is None and isinstance(self.path, Flow):
                grid = partial(self._rule, mu)
        self._prepared = self._prepare(Schedule(None, nfe, grid))
        plan = self._plan
        self.num_inference_steps = plan.nfe
        self.timesteps = self._labels(plan.evaluation_times).to(device)
        self.init_noise_sigma = self.path.prior_std(plan.times[0])
        self._begin, self._index, self._run = 0, 0, None

    def _prepare(self, schedule: Schedule) -> Prepared:
        return prepare(self.model, self.config["sampler"], schedule, dict(self.config["options"]))

    @property
    def _plan(self) -> Plan:
        if self._prepared is None or self._prepared.plan is None:
            raise ValueError("set_timesteps comes before a run")
        return self._prepared.plan

    def _labels(self, times: Sequence[float]) -> Tensor:
        """What the network is told at these times."""
        t = torch.tensor(times, dtype=torch.float64)
        if self.preconditioning is not None:
            return self.preconditioning.label(self.path.sigma(t)).float()
        if isinstance(self.path, Flow):
            return (t * len(self)).float()
        labels = t * len(self) - 1
        near = (labels - labels.round()).abs() < 1e-6
        return labels.round().long() if bool(near.all()) else torch.where(near, labels.round(), labels).float()

    def _times(self, labels: Tensor) -> Tensor:
        """The times of labels."""
        labels = labels.detach().to("cpu", torch.float64).reshape(-1)
        if self.preconditioning is not None:
            return self.path.time(-self.preconditioning.sigma(labels).log())
        return (labels if isinstance(self.path, Flow) else labels + 1) / len(self)

    def _uniform(self, sigmas: Sequence[float]) -> bool:
        """Whether they are 1, 1 − 1/n, … 1/n on a flow, by which pipelines such as Flux's say no more than their number n."""
        n = len(sigmas)
        return isinstance(self.path, Flow) and all(abs(s - 1 + k / n) < 1e-6 for k, s in enumerate(sigmas))

    def _of_sigmas(self, sigmas: Sequence[float], mu: float | None) -> Any:
        levels = [s for s in sigmas if s > 0]
        if isinstance(self.path, Flow):
            return self._moved(levels, mu)
        most = self.path.kappa(1.0)
        return [*times_at(self.path, [min(s, most) if s < most * (1 + 1e-6) else s for s in levels]), 0.0]

    def _shift(self, mu: float | None) -> float:
        """The factor of a flow's shift, `σ ← c σ/(1 + (c − 1) σ)`."""
        if mu is not None and self.config.get("use_dynamic_shifting"):
            one_of("time_shift_type", kind := self.config.get("time_shift_type", "exponential"), ("exponential", "linear"))
            return math.exp(mu) if kind == "exponential" else float(mu)
        return float(self.config.get("shift", 1.0))

    def _rule(self, mu: float | None, path: Flow, steps: int, start: float, stop: float) -> list[float]:
        """The uniform times of a flow, moved: a rule of `grid`."""
        return self._moved([1 - k / steps for k in range(steps)], mu)

    def _moved(self, sigmas: Sequence[float], mu: float | None) -> list[float]:
        """σ of a flow moved by its shift, stretched so that the last is `shift_terminal` if there is one, and 0."""
        c, end = self._shift(mu), self.config.get("shift_terminal")
        moved = [c * s / (1 + (c - 1) * s) for s in sigmas]
        if end and moved[-1] < 1:
            moved = [1 - (1 - s) * (1 - end) / (1 - moved[-1]) for s in moved]
        return [*moved, 0.0]

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at this call of the network, as image-to-image pipelines do.

        Raises:
            ValueError: behind the last call, or a call within a step of several stages.
        """
        plan, begin = self._plan, int(begin_index)
        if not 0 <= begin < plan.nfe:
            raise ValueError(
                f"begin_index={begin} of {plan.nfe} calls of the network: give num_inference_steps={plan.nfe}, the nfe here"
            )
        self._begin = begin

    @property
    def begin_index(self) -> int:
        """The call of the network that a run begins with."""
        return self._begin

    @property
    def step_index(self) -> int:
        """How many calls of the network were answered, counted from the first of the plan."""
        return self._index

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """What the network is given: the state, times c_in where EDM's preconditioning stands around it."""
        if self.preconditioning is None:
            return sample
        t = self._plan.evaluation_times[self._begin] if self._run is None else self._run.t
        return self.preconditioning.given(sample, self.path.sigma(t))

    @property
    def transition(self) -> Transition | None:
        """As of `AskedRun`: mean, std and log-density of the state that `step` gave; None before a run, too."""
        return None if self._run is None else self._run.transition

    # -- the run ---------------------------------------------------------------------------------------------------------

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        return_dict: bool = True,
        **ignored: Any,
    ) -> Any:
        """Take the network's output at `sample`, and give what it is to be called with next, or the sample at the end.

        A `sample` that was edited since the last call is taken as it is where a step begins.

        Raises:
            ValueError: a run that is done, or an edit within a step of several stages. FloatingPointError: as `AskedRun.tell`.
        """
        if self._run is None:
            self._run = self._started(sample)
        run = self._run
        if run.done:
            raise ValueError("the run is done: set_timesteps comes before the next one")
        if sample is not self._given and not torch.equal(sample, run.x.to(sample)):
            run.replace(sample)
        self._draws.generator = generator
        output = model_output.to(run.x.dtype)
        if self.preconditioning is not None:
            output = self.preconditioning.x0(output, run.x, self.path.sigma(run.t))
        run.tell(output)
        self._index += 1
        self._given = run.x.to(sample.dtype)
        x0 = run.x0
        if not return_dict:
            return (self._given, x0)
        return Output(prev_sample=self._given, pred_original_sample=x0)

    _given: Tensor | None = None

    def _started(self, sample: Tensor) -> AskedRun:
        plan, prepared = self._plan, self._prepared
        if self._begin:
            t = plan.evaluation_times[self._begin]
            times = [t, *(u for u in plan.times if u < t)]
            prepared = self._prepare(Schedule(grid=times))
            assert prepared.plan is not None
            if prepared.plan.nfe != plan.nfe - self._begin:
                raise ValueError(
                    f"begin_index={self._begin}: from t={t:.4g} on {plan.sampler} takes {prepared.plan.nfe} calls of the "
                    f"network, and {plan.nfe - self._begin} are left: a sampler of one call a step begins anywhere"
                )
        self._index = self._begin
        self._given = None
        return AskedRun(self.model, prepared, sample, self._draws)  # type: ignore[arg-type]

    # -- training and image-to-image -------------------------------------------------------------------------------------

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`x_t = α_t x_0 + σ_t ε` at these labels."""
        alpha, sigma = self._curves(timesteps, original_samples)
        return alpha * original_samples + sigma * noise.to(original_samples)

    def scale_noise(self, sample: Tensor, timestep: Any, noise: Tensor) -> Tensor:
        """`add_noise`, by the name and the order that pipelines of flows have."""
        return self.add_noise(sample, noise, torch.as_tensor(timestep))

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`v = α_t ε − σ_t x_0` at these labels."""
        alpha, sigma = self._curves(timesteps, sample)
        return alpha * noise - sigma * sample

    def _curves(self, labels: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """α and σ at labels, one or one a sample, over the states."""
        t = self._times(labels)
        t = t.expand(len(like)) if len(t) == 1 else t
        alpha, sigma = (per_sample(v.to(like), like) for v in (self.path.alpha(t), self.path.sigma(t)))
        return alpha, sigma
