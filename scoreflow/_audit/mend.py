"""What would make a run the registered sampler that it is not: weights, by a factor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

from scoreflow._audit.compare import SAME, Near, Times
from scoreflow._audit.rows import as_plan
from scoreflow._core.gaussian import Prediction
from scoreflow._samplers.plan import Plan
from scoreflow._uses.read_back import Reading, read_plan

NAMES: dict[Prediction, str] = {"x0": "x̂_0", "eps": "ε̂", "v": "v̂", "score": "the score", "flow": "the velocity"}
ORDINALS = ("", "first", "second", "third", "fourth")


class Mend(NamedTuple):
    """A weight that is off.

    Attributes:
        right: the registered sampler that has it right. weight: which.
        factor: times the right one; None if it is not the same at all these calls.
        calls: whose states have it wrong; the number of calls is the end.
        extra: whether the registered one has no such weight.
    """

    right: str
    weight: str
    factor: float | None
    calls: tuple[int, ...]
    extra: bool = False

    @property
    def lasting(self) -> bool:
        """Whether it is more than what first and last steps of lower order leave."""
        return len(self.calls) > 2 and self.factor != 0

    def __str__(self) -> str:
        where = f"call {self.calls[0]}" if len(self.calls) == 1 else f"calls {self.calls[0]} to {self.calls[-1]}"
        if self.extra:
            return f"{self.weight} has a weight, which it has not in {self.right}, in the states of {where}"
        if self.factor is None:
            return f"the weight of {self.weight} is not that of {self.right}, in the states of {where}"
        if self.factor == 0:
            return f"{self.weight} is missing, which {self.right} has, in the states of {where}"
        return (
            f"the weight of {self.weight} is {self.factor:.6g} times that of {self.right}, in the states of {where}: "
            f"multiply it by {1 / self.factor:.6g}"
        )


def mends(found: Reading, times: Times, near: Sequence[tuple[Near, Plan]], prediction: Prediction) -> tuple[Mend, ...]:
    """The weights by which a run differs from a near sampler, the one that leaves fewest; none if it leaves many.

    The weights of a step are looked at in several forms: of x̂_0 and ε̂; of the state and the outputs, and these as derivatives
    in λ, `A_i = Σ_j m_j (λ_j − λ_0)^i / i!`, whose i-th is the weight of the i-th difference.
    """
    ours: dict[Prediction, Plan | None] = {
        target: _turned(found, times, prediction, target) for target in dict.fromkeys(("x0", "eps", prediction))
    }
    best: tuple[Mend, ...] = ()
    least = min((one.apart for one, _ in near), default=0.0)
    for one, plan in near[:TRIED]:
        if one.apart > FURTHER * least:
            continue
        right = read_plan(plan, times.path, prediction)
        for target, rows in ours.items():
            other = None if rows is None else _turned(right, times, prediction, target)
            if rows is None or other is None:
                continue
            for a, b in zip(_forms(rows, times), _forms(other, times), strict=True):
                wrong = _wrong(one.name, a, b)
                if 0 < len(wrong) <= MOST and (not best or _simple(wrong) < _simple(best)):
                    best = wrong
    return best


def _simple(wrong: Sequence[Mend]) -> tuple[int, int, int, int]:
    """What is less is said in fewer words: weights, those without one factor, factors, and those that are no small fraction."""
    factors = [one.factor for one in wrong if one.factor is not None]
    extra = sum(one.extra for one in wrong)
    odd = sum(abs(factor - Fraction(factor).limit_denominator(20)) > 1e-4 for factor in factors)
    return len({one.weight for one in wrong}) + extra, len(wrong) - len(factors), len(wrong), odd


def _turned(found: Reading, times: Times, prediction: Prediction, target: Prediction) -> Plan | None:
    """The rows of a run in another prediction; None where it has no finite ones."""
    turned = found.among(times.path, prediction, target, times.told)
    return as_plan(turned, "", times.path, target, times.told, times.end) if turned.every.isfinite().all() else None


MOST, TRIED, FURTHER = 4, 24, 1000.0
"""Factors that are said, samplers that are looked at, and how many times as far as the nearest they may lie."""
Form = list[dict[str, float]]
"""The weights by name, state by state."""


def _forms(plan: Plan, times: Times) -> Iterator[Form]:
    """The weights of all rows, in each form."""
    path, name = times.path, NAMES[plan.prediction]
    levels = [path.lam(t) for t in times.told]
    plain, basis = Form(), Form()
    k = 0
    for step in plan.steps:
        for stage in step.stages:
            k += 1
            m = [float(weight) for weight in stage.row.m]
            rounding = 10 * SAME * max(abs(float(stage.row.x)), *map(abs, m))
            while len(m) > 1 and abs(m[-1]) <= rounding:
                m.pop()
            seen = levels[k - 1 :: -1][: len(m)] if k > 1 else levels[:1]
            row: dict[str, float] = {}
            for i in range(len(m)):
                what = name if i == 0 else f"the {ORDINALS[i] if i < len(ORDINALS) else f'{i}th'} difference of {name}"
                row[what] = sum(w * (lam - seen[0]) ** i / math.factorial(i) for w, lam in zip(m, seen, strict=True))
            row["the noise"] = math.hypot(*(float(z) for _, z in stage.row.draws))
            plain.append({"the state": float(stage.row.x), **row})
            if plan.prediction == "x0" and len(step.stages) == 1:
                alpha, sigma = path.alpha(step.t), path.sigma(step.t)
                basis.append({**row, name: row[name] + alpha * float(stage.row.x), "ε̂": sigma * float(stage.row.x)})
            else:
                basis.append(plain[-1])
    yield basis
    yield plain


def _wrong(right: str, theirs: Form, ours: Form) -> tuple[Mend, ...]:
    """The weights in which they differ."""
    if len(theirs) != len(ours):
        return ()
    wrong: dict[str, dict[int, float]] = {}
    for k, (a, b) in enumerate(zip(theirs, ours, strict=True), 1):
        size = max(abs(value) for value in (*a.values(), *b.values()))
        for name in {*a, *b}:
            x, y = a.get(name, 0.0), b.get(name, 0.0)
            if not abs(x - y) <= max(10 * SAME * size, 1e-4 * abs(y)):
                wrong.setdefault(name, {})[k] = x / y if abs(y) > SAME * size else math.inf
    return tuple(one for name, ratios in sorted(wrong.items()) for one in _factors(right, name, ratios))


def _factors(right: str, name: str, ratios: dict[int, float]) -> list[Mend]:
    """The factors of a weight over calls; one without a factor if there are more than two."""
    found: list[tuple[float, list[int]]] = []
    for call, ratio in ratios.items():
        if found and abs(ratio - found[-1][0]) <= 1e-3 * max(1.0, abs(ratio)):
            found[-1][1].append(call)
        else:
            found.append((ratio, [call]))
    extra = not all(map(math.isfinite, ratios.values()))
    if extra or len(found) > 2:
        return [Mend(right, name, None, tuple(ratios), extra)]
    return [Mend(right, name, factor if abs(factor) > 1e-6 else 0.0, tuple(calls)) for factor, calls in found]
