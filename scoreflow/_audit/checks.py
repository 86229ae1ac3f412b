"""What is checked of a sampler that was read back: each check is a name, whether it holds, and what was found."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from scoreflow._audit.compare import told_times
from scoreflow._audit.stranger import Stranger
from scoreflow._uses.read_back import Reading, read_back, without_draws

LEVEL = 1e-4
"""Relative difference of κ beyond which a state does not stand at the level that the network is told."""
COUNTS = (1, 2, 3, 5, 10, 30, 100)
"""Steps at which a run is to be finite."""


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


def of_reading(found: Reading, stranger: Stranger, steps: int) -> Iterator[Check]:
    """What one reading says."""
    at = found.breaks
    where = "at the end" if at == found.nfe else f"from call {at} on"
    yield Check("affine", at is None, "weights of states, outputs and draws say all" if at is None else f"not {where}", at)
    off = int(found.offsets.abs().argmax())
    most = float(found.offsets.abs().max())
    still = most < 1e-9
    yield Check(
        "no-constant", still, "nothing is added" if still else f"{most:.3g} is added at call {off}", None if still else off
    )
    yield Check(
        "draws-used", not found.unused, f"{found.draws} draws" + (f", {len(found.unused)} unused" if found.unused else "")
    )
    per = found.nfe / steps
    whole = found.nfe % steps == 0 or (found.nfe + 1) % steps == 0
    yield Check("steps", whole, f"{found.nfe} calls of the network for {steps} steps ({per:.3g} a step)")
    told = told_times(found, stranger)
    wrong = next((k for k, (a, b) in enumerate(pairwise(told), 1) if not b <= a + 1e-9), None)
    if not all(map(math.isfinite, told)):
        yield Check("labels", False, "the network is told no numbers")
        return
    says = "never rise" if wrong is None else f"at call {wrong} the network is told a higher level than before"
    yield Check("labels-fall", wrong is None, says, wrong)
    yield from _levels(found, stranger, told)


def _levels(found: Reading, stranger: Stranger, told: list[float]) -> Iterator[Check]:
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
    weights = torch.cat([found.states, found.end[None]])[:, 1 + found.nfe :]
    seen = (weights[:-1] != 0).any(0)
    return float(weights[-1][~seen].norm())


def of_runs(found: Reading, stranger: Stranger, steps: int) -> Iterator[Check]:
    """What further runs say: a second one, one in float32, a batch, other numbers of steps."""
    again = read_back(stranger.build(steps))
    same = again.nfe == found.nfe and torch.equal(again.end, found.end)
    yield Check("repeats", same, "a second run is the first" if same else "a second run differs: state is kept between runs")
    run = stranger.build(steps)
    alone = read_back(run)
    twice = _tried(lambda: read_back(run))
    kept = isinstance(twice, Reading) and twice.nfe == alone.nfe and torch.equal(twice.end, alone.end)
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
    yield _batch(stranger, steps)
    bad = [n for n in COUNTS if not _finite(stranger, n)]
    yield Check(
        "finite",
        not bad,
        f"finite at {', '.join(map(str, COUNTS))} steps" if not bad else f"not finite at {', '.join(map(str, bad))} steps",
    )


def _tried(call: Callable[[], Reading]) -> Reading | str:
    try:
        return call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _network(x: Tensor, label: object = None, *more: object, **conditions: object) -> Tensor:
    """A network of states alone."""
    return torch.tanh(x)


def _batch(stranger: Stranger, steps: int) -> Check:
    """Whether a sample depends on who is beside it: two states, alone and together, without draws."""
    x = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(1, 1, 4, 4)
    found = []
    for batch in (x, torch.cat([x, 100 - x])):
        try:
            found.append(without_draws(stranger.build(steps), _network, batch)[:1])
        except Exception as error:
            return Check("batch", False, f"no run of {len(batch)} samples: {type(error).__name__}: {error}")
    off = float((found[0] - found[1]).abs().max() / found[0].abs().max().clamp(min=1e-300))
    alike = off < 1e-6
    says = "a sample does not depend on its batch-mates" if alike else f"batch-mates change a sample by {off:.2g}"
    return Check("batch", alike, says)


def _finite(stranger: Stranger, steps: int) -> bool:
    x = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(1, 1, 2, 4)
    try:
        return bool(without_draws(stranger.build(steps), _network, x).isfinite().all())
    except Exception:
        return False
