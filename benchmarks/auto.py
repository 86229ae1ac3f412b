"""What `sampler="auto"` takes, and how far it is behind the best choice, on oracles and on trained networks.

    python benchmarks/auto.py table      # the fit: samplers and grids on the problems that the table was made on
    python benchmarks/auto.py regret     # the tables of docs/auto.md, on problems that were left out
    python benchmarks/auto.py guided     # the same with classifier-free guidance
    python benchmarks/auto.py grids      # grids for named samplers
    python benchmarks/auto.py picture    # error against budget on all networks, docs/auto.png

The error of a run is its distance to the model's own probability-flow ODE from the same noise, RMS over the entries of a
sample: the median and the RMS over samples. A network is run as it is and judged against its ODE solved in float64, down to
the times that it was trained on. Several problems are put together by the geometric mean.
"""

import argparse
import math
import time
from functools import partial
from pathlib import Path

import networks
import numpy as np
import torch
from oracles import HELD_OUT, PATHS, TUNING, Bank, reference
from rich import box
from rich.console import Console
from rich.table import Table

import scoreflow as sf
from scoreflow._core.grid import GRIDS, default_t_min, ode
from scoreflow._samplers.step import SAMPLERS, VARIANTS

NFE = (5, 6, 8, 10, 15, 20, 30, 50, 100, 200)
NAMED = {"DDIM": "ddim", "DPM++2M": "dpm-solver++-2m", "UniPC-2": "unipc-2", "UniPC-3": "unipc-3"}
"""What auto is compared with, each on the grid that is best for it."""


class Oracles:
    """A bank of mixtures on one path, exact answers from the same noise."""

    def __init__(self, mixtures, path, n=48, scale=None):
        self.bank = Bank(mixtures, PATHS[path], n, scale)
        self.names = [f"{name}, {path}" for name in mixtures]
        self.model, self.x_T, self.path = self.bank.model(), self.bank.start(), PATHS[path]
        self.model.guided = scale is not None
        self.answer, _ = reference(self.bank, self.x_T)

    def errors(self, x):
        return self.bank.errors(x, self.answer)


class Network:
    """A trained network, guided or not."""

    def __init__(self, name, n=None, scale=None):
        n = n or (48 if len(networks.shape(name)) == 1 else 8)
        self.names = [name if scale is None else f"{name}, scale {scale:g}"]
        wide, self.model = networks.load(name, torch.float64), networks.load(name)
        self.path, shape = self.model.path, networks.shape(name)
        self.conditions = {} if networks.classes(name) == 0 else {"y": torch.arange(n) % networks.classes(name)}
        if scale is not None:
            wide, self.model = (sf.ClassifierFree(model, scale) for model in (wide, self.model))
        self.x_T = torch.randn((n, *shape), generator=torch.Generator().manual_seed(3)) * self.path.prior_std(1.0)
        nodes = [sf.grid(self.path, k, "rectified", power=0.3, t_min=default_t_min(self.path)) for k in (300, 600)]
        fine = [sf.solve(wide, self.x_T.double(), "dpm-solver++-2m", grid=times, **self.conditions).x for times in nodes]
        self.answer = fine[1]
        self.floor = float(self.errors(fine[0])[0, 0]) / 3
        """The reference's own error, from a run of half as many steps."""

    def errors(self, x):
        each = (x.double() - self.answer).square().flatten(1).mean(1)
        return torch.stack([each.median(), each.mean()]).sqrt().numpy()[None]


def run(problem, plan):
    """(median, RMS) of each of the problem's parts, (P, 2); inf where the run breaks down."""
    try:
        return problem.errors(sf.solve(problem.model, problem.x_T, plan, **getattr(problem, "conditions", {})).x)
    except FloatingPointError:
        return np.full((len(problem.names), 2), math.inf)


def own(problem, nfe):
    """What auto does with so many calls of the model."""
    steps = {"steps": nfe} if problem.model.guided else {"nfe": nfe}
    solution = sf.solve(problem.model, problem.x_T, **steps, **getattr(problem, "conditions", {}))
    return problem.errors(solution.x)


def mean(errors):
    """The geometric mean."""
    return float(np.exp(np.mean(np.log(np.maximum(errors, 1e-15)))))


# -- the problems --------------------------------------------------------------------------------------------------------


def problems(held_out):
    """By group: oracles and networks that the table was made on, or those left out."""
    named = [name for name, network in networks.NETWORKS.items() if network.held_out is held_out]
    named.append("zoo:mnist" if held_out else "zoo:digits")
    return {
        "oracles": [Oracles(HELD_OUT if held_out else TUNING, path) for path in PATHS],
        "networks": [Network(name) for name in named],
    }


def guided(held_out):
    """The same with classifier-free guidance at scales 2 and 7: networks with classes, and mixtures."""
    name = "U-Net, SiLU, fashion 14×14, eps, linear chain" if held_out else "zoo:digits"
    return {
        "oracles": [Oracles(HELD_OUT if held_out else TUNING, "linear", scale=scale) for scale in (2.0, 7.0)],
        "networks": [Network(name, scale=scale) for scale in (2.0, 7.0)],
    }


# -- the fit -------------------------------------------------------------------------------------------------------------

NOISE, DATA = {"form": "noise"}, {"form": "data"}
CANDIDATES = {
    "plain": [("ipndm-2", {}), ("ipndm-3", {}), ("ipndm-3", {"damping": 0.4}), ("exponential-ab-4", NOISE), ("unipc-2", NOISE),
              ("unipc-3", NOISE), ("unipc-2", DATA), ("dpm-solver++-2m", {})],
    "guided": [("ipndm-2", {}), ("ipndm-3", {"damping": 0.4}), ("unipc-1", DATA), ("unipc-2", DATA), ("unipc-3", DATA),
               ("dpm-solver++-2m", {}), ("exponential-ab-3", DATA), ("unipc-2", NOISE)],
}  # fmt: skip
POWERS, SHIFTS = (0.45, 0.55, 0.65), {"plain": (0.8, 1.3, 2.0, 3.2), "guided": (0.3, 0.6, 1.2, 2.4)}


def fit(console, groups, kind, budgets):
    """Print each candidate's best power and shift, with its error over the best candidate's: half oracles, half networks."""
    out = Table("NFE", "auto", *(f"{s} {', '.join(map(str, o.values()))}" for s, o in CANDIDATES[kind]), box=box.MARKDOWN)
    for nfe in budgets:
        found = []
        for name, options in CANDIDATES[kind]:
            sampler, totals = sf.get_sampler(name, **options), {}
            for power in POWERS:
                for shift in SHIFTS[kind]:
                    rule = partial(ode, power=power, shift=shift)
                    parts = []
                    for group, members in groups.items():
                        chosen = [p for p in members if p.path.alpha(1.0) > 0 or sampler.prediction == "x0"]
                        grids = [sf.grid(p.path, nfe, partial(rule, exact=group == "oracles")) for p in chosen]
                        errors = [run(p, sampler.plan(p.path, g)) for p, g in zip(chosen, grids, strict=True)]
                        parts.append(mean(np.concatenate(errors)))
                    totals[power, shift] = mean(parts)
            place = min(totals, key=totals.get)
            found.append((totals[place], place))
        taken = mean([mean(np.concatenate([own(p, nfe) for p in members])) for members in groups.values()])
        best = min(error for error, _ in found)
        cells = [f"{error / best:.2f} ({power}, {shift})" for error, (power, shift) in found]
        out.add_row(str(nfe), f"{taken / best:.2f}", *cells)
        console.print(f"nfe={nfe}: {best:.2e}", style="dim")
    console.print(out)


# -- its regret ----------------------------------------------------------------------------------------------------------


def registered(path, nfe, alive):
    """Every registered deterministic sampler on every grid at this budget; names that mean the same rows are run once.

    `alive`: those to plan; None for all.
    """
    seen, known = set(), {}
    for name in (*SAMPLERS, *VARIANTS):
        sampler = sf.get_sampler(name)
        if not isinstance(sampler, sf.Linear) or sampler.stochastic:
            continue
        keys = [(name, grid) for grid in GRIDS if alive is None or (name, grid) in alive]
        try:
            steps = len(sf.plan(name, path, nfe=nfe, grid="uniform").steps) if keys else 0
        except ValueError:  # a budget under one step, or no way to begin
            continue
        for key in keys:
            try:
                if (where := (key[1], steps)) not in known:
                    known[where] = sf.grid(path, steps, key[1])
                plan = sampler.plan(path, known[where])
            except ValueError:  # nodes that the grid cannot give
                continue
            if plan.steps not in seen or name in NAMED.values():
                seen.add(plan.steps)
                yield key, plan


def regret(console, groups, budgets):
    """Print, by group, how far auto is behind the best choice for the group, and behind known samplers on their best grids."""
    for group, members in groups.items():
        names = [name for problem in members for name in problem.names]
        tables = [Table("NFE", "auto", "its worst problem", *NAMED, "the best choice", box=box.MARKDOWN,
                        title=f"{len(names)} {group}: regret in {what}") for what in ("median", "RMS")]  # fmt: skip
        alive, last = [None] * len(members), np.inf
        for nfe in budgets:
            begun, found = time.perf_counter(), []
            for problem, keys in zip(members, alive, strict=True):
                found.append({key: run(problem, plan) for key, plan in registered(problem.path, nfe, keys)})
            taken = np.concatenate([own(problem, nfe) for problem in members])
            # A choice counts on the problems whose path has its grid; it must have most of them.
            parts = [len(problem.names) for problem in members]
            gone = [np.full((k, 2), np.nan) for k in parts]
            every = {key for one in found for key in one}
            errors = {key: np.concatenate([one.get(key, g) for one, g in zip(found, gone, strict=True)]) for key in every}
            for column, table in enumerate(tables):
                least = np.nanmin([e[:, column] for e in errors.values()], 0)

                def behind(key, column=column, errors=errors, taken=taken):
                    """log of a choice's error over auto's, on the problems that it runs on; inf if these are few."""
                    ratio = np.log(errors[key][:, column] / taken[:, column])
                    return np.nanmean(ratio) if np.isfinite(ratio).mean() > 0.7 else math.inf

                best = min(errors, key=behind)
                ratio = taken[:, column] / errors[best][:, column]
                known = [max(-min(behind(k) for k in errors if k[0] == name), -9) for name in NAMED.values()]
                table.add_row(
                    str(nfe), f"{math.exp(-behind(best)):.2f}", f"{np.nanmax(ratio):.2f} ({names[int(np.nanargmax(ratio))]})",
                    *(f"{math.exp(k):.2f}" for k in known), f"{best[0]} on {best[1]}",
                )  # fmt: skip
                if column == 0:  # who is far behind on all problems is not followed to larger budgets
                    near = {
                        k for k, e in errors.items() if behind(k) - behind(best) < math.log(3) or (e[:, 0] < 1.2 * least).any()
                    }
                    for name in NAMED.values():
                        its = {k: behind(k) for k in errors if k[0] == name}
                        near |= {k for k, b in its.items() if b < min(its.values()) + math.log(2)}
            alive = [near] * len(members)
            rose = taken[:, 0] / last
            last = taken[:, 0]
            text = f"{group}, nfe={nfe}: {len(every)} choices; auto's error over that before: {np.max(rose):.2f} at most"
            console.print(f"{text}; {time.perf_counter() - begun:.0f} s", style="dim")
        for table in tables:
            console.print(table)


# -- the default grid ----------------------------------------------------------------------------------------------------


def default_grids(console, budgets=(6, 10, 20, 50)):
    """Print, for each grid, its error over that of the best grid for a sampler, budget and problem."""
    members = [Oracles(TUNING, "linear", 16), *(Network(name) for name in networks.NETWORKS if "perceptron, " in name)]
    members = [p for p in members if p.path.alpha(1.0) > 0 and p.model.dtype is not torch.bfloat16]
    named = [name for name in GRIDS if name not in ("trailing", "leading", "linspace", "ays")]
    rules = {name: name for name in named}
    rules |= {f"ode({p}, {c})": partial(ode, power=p, shift=c) for p in (0.5, 0.6, 0.7) for c in (1.0, 2.0, 3.0)}
    samplers = [name for name in SAMPLERS if sf.get_sampler(name).default_grid(PATHS["linear"]) == "ode"]
    behind = {name: [] for name in rules}
    for nfe in budgets:
        for name in samplers:
            for problem in members:
                errors = {}
                for grid, rule in rules.items():
                    try:
                        errors[grid] = mean(run(problem, sf.plan(name, problem.path, nfe=nfe, grid=rule)))
                    except ValueError:  # a budget under one step
                        continue
                for grid, error in errors.items():
                    behind[grid].append(error / min(errors.values()))
    out = Table("grid", "error over the best grid's", box=box.MARKDOWN, title=f"{', '.join(samplers)}; {len(members)} problems")
    for grid in sorted(behind, key=lambda g: mean(behind[g])):
        out.add_row(grid, f"{mean(behind[grid]):.2f}")
    console.print(out)


def picture(file, budgets):
    """Error against budget on all networks, auto beside DPM++2M on logsnr."""
    import matplotlib.pyplot as plt

    members = [problem for held_out in (False, True) for problem in problems(held_out)["networks"]]
    figure, axes = plt.subplots(3, 4, figsize=(14, 9), sharex=True)
    for axis, problem in zip(axes.flat, members, strict=False):
        runs = {"auto": [own(problem, n)[0] for n in budgets]}
        for label, (name, grid) in {"2M, logsnr": ("dpm-solver++-2m", "logsnr"), "DDIM, its default": ("ddim", None)}.items():
            start = 1.0 if problem.path.alpha(1.0) > 0 else 1 - 1e-3
            grid = partial(GRIDS["rectified"], power=0.3, t_min=1e-3) if start < 1 and grid else grid
            runs[label] = [run(problem, sf.plan(name, problem.path, nfe=n, grid=grid))[0] for n in budgets]
        for (label, errors), colour in zip(runs.items(), ("C3", "C0", "C7"), strict=True):
            axis.loglog(budgets, [e[0] for e in errors], "o-", ms=3, color=colour, label=label)
            axis.loglog(budgets, [e[1] for e in errors], ":", color=colour)
        axis.axhline(problem.floor, color="0.8", lw=0.8)
        axis.set_title(problem.names[0], fontsize=8)
    axes.flat[0].legend(fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("evaluations")
    figure.suptitle("Error to the network's own ODE: median (solid) and RMS (dotted); the reference's own (grey)", fontsize=10)
    figure.tight_layout()
    figure.savefig(file, dpi=80)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("table", "regret", "guided", "guided-table", "grids", "picture"))
    parser.add_argument("--nfe", type=lambda text: [int(n) for n in text.split(",")], default=list(NFE))
    parser.add_argument("--only", choices=("oracles", "networks"))
    parser.add_argument("--out", type=Path, default=Path("docs/auto.png"))
    arguments = parser.parse_args()
    wide = Console(width=240)
    if arguments.what == "picture":
        picture(arguments.out, arguments.nfe)
    elif arguments.what == "grids":
        default_grids(wide)
    else:
        found = (guided if "guided" in arguments.what else problems)("table" not in arguments.what)
        found = {k: v for k, v in found.items() if arguments.only in (None, k)}
        if "table" in arguments.what:
            fit(wide, found, "guided" if "guided" in arguments.what else "plain", arguments.nfe)
        else:
            regret(wide, found, arguments.nfe)
