"""The table of samplers, read off the registry."""

from __future__ import annotations

import functools

from scoreflow._catalogue import Line, Table
from scoreflow._core.path import VPSDE
from scoreflow._run.solve import plan
from scoreflow._samplers.step import SAMPLERS, VARIANTS, Linear, get_sampler, resolve
from scoreflow._samplers.works import short

PATH = VPSDE()
"""One for all names: it remembers its numbers."""


def samplers() -> Table:
    """Every name with its order, its evaluations a step, whether it draws noise, its memory, and where it is from.

    A family comes first, then the names of its variants.
    """
    named = {name: [other for other, (base, _) in VARIANTS.items() if base == name] for name in SAMPLERS}
    return Table(_line(name) for family, variants in named.items() for name in (family, *variants))


def _line(name: str) -> Line:
    chosen = get_sampler(name)
    short_run, long_run = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5), (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
    a, b = (chosen.evaluations(PATH, times) for times in (short_run, long_run))
    nfe = None if a is None or b is None else b - a
    memory = chosen.plan(PATH, long_run).peak_tensors if isinstance(chosen, Linear) else None
    base, fixed = resolve(name)
    options = tuple(option for option in SAMPLERS[base].options if option != "analytic" and option not in fixed)
    least = _least(name) if isinstance(chosen, Linear) else None
    return Line(name, chosen.order, nfe, chosen.stochastic, memory, least, options, short(chosen.cites[0]), base)


@functools.cache
def _least(name: str) -> int | None:
    """The fewest evaluations that are sensible."""
    for nfe in range(1, 100):
        try:
            if not plan(name, PATH, nfe=nfe).check().warnings:
                return nfe
        except ValueError:  # fewer than a step takes
            continue
    return None
