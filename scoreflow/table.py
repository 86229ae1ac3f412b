"""The table of samplers, read off the registry."""

from __future__ import annotations

import re
from typing import NamedTuple

from scoreflow.cite import references
from scoreflow.sde import VPSDE
from scoreflow.step import SAMPLERS, get_sampler


class Line(NamedTuple):
    """A sampler at its default options.

    Attributes:
        name: what to pass as `sampler=`.
        order: of convergence; None where a tolerance rules.
        evaluations: of the network, for each further step; None where only the run can tell.
        stochastic: whether it draws noise after the prior.
        options: its options.
        reference: the first work it cites.
    """

    name: str
    order: int | None
    evaluations: int | None
    stochastic: bool
    options: tuple[str, ...]
    reference: str


class Table(tuple[Line, ...]):
    """Lines that print as a table."""

    def __str__(self) -> str:
        cells = [("sampler", "order", "evaluations a step", "noise", "options", "reference")]
        for line in self:
            order, asked = (("tolerance" if v is None else str(v)) for v in (line.order, line.evaluations))
            noise = "yes" if line.stochastic else "no"
            cells.append((line.name, order, asked, noise, ", ".join(line.options), line.reference))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)

    __repr__ = __str__


def samplers() -> Table:
    """Every registered name with its order, its evaluations a step, whether it draws noise, and where it is from."""
    return Table(_line(name) for name in SAMPLERS)


def _line(name: str) -> Line:
    chosen, path = get_sampler(name), VPSDE()
    a, b = (chosen.evaluations(path, times) for times in ((1.0, 0.8, 0.6), (1.0, 0.8, 0.6, 0.4)))
    asked = None if a is None or b is None else b - a
    return Line(name, chosen.order, asked, chosen.stochastic, tuple(SAMPLERS[name].options), short(chosen.cites[0]))


def short(key: str) -> str:
    """A work as "Ho et al., 2020"."""
    entry = references()[key]
    author, year = (re.search(rf"{field}\s*=\s*{{(.*?)}},?\n", entry)[1] for field in ("author", "year"))  # type: ignore[index]
    names = [a.split(",")[0] for a in author.split(" and ")]
    who = names[0] if len(names) == 1 else f"{names[0]} & {names[1]}" if len(names) == 2 else f"{names[0]} et al."
    return f"{who}, {year}"
