"""What the MNIST network draws: digits with and without a class, seen by a classifier that never saw them made.

    OMP_NUM_THREADS=1 python examples/mnist.py                   # the network that ships, about 3 minutes on one core
    OMP_NUM_THREADS=1 python examples/mnist.py --model run:run   # one that you trained

It prints how sure the classifier is of its answer, on average, and which digits it sees; and draws the first samples.
"""

import argparse

import matplotlib
import torch
from rich.console import Console
from rich.table import Table

import scoreflow as sf
from scoreflow.studies import load

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="zoo:mnist")
    parser.add_argument("--out", default="mnist.png")
    parser.add_argument("-n", type=int, default=200, help="samples of each kind, a multiple of 10")
    parser.add_argument("--nfe", type=int, default=30, help="network evaluations a sample")
    args = parser.parse_args()
    model, judge, console = load(args.model).model, sf.zoo.mnist_classifier(), Console(width=100)
    held_out = sf.data.load("mnist").held_out
    y = torch.arange(10).repeat(args.n // 10)
    kinds = {
        "no class": lambda: sf.sample(model, (args.n, 1, 28, 28), "dpm-solver++", nfe=args.nfe, seed=range(args.n)),
        "classes 0…9 in turn": lambda: sf.sample(
            model, (args.n, 1, 28, 28), "dpm-solver++", nfe=args.nfe, seed=range(args.n), y=y
        ),
        "held-out images": lambda: held_out.x[: args.n],
    }
    asked = {"classes 0…9 in turn": y, "held-out images": held_out.y[: args.n]}
    table, drawn = Table("", "mean max-probability", "class asked for", "digits seen"), {}
    for name, make in kinds.items():
        drawn[name] = make()
        with torch.no_grad():
            probability = judge(drawn[name]).softmax(1)
        seen = probability.argmax(1)
        right = f"{(seen == asked[name]).float().mean():.1%}" if name in asked else "–"
        counts = torch.bincount(seen, minlength=10).tolist()
        table.add_row(name, f"{probability.amax(1).mean():.3f}", right, f"{sum(c > 0 for c in counts)}: {counts}")
    console.print(table)
    figure, axes = plt.subplots(3, 1, figsize=(9, 4.2), layout="constrained")
    for ax, (name, x) in zip(axes, drawn.items(), strict=True):
        sheet = x[:40].clamp(-1, 1).reshape(2, 20, 28, 28).permute(0, 2, 1, 3).reshape(56, 560)
        ax.imshow(sheet, cmap="gray_r", vmin=-1, vmax=1)
        ax.set_title(name, fontsize=9)
        ax.axis("off")
    figure.savefig(args.out, dpi=110)
    console.print(f"picture: {args.out}")


if __name__ == "__main__":
    main()
