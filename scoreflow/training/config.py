"""A training run as a TOML file: data, network, model, objective, recipe."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, default_collate

from scoreflow import checkpoint, data
from scoreflow._core.check import meant, one_of, suggestion, whole
from scoreflow._core.noise import stream_key
from scoreflow._core.path import PATHS, Flow
from scoreflow._score.flow_map import FlowMap
from scoreflow._score.model import ScoreModel
from scoreflow._score.network import unwrapped
from scoreflow.guidance import ClassifierFree
from scoreflow.nets import MLP, DiT, UNet, two_times
from scoreflow.studies.named import load
from scoreflow.training.map_losses import MAP_LOSSES
from scoreflow.training.maps import LOSSES, MapObjective, get_objective
from scoreflow.training.objective import Objective
from scoreflow.training.recipe import Recipe
from scoreflow.training.show import Show
from scoreflow.training.trainer import train

PARTS: dict[str, tuple[str, ...]] = {
    "data": ("name", "size", "channels", "broken", "labels", "coarse"),
    "network": (),
    "model": ("path", "prediction", "time"),
    "objective": tuple(f.name for f in fields(MapObjective) if f.name != "null"),
    "recipe": tuple(f.name for f in fields(Recipe)),
}
"""The tables of a file and what each may hold; that of the network holds its arguments."""


@dataclass(frozen=True)
class Setup:
    """All that a run needs.

    Attributes:
        config: the file's tables, with what was left out filled in.
    """

    config: dict[str, dict[str, Any]]
    data: data.Data
    model: ScoreModel
    objective: Objective
    recipe: Recipe

    def run(self, out: str | Path, progress: bool = False) -> ScoreModel:
        """Train, with curves and sample sheets in `out`; goes on where it was cut."""
        shown = Show(Path(out), self.data.shape, _conditions(self.data.train, self.recipe.shown), self.recipe.shown)
        return train(
            self.model, self.data.train, self.objective, self.recipe, out=out, held_out=self.data.held_out,
            notes=self.config["data"], show=shown, progress=progress,
        )  # fmt: skip


def setup(name: str | None = None, file: str | Path | None = None, changes: Mapping[str, Any] | None = None) -> Setup:
    """A run from a name of data, a TOML file, or both.

    Left out, the network is a U-Net for the data's shape and conditions, the path the linear chain of 1000 steps, the
    prediction ε, and a tenth of the conditions is dropped. With `data.coarse = 4` the network is told each image's mean over
    squares of 4 pixels, as the condition `image`. On `pairs:folder` the path is `flow`, the prediction too, and the noise that
    of the pairs, with `objective.pairs`.

    With `objective.loss` one of `MAP_LOSSES` a flow map is trained. `objective.teacher` names a model, as `zoo:digits` or
    `run:folder`; then path and time are the teacher's, the prediction is v, or flow on `flow`, and the network begins as a
    copy of the teacher's with a second time, and with `objective.guidance` a scale. Without a teacher the path is `flow`.

    Args:
        name: of the data; it goes before what the file says.
        file: TOML with the tables data, network, model, objective, recipe.
        changes: single values, such as `{"recipe.steps": 100}`; they go before the file's.

    Raises:
        FileNotFoundError: no such file. ValueError, TypeError: a table or a value that is not allowed; says which.
    """
    config: dict[str, dict[str, Any]] = {part: {} for part in PARTS}
    if file is not None:
        try:
            read = tomllib.loads(Path(file).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"no config at {file}") from error
        except IsADirectoryError as error:
            raise ValueError(f"config {file} is a folder: give a TOML file") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"config {file} is no text in UTF-8: {error}") from error
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"config {file} is no TOML: {error}") from error
        for part, values in read.items():
            values = {"name": values} if part == "data" and isinstance(values, str) else values
            if part not in PARTS:
                raise ValueError(f"config {file}: {part!r} is none of its tables{suggestion(part, PARTS)}")
            if not isinstance(values, dict):
                raise ValueError(f"config {file}: {part} must be a table, [{part}], got {values!r}")
            config[part] |= values
    for key, value in (changes or {}).items():
        part, _, inner = key.partition(".")
        if part not in PARTS or not inner:
            raise ValueError(
                f"set must be table.name=value, the table one of {', '.join(PARTS)}, got {key!r}{meant(part, PARTS)}"
            )
        config[part][inner] = value
    if name is not None:
        config["data"]["name"] = name
    for part, known in PARTS.items():
        for inner in config[part]:
            if known and inner not in known:
                raise ValueError(f"{part} has no {inner!r}{suggestion(inner, known)}")
    return _filled(config)


def _filled(config: dict[str, dict[str, Any]]) -> Setup:
    of_loss = config["objective"]
    one_of("objective.loss", of_loss.setdefault("loss", "score"), LOSSES)
    found, told = _data(config)
    if told:
        of_loss.setdefault("drop", 0.1)
    recipe, teacher = Recipe(**config["recipe"]), _teacher(of_loss)
    objective = get_objective(**of_loss | ({"teacher": teacher} if teacher is not None else {}))
    model = _model(config, found, told, recipe.seed, teacher)
    try:
        with torch.no_grad():
            model.evaluate(torch.zeros(1, *found.shape), 0.5, **told)
    except (ValueError, RuntimeError) as error:
        net = config["network"]["name"]
        raise ValueError(f"network {net} does not take data of shape {tuple(found.shape)}: {error}") from error
    return Setup(config, found, model, objective, recipe)


def _data(config: dict[str, dict[str, Any]]) -> tuple[data.Data, dict[str, Any]]:
    """The data, and an example of each condition."""
    of_data, of_loss = config["data"], config["objective"]
    if not isinstance(of_data.get("name", ""), str):
        raise ValueError(f"data.name must be a name or a folder, got {of_data['name']!r}")
    if "name" not in of_data:
        raise ValueError(f"no data: give one of {', '.join(data.DATA)}, or a folder of images (in a shell: --data)")
    sizes = {k: v for k, v in of_data.items() if k in ("size", "channels", "broken")}
    paired = of_data["name"].startswith(data.PAIRS)
    if sizes and (of_data["name"] in data.DATA or paired):
        raise ValueError(f"data.{next(iter(sizes))} is of a folder of images; {of_data['name']} has a shape of its own")
    found = data.load(of_data["name"], **sizes)
    if not isinstance(of_data.setdefault("labels", bool(found.classes)), bool):
        raise ValueError(f"data.labels must be true or false, got {of_data['labels']!r}")
    if not of_data["labels"]:
        found = data.without_labels(found)
    if paired:
        of_loss.setdefault("pairs", True)
        config["model"] |= {"path": "flow", "prediction": "flow"} | config["model"]
        if other := sorted({*found.train[0][1]} - {"eps", *(["y"] if found.classes else [])}):
            raise ValueError(
                f"{of_data['name']} has the condition {other[0]!r}, and classes are all that this takes: use train"
            )
    elif of_loss["loss"] == "reflow":
        raise ValueError(f"objective.loss='reflow' learns from pairs, data.name='pairs:folder', got {of_data['name']!r}")
    told = {"y": torch.zeros(1, dtype=torch.long)} if found.classes else {}
    if "coarse" in of_data:
        factor = whole("data.coarse", of_data["coarse"])
        told["image"] = data.Coarse([torch.zeros(found.shape)], factor)[0][1]["image"][None]
        found = replace(found, train=data.Coarse(found.train, factor), held_out=data.Coarse(found.held_out, factor))
    return found, told


def _teacher(of_loss: Mapping[str, Any]) -> ScoreModel | None:
    """The teacher of a flow map by its name, as `scoreflow study --model` takes it; guided, if the map is told the scale."""
    named = of_loss.get("teacher")
    if named is None or of_loss["loss"] not in MAP_LOSSES:
        return None
    if not isinstance(named, str):
        raise ValueError(f"objective.teacher must be the name of a model, such as zoo:digits or run:folder, got {named!r}")
    model = load(named, compare=False).model
    return ClassifierFree(model, 1.0) if of_loss.get("guidance") is not None else model


def _model(
    config: dict[str, dict[str, Any]], found: data.Data, told: Mapping[str, Any], seed: int, teacher: ScoreModel | None
) -> ScoreModel:
    """The model that is trained, with its network."""
    of_model, of_net, of_loss = config["model"], config["network"], config["objective"]
    is_map = of_loss["loss"] in MAP_LOSSES
    if teacher is not None:
        known = [name for name, make in PATHS.items() if repr(make()) == repr(teacher.path)]
        kind = "flow" if isinstance(teacher.path, Flow) else "v"
        own = {"time": teacher.time} if isinstance(teacher.time, str) else {}
        of_model |= {"path": known[0] if known else "ddpm", "prediction": kind} | own | of_model
    of_model |= ({"path": "flow", "prediction": "flow"} if is_map else {"path": "ddpm", "prediction": "eps"}) | of_model
    one_of("model.path", of_model["path"], PATHS)
    path, guided = PATHS[of_model["path"]](), of_loss.get("guidance") is not None
    of_model.setdefault("time", "index" if path.T else "unit")
    with torch.random.fork_rng():
        torch.manual_seed(stream_key(seed, "weights"))
        if teacher is not None and not of_net and isinstance(unwrapped(teacher.net), UNet | DiT | MLP):
            net = two_times(teacher.net, guidance=guided)  # type: ignore[arg-type]
            of_net |= {"name": type(net).__name__, **net.config}  # type: ignore[dict-item]
        else:
            net = _network(of_net, of_model, found, told, {"times": 2, "guidance": guided} if is_map else {})
    prediction, time = of_model["prediction"], of_model["time"]
    return FlowMap(net, path, prediction, time) if is_map else ScoreModel(net, path, prediction, time)


def _network(
    of_net: dict[str, Any], of_model: Mapping[str, Any], found: data.Data, told: Mapping[str, Any], more: dict[str, Any]
) -> nn.Module:
    """A network for the data's shape and conditions."""
    of_net.setdefault("name", "UNet")
    kind = of_net["name"]
    one_of("network.name", kind, ("UNet", "DiT"))
    given = {k: v for k, v in of_net.items() if k != "name"}
    of_net |= {"channels": found.shape[0]} | ({"classes": found.classes} if found.classes else {}) | more | given
    if "image" in told:
        of_net.setdefault("condition_channels", found.shape[0])
    elif of_net.get("condition_channels"):
        raise ValueError(
            f"network.condition_channels={of_net['condition_channels']!r} needs data with images beside: set data.coarse"
        )
    if of_net["channels"] != found.shape[0]:
        raise ValueError(f"network.channels must be {found.shape[0]}, as of the data, got {of_net['channels']!r}")
    if kind == "DiT":
        of_net.setdefault("size", found.shape[-1])
    if of_model["time"] == "unit":
        of_net.setdefault("time_scale", 1000.0)
    try:
        return checkpoint.make(kind, **{k: v for k, v in of_net.items() if k != "name"})
    except TypeError as error:
        raise ValueError(f"network {kind}: {error}") from error


def parse(pairs: list[str]) -> dict[str, Any]:
    """`table.name=value` as changes; a value is read as TOML, true and false in any case, else it is text."""
    out = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"set must be table.name=value, got {pair!r}")
        value = value.lower() if value.lower() in ("true", "false") else value
        try:
            out[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            out[key] = value
    return out


def _conditions(train: Dataset[Any], n: int) -> dict[str, Any]:
    """The conditions of the first n samples, but for the noise of pairs."""
    whole("n", n)
    items = [train[i] for i in range(min(n, len(train)))]  # type: ignore[arg-type]
    _, conditions = data.read(default_collate(items))
    return {name: value for name, value in conditions.items() if name != "eps"}
