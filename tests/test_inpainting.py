"""Images given a part of them: against exact posteriors, and on the shipped network."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from problems import PATHS, states
from test_cli import run

import scoreflow as sf
from scoreflow.posterior import Observation, downsample, grayscale

EXACT = {"iterations": None, "rtol": 1e-13}


def data(event=(3, 2, 2), seed=0):
    d = math.prod(event)
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(d, d, generator=g, dtype=torch.float64)
    mean = torch.randn(d, generator=g, dtype=torch.float64).reshape(event)
    return sf.Gaussian(mean, root @ root.mT / d + 0.1 * torch.eye(d, dtype=torch.float64))


def exact_run(path, seen, batch=4, event=(3, 2, 2), steps=5, start=1.0):
    """The posterior's own model, from the same noise."""
    x_T = sf.White(0).draws("prior")(states(batch, *event)) * PATHS[path].prior_std(start)
    return sf.solve(data(event).posterior(seen).model(PATHS[path]), x_T, "ddpm", steps=steps, start=start, seed=0).x


@pytest.mark.parametrize("path", ["vp", "ve", "flow"])
def test_inpainting_is_the_posterior(path):
    """Also of a soft mask, whose pixels have variance m/(1 − m); paths with α = 0 at t = 1 begin where κ = 1000."""
    image, start = states(4, 3, 2, 2, seed=1), 1.0 if PATHS[path].alpha(1.0) else PATHS[path].time(-math.log(1000))
    mask = torch.tensor([[0.0, 1.0], [0.25, 0.8]], dtype=torch.float64)
    options = {"steps": 5, "seed": 0, "method_options": EXACT, "noise": 0.2, "sampler": "ddpm"}
    soft = sf.inpaint(data().model(PATHS[path]), image, mask, paste=False, **options)
    std = (0.04 + torch.tensor([0.0, 1 / 3, 4.0]).repeat(3)).sqrt()
    kept = torch.tensor([[True, False], [True, True]])
    for i in range(4):
        seen = Observation(kept, image[i, :, kept].flatten(), std)
        torch.testing.assert_close(soft.x[i], exact_run(path, seen, start=start)[i], rtol=1e-7, atol=1e-8)
    hard = sf.inpaint(data().model(PATHS[path]), image, mask == 1, paste=False, **options)
    whole = exact_run(path, Observation(kept, image[0, :, kept].flatten(), 0.2), start=start)
    torch.testing.assert_close(hard.x[0], whole[0], rtol=1e-7, atol=1e-8)
    pasted = sf.inpaint(data().model(PATHS[path]), image, mask, **options).x
    assert torch.equal(pasted[:, :, 0, 0], image[:, :, 0, 0]) and torch.equal(pasted[:, :, 1], soft.x[:, :, 1])


def test_what_is_hidden_is_not_looked_at():
    image, other = states(2, 3, 2, 2, seed=1), states(2, 3, 2, 2, seed=1)
    mask = torch.tensor([[True, False], [False, False]])
    other[:, :, 0, 0] = 7.0
    found = [sf.inpaint(data().model(PATHS["vp"]), one, mask, steps=4, seed=0).x for one in (image, other)]
    assert torch.equal(*found)


def test_outpainting_super_resolution_and_colours():
    """The frame is inpainted; means over squares, and weighted sums of channels, are those of the exact posterior."""
    model = data().model(PATHS["vp"])
    options = {"sampler": "ddpm", "steps": 5, "seed": 0, "method_options": EXACT, "noise": 0.2}
    corner = states(4, 3, 1, 2, seed=2)
    frame = torch.zeros(4, 3, 2, 2, dtype=torch.float64)
    frame[:, :, 1:] = corner
    out = sf.outpaint(model, corner, (0, 0, 1, 0), **options)
    same = sf.inpaint(model, frame, torch.tensor([[True], [False]]), **options)
    assert torch.equal(out.x, same.x) and torch.equal(out.x[:, :, 1:], corner)
    for call, A, y in [
        (sf.super_resolution(model, states(4, 3, 1, 1, seed=3), 2, **options), downsample(2), states(4, 3, 1, 1, seed=3)),
        (sf.colourise(model, states(4, 1, 2, 2, seed=3), **options), grayscale(), states(4, 1, 2, 2, seed=3)),
        (
            sf.colourise(model, states(4, 1, 2, 2, seed=3), weights=(0.5, 0.2, 0.3), **options),
            grayscale((0.5, 0.2, 0.3)),
            states(4, 1, 2, 2, seed=3),
        ),
    ]:
        for i in range(4):
            torch.testing.assert_close(call.x[i], exact_run("vp", Observation(A, y[i], 0.2))[i], rtol=1e-6, atol=1e-7)


def test_defaults():
    model, mask = data().model(PATHS["vp"]), torch.tensor([[True, False], [False, False]])
    sol = sf.inpaint(model, states(2, 3, 2, 2), mask, seed=range(2))
    assert sol.sampler.name == "sde-dpm-solver++" and sol.nfe == 25
    assert sol.seed == (0, 1) and "mmps" in sol.model and sol.backward > 25
    assert sf.inpaint(model, states(2, 3, 2, 2), mask, "unipc", nfe=7).nfe == 7


def test_halves_of_digits():
    """Of 40 digits that were held out the network fills in the lower halves; the classifier knows 1 in 10 by chance.

    At least half of them it knows, of which chance alone is right once in 10¹⁰.
    """
    digits = sf.zoo.digits_data()
    image, label = digits.held_out[:40], digits.held_out_labels[:40]
    mask = torch.zeros(1, 8, 8)
    mask[:, 4:] = 1.0
    sol = sf.inpaint(sf.zoo.digits(), image, mask, steps=20, seed=0)
    assert torch.equal(sol.x[:, :, :4], image[:, :, :4]) and sol.x.abs().max() < 2
    assert int((sf.zoo.digits_classifier()(sol.x).argmax(1) == label).sum()) >= 20


def picture(file, pixels):
    Image.fromarray((255 * np.asarray(pixels)).round().astype(np.uint8)).save(file)
    return str(file)


def test_from_a_shell(tmp_path):
    """The file's image, pixel by pixel: black is −1; grey of the mask is soft."""
    image = (sf.zoo.digits_data().held_out[0, 0] / 2 + 0.5).clamp(0, 1)
    levels = torch.tensor(np.asarray(255 * image).round() / 255 * 2 - 1, dtype=torch.float32)
    mask = np.zeros((8, 8))
    mask[4:] = 1.0
    mask[3] = 51 / 255
    files = ("--inpaint", picture(tmp_path / "image.png", image), "--mask", picture(tmp_path / "mask.png", mask))
    out = str(tmp_path / "x.npy")
    told = run("sample", "--model", "zoo:digits", *files, "--steps", "6", "-n", "2", "--seed", "3", "--out", out, "--json")
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    assert found["nfe"] == 6 and found["backward"] > 0 and found["sampler"].startswith("sde-dpm-solver++")
    same = sf.inpaint(sf.zoo.digits(), levels.expand(2, 1, 8, 8), torch.tensor(mask, dtype=torch.float32), steps=6, seed=3)
    np.testing.assert_allclose(np.load(out), same.x.numpy(), rtol=1e-4, atol=1e-4)
    words = ("sample", "--model", "zoo:digits", *files, "--method", "pigdm", "--sampler", "ddim(eta=0.5)@karras", "--nfe", "4")
    assert "4 evaluations and" in run(*words, "-c", "y=3", "--guidance", "2", "--out", str(tmp_path / "x.png")).stdout
    small, text = picture(tmp_path / "small.png", np.zeros((4, 8))), tmp_path / "text.png"
    text.write_text("no image")
    black, never = picture(tmp_path / "black.png", np.zeros((8, 8))), ("--out", str(tmp_path / "never.png"))
    for words, match in [
        (("--inpaint", files[1]), "--inpaint image.png and --mask mask.png go together"),
        (("--method", "mmps"), "--inpaint image.png and --mask mask.png go together"),
        (("--inpaint", small, "--mask", files[3]), "--inpaint must be 8 pixels high and 8 wide, as the samples are"),
        (("--inpaint", files[1], "--mask", small), "--mask must be 8 pixels high and 8 wide"),
        (("--inpaint", str(text), "--mask", files[3]), "--inpaint must be an image file, and "),
        (("--inpaint", "nowhere.png", "--mask", files[3]), "nowhere.png"),
        (("--inpaint", files[1], "--mask", black), "mask is 0 everywhere, and there is nothing to fill in"),
        ((*files, "--method", "mmp"), "method must be one of mmps"),
    ]:
        shown = run("sample", "--model", "zoo:digits", *words, *never)
        assert shown.returncode == 2 and match in " ".join(shown.stderr.split()), shown.stderr
    assert not (tmp_path / "never.png").exists()


def test_refusals():
    model, image = data().model(PATHS["vp"]), states(2, 3, 2, 2)
    mask = torch.tensor([[True, False], [False, False]])
    for call, kind, match in [
        (lambda: sf.inpaint(model, image, ~mask & mask), ValueError, "mask is 0 everywhere"),
        (lambda: sf.inpaint(model, image, mask | ~mask), ValueError, "mask is 1 everywhere, and nothing is kept: use sample"),
        (lambda: sf.inpaint(model, image, torch.full((2, 2), 1.5)), ValueError, r"mask must lie between 0 .* got 1\.5 to 1\.5"),
        (lambda: sf.inpaint(model, image, torch.ones(3, 3)), ValueError, r"mask must have the shape \(3, 2, 2\) of an image"),
        (lambda: sf.inpaint(model, image, [[1.0]]), TypeError, "mask must be a tensor, of booleans or from 0 to 1, got list"),
        (lambda: sf.inpaint(model, image, mask, noise=-0.1), ValueError, r"noise must be a finite number ≥ 0, got -0\.1"),
        (lambda: sf.inpaint(model, image, mask, method="mmp"), ValueError, "method must be one of"),
        (lambda: sf.inpaint(model, image, mask, method_options={"it": 1}), TypeError, "mmps has no option 'it'"),
        (lambda: sf.inpaint(model, image, mask, paste=1), TypeError, "paste must be True or False"),
        (lambda: sf.outpaint(model, image, (1, 2)), ValueError, r"padding must be \(left, right, top, bottom\)"),
        (lambda: sf.outpaint(model, image, (0, -1, 0, 0)), ValueError, "padding must be a whole number"),
        (lambda: sf.super_resolution(model, image, 0), ValueError, "factor must be a whole number"),
        (lambda: sf.colourise(model, image), ValueError, r"image must be \(B, 1, h, w\), got \(2, 3, 2, 2\)"),
    ]:
        with pytest.raises(kind, match=match):
            call()
