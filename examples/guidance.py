"""Class-conditional digits under guidance: is the digit asked for drawn, and what does that cost in variety?

    OMP_NUM_THREADS=1 python examples/guidance.py

About 8 minutes on one core: a minute trains a classifier of noisy digits, the rest draws 500 digits, 50 of each class, at every
scale, from the same noise. It prints a table and draws it, with digits, into guidance.png.

A classifier that never saw noise judges whether the digit is the one asked for. Precision and recall are by the 5 nearest
neighbours in its features (Kynkäänniemi et al., 2019), against the 500 held-out digits: the share of samples among the data,
and of the data among the samples.
"""

import argparse

import matplotlib
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

import scoreflow as sf
from scoreflow.studies.metrics import MetricInput, get_metric

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SCALES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
SHOWN = (0.0, 1.0, 3.0, 8.0)


def noisy_classifier(model, data, steps):
    """A classifier of x_t, told the label of t: cross-entropy on the training digits, t uniform on the chain."""
    torch.manual_seed(0)
    net = sf.nets.NoisyClassifier(channels=1, classes=10, widths=(32, 64))
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    objective, path = sf.training.Objective(), model.path

    def noisy(x, y, step):
        draw = objective.draw(model, x, seed=0, step=step)
        return net(path.q_sample(x, draw.t, draw.eps), model.label(x, draw.t)), draw.t

    for step in range(steps):
        pick = torch.randint(len(data.train), (128,))
        logits, _ = noisy(data.train[pick], data.train_labels[pick], step)
        loss = F.cross_entropy(logits, data.train_labels[pick])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    net.eval()
    with torch.no_grad():
        logits, t = noisy(data.held_out.repeat(10, 1, 1, 1), None, -1)
    right = (logits.argmax(1) == data.held_out_labels.repeat(10)).float()
    return net, [right[(t > low) & (t <= low + 0.25)].mean().item() for low in (0.0, 0.25, 0.5, 0.75)]


def judge(x, y, held_out):
    """Accuracy of the class asked for, precision and recall."""
    with torch.no_grad():
        right = (sf.zoo.digits_classifier()(x).argmax(1) == y).float().mean().item()
    found = get_metric("manifold").measure(MetricInput(x, 0, data=held_out, features=sf.zoo.digits_features()))
    return right, float(found["precision"]), float(found["recall"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="guidance.png")
    parser.add_argument("-n", type=int, default=500, help="samples at every scale, a multiple of 10")
    parser.add_argument("--steps", type=int, default=20, help="of DPM-Solver++ 2M")
    parser.add_argument("--training", type=int, default=1500, help="steps of the noisy classifier")
    args = parser.parse_args()
    console, data, model = Console(width=110), sf.zoo.digits_data(), sf.zoo.digits()
    y = torch.arange(10).repeat_interleave(args.n // 10)
    classifier, right = noisy_classifier(model, data, args.training)
    console.print(
        "the noisy classifier is right on", ", ".join(f"{r:.0%}" for r in right), "in the quarters of t, from data up"
    )
    wrappers = {
        "classifier-free": lambda s: sf.ClassifierFree(model, s),
        "classifier": lambda s: sf.ClassifierGuidance(model, classifier, s),
    }
    table, rows, drawn = Table(title=f"{args.n} digits, {args.steps} steps of DPM-Solver++ 2M"), {}, {}
    for column in ("guidance", "scale", "evaluations", "asked class", "precision", "recall"):
        table.add_column(column, justify="left" if column == "guidance" else "right")
    pick = torch.cat([(data.train_labels == k).nonzero().flatten()[: args.n // 10] for k in range(10)])
    table.add_row("training digits", "", "", *(f"{v:.3f}" for v in judge(data.train[pick], y, data.held_out)))
    for name, wrap in wrappers.items():
        for scale in SCALES:
            x_T = sf.White(range(args.n)).normal(torch.empty(args.n, 1, 8, 8), "prior")
            sol = sf.solve(wrap(scale), x_T, "dpm-solver++", steps=args.steps, y=y)
            rows[name, scale] = judge(sol.x, y, data.held_out)
            drawn[name, scale] = sol.x
            table.add_row(name, f"{scale:g}", str(sol.nfe), *(f"{v:.3f}" for v in rows[name, scale]))
    console.print(table)
    draw(rows, drawn, y, args.out)
    console.print(f"picture: {args.out}")


def draw(rows, drawn, y, out):
    figure = plt.figure(figsize=(10, 5), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[2, 1])
    for axes, title, k in zip(top.subplots(1, 3), ("asked class drawn", "precision", "recall"), range(3), strict=True):
        for name, style in (("classifier-free", "o-"), ("classifier", "s--")):
            axes.plot(SCALES, [rows[name, s][k] for s in SCALES], style, label=name)
        axes.set(xlabel="scale", title=title, ylim=(None, 1.02))
    axes.legend(frameon=False)
    for axes, (name, scale) in zip(
        bottom.subplots(2, 4).flat, [(n, s) for n in ("classifier-free", "classifier") for s in SHOWN], strict=True
    ):
        first = torch.cat([drawn[name, scale][y == k][:2] for k in range(10)]).clamp(-1, 1)
        sheet = first.reshape(2, 10, 8, 8).permute(0, 2, 1, 3).reshape(16, 80)
        axes.imshow(sheet, cmap="gray_r", vmin=-1, vmax=1)
        axes.set_title(f"{name}, scale {scale:g}", fontsize=8)
        axes.axis("off")
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
