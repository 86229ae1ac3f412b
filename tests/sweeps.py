"""Small studies for the tests of the store: run in processes of their own, with a log of what was measured."""

import os
from pathlib import Path

import scoreflow as sf
from scoreflow.studies import Metric

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
