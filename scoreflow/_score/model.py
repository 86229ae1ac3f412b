"""One network, five predictions: `ScoreModel` maps what a network says to ε, x_0, the score, v and the flow."""

from __future__ import annotations

import inspect
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scoreflow._core import check
from scoreflow._core.gaussian import PREDICTIONS, GaussianPath, Prediction
from scoreflow._core.noise import Draws
from scoreflow._core.row import double, per_sample
from scoreflow._html import card
from scoreflow._score.conditions import known, plain, rounds, rows
from scoreflow._score.labels import TimeLabel, check_label, label
from scoreflow._score.network import attribute, unsettled, unwrapped

SINGLE = torch.finfo(torch.float32).eps


class ScoreModel:
    """A network `net(x, t, **conditions)` on a path, read as any of the five predictions.

    Args:
        net: a module or callable from states (B, ...) and times (B,) to the shape of the states; or to twice the
            channels (dimension 1), when the second half is its variance output (Nichol & Dhariwal, 2021).
        path: the path it was trained on.
        prediction: what it was trained to give: "eps", "x0", "v" (`α ε − σ x_0`), "score" (`∇log p_t`) or "flow"
            (`dx_t/dt` along the path, `α' x_0 + σ' ε`).
        time: what it is told of the time. "unit": t in [0, 1]. "index": the label `t·T − 1` of a chain of T steps, 0…T−1,
            as a real number. "label": the same as int64, for networks with a table of embeddings; a time between the
            nodes is an error. "log-snr": 2λ. "sigma": σ_t. ("scaled", k): k·t. Or a callable from times (B,) to labels.

    The network sees states in its own dtype and labels in at least float32; answers come in the dtype of the state.
    Gradients flow. `nfe` counts the evaluations since the model was made.

    Raises:
        TypeError: net is not callable or path is no GaussianPath.
        ValueError: an unknown prediction or time, or a label without a chain.

    Reference:
        Song et al. (2021), Section 3; v: Salimans & Ho (2022); flow: Lipman et al. (2023).
    """

    guided = False
    """Whether its answers are guided or thresholded, so that noise form and high orders are unstable."""
    cites: tuple[str, ...] = ()
    """Keys of the works that its guidance rests on."""
    oracle: Any = None
    """The distribution that it is exact for, if it is an oracle's."""
    backward = 0
    """Backward passes through the network since it was made: of methods that differentiate it."""
    default_sampler = "auto"
    """What "auto" means for it."""
    positional = 2
    """How many arguments its network takes before the conditions."""
    plans: tuple[Any, ...] = ()
    """Plans that were fitted to it, by `tune`; "auto" takes that of the budget."""

    def __init__(
        self,
        net: Callable[..., Tensor],
        path: GaussianPath,
        prediction: Prediction = "eps",
        time: TimeLabel | Callable[[Tensor], Tensor] = "unit",
    ) -> None:
        if not callable(net):
            raise TypeError(f"net must be a module or a callable, got {type(net).__name__}")
        if not isinstance(path, GaussianPath):
            raise TypeError(f"path must be a GaussianPath such as VPSDE(), got {type(path).__name__}")
        check.one_of("prediction", prediction, PREDICTIONS)
        self.net, self.path, self.prediction, self.time = net, path, prediction, check_label(time, path)
        self.nfe = 0

    def __repr__(self) -> str:
        net = type(unwrapped(self.net)).__name__
        return f"ScoreModel({net}, {self.path}, prediction={self.prediction!r}, time={say(self.time)})"

    def _repr_html_(self) -> str:
        return card(type(self).__name__, self._facts())

    def _facts(self) -> dict[str, object]:
        """What a notebook shows of it."""
        size = sum(p.numel() for p in self.net.parameters()) if isinstance(self.net, nn.Module) else 0
        weights = f", {size:,} parameters of {self.dtype} on {self.device}" if size else ""
        return {
            "network": f"{type(unwrapped(self.net)).__name__}{weights}",
            **({} if self.oracle is None else {"exact for": self.oracle}),
            "path": self.path,
            "prediction": self.prediction,
            "time": self.time if isinstance(self.time, str) else say(self.time),
            "evaluations": self.nfe,
        }

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of the network's parameters; None if it has none."""
        return None if (one := self._parameter()) is None else one.dtype

    @property
    def state_dtype(self) -> torch.dtype:
        """That of states if none is given: the network's, or torch's default, but never of 16 bits, whose rounding adds up."""
        dtype = self.dtype or torch.get_default_dtype()
        return dtype if dtype.itemsize >= 4 else torch.float32

    @property
    def device(self) -> torch.device | None:
        """The device of the network's parameters; None if it has none."""
        return None if (one := self._parameter()) is None else one.device

    def _parameter(self) -> Tensor | None:
        if not isinstance(self.net, nn.Module):
            return None
        return next((p for p in self.net.parameters() if p.is_floating_point()), None)

    def __call__(self, x: Tensor, t: float | Tensor, prediction: Prediction = "eps", **conditions: Any) -> Tensor:
        """`prediction` at states x (B, ...) and times t in [0, 1], a float or (B,), in the shape of x.

        Raises:
            TypeError: states that are no floating-point tensor.
            ValueError: times outside [0, 1] or not (B,); an output of the wrong shape; for a float t, a prediction that
                cannot be had from the network's there (an ε-network says nothing of x_0 where α = 0).
        """
        check.one_of("prediction", prediction, PREDICTIONS)
        if not isinstance(x, Tensor) or not x.is_floating_point() or not x.ndim:
            got = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"x must be a floating-point tensor of shape (B, ...), got {got}")
        return self.express(self.evaluate(x, t, **conditions)[0], x, t, prediction)

    def eps(self, x: Tensor, t: float | Tensor, **conditions: Any) -> Tensor:
        """`ε̂ = (x_t − α x̂_0)/σ`."""
        return self(x, t, "eps", **conditions)

    def x0(self, x: Tensor, t: float | Tensor, **conditions: Any) -> Tensor:
        """`x̂_0 = E[x_0 | x_t]`."""
        return self(x, t, "x0", **conditions)

    def score(self, x: Tensor, t: float | Tensor, **conditions: Any) -> Tensor:
        """`∇log p_t(x) = −ε̂/σ`."""
        return self(x, t, "score", **conditions)

    def v(self, x: Tensor, t: float | Tensor, **conditions: Any) -> Tensor:
        """`v = α ε̂ − σ x̂_0`."""
        return self(x, t, "v", **conditions)

    def flow(self, x: Tensor, t: float | Tensor, **conditions: Any) -> Tensor:
        """`dx/dt` of the probability-flow ODE, `α' x̂_0 + σ' ε̂ = f x − ½ g² ∇log p_t`."""
        return self(x, t, "flow", **conditions)

    def evaluate(self, x: Tensor, t: float | Tensor, **conditions: Any) -> tuple[Tensor, Tensor | None]:
        """One evaluation: what the network predicts, as it was trained to, and its variance output or None."""
        dtype = self.dtype
        label = self._label(x, t, dtype)
        self.count(t)
        given = x if dtype is None or dtype == x.dtype else x.to(dtype)
        before = None if given.is_inference() else given._version
        output = self.net(given, label, **(plain(conditions) if conditions else conditions))
        if before is not None and given._version != before and given is x:
            raise RuntimeError(
                "the network changes the states that it is given, in place, as ReLU(inplace=True) does: give it a copy, "
                "ScoreModel(lambda x, t: net(x.clone(), t), path)"
            )
        return self.read(output, x)

    def read(self, output: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the network gave at states x: its prediction and its variance output or None, in the dtype of x.

        Raises:
            TypeError, ValueError: no tensor, or one of another shape.
        """
        if not isinstance(output, Tensor):
            raise TypeError(f"the network must return a tensor, got {type(output).__name__}: wrap it to return one")
        output = output if output.dtype == x.dtype else output.to(x.dtype)
        if output.shape == x.shape:
            return output, None
        if x.ndim > 1 and output.shape == (x.shape[0], 2 * x.shape[1], *x.shape[2:]):
            prediction, variance = output.chunk(2, dim=1)
            return prediction, variance
        raise ValueError(
            f"the network returned shape {tuple(output.shape)} for states of shape {tuple(x.shape)}: expected that "
            "shape, or twice its channels when the variance is learned"
        )

    def evaluate_some(
        self, x: Tensor, t: float | Tensor, samples: Tensor, batch: int, conditions: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        """`evaluate` at states x (n, ...) of these samples, by number, of a batch whose conditions are given.

        Where it is known what belongs to each sample, they are taken out of the batch. If not, the whole batch is evaluated,
        with a state of x in the place of every other sample.
        """
        if not len(samples) or (known(conditions, batch, self.with_rows) and all(known(null, batch) for null in self.nulls)):
            return self.of(samples, batch, x).evaluate(x, t, **rows(conditions, samples, batch, self.with_rows))
        order, outputs = list[int](), list[tuple[Tensor, Tensor | None]]()
        for places, numbers, whole in rounds(samples.tolist(), batch):
            at = t[whole] if isinstance(t, Tensor) and t.ndim else t
            output, variance_output = self.evaluate(x[whole], at, **conditions)
            outputs.append((output[numbers], None if variance_output is None else variance_output[numbers]))
            order += places
        back = torch.tensor(order, device=x.device).argsort()
        found, variances = zip(*outputs, strict=True)
        return torch.cat(found)[back], None if any(one is None for one in variances) else torch.cat(variances)[back]

    def of(self, samples: Tensor, batch: int, x: Tensor) -> ScoreModel:
        """The model for states x (n, ...) of these samples, by number, of a batch: itself, unless it knows each apart."""
        return self

    def evaluate_samples(self, x: Tensor, t: float | Tensor, samples: Tensor) -> Tensor:
        """`evaluate` at states x (n, ...) of a batch without conditions, whichever its samples are."""
        return self.evaluate(x, t)[0]

    def part(self, start: int, stop: int) -> ScoreModel:
        """The model for some samples of a batch without conditions: itself."""
        return self

    @property
    def with_rows(self) -> frozenset[str]:
        """Names of the conditions that have a row a sample, where they are as long as the batch."""
        null = attribute(self.net, "null")
        return frozenset(null) if isinstance(null, Mapping) else frozenset()

    @property
    def nulls(self) -> tuple[Mapping[str, Any], ...]:
        """What it puts in the place of conditions that are dropped."""
        return ()

    def evaluations(self, t: float | Tensor) -> int | Tensor:
        """Network evaluations of a call at t; at times (n,), of each sample."""
        return 1

    def count(self, t: float | Tensor) -> None:
        """Add the evaluations of a call at t to `nfe`."""
        self.nfe += 1

    def over(self, net: Callable[..., Tensor]) -> ScoreModel:
        """The same of another network."""
        return ScoreModel(net, self.path, self.prediction, self.time)

    def begin(self, steps: object) -> ScoreModel:
        """The model for one run of these steps, a plan or a sampler: itself, unless it depends on them or follows a run."""
        return self

    def drawing(self, draws: Draws) -> ScoreModel:
        """The model for one run, with a stream of noise to draw from: itself, unless it draws."""
        return self

    def label(self, x: Tensor, t: float | Tensor) -> Tensor:
        """What the network is told of the time t, a float or (B,), for states x (B, ...): of shape (B,).

        Raises:
            ValueError, TypeError: times that are not allowed.
        """
        return self._label(x, t, self.dtype)

    def _label(self, x: Tensor, t: float | Tensor, dtype: torch.dtype | None) -> Tensor:
        if isinstance(t, Tensor):
            return label(self.time, self.path, self._times(x, t), x, torch.finfo(t.dtype).eps, dtype)
        return label(self.time, self.path, check.time("t", t), x, SINGLE, dtype)

    def express(self, output: Tensor, x: Tensor, t: float | Tensor, prediction: Prediction) -> Tensor:
        """The network's prediction `output` at (x, t) as `prediction`: `a·x + b·output`, a and b from the path."""
        if prediction == self.prediction:
            return output
        if isinstance(t, Tensor):
            a, b = self.path.convert(self.prediction, prediction, double(t).reshape(-1))
            return x * per_sample(a, x) + output * per_sample(b, x)
        weight, m = self.path.convert(self.prediction, prediction, t)
        if not (math.isfinite(weight) and math.isfinite(m)):
            alpha, sigma = self.path.alpha(t), self.path.sigma(t)
            hint = (
                ": use a time inside the path"
                if self.prediction not in ("eps", "score") or alpha
                else (": start below it, or use an x0-, v- or flow-network")
            )
            raise ValueError(
                f"prediction {self.prediction!r} does not give {prediction!r} at t={t}, "
                f"where alpha={alpha}, sigma={sigma}{hint}"
            )
        return (output * m).add_(x, alpha=weight) if weight else output * m

    def accepts(self, keyword: str) -> bool:
        """Whether the network takes this keyword."""
        taken = self._parameters()
        return taken is None or any(p.kind is p.VAR_KEYWORD for p in taken.values()) or self.names(keyword)

    def names(self, keyword: str) -> bool:
        """Whether the network has a parameter of this name, and not `**kwargs` alone."""
        return keyword in self._named()

    def _named(self) -> list[str]:
        """The conditions that the network names, without a second time and without a scale that it is not told."""
        found = [name for name, p in (self._parameters() or {}).items() if p.kind is not p.VAR_KEYWORD][self.positional :]
        others = {"r": attribute(self.net, "times") is not None, "scale": attribute(self.net, "guidance") is False}
        return [name for name in found if not others.get(name)]

    def check_conditions(self, keywords: Mapping[str, Any], arguments: Iterable[str], of: str = "") -> dict[str, Any]:
        """The conditions of the network: the keywords, and what a mapping `conditions` among them holds.

        Args:
            arguments: names of what else the call takes, for slips. of: what they are arguments of, for an error.

        Raises:
            TypeError: a name that the network does not take; one that is near to an argument, and that it takes by `**kwargs`
                only; one that is given twice.
        """
        if not keywords:
            return {}
        more = {} if self.names("conditions") else keywords.get("conditions", {})
        if not isinstance(more, Mapping) or not all(isinstance(name, str) for name in more):
            raise TypeError(f"conditions must be a mapping from names to conditions of the network, got {more!r}")
        named = {name: value for name, value in keywords.items() if name != "conditions" or self.names(name)}
        for name in named:
            if name in more:
                raise TypeError(f"{name!r} is given twice, as a keyword and in conditions")
            if self.accepts(name) and not self.names(name) and (near := check.slip(name, arguments)):
                raise TypeError(
                    f"{name!r} is near to {near!r}; if the network is to be told it, give conditions={{{name!r}: ...}}"
                )
        for name in (*named, *more):
            if not self.accepts(name):
                net = type(self.net).__name__
                takes = self._named()
                near = check.meant(name, (*arguments, *takes))
                raise TypeError(
                    f"{name!r} is neither an argument{of} nor a condition that the network {net} takes "
                    f"({', '.join(takes) or 'none'}){near}"
                )
        return {**named, **more}

    def _parameters(self) -> Mapping[str, inspect.Parameter] | None:
        """What the network can be given; None if it cannot be told."""
        net = unwrapped(self.net)
        try:
            known = inspect.signature(net.forward if isinstance(net, nn.Module) else net).parameters
            return {name: p for name, p in known.items() if p.kind is not p.VAR_POSITIONAL}
        except (TypeError, ValueError):
            return None

    def _times(self, x: Tensor, t: Tensor) -> Tensor:
        """Times (B,) in float64, checked where that costs no synchronisation."""
        if t.is_complex() or not t.is_floating_point():
            raise TypeError(f"t must be a float or a floating-point tensor of shape (B,), got dtype {t.dtype}")
        elif t.shape not in ((), x.shape[:1]):
            raise ValueError(f"t must be a float or of shape ({len(x)},), got shape {tuple(t.shape)}")
        elif t.device.type == "cpu" and not bool(((t >= 0) & (t <= 1)).all()):
            raise ValueError(f"t must lie between 0 (data) and 1 (prior), got {t}")
        return double(t).expand(len(x))


def check_model(model: Any, name: str = "model") -> None:
    """Raise TypeError unless it is a ScoreModel."""
    if not isinstance(model, ScoreModel):
        raise TypeError(f"{name} must be a ScoreModel, got {type(model).__name__}: wrap the network, ScoreModel(net, path)")


def module_of(model: Any, hint: str = "") -> torch.nn.Module:
    """Its network. Raises TypeError unless it is a ScoreModel of a torch module, which has weights."""
    net = getattr(model, "net", None)
    if not isinstance(model, ScoreModel) or not isinstance(net, torch.nn.Module):
        raise TypeError(f"model must be a ScoreModel of a torch module, got {type(model).__name__}{hint}")
    return net


def check_settled(model: ScoreModel, grad: bool = False) -> None:
    """Warn, at the line that called the library, where the same seed would give something else; not of a run that trains."""
    if grad or not (layer := unsettled(model.net)):
        return
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == __name__.partition(".")[0]:
        level, frame = level + 1, frame.f_back
    warnings.warn(f"the network is in training mode, and its {layer} is not settled: call net.eval()", stacklevel=level)


def say(value: Any) -> str:
    """An option as text, the same in every process: a function by its name, a tensor by its shape, the rest as it prints."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {say(one)}" for key, one in value.items()) + "}"
    if isinstance(value, tuple):
        return f"({', '.join(map(say, value))}{',' * (len(value) == 1)})"
    if isinstance(value, Tensor) and value.ndim:
        return f"tensor{tuple(value.shape)}"
    if callable(value) and not isinstance(value, ScoreModel):
        return getattr(value, "__name__", type(value).__name__)
    return repr(value)
