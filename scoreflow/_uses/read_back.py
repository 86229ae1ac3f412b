"""Anyone's sampler, read back: what is fed symbols puts out its coefficients.

A sampler that is affine in the first state, the outputs of the network and the draws is known from one run in which each of
them is a unit vector: an entry of a state is then the weight of one of them. Nothing is assumed of the code that runs.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from scoreflow._core.gaussian import GaussianPath, Prediction
from scoreflow._samplers.plan import Plan, advance, drive

Run = Callable[[Callable[..., Tensor], Tensor], Tensor]
"""From a network, called as `net(x, label, ...)`, and a first state to a last one."""
DRAWS = (torch.randn, torch.randn_like, torch.normal, torch.Tensor.normal_)
PROBE = 16
"""Entries of the states by which affinity is tested."""


@dataclass(frozen=True)
class Reading:
    """A run as a matrix.

    The columns of a row are the weights of the first state, of the K outputs and of the draws.

    Attributes:
        labels: what the network was told at each of its K calls; NaN where it was no number.
        states: of what the network was given at each call, (K, 1 + K + J), float64. end: of the last state, (1 + K + J,).
        offsets: what was added beside, at each call and at the end, (K + 1,).
        errors: how far each of these states is from affine, relative, by outputs and draws at random, (K + 1,).
    """

    labels: tuple[float, ...]
    states: Tensor
    end: Tensor
    offsets: Tensor
    errors: Tensor

    @property
    def every(self) -> Tensor:
        """Of the states and of the end, (K + 1, 1 + K + J)."""
        return torch.cat([self.states, self.end[None]])

    @property
    def nfe(self) -> int:
        """Calls of the network."""
        return len(self.labels)

    @property
    def draws(self) -> int:
        """Independent draws."""
        return self.end.shape[0] - 1 - self.nfe

    @property
    def unused(self) -> tuple[int, ...]:
        """Numbers of the draws that nothing depends on."""
        weights = self.every[:, 1 + self.nfe :]
        return tuple((weights == 0).all(0).nonzero().flatten().tolist())

    @property
    def breaks(self) -> int | None:
        """The first call, or K for the end, where the run is not affine; None if it is."""
        off = ((self.errors > 1e-6) | self.errors.isnan()).nonzero()
        return int(off[0]) if len(off) else None

    def covariance(self) -> Tensor:
        """Of the noise that draws put into the states and the end, (K + 1, K + 1): however the draws are split."""
        noise = self.every[:, 1 + self.nfe :]
        return noise @ noise.mT

    def apart(self, other: Reading) -> Tensor:
        """The largest difference of a weight or a covariance from another of as many calls, state by state, (K + 1,).

        Raises:
            ValueError: another number of calls.
        """
        if self.nfe != other.nfe:
            raise ValueError(f"the readings have {self.nfe} and {other.nfe} calls of the network")
        ours, theirs = (one.every[:, : 1 + one.nfe] for one in (self, other))
        noise = (self.covariance() - other.covariance()).abs().amax(1)
        return torch.maximum((ours - theirs).abs().amax(1), noise)

    def among(self, path: GaussianPath, source: Prediction, target: Prediction, times: Sequence[float]) -> Reading:
        """The same run of a network that gives another prediction.

        Args:
            source, target: what it gave, and gives. times: at which its outputs are to be read, one a call.
        """
        if source == target:
            return self
        every, K = self.every, self.nfe
        given = torch.zeros(K, every.shape[1], dtype=every.dtype)  # the outputs of old, among those of now
        rows = []
        for k, row in enumerate(every):
            state = row[1 : 1 + k] @ given[:k]
            state[0] += row[0]
            state[1 + K :] += row[1 + K :]
            rows.append(state)
            if k < K:
                a, b = path.convert(target, source, times[k])
                given[k] = a * state
                given[k, 1 + k] += b
        return replace(self, states=torch.stack(rows[:-1]), end=rows[-1])

    def levels(self, path: GaussianPath, prediction: Prediction, times: Sequence[float], start: float) -> Tensor:
        """(α, σ) of the states and the end, (K + 1, 2), where the data are one point, which the network knows.

        Args:
            prediction: of the network. times: at which its outputs are to be read, one a call. start: of the first state.
        """
        every = self.every
        K, draws = self.nfe, every[:, 1 + self.nfe :]
        made = torch.zeros(1 + K, 2 + draws.shape[1], dtype=every.dtype)  # of x_0, the first noise and the draws
        made[0, 0], made[0, 1] = path.alpha(start), path.sigma(start)
        found = []
        for k, row in enumerate(every):
            state = row[: 1 + k] @ made[: 1 + k]
            state[2:] += draws[k]
            found.append(torch.stack([state[0], state[1:].norm()]))
            if k < K:
                a, b = path.convert("x0", prediction, times[k])
                made[1 + k] = a * state
                made[1 + k, 0] += b
        return torch.stack(found)


def read_back(run: Run, *, dtype: torch.dtype = torch.float64, shape: tuple[int, ...] = (1, 1)) -> Reading:
    """The coefficients of a run.

    The run is made three times: to count, with symbols, and with numbers at random, which say whether it is affine. Draws are
    those of `torch.randn`, `randn_like`, `normal` and `Tensor.normal_` in the shape of the batch or of its one state, and
    those of `torchsde`'s Brownian paths, whose increments and integrals over time keep their covariance.

    Args:
        run: as it would be called for one sample; its states have the shape (1, *shape, width).
        dtype: of the states that it is given.

    Raises:
        ValueError: it changes the shape of states, asks and draws otherwise from run to run, or draws what is not Gaussian.
    """
    none = _counted(run, torch.zeros(1, *shape, 1, dtype=dtype))
    calls, draws, times = none.calls, none.draws, [sorted(one) for one in none.times]
    pieces = sum(len(one) - 1 for one in times)
    width = 2 + calls + draws + pieces * (2 if none.integrals else 1)
    first, probe = torch.zeros(1, *shape, width, dtype=dtype), _normal((1, *shape, PROBE), 0).to(dtype)
    first[..., 0] = 1.0

    def unit(k: int, like: Tensor) -> Tensor:
        out = torch.zeros_like(like)
        out[..., k : k + 1] = 1.0  # none beyond the last, which the counts tell
        return out

    symbols = Feed(first, unit, calls, draws, times)
    entries = torch.stack([row.double().reshape(-1, width)[0] for row in _once(run, symbols, first)])
    if (symbols.calls, symbols.draws, symbols.times) != (calls, draws, none.times):
        raise ValueError(
            f"what the run does depends on the states, as in an adaptive sampler: it asks {calls} times and draws "
            f"{draws + pieces} times where they are 0, and {symbols.calls} and "
            f"{symbols.draws + sum(len(one) - 1 for one in symbols.times)} times where they are not"
        )
    weights, offsets = entries[:, :-1] - entries[:, -1:], entries[:, -1]
    random = Feed(probe, lambda k, like: _normal(like.shape, k).to(like), calls, draws, times)
    found = torch.stack([row.double().reshape(-1, PROBE)[0] for row in _once(run, random, probe)])
    fed = torch.stack([_normal((1, *shape, PROBE), k).reshape(-1, PROBE)[0] for k in range(width - 1)])
    expected = weights @ fed + offsets[:, None]
    errors = (found - expected).norm(dim=1) / expected.norm(dim=1)
    return Reading(tuple(symbols.labels), weights[:-1], weights[-1], offsets, errors)


def read_plan(plan: Plan, path: GaussianPath, prediction: Prediction) -> Reading:
    """The coefficients of a plan, of a network that gives this prediction; an analytic first output counts as one."""
    calls, J = plan.nfe + (plan.analytic is not None), plan.noise_count
    unit = torch.eye(1 + calls + J, dtype=torch.float64)
    given, times = list[Tensor](), list[float]()
    draws = iter(unit[1 + calls :, None])

    class Outputs:
        def __init__(self) -> None:
            self.path, self.prediction = path, prediction

        def __call__(self, x: Tensor, t: float, prediction: Prediction = "eps") -> Tensor:
            a, b = path.convert(self.prediction, prediction, t)
            times.append(t)
            given.append(x)
            return a * x + b * unit[len(times)]

    model, x, memory = Outputs(), unit[:1], ()
    for step in plan.steps:
        x, memory, _ = drive(advance(step, plan, model, x, memory, lambda *_: next(draws)), model)  # type: ignore[assignment]
    none = torch.zeros(calls + 1, dtype=torch.float64)
    return Reading(tuple(times), torch.cat([*given, x])[:-1], x[0], none, none)


class Feed(TorchFunctionMode):
    """Hands out outputs and draws by their number, and keeps what the network was given.

    Args:
        like: a state. source: what has a number: 0 is the first state, then come the outputs, the draws, and of each piece of a
            Brownian path its increment, and then what of its integral is independent. calls, draws: how many there will be.
        times: that part each Brownian path into pieces.
    """

    def __init__(
        self, like: Tensor, source: Callable[[int, Tensor], Tensor], calls: int = 0, draws: int = 0,
        times: Sequence[Sequence[float]] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.like, self.source, self.expected = like, source, (calls, draws)
        self.pieces = [(path, *ends) for path, one in enumerate(times) for ends in pairwise(one)]
        self.given, self.labels = list[Tensor](), list[float]()
        self.paths, self.times = list[Any](), list[set[float]]()
        self.draws, self.integrals = 0, False

    @property
    def calls(self) -> int:
        """Of the network, so far."""
        return len(self.labels)

    def fitting(self, x: Any, what: str) -> Tensor:
        """A copy of a state.

        Raises:
            ValueError: of another shape.
        """
        if not isinstance(x, Tensor) or x.shape != self.like.shape:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"{what} must have the shape of the first state, {tuple(self.like.shape)}, got {got}")
        return x.detach().clone()

    def network(self, x: Tensor, label: Any = None, *more: Any, **conditions: Any) -> Tensor:
        """The next output, whatever the state."""
        self.given.append(self.fitting(x, "what the network is given"))
        self.labels.append(_number(label))
        return self._made(self.calls, x)

    def _made(self, k: int, like: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            return self.source(k, like)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func not in DRAWS or not isinstance(out, Tensor) or out.shape not in (self.like.shape, self.like.shape[1:]):
            return out
        drawn = self._made(1 + self.expected[0] + self.draws, torch.empty(self.like.shape, dtype=out.dtype)).reshape(out.shape)
        self.draws += 1
        return out.copy_(drawn) if func is torch.Tensor.normal_ else drawn

    def increment(self, path: Any, a: float, b: float, integral: bool) -> tuple[Tensor, Tensor]:
        """`W = W(b) − W(a)` of a Brownian path, and `U = ∫ W(s) − W(a) ds` from a to b, 0 if it is not asked for.

        Of a piece [s, t] of length h it is `u = h w/2 + √(h³/12) ε`, ε independent of w, and U is the sum of `u + (b − t) w`.
        """
        number = next((n for n, known in enumerate(self.paths) if known is path), len(self.paths))
        if number == len(self.paths):
            self.paths.append(path)
            self.times.append(set())
        self.times[number] |= {a, b}
        self.integrals |= integral
        W, U = torch.zeros_like(self.like), torch.zeros_like(self.like)
        for k, (of, s, t) in enumerate(self.pieces, 1 + sum(self.expected)):
            if of == number and a <= s and t <= b:
                w, h = math.sqrt(t - s) * self._made(k, self.like), t - s
                W += w
                if integral:
                    U += (h / 2 + b - t) * w + math.sqrt(h**3 / 12) * self._made(k + len(self.pieces), self.like)
        return W, U


def without_draws(run: Run, net: Callable[..., Tensor], x: Tensor) -> Tensor:
    """A run whose draws are 0, of states x (B, ...) by a network."""
    feed = Feed(x, lambda k, like: torch.zeros_like(like))
    with torch.no_grad(), feed, _brownian(feed):
        return run(net, x)


def _counted(run: Run, x: Tensor) -> Feed:
    """What a run asks for, where all that it is given is 0."""
    known = _torchsde() is not None
    none = Feed(x, lambda k, like: torch.zeros_like(like))
    _once(run, none, x)
    return none if known or _torchsde() is None else _counted(run, x)  # a run may be the first to load it


def _once(run: Run, feed: Feed, x: Tensor) -> list[Tensor]:
    """What the network was given, call by call, and the last state."""
    with torch.no_grad(), feed, _brownian(feed):
        end = run(feed.network, x)
    return [*feed.given, feed.fitting(end, "the last state")]


def _torchsde() -> Any:
    """What has its Brownian paths, once it is loaded."""
    return sys.modules.get("torchsde._brownian.brownian_interval")


@contextmanager
def _brownian(feed: Feed) -> Iterator[None]:
    """Paths of torchsde, where it is loaded, ask the feed."""
    inside = _torchsde()
    if inside is None:
        yield
        return
    kind, drawn = inside.BrownianInterval, inside._randn
    own = kind.__call__

    def called(self: Any, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Any:
        if return_A:
            raise ValueError("the run asks torchsde for Lévy areas between entries (return_A), which are not Gaussian")
        a, b = (min(max(float(t), self._start), self._end) for t in ((self._start, ta) if tb is None else (ta, tb)))
        if a > b:
            return own(self, ta, tb)  # an error of its own
        if math.prod(self.shape) != feed.like.numel():
            raise ValueError(
                f"a Brownian path of torchsde must be as large as the states, {tuple(feed.like.shape)}, got {tuple(self.shape)}"
            )
        W, U = (one.reshape(self.shape) for one in feed.increment(self, a, b, return_U))
        return (W, U) if return_U else W

    def plainly(*args: Any, **kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return drawn(*args, **kwargs)

    kind.__call__, inside._randn = called, plainly
    try:
        yield
    finally:
        kind.__call__, inside._randn = own, drawn


def _normal(shape: Sequence[int], k: int) -> Tensor:
    """Numbers at random for the k-th symbol."""
    with torch._C.DisableTorchFunction():
        return torch.empty(*shape, dtype=torch.float64).normal_(generator=torch.Generator().manual_seed(k))


def _number(label: Any) -> float:
    """What the network was told, if it is a number."""
    if isinstance(label, Tensor):
        return float(label.reshape(-1)[0]) if label.numel() else math.nan
    return float(label) if isinstance(label, int | float) else math.nan
