"""Denoising score matching, in every prediction, as one loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoreflow._core.check import flag, number, one_of, whole
from scoreflow._core.noise import White, stream_key
from scoreflow._core.row import flat, per_sample
from scoreflow._score.conditions import joined, none_given, rows
from scoreflow._score.model import ScoreModel
from scoreflow._score.network import attribute
from scoreflow._uses.bound import step_term
from scoreflow.training.times import LossHistory, check_times_options, draw_times
from scoreflow.training.weighting import Weighting, get_weighting

NODES = ("uniform", "stratified", "importance")
"""The times that are a chain's nodes, where the path is a chain."""


class Draw(NamedTuple):
    """What chance gives a batch.

    Attributes:
        t: times (B,), float64, on the host.
        importance_weight: one over how often such times are drawn, against uniform ones, (B,), float64, on the host.
        eps: the noise, (B, ...). dropped: whose conditions are dropped, (B,).
    """

    t: Tensor
    eps: Tensor
    importance_weight: Tensor
    dropped: Tensor


class Loss(NamedTuple):
    """A loss.

    Attributes:
        mean: over the batch, each times `importance_weight`; to be minimised.
        each: of every sample, (B,), detached. eps: the plain ε-error of every sample, (B,), detached.
        t: times (B,).
    """

    mean: Tensor
    each: Tensor
    eps: Tensor
    t: Tensor


@dataclass(frozen=True)
class Objective:
    """`E w(t) ‖ε̂ − ε‖²/d` over data, noise and times, d the entries of a sample; with a learned variance
    `+ vlb · L_vlb`.

    The network is asked for what it predicts, and its squared error is weighed by `w/b²`, where `b (ε̂ − ε)` is its error: so
    networks of all predictions have the same loss where they say the same.

    Args:
        weighting: a name of `WEIGHTINGS`, or a function (path, t) to weights on the ε-error; None for the plain error of the
            network's prediction, whichever it is.
        times: a name of `QUANTILES`.
        drop: the share of samples whose conditions are replaced by what means "none given", for classifier-free guidance.
        null: what means "none given", by the condition's name, as of `ClassifierFree`; of the network (`net.null`) if None.
            Where it cannot stand among the rows of a batch, as None or a sequence of another length, dropped samples are
            evaluated in a call of their own.
        vlb: λ of the hybrid objective `L_simple + λ L_vlb`, L_vlb in bits an entry, T times the mean over steps; 0.001 in the
            paper. The network must give twice the channels, the path be a chain, and times its nodes ("uniform", "stratified",
            "importance"). The mean is held fixed in L_vlb.
        variance: what the second half says: "interpolated" between β̃ and β, or "learned", its logarithm.
        bins: levels of the data between −1 and 1, for the last term of L_vlb.
        weighting_options, times_options: such as `{"gamma": 3}`.
        pairs: the data bring the noise of each sample, as the condition `eps` in the shape of the state, as `Pairs` do. It
            takes the place of the drawn noise and is not given to the network: reflow.

    Raises:
        ValueError, TypeError: for names and values that are not allowed.

    Reference:
        Ho et al. (2020), Eq. 14; Improved DDPM (Nichol & Dhariwal, 2021), Eqs. 14 to 16; Ho & Salimans (2022), Algorithm 1;
        reflow: Flow Straight and Fast (Liu et al., 2023), Algorithm 1.
    """

    weighting: str | Weighting | None = "simple"
    times: str = "uniform"
    drop: float = 0.0
    null: Mapping[str, Any] | None = None
    vlb: float = 0.0
    variance: str = "interpolated"
    bins: int = 256
    weighting_options: Mapping[str, float] = field(default_factory=dict)
    times_options: Mapping[str, float] = field(default_factory=dict)
    pairs: bool = False

    def __post_init__(self) -> None:
        for name in ("weighting_options", "times_options", "null"):
            value = getattr(self, name)
            if not isinstance(value, Mapping) and (value is not None or name != "null"):
                raise TypeError(f"{name} must be a mapping of names to values, got {value!r}")
        if self.weighting is not None:
            get_weighting(self.weighting, **self.weighting_options)
        check_times_options(self.times, dict(self.times_options))
        number("drop", self.drop, 0, 1)
        number("vlb", self.vlb, 0)
        one_of("variance", self.variance, ("interpolated", "learned"))
        whole("bins", self.bins, 2)
        if flag("pairs", self.pairs) and self.vlb:
            raise ValueError(
                f"vlb={self.vlb} is a bound where noise and data are independent, and with pairs=True they are not"
            )
        if self.vlb and self.times not in NODES:
            raise ValueError(
                f"times must be one of {', '.join(NODES)} with vlb={self.vlb}, whose terms are steps, got {self.times!r}"
            )

    def check(self, model: ScoreModel) -> None:
        """Raise ValueError if the model cannot be trained so."""
        if self.vlb and model.path.T is None:
            raise ValueError(f"vlb={self.vlb} sums over the steps of a chain, and {model.path} has none; use VPSDE.from_betas")
        if model.time == "label" and self.times not in NODES:
            raise ValueError(
                f"times={self.times!r} lie between the nodes, and time='label' looks nodes up: use one of {', '.join(NODES)}, "
                "or a network that takes time='index'"
            )
        if self.drop and not self.nulls(model):
            raise ValueError(
                f"drop={self.drop} drops conditions, and {type(model.net).__name__} has none: give null={{name: value}}, what "
                "means 'none given', or a network whose `null` says it"
            )
        for name in self.nulls(model) if self.drop else ():
            if not model.accepts(name):
                raise ValueError(f"null names {name!r}, and the network {type(model.net).__name__} takes no such condition")

    def nulls(self, model: ScoreModel) -> Mapping[str, Any]:
        """What means "none given"."""
        return (self.null if self.null is not None else attribute(model.net, "null")) or {}

    def draw(
        self,
        model: ScoreModel,
        x_0: Tensor,
        seed: int,
        step: int = 0,
        part: tuple[int, int] = (0, 1),
        history: LossHistory | None = None,
    ) -> Draw:
        """The draws of a batch: the same for the same seed and step, whatever was drawn before.

        Args:
            x_0: the batch, or this process's part of it, (B, ...).
            part: which of how many equal parts; the parts together are the draws of the whole.
            history: of the losses, for times="importance".
        """
        which, parts = part
        n, rows = len(x_0) * parts, slice(which * len(x_0), (which + 1) * len(x_0))
        t, weight, generator = self._times(model, n, seed, step, history)
        dropped = torch.rand(n, generator=generator) < self.drop
        eps = White(range(rows.start, rows.stop)).normal(x_0, seed, "eps", step)
        return Draw(t[rows], eps, weight[rows], dropped[rows].to(x_0.device))

    def _times(
        self, model: ScoreModel, n: int, seed: int, step: int, history: LossHistory | None
    ) -> tuple[Tensor, Tensor, torch.Generator]:
        """Times and weights of a batch, (n,), and the generator that they came from."""
        generator = torch.Generator().manual_seed(stream_key(seed, "times", step))
        return *draw_times(model.path, n, self.times, dict(self.times_options), generator, history), generator

    def __call__(self, model: ScoreModel, x_0: Tensor, draw: Draw, **conditions: Any) -> Loss:
        """The loss of a batch x_0 (B, ...), with conditions of the network; with `pairs`, their noise `eps` among them.

        Raises:
            ValueError: a learned variance is wanted and the network gives none; a condition to drop that was not given; with
                `pairs` no `eps` of the shape of x_0, or without them an `eps` that is no condition of the network.
        """
        draw = self._paired(model, x_0, draw, conditions)
        each, error = self.errors(model, x_0, draw, conditions)
        return Loss((each * draw.importance_weight.to(each)).mean(), each.detach(), error.detach(), draw.t)

    def _paired(self, model: ScoreModel, x_0: Tensor, draw: Draw, conditions: dict[str, Any]) -> Draw:
        """The draw, with `pairs` of the noise that the data bring, which is taken out of the conditions."""
        if not self.pairs:
            if "eps" in conditions and not model.names("eps"):
                raise ValueError("the data give eps, the noise of each sample, and pairs=False draws another: set pairs=True")
            return draw
        if "eps" not in conditions:
            raise ValueError(
                f"pairs=True takes the noise of each sample from the data, as the condition eps, and they give "
                f"{', '.join(conditions) or 'no conditions'}: train on Pairs, or on items x, {{'eps': noise}}"
            )
        eps = conditions.pop("eps")
        if not isinstance(eps, Tensor) or eps.shape != x_0.shape:
            got = tuple(eps.shape) if isinstance(eps, Tensor) else type(eps).__name__
            raise ValueError(f"eps must have the shape of the states, {tuple(x_0.shape)}, got {got}")
        return draw._replace(eps=eps.to(x_0))

    def errors(self, model: ScoreModel, x_0: Tensor, draw: Draw, conditions: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The loss of every sample, (B,), to be differentiated; and its plain ε-error."""
        path, t = model.path, draw.t
        x_t = path.q_sample(x_0, t, draw.eps)
        output, variance_output = self._outputs(model, x_t, t, conditions, draw.dropped)
        on_x_0, on_eps = path.basis(model.prediction, t)
        target = per_sample(on_x_0, x_0) * x_0 + per_sample(on_eps, x_0) * draw.eps
        error = flat(output - target).square().mean(1)
        weight, on_eps = self.weights(model, t)
        each = error * weight.to(error)
        if self.vlb:
            if variance_output is None:
                raise ValueError(
                    f"vlb={self.vlb} trains a learned variance, and the network returned {output.shape[1]} channels for "
                    f"{x_0.shape[1]}: it must return {2 * x_0.shape[1]}; for ours, learned_variance=True"
                )
            each = each + self.vlb * (path.T or 1) * self._vlb(model, x_0, x_t, output.detach(), variance_output, t)
        return each, error * on_eps.to(error)

    def weights(self, model: ScoreModel, t: Tensor) -> tuple[Tensor, Tensor]:
        """What the squared error of the network's prediction is to be multiplied by for the loss, and for the ε-error: (B,)."""
        # Where α = 0, b and weights are infinite, and their ratio has a limit.
        inside = torch.where(model.path.alpha(t) > 0, t, t - 1e-9)
        b = model.path.convert("eps", model.prediction, inside)[1]
        if self.weighting is None:
            return torch.ones_like(b), 1 / b**2
        return get_weighting(self.weighting, **self.weighting_options)(model.path, inside) / b**2, 1 / b**2

    def rehearse(self, model: ScoreModel, x_0: Tensor, conditions: dict[str, Any]) -> None:
        """Raise ValueError if two samples x_0 show, before training, that the loss cannot be taken of this network."""

    def dropped(self, model: ScoreModel, conditions: dict[str, Any], which: Tensor) -> dict[str, Any] | None:
        """The conditions, "none given" for the samples `which` (B,); None where a null cannot stand among the samples' rows."""
        if not self.drop:
            return conditions
        named, none = self._named(model, conditions, len(which))
        two = joined(named, none, len(which), named)
        if two is None:
            return None
        chosen = torch.arange(len(which), device=which.device) + len(which) * which
        return conditions | rows(two, chosen, 2 * len(which), named)

    def _named(self, model: ScoreModel, conditions: dict[str, Any], batch: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """The conditions that are dropped, and what stands for none of them."""
        nulls = self.nulls(model)
        named = {name: value for name, value in conditions.items() if name in nulls}
        if not named:
            raise ValueError(f"drop={self.drop} drops {', '.join(nulls)}, and the data give {', '.join(conditions) or 'none'}")
        return named, {name: none_given(name, value, nulls[name], batch) for name, value in named.items()}

    def _outputs(
        self, model: ScoreModel, x: Tensor, t: Tensor, conditions: dict[str, Any], which: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """What the network says, in one call; or, if nulls cannot stand among the rows, in one for each kind of sample."""
        given = self.dropped(model, conditions, which)
        if given is not None:
            return model.evaluate(x, t, **given)
        none = conditions | self._named(model, conditions, len(x))[1]
        kinds = [(at.nonzero().flatten(), given) for at, given in ((~which, conditions), (which, none))]
        outputs = [model.evaluate(x[at], t[at.to(t.device)], **rows(c, at, len(x), c)) for at, c in kinds if len(at)]
        back = torch.cat([at for at, _ in kinds]).argsort()
        variances = [variance_output for _, variance_output in outputs if variance_output is not None]
        return torch.cat([output for output, _ in outputs])[back], torch.cat(variances)[back] if variances else None

    def _vlb(self, model: ScoreModel, x_0: Tensor, x_t: Tensor, output: Tensor, variance_output: Tensor, t: Tensor) -> Tensor:
        """The term of the bound at the step from t to the node before, in bits an entry, (B,)."""
        node = 1 / (model.path.T or 1)
        s = torch.where(t < 1.5 * node, 0.0, t - node)
        guess = model.express(output, x_t, t, "x0")
        nats = step_term(model.path, x_0, x_t, guess, t, s, self.variance, variance_output=variance_output, bins=self.bins)
        return nats / (flat(x_0).shape[1] * math.log(2))
