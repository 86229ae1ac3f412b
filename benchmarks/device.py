"""Whole runs on a device: our loop, the same captured as one CUDA graph, and diffusers' loop, around a U-Net and a DiT.

    python benchmarks/device.py --device cuda

Each run is of 20 steps, from one state, and the loops take turns; of each the least time counts, from the first step until
the device is done. The columns are ratios to as many evaluations of the network alone; on the processor there is no graph.
"""

import argparse
import time

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from rich import box
from rich.console import Console
from rich.table import Table

import scoreflow as sf

STEPS = 20
PATH = sf.VPSDE.from_betas(sf.DDPMChain.linear().beta)
PAIRS = {"ddim": DDIMScheduler, "dpm-solver++": DPMSolverMultistepScheduler, "ddpm": DDPMScheduler}


def networks(width):
    """By name, and the shape of their states."""
    unet = sf.nets.UNet(channels=3, widths=(width, 2 * width, 2 * width))
    dit = sf.nets.DiT(channels=3, size=32, patch=4, width=2 * width, depth=4, heads=4)
    return {"U-Net": (unet, (3, 32, 32)), "DiT": (dit, (3, 32, 32))}


def theirs(net, scheduler, x):
    scheduler.set_timesteps(STEPS, device=x.device)
    generator = torch.Generator(x.device).manual_seed(0)
    given = {"generator": generator} if isinstance(scheduler, DDPMScheduler) else {}
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, t.float().expand(len(x))), t, x, **given).prev_sample
    return x


def least(calls, repeats, wait):
    """The least seconds of each call, taken in turns, until the device is done; the first turn is left out."""
    best = [float("inf")] * len(calls)
    for turn in range(repeats + 1):
        for i, call in enumerate(calls):
            wait()
            begun = time.perf_counter()
            call()
            wait()
            if turn:
                best[i] = min(best[i], time.perf_counter() - begun)
    return best


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of the processor")
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    device = torch.device(chosen.device)
    cuda = device.type == "cuda"
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.type, lambda: None)
    heads = ("network", "sampler", "network alone, ms", "ours", "captured", "diffusers", "ours, µs a step beside it")
    table = Table(*heads, box=box.MARKDOWN)
    with torch.no_grad():
        for name, (net, shape) in networks(chosen.width).items():
            net = net.eval().to(device)
            x = torch.randn(chosen.batch, *shape, device=device)
            model, label = sf.ScoreModel(net, PATH, time="index"), torch.zeros(chosen.batch, device=device)
            for sampler, scheduler in PAIRS.items():
                peer, asked = scheduler(), {"steps": STEPS, "seed": 0, "grid": "leading"}
                calls = [
                    lambda: [net(x, label) for _ in range(STEPS)],  # noqa: B023
                    lambda: sf.solve(model, x, sampler, **asked),  # noqa: B023
                    lambda: theirs(net, peer, x),  # noqa: B023
                    *([lambda: sf.solve(model, x, sampler, capture=True, **asked)] if cuda else []),  # noqa: B023
                ]
                alone, ours, other, *captured = least(calls, chosen.repeats, wait)
                ratios = (ours / alone, captured[0] / alone if captured else None, other / alone)
                cells = ("none" if ratio is None else f"{ratio:.3f}" for ratio in ratios)
                table.add_row(name, sampler, f"{1e3 * alone:.1f}", *cells, f"{1e6 * (ours - alone) / STEPS:.0f}")
    place = torch.cuda.get_device_name(device) if cuda else f"{device.type}, {torch.get_num_threads()} threads"
    Console(width=140).print(f"{place}, batch {chosen.batch}, torch {torch.__version__}", table)
