"""Stores, checkpoints, configurations and runs with missing parts, or of another kind: refused by name, left as they are."""

import re
import sqlite3

import numpy as np
import pytest
import sweeps
import torch
from refusals import VP, zero_model
from test_cli import run

import scoreflow as sf
from scoreflow import checkpoint
from scoreflow.studies.store import SCHEMA, Store
from scoreflow.training import Recipe, setup, train

MODEL = sf.ScoreModel(sf.nets.MLP(2, width=8), VP)


# -- stores -------------------------------------------------------------------------------------------------------------


def database(file, *statements):
    store = sqlite3.connect(file)
    for statement in statements:
        store.executescript(statement)
    store.commit()
    store.close()


OTHER = [SCHEMA.replace("counted REAL", "cost REAL"), SCHEMA.replace("value REAL, error", "value REAL, wrong")]
EMPTY = {
    "no bytes": lambda file: file.write_bytes(b""),
    "another table": lambda file: database(file, "CREATE TABLE recipe (name TEXT)"),
    "columns of cells": lambda file: database(file, OTHER[0]),
    "columns of values": lambda file: database(file, OTHER[1]),
    "columns of meta": lambda file: database(file, SCHEMA.replace("meta (name", "meta (key")),
}


@pytest.mark.parametrize("make", EMPTY.values(), ids=EMPTY)
def test_a_file_that_is_no_study(make, tmp_path):
    file = tmp_path / "study.sqlite"
    make(file)
    before = file.read_bytes()
    with pytest.raises(ValueError, match=r"study\.sqlite is not a study, or is damaged \(it .*not touched"):
        sf.Study.open(tmp_path)
    assert file.read_bytes() == before


def test_a_study_that_was_stopped_before_it_began(tmp_path):
    """A file of no bytes is what is left of it: a study goes on there."""
    (tmp_path / "study.sqlite").write_bytes(b"")
    assert len(sweeps.run(tmp_path, samplers=["ddim"], nfe=[4], seeds=1).specs) == 1


def test_a_study_that_was_stopped_as_its_tables_were_made(tmp_path, monkeypatch):
    """There are all of them or none."""
    monkeypatch.setattr("scoreflow.studies.store.SCHEMA", SCHEMA.partition(";")[0] + "; and here it is stopped;")
    with pytest.raises(OSError, match="syntax error"):
        Store(tmp_path / "study.sqlite", {"model": "m"})
    monkeypatch.undo()
    Store(tmp_path / "study.sqlite", {"model": "m"}).close()


def test_a_store_of_a_newer_version(tmp_path):
    """Told before its columns are looked at."""
    Store(tmp_path / "study.sqlite", {"model": "m"}).close()
    database(tmp_path / "study.sqlite", "UPDATE meta SET value = '99' WHERE name = 'format'", "DROP TABLE cell")
    with pytest.raises(ValueError, match=r"has format 99, this version reads .*written by a newer scoreflow: update"):
        sf.Study.open(tmp_path)


# -- checkpoints --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "match"),
    [
        ({}, "path=None: .*m.safetensors was trained on a path that it does not say, which has no name; give path="),
        ({"path": "moon", "path_text": "Moon()"}, "was trained on Moon\\(\\), which has no name; give path="),
        ({"path": "vp"}, "time=None: .*m.safetensors was trained with a function of its own for the time; give time="),
        ({"path": "vp", "time": "unit", "prediction": "noise"}, "prediction in .*m.safetensors must be one of eps"),
    ],
)
def test_a_model_with_missing_parts(metadata, match, tmp_path):
    file = tmp_path / "m.safetensors"
    checkpoint.save(MODEL.net, file, **{"prediction": "eps", **metadata})
    with pytest.raises(ValueError, match=match):
        sf.load_model(file)
    if not metadata:
        assert sf.load_model(file, path=VP, time=lambda t: t).path == VP


def test_where_a_model_may_go(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must lie in a folder that is there; .*nowhere is none"):
        sf.save_model(MODEL, tmp_path / "nowhere" / "m.safetensors")
    with pytest.raises(IsADirectoryError, match="is a folder: give the name of a file in it"):
        sf.save_model(MODEL, tmp_path)
    assert not list(tmp_path.iterdir())
    latent = sf.latent.Latent(MODEL, sf.nets.Autoencoder(1, 2, (8,)))
    with pytest.raises(
        TypeError, match="got Latent: of a Latent, write its model with save_model and its autoencoder with save"
    ):
        sf.save_model(latent, tmp_path / "m.safetensors")


def test_who_may_read_a_model(tmp_path):
    """Whoever may read another new file there."""
    (tmp_path / "new").touch()
    sf.save_model(MODEL, tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").stat().st_mode == (tmp_path / "new").stat().st_mode


def test_what_a_model_is_read_with(tmp_path):
    file = tmp_path / "m.safetensors"
    sf.save_model(MODEL, file)
    for wrong in ("cudaa", 5.0, "cuda:a"):
        with pytest.raises(ValueError, match="device must be one of torch's, such as 'cpu' or 'cuda', got"):
            sf.load_model(file, device=wrong)
    for wrong in ("float32", torch.int32, np.float32):
        with pytest.raises(TypeError, match="dtype must be a floating dtype"):
            sf.zoo.digits(dtype=wrong)
    with pytest.raises(TypeError, match="net must be a torch module"):
        sf.load_model(file, zero_model().net)


def test_numbers_of_numpy_are_numbers(tmp_path):
    """In a network's configuration, and in a recipe: read back, and gone on with."""
    sf.zoo.save(sf.nets.MLP(np.int64(2), width=np.int32(8), dropout=np.float64(0.5)), tmp_path / "n.safetensors")
    assert sf.zoo.load(tmp_path / "n.safetensors").config["width"] == 8
    assert Recipe(steps=np.int64(3), rate=np.float32(0.5), seed=np.uint8(1)) == Recipe(steps=3, rate=0.5, seed=1)
    for count in (int, np.int64):
        train(MODEL, torch.randn(8, 2), None, Recipe(steps=count(2), batch=count(4)), out=tmp_path)


# -- runs ---------------------------------------------------------------------------------------------------------------


def test_a_run_with_missing_parts(tmp_path):
    data, recipe = torch.randn(8, 2), Recipe(steps=2, batch=4)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file: give a folder"):
        train(MODEL, data, None, recipe, out=tmp_path / "file")
    out = tmp_path / "run"
    train(MODEL, data, None, recipe, out=out)
    state, whole = out / "state.safetensors", (out / "state.safetensors").read_bytes()
    state.write_bytes(whole[:-8])
    with pytest.raises(ValueError, match=r"state\.safetensors is not a whole safetensors file"):
        train(MODEL, data, None, recipe, out=out)
    state.write_bytes((out / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"state\.safetensors is not the state of a training run: give another out"):
        train(MODEL, data, None, recipe, out=out)
    state.write_bytes(whole)
    for name in ("log.jsonl", "config.json"):
        (out / name).unlink()
    train(MODEL, data, None, recipe, out=out)


@pytest.mark.parametrize("precision", ["fp16", "half", 32, None, "bf16_mixed"])
def test_a_precision_that_is_none(precision):
    with pytest.raises(ValueError, match="precision must be one of 32-true, 64-true"):
        Recipe(precision=precision)


def test_a_configuration_that_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config at .*none\.toml"):
        setup("digits", tmp_path / "none.toml")
    with pytest.raises(ValueError, match="is a folder: give a TOML file"):
        setup("digits", tmp_path)
    (tmp_path / "bad.toml").write_bytes(b'data = "\xff"')
    with pytest.raises(ValueError, match=r"bad\.toml is no text in UTF-8"):
        setup(file=tmp_path / "bad.toml")
    with pytest.raises(ValueError, match=r"data.name must be a name or a folder, got 5"):
        setup(changes={"data.name": 5})
    with pytest.raises(ValueError, match=r"network.channels must be 1, as of the data, got 3"):
        setup("digits", changes={"network.channels": 3})


def test_where_a_command_may_write(tmp_path):
    """Before anything is read or run."""
    for option in ("--out", "--csv", "--parquet"):
        shown = run("report", str(tmp_path), option, str(tmp_path / "nowhere" / "x"))
        assert shown.returncode == 2 and re.search(f"{option[2:]}=.* must lie in a folder that is there", shown.stderr)
    (tmp_path / "x.png").mkdir()
    shown = run("sample", "--model", "zoo:digits", "--nfe", "2", "--out", str(tmp_path / "x.png"))
    assert shown.returncode == 2 and "x.png' is a folder: give the name of a file in it" in shown.stderr


# -- shapes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "shape", "says"),
    [
        (sf.nets.UNet(1, (8, 8)), (4, 3, 8, 8), r"images of shape \(B, 1, H, W\) .* got shape \(4, 3, 8, 8\)"),
        (sf.nets.UNet(1, (8, 8)), (4, 64), r"images of shape \(B, 1, H, W\)"),
        (sf.nets.DiT(3, 8, 2, 16, 1, 2), (4, 1, 8, 8), r"images of shape \(B, 3, H, W\)"),
        (sf.nets.MLP(2, 8), (4, 3), r"states must be of shape \(B, 2\) .* got \(4, 3\)"),
        (sf.nets.MLP(2, 8), (4,), r"states must be of shape \(B, 2\)"),
    ],
)
def test_a_shape_that_a_network_does_not_take(net, shape, says):
    with pytest.raises(ValueError, match=says):
        sf.sample(sf.ScoreModel(net, VP), shape, "ddim", steps=2, seed=0)
