"""The observed order of every sampler made of rows, and of DPM-Solver++(3M) as published and corrected.

OMP_NUM_THREADS=1 python benchmarks/orders.py          # the table of docs/orders.md
OMP_NUM_THREADS=1 python benchmarks/orders.py --all    # every registered name: two minutes
"""

import argparse

from rich import box
from rich.console import Console
from rich.table import Table

import scoreflow as sf
from scoreflow import analysis

PAIR = ("dpm-solver++-3m-published", "dpm-solver++-3m")


def pair(table):
    """Errors and orders of the two forms on three grids."""
    for grid in ("logsnr", "karras", "uniform"):
        for name in PAIR:
            seen = analysis.order(name, grid=grid, steps=[10, 20, 40, 80, 160, 320])
            tail = analysis.order(name, grid=grid, steps=[80, 160, 320])
            table.add_row(grid, name, *(f"{error:.2e}" for error in seen.errors), f"{tail.order:.2f}")


def every(table):
    """Declared and observed order of all names."""
    for line in sf.samplers():
        sampler = sf.get_sampler(line.name)
        if line.order is None or not isinstance(sampler, sf.Linear):
            continue
        grid = "logsnr" if "published" in line.name or sampler.name in ("ipndm", "pndm") else "uniform"
        seen = analysis.order(line.name, grid=grid)
        table.add_row(line.name, seen.kind, str(line.order), f"{seen.order:.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true")
    asked = parser.parse_args()
    counts = map(str, (10, 20, 40, 80, 160, 320))
    heads = ("sampler", "kind", "declared", "observed") if asked.all else ("grid", "sampler", *counts, "order")
    table = Table(*heads, box=box.MARKDOWN)
    (every if asked.all else pair)(table)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
