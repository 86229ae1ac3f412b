"""Tuned plans against what was there: on oracles that nothing was developed on, and on the shipped networks.

    OMP_NUM_THREADS=1 python benchmarks/tune.py run --out tune [--only ring,d16,d64,digits,mnist] [--nfe 5,6,8,10,15]
    OMP_NUM_THREADS=1 python benchmarks/tune.py table --out tune
    OMP_NUM_THREADS=1 python benchmarks/tune.py time
    OMP_NUM_THREADS=1 python benchmarks/tune.py noise

`run` goes on where it was stopped. Errors are distances to the ODE, RMS per entry, on seeds that nothing was chosen by.
"hindsight" is the best of the samplers that were run in full, chosen on these very seeds for each figure; gits and dmn are the
best of four samplers on their times.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file

import scoreflow as sf
from scoreflow.studies import MetricInput
from scoreflow.studies.metrics import sliced_w2
from scoreflow.tuning.decide import interval
from scoreflow.tuning.problem import Problem, errors
from scoreflow.tuning.screen import read

BUDGETS = (5, 6, 8, 10, 15)
ON_GRIDS = ("ddim", "dpm-solver++-2m", "unipc-2", "ipndm-3")
NETWORKS = ("digits", "mnist")


def tight(d, k, std, seed):
    """Modes at standard normal places."""
    means = torch.randn(k, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return sf.GaussianMixture(torch.ones(k) / k, means, std**2)


def ring(k, std):
    angles = torch.arange(k, dtype=torch.float64) * 2 * math.pi / k + 0.3
    return sf.GaussianMixture(torch.ones(k) / k, torch.stack([angles.cos(), angles.sin()], 1), std**2)


def chain(kind):
    return sf.VPSDE.from_betas(getattr(sf.DDPMChain, kind)().beta)


def problem(name):
    """The model, the shape of a state, and keywords of `tune`."""
    if name == "digits":
        return sf.zoo.digits(), (1, 8, 8), {"seeds": (256, 256, 256)}
    if name == "mnist":
        return sf.zoo.mnist(), (1, 28, 28), {"seeds": (64, 128, 128)}
    data, path = {
        "ring": (ring(6, 0.08), chain("linear")),
        "d16": (tight(16, 12, 0.1, 21), chain("cosine")),
        "d64": (tight(64, 12, 0.1, 22), chain("linear")),
    }[name]
    return data.model(path), tuple(data.event), {}


def data_of(name, n):
    """n true samples, and n others."""
    if name in NETWORKS:
        images = sf.data.digits().held_out if name == "digits" else sf.data.mnist().held_out
        x = torch.stack([images[i][0] if isinstance(images[i], tuple) else images[i] for i in range(len(images))])
        x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
        half = min(n, len(x) // 2)
        return x[:half], x[half : 2 * half]
    oracle = problem(name)[0].oracle
    return oracle.sample(n, seed=1), oracle.sample(n, seed=2)


def distance(x, y):
    """Sliced W₂ between as many of each."""
    n = min(len(x), len(y))
    return float(sliced_w2(MetricInput(x[:n].double(), 0, data=y[:n].double())))


def figures(off):
    return {"median": float(off.median()), "quantile": float(off.quantile(0.9)), "rms": float(off.square().mean().sqrt())}


def run(out, names, budgets):
    torch.set_default_dtype(torch.float64)  # of oracles; the networks have their own
    for name in names:
        model, shape, more = problem(name)
        model.plans = ()
        for k, nfe in enumerate(budgets):
            file = out / f"{name}-{nfe}.json"
            if not file.is_file():
                (out / name).mkdir(parents=True, exist_ok=True)
                found = cell(model, shape, name, budgets[: k + 1], out / name, more)
                file.write_text(json.dumps(found, indent=1), encoding="utf-8")
            print(name, nfe, json.dumps(json.loads(file.read_text())["ratio"]), flush=True)


def cell(model, shape, name, budgets, folder, more):
    """The figures at the last of the budgets; those before it are in the folder."""
    nfe = budgets[-1]
    done = sf.tune(model, budgets, shape=shape, out=folder / "whole", progress=True, **more)[nfe]
    x, _ = Problem(model, shape, {}, seeds_of(more), 1.0, 0.0, 0, 0).states("test")
    target = load_file(folder / "whole" / "ode-test.safetensors")["target"].to(x)

    def off(plan):
        sol = sf.solve(model, x, plan.anyway(), seed=0)
        return errors(sol.x, target), sol.x

    plans = {"returned": done.plan}
    found = read(json.loads((folder / "whole" / f"screen-{nfe}.json").read_text())["found"])
    plans["auto"] = next(one.plan for one in found if one.name == "auto")
    if name not in NETWORKS:
        alone = {**more, "weights": False, "labels": False, "out": folder / "grid"}
        plans["grid"] = sf.tune(model, budgets, shape=shape, **alone)[nfe].plan
    line = {key: figures(off(plan)[0]) for key, plan in plans.items()}
    best = {one.name: off(one.plan)[0] for one in found}
    line["hindsight"] = {key: min(figures(e)[key] for e in best.values()) for key in ("median", "quantile", "rms")}
    grids = {
        "gits": sf.gits_grid(model, x[:32], nfe, teacher=60),
        "dmn": sf.dmn_grid("dpm-solver++-2m", model.path, nfe),
    }
    for key, times in grids.items():
        some = [figures(off(sf.plan(sampler, model.path, grid=times))[0]) for sampler in ON_GRIDS]
        line[key] = {figure: min(one[figure] for one in some) for figure in ("median", "quantile", "rms")}
    choice = min(best, key=lambda one: float(best[one].median()))
    line["ratio"] = interval(off(done.plan)[0], best[choice], 0.5)
    true, other = data_of(name, len(x))
    ends = {"returned": off(done.plan)[1], "auto": off(plans["auto"])[1], "ode": target, "data": other}
    line["sliced"] = {key: distance(end, true) for key, end in ends.items()}
    return {
        **line, "accepted": done.accepted, "reason": done.reason, "choice": choice, "cost": done.cost,
        "starts": [one["name"] for one in done.starts],
    }  # fmt: skip


def seeds_of(more):
    a, b, c = more.get("seeds", (256, 256, 512))
    return {"fit": range(a), "validate": range(a, a + b), "test": range(a + b, a + b + c)}


def table(out):
    for key, title in (("median", "median"), ("quantile", "90 % quantile"), ("rms", "RMS")):
        print(f"\n{title}\n\n| problem | evaluations | auto | hindsight | gits | dmn | grid fitted | tuned | tuned/hindsight |")
        print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
        for file in sorted(out.glob("*-*.json"), key=lambda f: (f.stem.rpartition("-")[0], int(f.stem.rpartition("-")[2]))):
            name, _, nfe = file.stem.rpartition("-")
            line = json.loads(file.read_text())
            cells = [line[c][key] if c in line else None for c in ("auto", "hindsight", "gits", "dmn", "grid", "returned")]
            ratio = f"{cells[5] / cells[1]:.2f}"
            if key == "median":
                ratio += f" ({line['ratio'][1]:.2f} to {line['ratio'][2]:.2f})"
            ratio += "" if line["accepted"] else ", not taken"
            print(f"| {name} | {nfe} | {' | '.join('–' if c is None else f'{c:.2g}' for c in cells)} | {ratio} |")
    print("\n| problem | evaluations | sliced W₂ of auto | tuned | the ODE | data | seconds |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for file in sorted(out.glob("*-*.json"), key=lambda f: (f.stem.rpartition("-")[0], int(f.stem.rpartition("-")[2]))):
        name, _, nfe = file.stem.rpartition("-")
        line = json.loads(file.read_text())
        w = line["sliced"]
        print(f"| {name} | {nfe} | {w['auto']:.3g} | {w['returned']:.3g} | {w['ode']:.3g} | {w['data']:.3g} "
              f"| {line['cost']['seconds']:.0f} |")  # fmt: skip


def timed():
    """How the gain goes with time and seeds: d16 at 8 evaluations."""
    torch.set_default_dtype(torch.float64)
    model, shape, _ = problem("d16")
    print("| seconds | states fitted to | tuned/best, median | taken |\n|---:|---:|---:|---|")
    for seconds in (10, 60, 300):
        for n in (32, 128, 512):
            done = sf.tune(model, 8, shape=shape, seeds=(n, 256, 512), budget_s=seconds)
            ratio, low, high = done.test["ratio"]
            print(
                f"| {seconds} | {n} | {ratio:.3f} ({low:.3f} to {high:.3f}) | {'yes' if done.accepted else 'no'} |", flush=True
            )


def noise():
    """Stochastic plans: W₂ on an anisotropic Gaussian exactly, the energy distance to data on the ring and the digits."""
    torch.set_default_dtype(torch.float64)
    normal = sf.Gaussian(torch.tensor([0.5, -0.2, 0.0]), torch.diag(torch.tensor([1.0, 0.3, 0.05])))
    ring_data, digits = ring(6, 0.08), sf.data.digits().train.x
    cases = {
        "Gaussian": (normal.model(chain("linear")), {}),
        "ring": (ring_data.model(chain("linear")), {}),
        "digits": (sf.zoo.digits(), {"shape": (1, 8, 8), "data": digits[:1296], "seeds": (256, 256, 512)}),
    }
    print("| problem | evaluations | judge | best stochastic sampler | its distance | fitted | difference | floor | taken |")
    print("|---|---:|---|---|---:|---:|---:|---:|---|")
    for name, (model, more) in cases.items():
        for nfe in (5, 8, 15):
            done = sf.tune_noise(model, nfe, **more)
            test, (off, low, high) = done.test, done.test["difference"]
            cells = (name, nfe, done.judge, f"`{done.candidates[0]['name']}`", f"{test['best']:.2g}", f"{test['returned']:.2g}")
            cells += (f"{off:.2g} ({low:.2g} to {high:.2g})", f"{test['floor']:.2g}", "yes" if done.accepted else "no")
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table", "time", "noise"))
    parser.add_argument("--out", type=Path, default=Path("tune"))
    parser.add_argument("--only", default="ring,d16,d64,digits,mnist")
    parser.add_argument("--nfe", default=",".join(map(str, BUDGETS)))
    asked = parser.parse_args()
    if asked.what == "table":
        table(asked.out)
    elif asked.what == "time":
        timed()
    elif asked.what == "noise":
        noise()
    else:
        asked.out.mkdir(parents=True, exist_ok=True)
        run(asked.out, asked.only.split(","), [int(n) for n in asked.nfe.split(",")])


if __name__ == "__main__":
    main()
