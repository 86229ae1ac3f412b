"""What a sampler costs beside its network: ours and diffusers', for a network that returns a tensor it already has.

    OMP_NUM_THREADS=1 python benchmarks/overhead.py

50 steps on (16, 3, 64, 64) in float32. The two take turns in one run, and the least time of each counts. `passes` is our
time over that of one torch.add for every tensor that the rows read or write. The draws of ddpm are made by one and the
same generator of torch, which takes longer than all else; the columns "without draws" leave their time out on both sides.

The ratios to diffusers without draws are kept in overhead.json (`--store`). They vary by a quarter from run to run; one of more
than 1.5 times what is kept ends the command with an error.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from rich import box
from rich.console import Console
from rich.table import Table

import scoreflow as sf

BASELINE = Path(__file__).with_suffix(".json")
STEPS, SHAPE = 50, (16, 3, 64, 64)
PATH = sf.VPSDE.from_betas(sf.DDPMChain.linear().beta)
PAIRS = {
    "ddim": DDIMScheduler(),
    "dpm-solver++": DPMSolverMultistepScheduler(),
    "unipc": UniPCMultistepScheduler(),
    "ddpm": DDPMScheduler(),
}


def ours(model, name, x):
    sf.solve(model, x, name, steps=STEPS, seed=0)


def theirs(output, scheduler, x):
    scheduler.set_timesteps(STEPS)
    generator = torch.Generator().manual_seed(0)
    for t in scheduler.timesteps:
        given = {"generator": generator} if isinstance(scheduler, DDPMScheduler) else {}
        x = scheduler.step(output, t, x, **given).prev_sample


def touched(plan):
    """Tensors of the size of the state that the rows read or write: what they weigh, each draw, and the result."""
    rows = [row for step in plan.steps for _, row in step.stages]
    return sum((row.x != 0) + sum(m != 0 for m in row.m) + len(row.draws) + 1 for row in rows)


def least(calls, repeats):
    """The least seconds of each call, taken in turns."""
    best = [float("inf")] * len(calls)
    for _ in range(repeats):
        for i, call in enumerate(calls):
            begun = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - begun)
    return best


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--store", action="store_true", help="keep these ratios as the baseline")
    chosen = parser.parse_args()
    repeats, kept = chosen.repeats, json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    x, output = torch.randn(SHAPE), torch.randn(SHAPE)
    other, out = torch.randn(SHAPE), torch.empty(SHAPE)
    heads = ("sampler", "ours / diffusers", "without draws", "tensors", "passes", "without draws", "baseline")
    table, seen = Table(*heads, box=box.MARKDOWN), {}
    with torch.no_grad():
        for name, scheduler in PAIRS.items():
            model = sf.ScoreModel(lambda x, t: output, PATH, prediction="eps", time="index")
            plan = sf.plan(name, PATH, steps=STEPS)
            draw = sf.White(0).draws()
            calls = [
                lambda name=name, model=model: ours(model, name, x),
                lambda scheduler=scheduler: theirs(output, scheduler, x),
                lambda: torch.add(x, other, out=out),
                lambda draw=draw: draw(x),
            ]
            mine, peer, one, normal = least(calls, repeats)
            count = touched(plan)
            draws = plan.noise_count * normal
            ratios = mine / peer, (mine - draws) / (peer - draws), mine / (count * one), (mine - draws) / (count * one)
            first, second, third, fourth = (f"{r:.2f}" for r in ratios)
            seen[name] = round(ratios[1], 3)
            table.add_row(name, first, second, str(count), third, fourth, f"{kept[name]:.2f}" if name in kept else "none")
    Console(width=120).print(table)
    if chosen.store:
        BASELINE.write_text(json.dumps(seen, indent=1) + "\n")
    elif slower := [name for name, ratio in seen.items() if ratio > 1.5 * kept.get(name, math.inf)]:
        raise SystemExit(f"more than 1.5 times the baseline: {', '.join(slower)}")
