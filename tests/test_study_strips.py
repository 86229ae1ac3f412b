"""What a report shows of posteriors of images: truths, measurements, samples, their mean and standard deviation."""

import base64
import io

import numpy as np
import pytest
import torch

import scoreflow as sf
from scoreflow.studies.strips import picture, strips

pytestmark = pytest.mark.usefixtures("few_floors")

VP = sf.VPSDE()


def posterior(data, seen):
    return sf.Posterior(data.model(VP), seen)


def run(model, samplers, nfe, **keywords):
    return sf.study(model, samplers, nfe=nfe, reference="unipc(order=3)", **keywords)


def drawn(uri):
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("L")).astype(int)


IMAGES = sf.Gaussian(torch.zeros(1, 4, 4), 0.2 * torch.ones(1, 4, 4))
HALF = torch.arange(16).reshape(1, 4, 4) < 8


def test_pictures_of_simulated_measurements():
    """Truths, measurements, the first sample of each truth, and mean and standard deviation of its samples, in ink."""
    seen = sf.Observation(sf.posterior.downsample(2), torch.zeros(1, 2, 2), 0.1)
    study = run(posterior(IMAGES, seen), "ddpm", [6], n=24, seeds=2, simulated=6, metrics=["coverage"])
    found = {strip["label"]: strip["pictures"] for strip in strips(study)}
    std = [label for label in found if label.startswith("ddpm, standard deviation, black at ")]
    assert [*found][:4] == ["truth", "measurement", "ddpm", "ddpm, mean"] and len(std) == 1
    assert {"posterior", "posterior, mean", "converged reference"} <= set(found)
    made = sf.Subject(posterior(IMAGES, seen), (1, 4, 4), simulated=6).simulate(24, 0)
    (cell,) = [c for c in study.runs if c["kind"] == "cell" and c["seed"] == 0]
    x = study.store.samples(cell["key"])
    y = made.observation.y.repeat_interleave(2, 2).repeat_interleave(2, 3)

    def shown(images, **keywords):
        return drawn("," + base64.b64encode(picture(np.asarray(images), **keywords)).decode())

    assert (drawn(found["truth"][""]) == shown(made.truths)).all()
    assert (drawn(found["measurement"][""]) == shown(y)).all()
    (column,) = found["ddpm"]
    assert column == "6 evaluations" and (drawn(found["ddpm"][column]) == shown(x[::6])).all()
    groups = x.reshape(4, 6, 1, 4, 4)
    assert (drawn(found["ddpm, mean"][column]) == shown(groups.mean(1))).all()
    black = float(std[0].rpartition(" ")[2])
    off = np.abs(drawn(found[std[0]][column]) - shown(groups.std(1), values=(black, 0.0)))
    assert off.max() <= 2  # the label is rounded
    assert not any(run["kind"] in ("truth", "measurement") and run["seed"] for run in study.runs)


def test_pictures_of_one_measurement(tmp_path):
    """Half of an image: what was not measured is grey; mean and standard deviation are of the block. No truth is known."""
    seen = sf.Observation(HALF, torch.linspace(-1, 1, 8), 0.05)
    study = run(posterior(IMAGES, seen), ["ddim"], [4], n=6, seeds=2, metrics=["energy"])
    found = {strip["label"]: strip["pictures"] for strip in strips(study)}
    assert "truth" not in found and "ddim, mean" in found
    image = drawn(found["measurement"][""])[::6, ::6]
    assert image.shape == (4, 4) and (image[2:] == 128).all() and image[0, 0] == 255 and image[1, 3] == 0
    text = study.report(tmp_path / "r.html", light=True).read_text()
    assert "mean and standard deviation are over the samples of the block" in text and 'alt="measurement"' in text
    plain = run(IMAGES.model(VP), ["ddim"], [4], n=6, seeds=2, metrics=["energy"])
    assert "measurement" not in {strip["label"] for strip in strips(plain)}
    # A matrix measures no image: Aᵀ y, scaled to what is drawn.
    blind = sf.Subject(posterior(IMAGES, sf.Observation(torch.ones(1, 16), torch.tensor([3.0]), 0.1)), (1, 4, 4))
    assert torch.equal(blind.pictures(6, 0)["measurement"], torch.ones(1, 1, 4, 4, dtype=torch.float64))
