"""Bits per dimension of held-out digits under the network that ships: by the ODE, with two solvers, and by the bound.

    OMP_NUM_THREADS=1 python examples/likelihood.py

About 4 minutes on one core. Digits have 17 levels from −1 to 1; every figure is an upper bound on −log₂ P an entry, the mean of
held-out digits with its standard error over them.
"""

import argparse
import math

from rich.console import Console
from rich.table import Table

import scoreflow as sf

LEVELS = 17


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=64, help="held-out digits")
    args = parser.parse_args()
    model, data = sf.zoo.digits(), sf.zoo.digits_data()
    x, y = data.held_out[: args.n], data.held_out_labels[: args.n]
    seeds = range(args.n)
    table = Table("how", "bits an entry", "over digits ±", "over draws ±", "evaluations", title=f"{args.n} held-out digits")

    def add(name, bits, error, nfe):
        inner = f"{error.mean():.3f}" if bool(error.isfinite().all()) else "–"
        table.add_row(name, f"{bits.mean():.3f}", f"{bits.std() / len(bits) ** 0.5:.3f}", inner, str(nfe))

    ode = {"dopri5": dict(rtol=1e-3, atol=1e-3), "rk4, 50 steps": dict(method="rk4", steps=50)}
    for how in ("uniform", "forward"):
        for name, options in ode.items():
            found = sf.bits_per_dim(
                model, x, levels=LEVELS, dequantise=how, draws=2, probes=2, stop=0.02, seed=seeds, y=y, **options
            )
            add(f"ODE from t = 0.02, {how} noise, {name}", found.value, found.error, found.nfe)
    for variance in ("posterior", "beta"):
        bound = sf.vlb(model, x, variance=variance, bins=LEVELS, seed=seeds, y=y)
        add(f"bound, 1000 steps, {variance}", bound.bits_per_dim(), bound.error, bound.nfe)
    nats = x[0].numel() * math.log(2)
    for name, stop in {"": None, " from t = 0.02": 0.02}.items():
        limit = sf.continuous_bound(model, x, points=200, repeats=4, bins=LEVELS, stop=stop, seed=seeds, y=y)
        add(f"bound, continuous time{name}", limit.bits_per_dim(), limit.error / nats, limit.nfe)
    table.add_row("all levels alike", f"{math.log2(LEVELS):.3f}", "", "", "")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
