"""What a sampler costs beside its network: ours and diffusers', for a network that returns a tensor it already has.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/overhead.py
    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/overhead.py --against checkout-of-another-version

Runs of 50 steps in float32, small states and large. Ours and diffusers' take turns in one run; the least time of each counts,
the processor's own. `floor` is the arithmetic of our rows alone, a product and a sum for each weight, and their draws, which
are made by one and the same generator of torch on both sides; "without draws" leaves them out on both. Plans are laid on a
path that was never used.

The ratios to diffusers are kept in overhead.json (`--store`). They vary by a quarter from run to run; one of more
than 1.5 times what is kept ends the command with an error.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
import weakref
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    UniPCMultistepScheduler,
)
from rich import box
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode

import scoreflow as sf

BASELINE = Path(__file__).with_suffix(".json")
STEPS, SHAPES = 50, {(1, 3, 32, 32): 8, (16, 3, 64, 64): 1}
"""Sizes, and how many times as often the small ones run."""
BETAS = sf.DDPMChain.linear().beta
PAIRS = {
    "ddim": DDIMScheduler,
    "dpm-solver++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "ddpm": DDPMScheduler,
}


def theirs(output, scheduler, x):
    scheduler.set_timesteps(STEPS)
    generator = torch.Generator().manual_seed(0)
    given = {"generator": generator} if isinstance(scheduler, DDPMScheduler) else {}
    for t in scheduler.timesteps:
        x = scheduler.step(output, t, x, **given).prev_sample


def alone(plan, output, x):
    """The rows' arithmetic and their draws, without anything around."""
    generator = torch.Generator().manual_seed(0)
    for step in plan.steps:
        for _, row in step.stages:
            y = x * row.x
            for weight in row.m:
                y.add_(output, alpha=weight)
            for _, weight in row.draws:
                y.add_(torch.empty_like(y).normal_(generator=generator), alpha=weight)


def least(calls, repeats):
    """The least seconds of each call, of the processor's time, taken in turns."""
    best = [float("inf")] * len(calls)
    for _ in range(repeats):
        for i, call in enumerate(calls):
            begun = time.thread_time()
            call()
            best[i] = min(best[i], time.thread_time() - begun)
    return best


class Live(TorchDispatchMode):
    """The most tensors of this size or more that are alive at once, among those made within."""

    def __init__(self, size):
        super().__init__()
        self.size, self.live, self.peak = size, set(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, torch.Tensor) and (held := one.untyped_storage()).nbytes() >= self.size:
                if held._cdata not in self.live:
                    self.live.add(held._cdata)
                    weakref.finalize(held, self.live.discard, held._cdata)
        self.peak = max(self.peak, len(self.live))
        return out


def measured(repeats):
    """µs a step by sampler and size: ours, theirs, the floor, the draws."""
    path, found = sf.VPSDE.from_betas(BETAS), {}
    for shape, often in SHAPES.items():
        x, output = torch.randn(shape), torch.randn(shape)
        for name, scheduler in PAIRS.items():
            model = sf.ScoreModel(lambda x, t, output=output: output, path, prediction="eps", time="index")
            plan, draw, peer = sf.plan(name, path, steps=STEPS), sf.White(0).draws(), scheduler()
            calls = [
                lambda: sf.solve(model, x, name, steps=STEPS, seed=0),  # noqa: B023
                lambda: theirs(output, peer, x),  # noqa: B023
                lambda: alone(plan, output, x),  # noqa: B023
                lambda: [draw(x) for _ in range(plan.noise_count)],  # noqa: B023
            ]
            found[f"{name} {'x'.join(map(str, shape))}"] = [1e6 / STEPS * one for one in least(calls, repeats * often)]
    return found


def steps(repeats, kept):
    """The table of them, and the ratios to diffusers."""
    heads = ("sampler", "states", "ours, µs a step", "diffusers", "ratio", "without draws", "floor", "baseline")
    table, seen = Table(*heads, box=box.MARKDOWN), {}
    for key, (mine, other, floor, draws) in measured(repeats).items():
        seen[key] = round(mine / other, 3)
        ratios = (f"{r:.2f}" for r in (mine / other, (mine - draws) / (other - draws)))
        before = f"{kept[key]:.2f}" if key in kept else "none"
        table.add_row(*key.split(), f"{mine:.0f}", f"{other:.0f}", *ratios, f"{floor:.0f}", before)
    return table, seen


def compared(checkout, repeats):
    """Those of another version beside this one's: processes of the two take turns, and the least of three counts."""
    here = Path(__file__).parents[1]
    found = {place: [] for place in (Path(checkout), here)}
    for place in [*found] * 3:
        words = [sys.executable, __file__, "--json", "--repeats", str(repeats)]
        told = subprocess.run(words, env={**os.environ, "PYTHONPATH": str(place)}, check=True, capture_output=True, text=True)
        found[place].append(json.loads(told.stdout))
    heads = ("sampler", "states", "before, µs a step", "now", "diffusers", "before / diffusers", "now / diffusers", "floor")
    table = Table(*heads, box=box.MARKDOWN)
    for key in found[here][0]:
        (before, *_), (now, other, floor, _) = ([min(run[key][i] for run in runs) for i in range(4)] for runs in found.values())
        ratios = (f"{each / other:.2f}" for each in (before, now))
        table.add_row(*key.split(), *(f"{each:.0f}" for each in (before, now, other)), *ratios, f"{floor:.0f}")
    return table


def plans(repeats):
    """Milliseconds to lay a plan of 50 steps, and diffusers' run of as many beside it."""
    table = Table("sampler", "plan, ms", "µs a step", "diffusers' run, ms", box=box.MARKDOWN)
    x = torch.randn(1, 3, 32, 32)
    for name in (*PAIRS, "deis", "auto"):
        asked = {"nfe": STEPS} if name == "auto" else {"steps": STEPS}
        fresh = iter([sf.VPSDE.from_betas(BETAS) for _ in range(repeats)])
        peer = {**PAIRS, "deis": DEISMultistepScheduler}.get(name, UniPCMultistepScheduler)()
        lay, run = least([lambda: sf.plan(name, next(fresh), **asked), lambda: theirs(x, peer, x)], repeats)  # noqa: B023
        table.add_row(name, f"{1e3 * lay:.2f}", f"{1e6 * lay / STEPS:.0f}", f"{1e3 * run:.2f}")
    return table


def noise(repeats):
    """Milliseconds of a draw of a run of 50 steps, and the most states that it holds."""
    heads = ("states", "white, ms a draw", "brownian", "ratio", "states held", "sf.Brownian(seed)", "states held")
    table = Table(*heads, box=box.MARKDOWN)
    times = sf.plan("ddpm", sf.VPSDE.from_betas(BETAS), STEPS).times
    for shape, often in SHAPES.items():
        x, sources = torch.randn(shape), (sf.White(0), sf.Brownian(0, times=times), sf.Brownian(0))

        def run(source, x=x):
            draws = source.draws()
            for t, s in pairwise(times):
                draws(x, t, s)

        calls = [lambda source=source: run(source) for source in sources]
        white, brownian = (1e3 / STEPS * seconds for seconds in least(calls[:2], max(2, repeats // 4) * often))
        (tree,) = (1e3 / STEPS * seconds for seconds in least(calls[2:], 1))
        held = []
        for call in calls[1:]:
            with Live(4 * x.numel()) as live:
                call()
            held.append(str(live.peak))
        cells = (f"{white:.3f}", f"{brownian:.3f}", f"{brownian / white:.1f}", held[0], f"{tree:.2f}", held[1])
        table.add_row(str(shape), *cells)
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--store", action="store_true", help="keep these ratios as the baseline")
    parser.add_argument("--against", metavar="CHECKOUT", help="the steps alone, beside those of another version")
    parser.add_argument("--json", action="store_true", help="the steps alone, in numbers")
    chosen = parser.parse_args()
    kept = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    torch.set_num_threads(1)
    console = Console(width=140)
    if chosen.against:
        console.print(compared(chosen.against, chosen.repeats))
        raise SystemExit
    with torch.no_grad():
        if chosen.json:
            print(json.dumps(measured(chosen.repeats)))
            raise SystemExit
        table, seen = steps(chosen.repeats, kept)
        for each in (table, plans(chosen.repeats), noise(chosen.repeats)):
            console.print(each)
    if chosen.store:
        BASELINE.write_text(json.dumps(seen, indent=1) + "\n")
    elif slower := [key for key, ratio in seen.items() if ratio > 1.5 * kept.get(key, math.inf)]:
        raise SystemExit(f"more than 1.5 times the baseline: {', '.join(slower)}")
