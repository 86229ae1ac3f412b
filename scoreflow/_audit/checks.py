"""What is checked of a sampler that was read back: each check is a name, whether it holds, and what was found."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoreflow._audit.compare import SAME, Times, first_state
from scoreflow._audit.stranger import Stranger
from scoreflow._uses.read_back import Reading, read_back, without_draws

LEVEL = 1e-4
"""Relative difference of κ beyond which a state does not stand at the level that the network is told."""
COUNTS = (*range(1, 21), 25, 30, 40, 50, 61, 75, 99, 100, 101, 150, 200, 250, 333, 500, 750, 999, 1000)
"""Steps at which a run is to be finite, and to make as many calls a step."""


class Check(NamedTuple):
    """A property.

    Attributes:
        name: by which it can be waived. holds: whether it does. says: what was found. step: the call where it fails, if any.
    """

    name: str
    holds: bool
    says: str
    step: int | None = None

    def __str__(self) -> str:
        return f"{'ok  ' if self.holds else 'FAIL'} {self.name}: {self.says}"


def of_reading(found: Reading, stranger: Stranger, times: Times) -> Iterator[Check]:
    """What one reading says."""
    steps, told = times.steps, times.told
    at = found.breaks
    where = "at the end" if at == found.nfe else f"from call {at} on"
    yield Check("affine", at is None, "weights of states, outputs and draws say all" if at is None else f"not {where}", at)
    off = int(found.offsets.abs().argmax())
    most = float(found.offsets.abs().max())
    still = most < 1e-9
    yield Check(
        "no-constant", still, "nothing is added" if still else f"{most:.3g} is added at call {off}", None if still else off
    )
    scale = first_state(found)
    as_given = abs(scale - 1) <= SAME
    says = "x_T, of the prior's size" if as_given else f"the first state is {scale:.6g} times x_T, which has the prior's size"
    yield Check("first-state", as_given, says, None if as_given else 0)
    yield Check(
        "draws-used", not found.unused, f"{found.draws} draws" + (f", {len(found.unused)} unused" if found.unused else "")
    )
    per = found.nfe / steps
    whole = found.nfe % steps == 0 or (found.nfe + 1) % steps == 0
    yield Check("steps", whole, f"{found.nfe} calls of the network for {steps} steps ({per:.3g} a step)")
    wrong = next((k for k, (a, b) in enumerate(pairwise(told), 1) if not b <= a + 1e-9), None)
    if not all(map(math.isfinite, told)):
        yield Check("labels", False, "the network is told no numbers")
        return
    says = "never rise" if wrong is None else f"at call {wrong} the network is told a higher level than before"
    yield Check("labels-fall", wrong is None, says, wrong)
    states = found.every
    idle = [k for k in range(1, found.nfe) if told[k] == told[k - 1] and torch.equal(states[k], states[k - 1])]
    says = "none is asked twice" if not idle else f"at call {idle[0]} the network is asked what it was asked before"
    yield Check("calls-differ", not idle, says, idle[0] if idle else None)
    yield from _levels(found, stranger, told)


def _levels(found: Reading, stranger: Stranger, told: Sequence[float]) -> Iterator[Check]:
    """Where states stand, with data at a point."""
    path, levels = stranger.path, found.levels(stranger.path, stranger.prediction, told, stranger.start).tolist()
    least = 0.0 if path.sigma(0.0) > 0 else 1e-300  # others' paths may begin with noise
    right = [(path.alpha(t), path.sigma(t)) if least <= t <= 1 + 1e-6 else (math.nan, math.nan) for t in told]
    off = [_apart(level, at) for level, at in zip(levels, right, strict=False)]
    first = next((k for k, one in enumerate(off) if not one < LEVEL), None)
    if first is None:
        yield Check("levels", True, f"states stand where the network is told, to {max(off):.1e} of σ/α")
    else:
        (alpha, sigma), (a, b) = levels[first], right[first]
        stands, is_told = (s / c if c else math.inf for c, s in ((alpha, sigma), (a, b)))
        says = f"at call {first} the network is told σ/α = {is_told:.4g}, and stands at {stands:.4g}, {off[first]:.1e} off"
        yield Check("levels", False, says, first)
    scale = [abs(level[0] - at[0]) / (at[0] or 1.0) for level, at in zip(levels, right, strict=False)]
    big = next((k for k, one in enumerate(scale) if not one < LEVEL), None)
    says = (
        "as of the path" if big is None else f"at call {big} the signal is {levels[big][0]:.5g}, and α is {right[big][0]:.5g}"
    )
    yield Check("signal", big is None, says, big)
    alpha, sigma = levels[-1]
    noise = _unseen(found)
    clean = sigma < 1e-3 * abs(alpha)
    yield Check(
        "ends-at-data",
        clean,
        f"ends at σ/α = {sigma / abs(alpha):.3g}" if alpha else "ends without signal",
        None if clean else found.nfe,
    )
    yield Check(
        "no-last-noise",
        noise < 1e-6,
        "no draw after the last call" if noise < 1e-6 else f"noise of {noise:.3g} after the last call",
    )


def _apart(level: Sequence[float], at: tuple[float, float]) -> float:
    """How far σ/α of two levels are apart, relative; where α is 0, how large the other α is."""
    (alpha, sigma), (a, b) = level, at
    if a == 0:
        return abs(alpha / sigma) if sigma else math.inf
    return abs(sigma * a / (alpha * b) - 1) if alpha else math.inf


def _unseen(found: Reading) -> float:
    """The standard deviation at the end of draws that no call has seen."""
    weights = found.every[:, 1 + found.nfe :]
    seen = (weights[:-1] != 0).any(0)
    return float(weights[-1][~seen].norm())


def of_runs(found: Reading, stranger: Stranger, steps: int, most: int) -> Iterator[Check]:
    """What further runs say: a second one, one under other seeds, in other dtypes, batches, other numbers of steps."""

    def again(seed: int) -> Reading | str:
        with _seeded(seed):
            return _tried(lambda: read_back(stranger.build(steps)))

    first, second, other = again(0), again(0), again(1)
    same = _equal(first, second)
    yield Check("repeats", same, "a second run is the first" if same else "a second run differs: state is kept between runs")
    chance = same and not _equal(first, other)
    says = "random numbers of torch, numpy and Python change a run beside its draws" if chance else "no chance but draws"
    yield Check("random-state", not chance, says)
    run = stranger.build(steps)
    kept = _equal(_tried(lambda: read_back(run)), _tried(lambda: read_back(run)))
    yield Check(
        "one-object", kept, "the same object runs twice alike" if kept else "the same object runs otherwise the second time"
    )
    low = _tried(lambda: read_back(stranger.build(steps), dtype=torch.float32))
    if isinstance(low, Reading) and low.nfe == found.nfe:
        size = found.states.abs().amax(1).clamp(min=1e-300)
        floor = float(((low.states - found.states).abs().amax(1) / size).max())
        yield Check("float32", floor < 1e-3, f"coefficients in float32 are off by {floor:.1e}")
    else:
        yield Check("float32", False, f"no run in float32: {low}")
    yield _dtypes(stranger, steps)
    yield from _batch(stranger, steps)
    yield from _counts(stranger, [n for n in COUNTS if n <= most])


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Every global source of random numbers begins here, and is as before afterwards."""
    kept = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
        np.random.set_state(np.random.RandomState(seed).get_state())
        random.setstate(random.Random(seed).getstate())
        yield
    finally:
        torch.set_rng_state(kept[0])
        np.random.set_state(kept[1])
        random.setstate(kept[2])


def _equal(one: Reading | str, other: Reading | str) -> bool:
    if isinstance(one, str) or isinstance(other, str):
        return False
    return one.every.shape == other.every.shape and torch.equal(one.every.nan_to_num(), other.every.nan_to_num())


def _tried(call: Callable[[], Reading]) -> Reading | str:
    try:
        return call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _network(x: Tensor, label: object = None, *more: object, **conditions: object) -> Tensor:
    """A network of states alone."""
    return torch.tanh(x)


def _dtypes(stranger: Stranger, steps: int) -> Check:
    """Whether states keep their dtype: the last, and those that the network is given, where 16 bits may be more."""
    for dtype, wider in ((torch.float32, torch.float32), (torch.bfloat16, torch.float32)):
        met = set[torch.dtype]()

        def net(x: Tensor, label: object = None, *more: object, met: set[torch.dtype] = met, **conditions: object) -> Tensor:
            met.add(x.dtype)
            return _network(x)

        try:
            end = without_draws(stranger.build(steps), net, torch.ones(1, 1, 2, 2, dtype=dtype)).dtype
        except Exception as error:
            return Check("dtype", False, f"no run in {_short(dtype)}: {type(error).__name__}: {error}")
        if end != dtype or met - {dtype, wider}:
            return Check("dtype", False, f"states of {_short(dtype)} become {_short(next(iter(met - {dtype, wider}), end))}")
    return Check("dtype", True, "states of float32 and bfloat16 keep their dtype")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _batch(stranger: Stranger, steps: int) -> Iterator[Check]:
    """Whether a sample depends on who is beside it, and on its place: three states, alone, together and turned round."""
    x = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(1, 1, 4, 4)
    batch, found = torch.cat([x, 100 - x, x.square()]), []
    for states in (x, batch, batch.flip(0)):
        try:
            found.append(without_draws(stranger.build(steps), _network, states))
        except Exception as error:
            yield Check("batch", False, f"no run of {len(states)} samples: {type(error).__name__}: {error}")
            return
    size = found[0].abs().max().clamp(min=1e-300)
    off, moved = (float(gap.abs().max() / size) for gap in (found[1][:1] - found[0], found[2].flip(0) - found[1]))
    says = "a sample does not depend on its batch-mates" if off < 1e-6 else f"batch-mates change a sample by {off:.2g}"
    yield Check("batch", off < 1e-6, says)
    says = "nor on its place in the batch" if moved < 1e-6 else f"its place in the batch changes a sample by {moved:.2g}"
    yield Check("batch-order", moved < 1e-6, says)


def _counts(stranger: Stranger, counts: Sequence[int]) -> Iterator[Check]:
    """Whether runs are finite, and make as many calls a step, by numbers of steps."""
    calls, bad = dict[int, int](), list[int]()
    x = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(1, 1, 2, 4)
    for n in counts:
        made = list[int]()

        def net(x: Tensor, label: object = None, *more: object, made: list[int] = made, **conditions: object) -> Tensor:
            made.append(1)
            return _network(x)

        try:
            if not without_draws(stranger.build(n), net, x).isfinite().all():
                bad.append(n)
            calls[n] = len(made)
        except Exception:
            bad.append(n)
    last = f"{counts[0]} to {counts[-1]}"
    says = f"finite at {len(counts)} numbers of steps from {last}" if not bad else f"not finite at {_listed(bad)} steps"
    yield Check("finite", not bad, says)
    off = odd(calls)
    says = "calls grow evenly with the steps"
    if off:
        others = f", and as odd at {_listed(off[1:])}" if off[1:] else ""
        says = f"{calls[off[0]]} calls of the network for {off[0]} steps{others}"
    yield Check("counts", not off, says)


def odd(calls: dict[int, int]) -> list[int]:
    """Numbers of steps whose calls are not on the line of most: so many a step, and a constant."""
    known = [n for n in calls if n > 3]
    if len(known) < 3:
        return []
    lines = [((calls[m] - calls[n]) / (m - n), n) for n, m in pairwise(known)]
    slope = statistics.median(slope for slope, _ in lines)
    constant = statistics.median(calls[n] - slope * n for n in known)
    return [n for n in known if abs(calls[n] - slope * n - constant) > 1e-9]


def _listed(numbers: Sequence[int], most: int = 5) -> str:
    more = f" and {len(numbers) - most} more" if len(numbers) > most else ""
    return ", ".join(map(str, numbers[:most])) + more
