"""What there is by name, for who must not wait for torch: the command line's help, its completion, its table of samplers.

It stands in catalogue.json; `python tests/test_catalogue.py` writes it from the registries, and a test holds it to them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from scoreflow._html import table


class Line(NamedTuple):
    """A sampler at the options that its name stands for.

    Attributes:
        name: what to pass as `sampler=`.
        order: of convergence; None where a tolerance rules.
        evaluations: of the network, for each further step; None where only the run can tell.
        stochastic: whether it draws noise after the prior.
        memory: the most tensors of the size of the state that are alive at once, outside the network; None where it is
            not made of rows.
        least: the fewest evaluations at which `Plan.check` warns of nothing, on `VPSDE()` and the sampler's default grid; None
            where it is not made of rows.
        options: its options, but for `analytic`, which all have.
        reference: the first work it cites.
        family: the sampler of which it is a variant; its own name if it is none.
    """

    name: str
    order: int | None
    evaluations: int | None
    stochastic: bool
    memory: int | None
    least: int | None
    options: tuple[str, ...]
    reference: str
    family: str

    @property
    def cells(self) -> tuple[str, ...]:
        """What the table prints."""
        order, nfe = (("tolerance" if v is None else str(v)) for v in (self.order, self.evaluations))
        memory, least = ("-" if v is None else str(v) for v in (self.memory, self.least))
        noise = "yes" if self.stochastic else "no"
        return self.name, order, nfe, noise, memory, least, ", ".join(self.options), self.reference


HEAD = ("sampler", "order", "NFE a step", "noise", "memory", "least NFE", "options", "reference")


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of words in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


class Table(tuple[Line, ...]):
    """Lines that print as a table."""

    def __str__(self) -> str:
        return aligned([HEAD, *(line.cells for line in self)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return table(HEAD, [line.cells for line in self])

    @property
    def markdown(self) -> str:
        """The table for docs/samplers.md."""
        names = (f"[`{line.name}`](sampler/{page_name(line.family)}.md)" for line in self)
        rows = [HEAD, ("---",) * len(HEAD), *((name, *line.cells[1:]) for name, line in zip(names, self, strict=True))]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def page_name(name: str) -> str:
    """The file of a sampler's page in the book, without its ending."""
    return name.replace("+", "p")


@functools.cache
def catalogue() -> dict[str, Any]:
    """Names by kind: `paths`, `grids`, `metrics`, `features`, `data`; and the lines of the `samplers`."""
    read = json.loads(files("scoreflow").joinpath("catalogue.json").read_text(encoding="utf-8"))
    lines = (Line(**{**line, "options": tuple(line["options"])}) for line in read["samplers"])
    return {**read, "samplers": Table(lines)}
