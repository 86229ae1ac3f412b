"""Bad input gets a clear error, and nothing is half done: plans, checkpoints, citations."""

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import BETAS, CHAIN, COSINE, VP, X, both, zero_model

import scoreflow as sf

# -- plans --------------------------------------------------------------------------------------------------------------


def plan_json(**changes):
    return json.dumps({**json.loads(sf.plan("ddim", VP, steps=2).to_json()), **changes})


def without(name):
    data = json.loads(plan_json())
    del data[name]
    return json.dumps(data)


@pytest.mark.parametrize(
    "text",
    [
        "", "rubbish", "[]", "{}", "null", "42", '"ddim"', "[1, 2]", plan_json()[:-10], plan_json() + "x", 5, None,
        without("steps"), without("sampler"), without("path"), without("prediction"), without("options"),
        plan_json(steps=3), plan_json(steps=[]), plan_json(steps=[[1.0, 0.5]]), plan_json(steps=[[1.0, 0.0, True, []]]),
        plan_json(steps=[[1.0, 0.0, True, [[0.0, [1.0]]]]]), plan_json(steps=[["a", 0, True, [[0, ["b", [1], 0]]]]]),
        plan_json(prediction="banana"), plan_json(options=3), plan_json(rows=[]),
    ],
)  # fmt: skip
def test_text_that_is_no_plan(text):
    with pytest.raises(ValueError, match="no plan"):
        sf.Plan.from_json(text)


def test_text_that_is_a_plan():
    plan = sf.plan("ddim", VP, steps=2)
    assert sf.Plan.from_json(plan_json()) == plan


ENDS = np.linspace(1e-4, 0.02, 1000)
OTHER_BETAS = np.concatenate([ENDS[:1], np.full(998, 0.001), ENDS[-1:]])
"""Of the same length and with the same ends as `BETAS`, and yet another chain."""


@both
@pytest.mark.parametrize(
    ("path", "other"),
    [
        (VP, sf.VPSDE(beta_max=19.0)),
        (VP, sf.SubVPSDE()),
        (VP, COSINE),
        (CHAIN, VP),
        (CHAIN, sf.VPSDE.from_betas(BETAS[:500])),
        (CHAIN, sf.VPSDE.from_betas(OTHER_BETAS)),
        (sf.VESDE(), sf.VESDE(sigma_max=51.0)),
    ],
    ids=repr,
)
def test_a_plan_for_another_path(run, path, other):
    plan, model = sf.plan("ddim", path, grid=[1.0, 0.5, 0.0]), zero_model(other)
    with pytest.raises(ValueError, match="plan was made for"):
        run(model, sampler=plan, seed=0)
    assert model.nfe == 0


@both
@pytest.mark.parametrize(
    "keywords", [dict(steps=3), dict(nfe=3), dict(grid="uniform"), dict(start=0.5), dict(stop=0.1), dict(denoise=True)]
)
def test_a_plan_has_its_times(run, keywords):
    model, (name,) = zero_model(), keywords
    with pytest.raises(ValueError, match=f"plan has its times.*{name}="):
        run(model, sampler=sf.plan("ddim", VP, steps=3), seed=0, **keywords)
    assert model.nfe == 0


def test_a_plan_of_a_sampler_that_is_not_there():
    """It runs: its rows are its own, whoever made them."""
    plan = sf.plan("ddim", VP, steps=2)
    theirs = dataclasses.replace(plan, sampler="theirs")
    assert torch.equal(sf.solve(zero_model(), X, theirs).x, sf.solve(zero_model(), X, plan).x)


# -- checkpoints --------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    file = tmp_path / "tiny.safetensors"
    sf.zoo.save(sf.nets.UNet(widths=(8, 16)), file)
    return file


def rewrite(file, change=lambda weights: None, **metadata):
    """The checkpoint with other weights or metadata; None takes an entry of the metadata away."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    weights = load_file(file)
    with safe_open(file, framework="pt") as opened:
        metadata = {**opened.metadata(), **metadata}
    change(weights)
    save_file(weights, file, metadata={k: v for k, v in metadata.items() if v is not None})


def test_a_checkpoint_that_is_whole(checkpoint):
    net = sf.zoo.load(checkpoint)
    assert not net.training
    assert net.config["widths"] == [8, 16]


def test_a_checkpoint_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*nothing\.safetensors"):
        sf.zoo.load(tmp_path / "nothing.safetensors")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        sf.zoo.load(tmp_path)


@pytest.mark.parametrize("kept", [0, 4, 100, -1000, -1])
def test_a_checkpoint_that_is_cut_short(checkpoint, kept):
    checkpoint.write_bytes(checkpoint.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"tiny\.safetensors is not a whole safetensors file"):
        sf.zoo.load(checkpoint)


def test_a_checkpoint_of_torch_save(checkpoint):
    torch.save(sf.nets.UNet(widths=(8, 16)).state_dict(), checkpoint)
    with pytest.raises(ValueError, match=r"tiny\.safetensors is not a whole safetensors file"):
        sf.zoo.load(checkpoint)


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return open, (self.file, "w")


def test_a_pickle_is_not_unpickled(checkpoint):
    sprung = checkpoint.with_name("sprung")
    checkpoint.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        sf.zoo.load(checkpoint)
    assert not sprung.exists()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda w: w.update({"first.wait": w.pop("first.weight")}), "1 weights missing, 1 unknown.*first.wait"),
        (lambda w: w.pop("last.2.bias"), r"1 weights missing, 0 unknown.*last.2.bias.*\(1,\)"),
        (lambda w: w.update(more=torch.zeros(2)), r"0 weights missing, 1 unknown.*more.*\(2,\)"),
        (lambda w: w.update({"last.2.bias": torch.zeros(5)}), r"1 of another shape.*last.2.bias.*\(1,\).*\(5,\)"),
    ],
)
def test_a_checkpoint_of_other_weights(checkpoint, change, match):
    rewrite(checkpoint, change)
    with pytest.raises(ValueError, match=f"does not fit UNet: .*{match}"):
        sf.zoo.load(checkpoint)


@pytest.mark.parametrize(
    ("metadata", "match"),
    [
        (dict(network="VNet"), r"tiny.*network 'VNet'; known are MLP, UNet, DiT, Autoencoder, Classifier, NoisyClassifier"),
        (dict(network=None), r"tiny.*network None; known are MLP, UNet, DiT, Autoencoder, Classifier, NoisyClassifier"),
        (dict(config=None), r"tiny.*config"),
        (dict(config="rubbish"), r"tiny.*config"),
        (dict(config='{"wids": [8, 16]}'), r"tiny.*wids"),
    ],
)
def test_a_checkpoint_of_another_network(checkpoint, metadata, match):
    rewrite(checkpoint, **metadata)
    with pytest.raises(ValueError, match=match):
        sf.zoo.load(Path(checkpoint))


# -- what was cited -----------------------------------------------------------------------------------------------------


def test_nothing_to_cite():
    with pytest.raises(ValueError, match=r"'ddmi'; did you mean ddpm, ddim or edm"):
        sf.cite("ddmi")
