"""The classic study on digits: DDPM, DDIM, the adaptive ODE and two fast solvers, evaluations against quality.

    OMP_NUM_THREADS=1 python examples/study_digits.py --out study-digits

Under 6 minutes on two cores. Run it again and nothing runs twice; stop it and it goes on from there. It writes a report and a
picture into the folder.
"""

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import matplotlib
from rich.console import Console
from rich.table import Table

import scoreflow as sf

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PARTS = [
    (["ddpm"], [50, 100, 250, 1000]),
    (["ddim", "ddim(eta=0.5)", "ddim(eta=1.0)"], [10, 20, 50, 100]),
    (["dpm-solver++", "unipc"], [5, 10, 20, 50]),
    ([f"pf-ode(method=dopri5, rtol={tol}, atol={tol})" for tol in ("1e-2", "1e-3", "1e-4", "1e-5", "1e-6")], [1]),
]
"""Samplers and their budgets; the last go by a tolerance and take no budget."""
SHOWN = ("trajectory/median", "sliced-w2", "kid", "manifold/recall")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="study-digits", help="a folder for the cells, the report and the picture")
    parser.add_argument("-n", type=int, default=16, help="samples in a block")
    parser.add_argument("--seeds", type=int, default=5, help="blocks")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    args = parser.parse_args()
    with ProcessPoolExecutor(args.workers, multiprocessing.get_context("spawn")) as pool:
        for samplers, budgets in PARTS:
            study = sf.study(
                "zoo:digits", samplers, nfe=budgets, n=args.n, seeds=args.seeds, executor=pool, out=args.out, progress=True,
                metrics=["trajectory", "sliced-w2", "kid", "manifold", "time"],
            )  # fmt: skip
    table = Table(title=f"{args.seeds} blocks of {args.n} digits, the same seeds for all")
    for head in ("sampler", "NFE", *SHOWN):
        table.add_column(head, justify="left" if head == "sampler" else "right")
    for (sampler, nfe), lines in study.frame.groupby(["sampler", "nfe"]):
        values = lines.set_index("figure")["value"]
        table.add_row(sampler, f"{nfe:g}", *(f"{values[name]:.3g}" if name in values else "–" for name in SHOWN))
    table.add_section()
    for name, mean in (("converged reference", study.reference), ("floor: data against data", study.floor)):
        own = [study.to_reference(figure) for figure in SHOWN]
        table.add_row(name, "", *("–" if of_ode else f"{mean(f).value:.3g}" for f, of_ode in zip(SHOWN, own, strict=True)))
    console = Console(width=120)
    console.print(table)
    for figure in SHOWN[:3]:
        console.print(f"\n[bold]{figure}[/bold]", *study.findings(figure), sep="\n  ", highlight=False)
    axes = plt.subplots(2, 1, figsize=(10, 9), layout="constrained")[1]
    for ax, figure in zip(axes, SHOWN, strict=False):
        study.plot(figure, ax)
    plt.savefig(Path(args.out) / "study.png", dpi=110)
    console.print(f"\nReport: {study.report(Path(args.out) / 'report.html')}; picture: {Path(args.out) / 'study.png'}")


if __name__ == "__main__":
    main()
