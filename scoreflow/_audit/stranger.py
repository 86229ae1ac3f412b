"""A sampler as it is found, made a run on a path."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from scoreflow._core.check import options as check_options
from scoreflow._core.gaussian import GaussianPath, Prediction, bisect
from scoreflow._core.known import curve
from scoreflow._core.path import PATHS, Flow
from scoreflow._samplers.step import Linear
from scoreflow._uses.read_back import Run

Net = Callable[..., Tensor]
"""A network, `net(x, label)`."""


class Stranger(NamedTuple):
    """A sampler as it is found.

    Attributes:
        name: for reports. path: of the states that its network is given.
        prediction, time: what its network gives, and is told.
        build: from a number of steps to a run, which is given a first state of standard deviation `path.prior_std(start)`.
        start: the time of the first state. own: the sampler, if it is one of ours.
    """

    name: str
    path: GaussianPath
    prediction: Prediction
    time: Any
    build: Callable[[int], Run]
    start: float = 1.0
    own: Linear | None = None

    def time_of(self, label: float) -> float:
        """The time that a label tells."""
        if self.time == "unit":
            return label
        if self.time in ("index", "label"):
            assert self.path.T is not None
            return (label + 1) / self.path.T
        if self.time == "sigma":
            on_flow = isinstance(self.path, Flow)
            return label if on_flow else self.path.time(-math.log(label)) if label > 0 else 0.0
        if self.time == "log-snr":
            return self.path.time(label / 2)
        return _inverse(self.time, label) if callable(self.time) else label / float(self.time[1])


class Asked(NamedTuple):
    """What was said of a sampler beside it: None where nothing was."""

    path: GaussianPath | None = None
    prediction: Prediction | None = None
    time: Any = None
    start: float = 1.0


def _inverse(told: Callable[[Tensor], Tensor], label: float) -> float:
    """The time at which a network is told this, by halves; what it is told rises or falls with the time."""

    def at(t: float) -> float:
        return float(torch.as_tensor(told(torch.tensor([t], dtype=torch.float64))).reshape(()))

    low, high, rises = 0.0, 1.0, at(1.0) > at(0.0)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (at(middle) < label) == rises else (low, middle)
    return high


CELLS = 1000


class Curves(GaussianPath):
    """The path of somebody's α and σ, functions of t: (α, σ) of times (K,), each (K,)."""

    def __init__(self, of: Callable[[Tensor], tuple[Tensor, Tensor]], name: str) -> None:
        self.of, self.name = of, name
        self.nodes = torch.arange(CELLS + 1, dtype=torch.float64) / CELLS
        self.known = self.lam(self.nodes)

    def __repr__(self) -> str:
        return f"the path of {self.name}"

    @curve
    def log_alpha(self, t: Tensor) -> Tensor:
        """log α."""
        return self.of(t.reshape(-1))[0].reshape(t.shape).log()

    @curve
    def log_sigma(self, t: Tensor) -> Tensor:
        """log σ."""
        return self.of(t.reshape(-1))[1].reshape(t.shape).log()

    @curve
    def time(self, lam: Tensor) -> Tensor:
        """By secants of the cells of a table."""
        cell = torch.searchsorted(-self.known, -lam.contiguous()).clamp(1, CELLS)
        rate = (self.known[cell - 1] - self.known[cell]) * CELLS
        rate = torch.where(rate.isfinite(), rate, 0.0)  # by halves, where λ is not finite at an end
        return bisect(self.lam, lam, self.nodes[cell - 1], self.nodes[cell], lambda t: rate)


def path_of(of: Callable[[Tensor], tuple[Tensor, Tensor]], name: str) -> GaussianPath:
    """The path of these curves: one of ours where α and σ are its own, to 1e-9."""
    t = torch.arange(1, 10, dtype=torch.float64) / 10
    theirs = torch.stack(of(t))
    for make in PATHS.values():
        path = make()
        if torch.allclose(theirs, torch.stack([path.alpha(t), path.sigma(t)]), rtol=1e-9, atol=0.0):
            return path
    return Curves(of, name)


MADE = (
    torch.linspace, torch.logspace, torch.arange, torch.tensor, torch.ones, torch.zeros, torch.full, torch.empty, torch.eye
)  # fmt: skip


class InDtype(TorchFunctionMode):
    """Lets constants that code makes without a dtype be of the states': float64 where the coefficients are read."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func in MADE and kwargs.get("dtype") is None and out.dtype == torch.get_default_dtype():
            return func(*args, **{**kwargs, "dtype": self.dtype})
        return out


def name_of(sampler: Any) -> str:
    """Of a class, a function, or an object's class."""
    return str(getattr(sampler, "__name__", type(sampler).__name__))


def parameters(sampler: Any) -> list[str]:
    """The names of what a function, or the constructor of a class, takes; none where that is not known."""
    try:
        return list(inspect.signature(sampler).parameters)
    except (TypeError, ValueError):
        return []


def split(name: str, options: Mapping[str, Any], *takers: Callable[..., Any]) -> list[dict[str, Any]]:
    """The options of this by who takes them, the first that does; one that takes any keyword takes all that are left.

    Raises:
        TypeError: an option that none takes.
    """
    left, shares, every = dict(options), [], dict[str, None]()
    for taker in takers:
        known = inspect.signature(taker).parameters
        any_ = any(one.kind is one.VAR_KEYWORD for one in known.values())
        shares.append({option: left.pop(option) for option in [*left] if any_ or option in known})
        every |= dict.fromkeys(known)
    check_options(name, left, every)
    return shares
