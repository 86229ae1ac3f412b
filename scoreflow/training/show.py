"""What a training run shows while it goes on: its curves, and a sheet of samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoreflow._core.grid import inner_ends
from scoreflow._core.noise import White
from scoreflow._run.solve import solve
from scoreflow._score.flow_map import FlowMap
from scoreflow.studies import picture
from scoreflow.training.trainer import Progress


class Show:
    """Called by `train`: writes `loss.png` and, for images and points of the plane, `samples-….png` into the run's folder.

    Args:
        out: the folder. shape: of a state. conditions: of the samples. shown: how many, at most.
        nfe: evaluations of a sample; of a flow map 2.
    """

    def __init__(self, out: Path, shape: tuple[int, ...], conditions: dict[str, Any], shown: int = 32, nfe: int = 20) -> None:
        self.out, self.shape, self.conditions, self.shown, self.nfe = out, shape, conditions, shown, nfe

    def __call__(self, at: Progress) -> None:
        model = at.model
        training = model.net.training  # type: ignore[attr-defined]
        model.net.eval()  # type: ignore[attr-defined]
        n = min([self.shown, *(len(v) for v in self.conditions.values())])
        start = inner_ends(model.path)[1]
        x_T = White(range(n)).draws("prior")(torch.empty(n, *self.shape, device=model.device)) * model.path.prior_std(start)
        conditions: dict[str, Any] = {
            k: v[:n].to(x_T.device) if isinstance(v, Tensor) else v for k, v in self.conditions.items()
        }
        sampler, nfe = ("auto", 2) if isinstance(model, FlowMap) else ("dpm-solver++", self.nfe)
        x = solve(model, x_T, sampler, nfe=nfe, start=start, seed=0, **conditions).x
        if sheet := picture(x.to("cpu").numpy(), shown=n):
            (self.out / f"samples-{at.step:06d}.png").write_bytes(sheet)
        model.net.train(training)  # type: ignore[attr-defined]
        curves(self.out, at)


def curves(out: Path, at: Progress) -> None:
    """`loss.png`: the loss by step, in training and held out, and the ε-error by level λ."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = [json.loads(text) for text in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    step, loss = (np.array([line[name] for line in lines], dtype=float) for name in ("step", "loss"))
    size = max(1, len(loss) // 200)
    whole = len(loss) // size * size
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.plot(*(v[:whole].reshape(-1, size).mean(1) for v in (step, loss)), label=f"training, mean of {size}")
    held = [(line["step"], line["held_out"]) for line in lines if "held_out" in line]
    if held:
        left.plot(*zip(*held, strict=True), "o-", markersize=3, label="held out, averaged weights")
    left.set(xlabel="step", ylabel="loss", yscale="log")
    left.legend(frameon=False)
    t, error = at.history.curve()
    right.plot(at.model.path.lam(t).numpy(), error.numpy(), ".-")
    right.set(xlabel="λ = log(α/σ)", ylabel="ε-error an entry", yscale="log")
    figure.savefig(out / "loss.png", dpi=120)
