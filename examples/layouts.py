"""Layouts to digits: a U-Net trained on a coarse map of where ink is, and digits drawn for maps it has not seen.

    OMP_NUM_THREADS=1 python examples/layouts.py --out layouts

About 10 minutes on one core. A layout has a cell for every 4×4 pixels of an MNIST digit, 7×7 in all: 1 if more than a quarter
of the cell is ink, else 0. The network is given it as `image`, and a tenth of the time none. The example prints, for digits
held out, how many cells of a sample are not those of its layout and which class a classifier sees, and writes
layouts/layouts.png. Run again, the training goes on where it was cut.
"""

import argparse
from pathlib import Path

import matplotlib
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F
from torch.utils.data import Dataset

import scoreflow as sf
from scoreflow.training import Objective, Recipe, train

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def ink(x):
    """The share of ink in each cell, (B, 1, 7, 7), of images (B, 1, 28, 28) from −1, paper, to 1, ink."""
    return F.avg_pool2d((x.clamp(-1, 1) + 1) / 2, 4)


def layout(x):
    """Where ink is: 1 in the cells with more than a quarter of it, else 0."""
    return (ink(x) > 0.25).float()


class Layouts(Dataset):
    """Images, each with the condition `image`."""

    def __init__(self, x):
        self.x, self.image = x, layout(x)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], {"image": self.image[i]}


def nearest(images, given):
    """The training digit whose layout has the fewest cells unlike each of those given."""
    return images[torch.cdist(given.flatten(1), layout(images).flatten(1), p=1).argmin(1)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="layouts", help="a folder")
    parser.add_argument("--steps", type=int, default=2500, help="of training")
    parser.add_argument("-n", type=int, default=500, help="digits held out that samples are drawn for")
    parser.add_argument("--nfe", type=int, default=30, help="network evaluations a branch and sample")
    args = parser.parse_args()
    console, out, data = Console(width=110), Path(args.out), sf.data.load("mnist")

    torch.manual_seed(0)
    net = sf.nets.UNet(widths=(32, 64), patch=2, condition_channels=1, time_scale=1000.0)
    model = train(
        sf.ScoreModel(net, sf.VPSDE.cosine(), prediction="v"),
        Layouts(data.train.x),
        Objective(drop=0.1, times="stratified"),
        Recipe(steps=args.steps, batch=64, show_every=500),
        out=out,
        held_out=Layouts(data.held_out.x),
        progress=console.is_terminal,
    )

    def draw(given, scale, seed=0):
        """Samples for layouts; guided, if the scale is not 1."""
        guided = model if scale == 1 else sf.ClassifierFree(model, scale)
        shape = (len(given), 1, 28, 28)
        return sf.sample(guided, shape, "dpm-solver++", steps=args.nfe, seed=range(seed, seed + len(given)), image=given)

    true, y = data.held_out.x[: args.n], data.held_out.y[: args.n]
    given, judge = layout(true), sf.zoo.mnist_classifier()
    drawn = {f"samples, scale {scale}": draw(given, scale) for scale in (1, 2, 3)}
    drawn["samples, another digit's layout"] = drawn["samples, scale 1"].roll(1, 0)
    drawn["samples, no layout"] = sf.sample(model, true.shape, "dpm-solver++", steps=args.nfe, seed=range(args.n))
    drawn["nearest training digit"] = nearest(data.train.x, given)
    drawn["the true digits"] = true
    table = Table("", "cells unlike the layout", "RMS of ink to the true digit", "class of the true digit")
    for name, x in drawn.items():
        wrong = (layout(x) != given).float().mean()
        off = (ink(x) - ink(true)).square().mean().sqrt()
        with torch.no_grad():
            right = (judge(x).argmax(1) == y).float().mean()
        table.add_row(name, f"{wrong:.1%}", f"{off:.3f}", f"{right:.1%}")
    console.print(table)

    chosen = torch.stack([(y == digit).nonzero()[0, 0] for digit in (0, 2, 3, 4, 5, 7, 8)])
    columns = {"layout": F.interpolate(2 * given[chosen] - 1, scale_factor=4)[:, None]}
    for scale in (1, 2):
        samples = draw(given[chosen].repeat_interleave(5, 0), scale, seed=1000)
        columns[f"five samples, scale {scale}"] = samples.unflatten(0, (-1, 5))
    columns["true digit"] = true[chosen][:, None]
    widths = [images.shape[1] for images in columns.values()]
    figure, axes = plt.subplots(1, len(columns), width_ratios=widths, figsize=(7.2, 4.25), layout="constrained")
    for ax, (name, images) in zip(axes, columns.items(), strict=True):
        sheet = F.pad(images[:, :, 0].clamp(-1, 1), (1, 1, 1, 1), value=0.0)  # a grey line between
        ax.imshow(sheet.permute(0, 2, 1, 3).flatten(2).flatten(0, 1), cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
        ax.set_title(name, fontsize=8)
        ax.axis("off")
    figure.savefig(out / "layouts.png", dpi=100)
    console.print(f"picture: {out / 'layouts.png'}")


if __name__ == "__main__":
    main()
