"""How often one call of `sample` builds a plan, makes a schedule and checks its ends.

    python benchmarks/front_door.py

Plans that are kept from an earlier call are counted apart: a fresh process builds, a warm one finds.
"""

from collections import Counter
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table

import scoreflow as sf
from scoreflow._run import schedule
from scoreflow._samplers import step
from scoreflow._score.model import ScoreModel

WATCHED = {
    "plans built": (step.Linear, "_build_all"),
    "schedules": (schedule.Schedule, "__post_init__"),
    "grids": (schedule, "build"),
    "ends checked": (schedule, "check_ends"),
    "conditions checked": (ScoreModel, "check_conditions"),
}
CALLS = {
    'sample(model, (1, 3), "ddim", steps=20)': ("ddim", {"steps": 20}),
    'sample(model, (1, 3), "dpm-solver", nfe=20, grid="trailing")': ("dpm-solver", {"nfe": 20, "grid": "trailing"}),
    'sample(model, (1, 3), "ddpm", nfe=37)': ("ddpm", {"nfe": 37}),
    "sample(model, (1, 3), nfe=8)": ("auto", {"nfe": 8}),
}


def counted(path, sampler, options):
    """Calls by what is watched."""
    model, seen = sf.ScoreModel(lambda x, t: x, path), Counter()
    for name, (owner, attribute) in WATCHED.items():
        own = getattr(owner, attribute)

        def call(*of, _own=own, _name=name, **more):
            seen[_name] += 1
            return _own(*of, **more)

        mock.patch.object(owner, attribute, call).start()
    try:
        sf.sample(model, (1, 3), sampler, seed=0, **options)
    finally:
        mock.patch.stopall()
    return seen


if __name__ == "__main__":
    torch.manual_seed(0)
    table = Table("call", "", *WATCHED)
    for text, (sampler, options) in CALLS.items():
        step._plan.cache_clear()
        path = sf.VPSDE.from_betas(sf.DDPMChain.linear().beta)
        for when in ("first", "again"):
            seen = counted(path, sampler, options)
            table.add_row(text, when, *(str(seen[name]) for name in WATCHED))
    Console(width=170).print(table)
