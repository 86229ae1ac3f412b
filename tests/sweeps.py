"""Small studies for the tests of the store: run in processes of their own, with a log of what was measured."""

import os
import random
from pathlib import Path

import numpy as np

import scoreflow as sf
from scoreflow.studies import Metric
from scoreflow.studies.store import Done, Measured, Store

SAMPLERS = ("ddpm", "ddim(eta=0.5)", "dpm-solver++@logsnr", "pf-ode")
LOG = "SCOREFLOW_TEST_LOG"


def first(scene):
    """The mean of the samples' first entries; writes down that it was asked. Its floor is the data's own mean."""
    if log := os.environ.get(LOG):
        with Path(log).open("a", encoding="utf-8") as file:
            file.write(f"{os.getpid()} {scene.seed} {'-' if scene.plan is None else hash_of(scene.plan)}\n")
    return float(scene.x[:, 0].mean())


FIRST = Metric("first", "lower", ("data",), first, positive=False)


def hash_of(plan):
    return f"{plan.sampler}:{dict(plan.options).get('eta')}:{len(plan.steps)}"


def run(out, ready=None, samplers=SAMPLERS, nfe=(4, 7, 10), seeds=4, log=None, **keywords):
    """A study of 48 cells that takes a few seconds."""
    if log is not None:
        os.environ[LOG] = str(log)
    if ready is not None:
        ready.set()
    keywords = {"n": 24, "metrics": ["trajectory", FIRST], "reference": "scipy(rtol=1e-4)", **keywords}
    return sf.study("oracle:ring", samplers, nfe=nfe, seeds=seeds, out=out, **keywords)


# -- the store alone ----------------------------------------------------------------------------------------------------

IDENTITY = {"model": "none"}


def many(count):
    """(key, spec, seed) of as many cells: 5 samplers at 4 budgets, in blocks."""
    for i in range(count):
        block, cell = divmod(i, 20)
        yield f"{i:024x}", (f"sampler-{cell // 4}", None, cell % 4 + 2, None), block


def write(file, count, writer, answers):
    """Claim and write what is free, in an order of its own; tells the keys that it wrote."""
    store, cells, mine = Store(file, IDENTITY), list(many(count)), []
    random.Random(writer).shuffle(cells)
    for key, spec, seed in cells:
        if store.measured(key) is None and store.claim(key):
            if store.measured(key) is None:
                figures = Measured("m", "mark", {"m/a": float(seed), "m/b": 1.0})
                store.put(key, "cell", spec, seed, Done(10.0, 0.1, np.full((8, 2), float(int(key, 16))), (figures,)))
                mine.append(key)
            else:
                store.release([key])
    answers.put(mine)
