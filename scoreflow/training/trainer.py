"""The training loop: one process or many, resumable to the bit.

All chance is a function of (seed, step): which samples, times, noise, dropped conditions, and what a dataset draws from torch
in this process (`workers=0`). So a run that was cut goes on as if it had not been, and the parts of several processes make up
the batch that one would see.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from scoreflow import checkpoint
from scoreflow._core.check import flag, scalar
from scoreflow._core.noise import stream_key
from scoreflow._score.fingerprint import identity
from scoreflow._score.model import ScoreModel, module_of, say
from scoreflow._score.network import unwrapped
from scoreflow.data import read
from scoreflow.training.batches import Batches, dataset
from scoreflow.training.objective import Loss, Objective
from scoreflow.training.recipe import Recipe
from scoreflow.training.times import LossHistory

if TYPE_CHECKING:
    from lightning_fabric import Fabric

FREE = ("workers", "save_every", "show_every", "shown")
"""What a run may change when it goes on."""


class Progress(NamedTuple):
    """Where a run stands, after a step.

    Attributes:
        step: steps made. loss: of this step, over all processes. history: of the ε-error by level.
        model: with the averaged weights.
    """

    step: int
    loss: float
    history: LossHistory
    model: ScoreModel


def train(
    model: ScoreModel,
    data: Dataset[Any] | Tensor,
    objective: Objective | None = None,
    recipe: Recipe | None = None,
    *,
    out: str | Path | None = None,
    held_out: Dataset[Any] | Tensor | None = None,
    notes: Mapping[str, Any] | None = None,
    show: Callable[[Progress], object] | None = None,
    progress: bool = False,
) -> ScoreModel:
    """Train the model's network, and give the model with averaged weights; the network itself is left with its last ones.

    Started by `torchrun`, every process takes its part of each batch.

    Args:
        model: what is trained, with the path and prediction that it will be used with.
        data: a tensor of states, or a dataset of x, (x, class) or (x, {condition: value}).
        objective, recipe: what is minimised, and how.
        out: a folder for `log.jsonl`, `state.safetensors` and `model.safetensors`. A run that was cut goes on from its last
            state. None: nothing is written.
        held_out: data for a loss with draws that are the same every time.
        notes: what else to write down with the run, such as the name of the data.
        show: called after the first and every `show_every` steps, and at the end.
        progress: show a bar.

    Raises:
        ValueError: an objective that does not go with the model, a batch that does not split, or a folder with a run of
            another recipe, or one that lacks a part of its state. NotADirectoryError: `out` is a file. FloatingPointError:
            a loss, a gradient or a weight that is not finite; names the step and the parameter. The step is not taken, and
            what was written before stays. ModuleNotFoundError: without Lightning Fabric (the extra `scoreflow[train]`).
    """
    net = module_of(model)
    flag("progress", progress)
    objective, recipe = Objective() if objective is None else objective, Recipe() if recipe is None else recipe
    for name, value, kind in (("objective", objective, Objective), ("recipe", recipe, Recipe)):
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be of {kind.__name__}(...), got {value!r}")
    objective = dataclasses.replace(objective, null=objective.nulls(model))
    objective.check(model)
    training = net.training
    first = torch.utils.data.Subset(dataset("data", data), [0, min(1, len(data) - 1)])  # type: ignore[arg-type]
    objective.rehearse(model, *read(next(iter(DataLoader(first, batch_size=2)))))
    with torch.random.fork_rng():  # dropout is seeded at every step
        run = _Run(model, dataset("data", data), objective, recipe, Path(out) if out else None, held_out, notes or {})
        averaged = run.go(show, progress)
    net.train(training)
    return averaged


class _Run:
    """One process of a training run."""

    def __init__(
        self, model: ScoreModel, data: Dataset[Any], objective: Objective, recipe: Recipe, out: Path | None,
        held_out: Dataset[Any] | Tensor | None, notes: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self.fabric = _fabric(recipe.precision)
        self.part = (self.fabric.global_rank, self.fabric.world_size)
        if recipe.batch % self.part[1]:
            raise ValueError(f"batch={recipe.batch} must be a multiple of the {self.part[1]} processes")
        self.objective, self.recipe, self.out = objective, recipe, out
        self.data: Any = data  # it has a length
        self.held_out = None if held_out is None else dataset("held_out", held_out)
        assert isinstance(model.net, nn.Module)
        optimizer = torch.optim.AdamW(model.net.parameters(), lr=recipe.rate, weight_decay=recipe.weight_decay)
        self.net, self.optimizer = self.fabric.setup(model.net, optimizer)
        self.inner: nn.Module = unwrapped(model.net)
        self.average = AveragedModel(self.inner, multi_avg_fn=self._take_in, use_buffers=True)
        self.model, self.averaged = (model.over(net) for net in (self.net, self.average.module))
        bins = min(50, model.path.T or 50)
        self.plain, self.history, self.errors, self.step = model, LossHistory(bins), LossHistory(bins), 0
        self.config = _config(model, objective, recipe, notes)
        if out is not None:
            self._open(out)

    def go(self, show: Callable[[Progress], object] | None, progress: bool) -> ScoreModel:
        recipe = self.recipe
        batches = DataLoader(
            self.data, batch_sampler=Batches(len(self.data), recipe, self.step, self.part), num_workers=recipe.workers
        )
        bar = self._bar() if progress and not self.part[0] else None
        waiting = iter(batches)
        while self.step < recipe.steps:
            torch.manual_seed(stream_key(recipe.seed, "data", self.step, self.part[0]))  # for what the data draw, as flips
            loss = self._one(*read(self.fabric.to_device(next(waiting))))
            last = self.step == recipe.steps
            shown = self.step % recipe.show_every == 0 or last or self.step == 1
            line: dict[str, Any] = {"step": self.step, "loss": loss, "rate": recipe.rate_at(self.step - 1)}
            if shown and self.held_out is not None:
                line["held_out"] = self.held_out_loss()
            if self.part[0] == 0:
                if self.out is not None:
                    self._log(line)
                    if self.step % recipe.save_every == 0 or last:
                        self._save()
                if shown and show is not None:
                    show(Progress(self.step, loss, self.errors, self.averaged))
                if bar is not None:
                    bar.update()
                    bar.set_postfix_str(f"ε-error {float(self.errors.state[1].mean()):.4f}", refresh=False)
            if shown:
                self.fabric.barrier()
        if bar is not None:
            bar.close()
        self.averaged.net.eval()  # type: ignore[attr-defined]
        return self.averaged

    def _one(self, x_0: Tensor, conditions: dict[str, Any]) -> float:
        """One step of the optimiser; the loss over all processes."""
        recipe = self.recipe
        if not x_0.is_floating_point():
            raise TypeError(f"data must give floating-point states, got {x_0.dtype}: scale them, images to −1…1")
        torch.manual_seed(stream_key(recipe.seed, "network", self.step, self.part[0]))  # for dropout
        self.net.train()
        draw = self.objective.draw(self.model, x_0, recipe.seed, self.step, self.part, self.history)
        found = self.objective(self.model, x_0, draw, **conditions)
        self.optimizer.zero_grad()
        loss = self._together(found)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss of step {self.step + 1} is not finite: lower the rate, or look at the data")
        self.fabric.backward(found.mean)
        self._check_gradient()
        if recipe.clip:
            self.fabric.clip_gradients(self.net, self.optimizer, max_norm=recipe.clip, error_if_nonfinite=False)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate_at(self.step)
        self.optimizer.step()
        self.average.update_parameters(self.inner)
        self.step += 1
        return loss

    def _check_gradient(self) -> None:
        """Raise FloatingPointError, before anything is changed, if the gradient or its norm is not finite.

        In 16 bits a loss scaled up may overflow: then the scaler leaves the step out, and lowers its scale.
        """
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        if scaler is not None and scaler.get_scale() >= 1:
            return
        there = [(name, p.grad) for name, p in self.inner.named_parameters() if p.grad is not None]
        if not there:
            return
        norms = torch.stack([norm.float() for norm in torch._foreach_norm([grad for _, grad in there])])
        if not bool(norms.norm().isfinite()):
            largest = int(norms.nan_to_num(nan=math.inf, posinf=math.inf).argmax())
            raise FloatingPointError(
                f"the gradient of {there[largest][0]} at step {self.step + 1} is not finite, though the loss is: the step is "
                "not taken. Look for a square root, a logarithm or a norm at 0 in the network, or lower the rate"
            )

    def _take_in(self, averaged: Any, current: Any, n: Any) -> None:
        """Move the average towards the weights."""
        if not averaged[0].is_floating_point():  # tables and counts
            torch._foreach_copy_(averaged, current)
            return
        keep = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        get_ema_multi_avg_fn(keep)(averaged, current, n)  # type: ignore[no-untyped-call]

    def _together(self, found: Loss) -> float:
        """The mean loss of all processes; the histories take in the losses and errors of all."""
        host = [v.detach().to("cpu") for v in (found.t, found.each, found.eps, found.mean)]  # not every device has float64
        both = torch.stack([self.history.sums(host[0], seen) for seen in host[1:3]])
        if self.part[1] > 1:  # processes speak from their devices
            both, host[3] = self.fabric.to_device(both), self.fabric.to_device(host[3].double())
        sums: Any = self.fabric.all_reduce(both, reduce_op="sum")
        mean: Any = self.fabric.all_reduce(host[3].double(), reduce_op="mean")
        for history, own in zip((self.history, self.errors), sums.to("cpu"), strict=True):
            history.update(own)
        return float(mean)

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """The averaged model's loss on held-out data, always with the same draws; at most 1000 of them."""
        assert self.held_out is not None
        self.average.eval()
        n, losses = min(len(self.held_out), 1000), list[Tensor]()  # type: ignore[arg-type]
        plain = dataclasses.replace(self.objective, drop=0.0, times="stratified", vlb=0.0, times_options={})
        for step, batch in enumerate(
            DataLoader(torch.utils.data.Subset(self.held_out, range(n)), batch_size=self.recipe.batch)
        ):
            x_0, conditions = read(self.fabric.to_device(batch))
            losses.append(plain(self.averaged, x_0, plain.draw(self.averaged, x_0, 1, step), **conditions).each)
        return float(torch.cat(losses).mean())

    # -- what is written ---------------------------------------------------------------------------------------------
    def _open(self, out: Path) -> None:
        """Begin, or go on from the state that is there."""
        if out.exists() and not out.is_dir():
            raise NotADirectoryError(f"out={str(out)!r} is a file: give a folder")
        if self.part[0] == 0:
            out.mkdir(parents=True, exist_ok=True)
        state = out / "state.safetensors"
        if state.is_file():
            self._load(state)
        elif (model := out / "model.safetensors").exists():
            raise ValueError(f"{model} is there, and no state to go on from: give another out, or take the file away")
        elif self.part[0] == 0:
            (out / "config.json").write_text(json.dumps(self.config, indent=1) + "\n", encoding="utf-8")
        self.fabric.barrier()
        if self.part[0] == 0:
            log = out / "log.jsonl"
            kept = _log(log, self.step) if log.is_file() else []
            part = log.with_suffix(".part")
            part.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            os.replace(part, log)

    def _log(self, line: dict[str, Any]) -> None:
        assert self.out is not None
        with open(self.out / "log.jsonl", "a", encoding="utf-8") as opened:
            opened.write(json.dumps(line) + "\n")

    def _save(self) -> None:
        assert self.out is not None
        for name, weight in self.inner.named_parameters():
            if not bool(weight.isfinite().all()):
                raise FloatingPointError(
                    f"the weights {name} are not finite after step {self.step}: lower the rate. The last good state stays"
                )
        tensors = {f"net.{k}": v for k, v in checkpoint.weights_of(self.inner).items()}
        tensors |= {f"average.module.{k}": v for k, v in checkpoint.weights_of(self.average.module).items()}
        tensors |= {"average.n_averaged": self.average.n_averaged.clone()}
        tensors |= {"history": self.history.state, "errors": self.errors.state}
        for i, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in moments.items()}
        # The state last: a run whose state says that it is done has its model.
        checkpoint.save_model(self.averaged, self.out / "model.safetensors")
        checkpoint.write(tensors, self.out / "state.safetensors", {"step": str(self.step), "config": json.dumps(self.config)})

    def _load(self, file: Path) -> None:
        tensors, metadata = checkpoint.read(file)
        if not {"step", "config"} <= metadata.keys() or not {"history", "average.n_averaged"} <= tensors.keys():
            raise ValueError(
                f"{file} is not the state of a training run: give another out, or take the file away to begin anew"
            )
        before, now = json.loads(metadata["config"]), self.config
        if before["model"].get("network") in ("OptimizedModule", "DataParallel"):  # as once written
            before["model"] |= {name: now["model"][name] for name in ("network", "config")}
        before["model"]["config"] = checkpoint.completed(before["model"].get("network"), before["model"].get("config"))
        fields = dataclasses.fields(self.objective)  # a run that began before a field was there has its default
        before["objective"] = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING} | before["objective"]
        differ = [
            f"{part}.{name}={now[part].get(name)!r}, there {before[part].get(name)!r}"
            for part in now
            for name in {*now[part], *before.get(part, {})}
            if name not in FREE and now[part].get(name) != before.get(part, {}).get(name)
        ]
        if differ:
            raise ValueError(
                f"{file.parent} holds another run: {'; '.join(sorted(differ))}. Give another out, or the same values"
            )

        def under(name: str) -> dict[str, Tensor]:
            return {k.removeprefix(name + "."): v for k, v in tensors.items() if k.startswith(name + ".")}

        checkpoint.fill(self.inner, under("net"), file)
        checkpoint.fill(self.average.module, under("average.module"), file)
        self.average.n_averaged.copy_(tensors["average.n_averaged"])
        self.history.state, self.errors.state = tensors["history"], tensors.get("errors", self.errors.state)
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in under("optimizer").items():
            i, name = key.split(".", 1)
            moments.setdefault(int(i), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.step = int(metadata["step"])

    def _bar(self) -> Any:
        from tqdm.auto import tqdm

        return tqdm(total=self.recipe.steps, initial=self.step, desc="training", unit=" steps")


def _fabric(precision: str) -> Fabric:
    """The processes there are: those of torchrun, or this one."""
    try:
        from lightning_fabric import Fabric
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("training needs Lightning Fabric: pip install 'scoreflow[train]'") from error
    world, local = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    fabric = Fabric(devices=local, num_nodes=max(1, world // local), precision=precision)  # type: ignore[arg-type]
    fabric.launch()
    # Labels of the time keep their digits: a ScoreModel casts the states, and nothing else.
    fabric.strategy.precision.convert_input = lambda data: data  # type: ignore[method-assign]
    return fabric


def _config(model: ScoreModel, objective: Objective, recipe: Recipe, notes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """All that a run depends on, as JSON can hold it."""
    own = {f.name: getattr(objective, f.name) for f in dataclasses.fields(objective)}
    plain = {k: f"{v!r} {identity(v)}" if isinstance(v, ScoreModel) else scalar(v) for k, v in own.items()}
    texts = {k: v if isinstance(v, str | int | float | Mapping) else say(v) for k, v in plain.items()}
    nulls = {k: "nan" if isinstance(v, float) and math.isnan(v) else v for k, v in (objective.null or {}).items()}
    texts |= {"null": nulls}  # JSON has no NaN
    net = unwrapped(model.net)
    network = {"network": type(net).__name__, "config": getattr(net, "config", None)}
    named = model.time if isinstance(model.time, str) else "a function"
    parts = {
        "model": {**network, "path": repr(model.path), "prediction": model.prediction, "time": named},
        "objective": texts,
        "recipe": dataclasses.asdict(recipe),
        "notes": dict(notes),
    }
    return json.loads(json.dumps(parts, default=checkpoint.as_json))


def _log(file: Path, steps: int) -> list[dict[str, Any]]:
    """The whole lines of a log, up to a step."""
    lines = []
    for text in file.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break
        if line["step"] <= steps:
            lines.append(line)
    return lines
