"""What a study's time goes into: its reference, and cells one by one or in lockstep, in one run.

    OMP_NUM_THREADS=1 python benchmarks/study_time.py     # five minutes of a core

Three samplers at 5, 10 and 20 evaluations on the shipped digits network, in this process. "before" is the reference that
studies had: dopri5 in t at 1e-5 and 1e-4.
"""

import time

from rich.console import Console
from rich.table import Table

import scoreflow as sf

BEFORE = "pf-ode(method=dopri5, rtol=1e-5, atol=1e-5)"
WAYS = {
    "before": {"reference": BEFORE},
    "reference of fixed plans": {},
    "the same, in lockstep": {"batch": 1024},
}

if __name__ == "__main__":
    sf.study("zoo:digits", "ddim", nfe=2, n=2, seeds=1)  # what is loaded on first use
    table = Table("samples a block", "blocks", *WAYS, title="seconds, and their ratio to before")
    for n, blocks in ((64, 2), (4, 8)):
        seconds = []
        for options in WAYS.values():
            begun = time.perf_counter()
            sf.study("zoo:digits", ["ddpm", "ddim", "dpm-solver++"], nfe=[5, 10, 20], n=n, seeds=blocks, **options)
            seconds.append(time.perf_counter() - begun)
        table.add_row(str(n), str(blocks), *(f"{s:.1f} ({s / seconds[0]:.2f})" for s in seconds))
    Console(width=120).print(table)
