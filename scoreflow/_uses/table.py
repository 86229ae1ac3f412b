"""The table of samplers, read off the registry."""

from __future__ import annotations

import functools
from typing import NamedTuple

from scoreflow._core.path import VPSDE
from scoreflow._run.solve import plan
from scoreflow._samplers.step import SAMPLERS, VARIANTS, Linear, get_sampler, resolve
from scoreflow._samplers.works import short
from scoreflow._show.html import table


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
    """

    name: str
    order: int | None
    evaluations: int | None
    stochastic: bool
    memory: int | None
    least: int | None
    options: tuple[str, ...]
    reference: str

    @property
    def cells(self) -> tuple[str, ...]:
        """What the table prints."""
        order, nfe = (("tolerance" if v is None else str(v)) for v in (self.order, self.evaluations))
        memory, least = ("-" if v is None else str(v) for v in (self.memory, self.least))
        noise = "yes" if self.stochastic else "no"
        return self.name, order, nfe, noise, memory, least, ", ".join(self.options), self.reference


HEAD = ("sampler", "order", "NFE a step", "noise", "memory", "least NFE", "options", "reference")


class Table(tuple[Line, ...]):
    """Lines that print as a table."""

    def __str__(self) -> str:
        cells = [HEAD, *(line.cells for line in self)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return table(HEAD, [line.cells for line in self])

    @property
    def markdown(self) -> str:
        """The table for docs/samplers.md."""
        names = (f"[`{line.name}`](sampler/{page_name(resolve(line.name)[0])}.md)" for line in self)
        rows = [HEAD, ("---",) * len(HEAD), *((name, *line.cells[1:]) for name, line in zip(names, self, strict=True))]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def page_name(name: str) -> str:
    """The file of a sampler's page in the book, without its ending."""
    return name.replace("+", "p")


def samplers() -> Table:
    """Every name with its order, its evaluations a step, whether it draws noise, its memory, and where it is from.

    A family comes first, then the names of its variants.
    """
    named = {name: [other for other, (base, _) in VARIANTS.items() if base == name] for name in SAMPLERS}
    return Table(_line(name) for family, variants in named.items() for name in (family, *variants))


def _line(name: str) -> Line:
    chosen, path = get_sampler(name), VPSDE()
    short_run, long_run = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5), (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
    a, b = (chosen.evaluations(path, times) for times in (short_run, long_run))
    nfe = None if a is None or b is None else b - a
    memory = chosen.plan(path, long_run).peak_tensors if isinstance(chosen, Linear) else None
    base, fixed = resolve(name)
    options = tuple(option for option in SAMPLERS[base].options if option != "analytic" and option not in fixed)
    least = _least(name) if isinstance(chosen, Linear) else None
    return Line(name, chosen.order, nfe, chosen.stochastic, memory, least, options, short(chosen.cites[0]))


@functools.cache
def _least(name: str) -> int | None:
    """The fewest evaluations that are sensible."""
    for nfe in range(1, 100):
        try:
            if not plan(name, VPSDE(), nfe=nfe).check().warnings:
                return nfe
        except ValueError:  # fewer than a step takes
            continue
    return None
