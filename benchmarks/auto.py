"""The table behind `sampler="auto"`, and its regret on oracles that the table was not made on.

    python benchmarks/auto.py table     # prints the tables of scoreflow/auto.py, about an hour on one core
    python benchmarks/auto.py regret    # prints the tables of docs/auto.md, about an hour on one core

The error of a run is its distance to the exact probability-flow ODE from the same noise: the median over samples, and the
geometric mean of these medians over oracles and paths.
"""

import argparse
import math
import time
from functools import partial

import numpy as np
import scipy.optimize
from oracles import HELD_OUT, PATHS, TUNING, Bank, reference
from rich import box
from rich.console import Console
from rich.table import Table

import scoreflow as sf
from scoreflow import auto
from scoreflow.grid import GRIDS
from scoreflow.step import SAMPLERS, VARIANTS

NFE = (5, 6, 7, 8, 10, 12, 15, 20, 25, 30, 40, 50, 75, 100)
DEFAULTS = {
    "DDIM": ("ddim", {}, "leading"),
    "DPM++2M": ("dpm-solver++-2m", {}, "linspace"),
    "UniPC": ("unipc-2", {}, "linspace"),
}
"""As diffusers sets them up: sampler and spacing of the labels."""


class Problem:
    """A bank of oracles on one path, with the exact answers from the same noise."""

    def __init__(self, mixtures, path, n=48, scale=None):
        self.bank = Bank(mixtures, path, n, scale)
        self.path, self.x_T = path, self.bank.start()
        self.model = self.bank.model()
        self.answer, _ = reference(self.bank, self.x_T)

    def error(self, plan):
        """The median error of each oracle; inf where the run breaks down."""
        try:
            return self.bank.medians(sf.solve(self.model, self.x_T, plan).x, self.answer)
        except FloatingPointError:
            return np.full(len(self.bank.names), math.inf)


def mean(errors):
    """The geometric mean."""
    return float(np.exp(np.mean(np.log(errors)))) if np.all(np.isfinite(errors)) else math.inf


# -- the table -----------------------------------------------------------------------------------------------------------

PLAIN = [("exponential-ab-2", "noise"), ("exponential-ab-3", "noise"), ("exponential-ab-4", "noise"), ("unipc-2", "data"),
         ("unipc-3", "data"), ("unipc-1", "noise"), ("unipc-2", "noise"), ("ipndm-2", "noise"), ("ipndm-3", "noise"),
         ("ipndm-4", "noise")]  # fmt: skip
STEADY = [("exponential-ab-2", "data"), ("exponential-ab-3", "data"), ("unipc-1", "data"), ("unipc-2", "data")]


def tuned(problems, sampler, form, nfe, begin):
    """The best power and shift of the grid for a sampler at a budget, and their error."""

    def error(place):
        power, shift = np.exp(place)
        rule = partial(auto.nodes, power=power, shift=shift, labels=False)
        try:
            plans = [sf.plan(auto.made(sampler, form, 1.0), p.path, nfe=nfe, grid=rule) for p in problems]
        except ValueError:  # nodes that fall together
            return 50.0
        total = mean(np.concatenate([p.error(plan) for p, plan in zip(problems, plans, strict=True)]))
        return math.log(total) if math.isfinite(total) else 50.0

    best = min(begin, key=error)
    options = {"maxfev": 40, "xatol": 0.03, "fatol": 0.01, "initial_simplex": best + np.array([[0, 0], [0.2, 0], [0, 0.3]])}
    found = scipy.optimize.minimize(error, best, method="Nelder-Mead", options=options)
    return math.exp(found.fun), found.x


def table(console):
    """Print both tables."""
    for name, candidates, scale in (("TABLE", PLAIN, None), ("STEADY", STEADY, 4.0)):
        problems = [Problem(TUNING, path, scale=scale) for path in PATHS.values()]
        last = {c: [np.log([p, s]) for p in (0.35, 0.5, 0.75) for s in (0.5, 1.5)] for c in candidates}
        console.print(f"{name} = (")
        for nfe in NFE:
            begun, results = time.perf_counter(), {}
            for candidate in last:
                error, place = tuned(problems, *candidate, nfe, last[candidate])
                results[candidate], last[candidate] = (error, place), [place]
            (sampler, form), (error, place) = min(results.items(), key=lambda item: item[1][0])
            power, shift = np.exp(place)
            others = ", ".join(f"{s} {f} {e / error:.2f}" for (s, f), (e, _) in results.items())
            console.print(
                f'    Choice({nfe}, "{sampler}", "{form}", {power:.3g}, {shift:.3g}),  # {error:.2e}; {others}; '
                f"{time.perf_counter() - begun:.0f} s"
            )
            # What is far behind does not come back: errors of higher orders fall faster.
            last = {c: p for c, p in last.items() if results[c][0] < 4 * error or nfe < 10}
        console.print(")")


# -- its regret ----------------------------------------------------------------------------------------------------------


def registered(path, nfe, alive):
    """Every registered deterministic sampler on every grid at this budget, with and without the analytic first answer.

    Names that mean the same rows are run once. `alive`: those to lay out; None for all.
    """
    seen, known = set(), {}
    for name in (*SAMPLERS, *VARIANTS):
        sampler = sf.get_sampler(name)
        if not isinstance(sampler, sf.Linear) or sampler.stochastic:
            continue
        for analytic in (None, 1.0):
            keys = [(name, grid, analytic is not None) for grid in GRIDS]
            keys = [key for key in keys if alive is None or key in alive]
            try:
                steps = len(sf.plan(name, path, nfe=nfe, grid="uniform", analytic=analytic).steps) if keys else 0
            except ValueError:  # a budget under one step
                continue
            for key in keys:
                try:
                    if (where := (key[1], steps)) not in known:
                        known[where] = sf.grid(path, steps, key[1])
                    plan = sf.plan(name, path, grid=known[where], analytic=analytic)
                except ValueError:  # nodes that the grid cannot give
                    continue
                if (rows := (plan.steps, plan.analytic)) not in seen:
                    seen.add(rows)
                    yield key, plan


def regret(console, budgets):
    """Print the regret of auto, of the best fixed choice and of diffusers' defaults."""
    problems, few = ([Problem(HELD_OUT, path, n) for path in PATHS.values()] for n in (48, 8))
    errors, alive = {}, None
    for nfe in budgets:
        begun = time.perf_counter()
        plans = [dict(registered(p.path, nfe, alive)) for p in problems]
        keys = [k for k in plans[0] if k in plans[1]]

        def run(key, on, plans=plans):
            return np.concatenate([p.error(q[key]) for p, q in zip(on, plans, strict=True)])

        # Eight samples of each oracle tell who is far behind; the best for an oracle is not far behind on it.
        first = {k: run(k, few) for k in keys}
        least = np.min(list(first.values()), 0)
        best = min(map(mean, first.values()))
        near = [k for k in keys if mean(first[k]) < 6 * best or (first[k] < 1.5 * least).any()]
        errors[nfe] = {k: run(k, problems) for k in near}
        if nfe >= 10:  # what is ten times behind by now is not followed further
            alive = {k for k in keys if mean(first[k]) < 10 * best}
        ratio = mean(np.concatenate([p.error(sf.plan("auto", p.path, nfe=nfe)) for p in problems]))
        ratio /= min(map(mean, errors[nfe].values()))
        said = f"nfe={nfe}: {len(keys)} choices, {len(near)} in full, auto {ratio:.2f}; {time.perf_counter() - begun:.0f} s"
        console.print(said, style="dim")

    def behind(key):
        """The mean log of how far a choice is behind the best at each budget."""
        return np.mean([math.log(mean(e[key]) / min(map(mean, e.values()))) for e in errors.values()])

    fixed = min(set.intersection(*(set(e) for e in errors.values())), key=behind)
    columns = ["auto", "best fixed", *DEFAULTS]
    titles = {False: "the best choice for all oracles", True: "the best choice for each oracle, in hindsight"}
    for floor, title in titles.items():
        out = Table("NFE", *columns, "the best", title=f"Regret against {title}", box=box.MARKDOWN)
        ratios = []
        for nfe in budgets:
            every = errors[nfe]
            winner = min(every, key=lambda k: mean(every[k]))
            least = mean(np.min(list(every.values()), 0)) if floor else mean(every[winner])
            runs = [mean(np.concatenate([p.error(sf.plan("auto", p.path, nfe=nfe)) for p in problems])), mean(every[fixed])]
            runs += [
                mean(np.concatenate([p.error(sf.plan(s, p.path, nfe=nfe, grid=g, **o)) for p in problems]))
                for s, o, g in DEFAULTS.values()
            ]
            ratios.append([r / least for r in runs])
            said = f"{least:.1e}" if floor else f"{least:.1e}, {winner[0]} on {winner[1]}{', analytic' * winner[2]}"
            out.add_row(str(nfe), *(f"{r:.2f}" for r in ratios[-1]), said)
        out.add_row("mean", *(f"{r:.2f}" for r in np.exp(np.mean(np.log(ratios), 0))), "")
        console.print(out)
    console.print(f"best fixed: {fixed[0]} on {fixed[1]}{', analytic' * fixed[2]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("table", "regret"))
    parser.add_argument("--nfe", type=lambda text: [int(n) for n in text.split(",")], default=list(NFE))
    arguments = parser.parse_args()
    wide = Console(width=240)
    table(wide) if arguments.what == "table" else regret(wide, arguments.nfe)
