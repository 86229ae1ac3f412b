"""The store of a study at size: cells claimed and written by processes at once, and the tables read from them.

    python benchmarks/store.py                                   # 100 000 cells, 8 processes
    python benchmarks/store.py --cells 4000 --writers 2

Every process goes through all cells, as each process of a study does, and claims and writes those that are free: 64 samples of
two numbers, two figures. Then the file is read by a process of its own.
"""

import argparse
import json
import multiprocessing
import random
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from scoreflow.studies import Study
from scoreflow.studies.store import Done, Measured, Store

IDENTITY = {"model": "benchmark", "n": "64"}
SAMPLERS, BUDGETS = 20, 25


def cells(count):
    """(key, spec, seed) of as many cells: 20 samplers at 25 budgets, and blocks."""
    for i in range(count):
        block, cell = divmod(i, SAMPLERS * BUDGETS)
        sampler, budget = divmod(cell, BUDGETS)
        yield f"{i:024x}", (f"sampler-{sampler}", None, budget + 2, None), block


def write(file, count, writer, start, answer):
    """One process: how many cells it wrote, and how long each took it, in seconds."""
    store, x, spent = Store(file, IDENTITY), np.zeros((64, 2)), []
    start.wait()
    mine = list(cells(count))
    random.Random(writer).shuffle(mine)
    for key, spec, seed in mine:
        begun = time.perf_counter()
        if store.measured(key) is None and store.claim(key):
            if store.measured(key) is not None:
                store.release([key])
                continue
            store.put(key, "cell", spec, seed, Done(10.0, 0.1, x, (Measured("m", "mark", {"m/a": float(seed), "m/b": 1.0}),)))
            spent.append(time.perf_counter() - begun)
    answer.put((writer, len(spent), float(np.median(spent or [0])), max(spent or [0])))


def read(file, answer):
    """Another: seconds to open, and to make both tables, and the memory that it takes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.perf_counter()
    study = Study.open(file)
    opened = time.perf_counter()
    lines = len(study.frame)
    framed = time.perf_counter()
    rows = len(study.cells)
    spent = (opened - begun, framed - opened, time.perf_counter() - framed)
    answer.put((spent, lines, rows, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))


def measured(count, writers, folder):
    """All of it, as a dictionary."""
    context, file = multiprocessing.get_context("spawn"), Path(folder) / "study.sqlite"
    Store(file, IDENTITY).close()
    start, answer = context.Event(), context.Queue()
    running = [context.Process(target=write, args=(file, count, i, start, answer)) for i in range(writers)]
    for process in running:
        process.start()
    time.sleep(2 if writers < 4 else 10)  # until all have loaded what they need
    begun = time.perf_counter()
    start.set()
    told = [answer.get() for _ in running]
    seconds = time.perf_counter() - begun
    for process in running:
        process.join()
    reader = context.Process(target=read, args=(file, answer))
    reader.start()
    (opened, frame, table), lines, rows, memory = answer.get()
    reader.join()
    return {
        "cells": count, "writers": writers, "seconds": seconds, "cells a second": count / seconds,
        "written": sum(n for _, n, *_ in told), "least by one": min(n for _, n, *_ in told),
        "median ms a cell": 1000 * float(np.median([m for _, _, m, _ in told])), "longest s": max(m for *_, m in told),
        "MB of file": file.stat().st_size / 2**20, "open s": opened, "frame s": frame, "cells table s": table,
        "lines": lines, "rows": rows, "MB to read": memory,
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--out", default=None, help="a folder on the disk to be measured; a temporary one")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.out) as folder:
        found = measured(given.cells, given.writers, folder)
    if given.json:
        print(json.dumps(found))
    else:
        table = Table("", "")
        for name, value in found.items():
            table.add_row(name, f"{value:.4g}" if isinstance(value, float) else f"{value:,}")
        Console(width=80).print(table)
