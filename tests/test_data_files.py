"""Image files as the world has them: turned, transparent, hidden, moving, of many modes, broken."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from scoreflow import data

PIXELS = np.zeros((16, 16, 3), np.uint8)
PIXELS[:8, :4] = (255, 0, 0)
PIXELS[8:, 4:] = (0, 0, 255)


def seen(file, channels=3):
    return data.Folder([file], None, 16, channels)[0]


def as_states(pixels):
    return torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)


@pytest.mark.parametrize("kind", ["png", "tiff", "webp"])
@pytest.mark.parametrize("tag", range(1, 9))
def test_orientation_tags(tag, kind, tmp_path):
    """All eight: what is read is what was meant, upright."""
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # how it lies, by the numbers of PIL's transpose
    lies = Image.fromarray(PIXELS)
    lies = lies.transpose(Image.Transpose(back[tag])) if tag > 1 else lies
    exif = Image.Exif()
    exif[0x0112] = tag
    lies.save(tmp_path / f"a.{kind}", exif=exif, **({"lossless": True} if kind == "webp" else {}))
    assert torch.equal(seen(tmp_path / f"a.{kind}"), as_states(PIXELS))


TRANSPARENT = {
    "RGBA": lambda: Image.fromarray(np.dstack([PIXELS, np.full((16, 16), 51, np.uint8)])),
    "LA": lambda: Image.fromarray(np.dstack([np.full((16, 16), 100, np.uint8), np.full((16, 16), 51, np.uint8)])),
}


@pytest.mark.parametrize("mode", TRANSPARENT)
def test_what_is_transparent_stands_on_white(mode, tmp_path):
    """`a c + (1 − a) 255`, a = 51/255 = 1/5."""
    image = TRANSPARENT[mode]()
    image.save(tmp_path / "a.png")
    c = np.asarray(image.convert("RGB"), np.float64)
    expected = as_states(0.2 * c + 0.8 * 255)
    assert float((seen(tmp_path / "a.png") - expected).abs().max()) <= 1 / 127.5
    assert float((seen(tmp_path / "a.png", 1) - expected).abs().mean()) < 0.5


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_one_colour_that_is_transparent(mode, tmp_path):
    """A palette's entry, a grey or a colour that stands for nothing is white."""
    pixels = np.where(np.arange(16) < 8, 0, 200).astype(np.uint8) * np.ones((16, 1), np.uint8)
    image = Image.fromarray(pixels).convert("RGB").quantize(2) if mode == "P" else Image.fromarray(pixels).convert(mode)
    nothing = {"P": int(np.asarray(image)[0, 0]) if mode == "P" else 0, "L": 0, "RGB": (0, 0, 0)}[mode]
    image.save(tmp_path / "a.png", transparency=nothing)
    x = seen(tmp_path / "a.png")
    assert bool((x[:, :, :8] == 1).all()) and bool(((x[:, :, 8:] + 1) * 127.5 - 200).abs().max() < 0.01)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("1", "png"),
        ("L", "png"),
        ("P", "png"),
        ("P", "gif"),
        ("RGB", "bmp"),
        ("CMYK", "tiff"),
        ("I;16", "png"),
        ("I;16", "tiff"),
    ],
)
def test_modes(mode, kind, tmp_path):
    """Black and white are black and white in every mode."""
    grey = np.where(np.arange(16) < 8, 0, 255).astype(np.uint8) * np.ones((16, 1), np.uint8)
    image = (
        Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert("RGB").convert(mode)
    )
    image.save(tmp_path / f"a.{kind}")
    for channels in (1, 3):
        assert torch.equal(seen(tmp_path / f"a.{kind}", channels), as_states(np.stack([grey] * channels, -1)))


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_the_first_frame_of_what_moves(kind, tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((255, 255, 255), (0, 0, 0), (255, 255, 255))]
    frames[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=frames[1:], lossless=True)
    assert bool((seen(tmp_path / f"a.{kind}") == 1).all())


@pytest.fixture
def folder(tmp_path):
    """Five good images, of which one ends in capitals and one is a link; others hidden; two broken."""
    place = tmp_path / "images"
    for name in ("cats/a.png", "cats/b.JPG", "dogs/old/c.jpeg", "dogs/d.webp"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        ImageOps.scale(Image.fromarray(PIXELS), 2).save(place / name)
    (place / "dogs/e.png").symlink_to(place / "cats/a.png")
    for name in ("cats/._a.png", "cats/.DS_Store", ".thumbnails/a.png"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes(b"no image")
    (place / "dogs/back").symlink_to(place)
    return place


def spoil(place):
    (place / "cats/empty.png").write_bytes(b"")
    (place / "dogs/cut.png").write_bytes((place / "cats/a.png").read_bytes()[:-40])
    (place / "dogs/gone.png").symlink_to(place / "nowhere.png")


def test_what_a_folder_holds(folder):
    """Capitals and links count, what is hidden does not, and a link that leads back ends there."""
    found = data.load(folder, size=8)
    names = sorted(f.name for part in (found.train, found.held_out) for f in {*part.files})
    assert sorted({*names}) == ["a.png", "b.JPG", "c.jpeg", "d.webp", "e.png"] and found.classes == 2 and len(names) == 5


def test_broken_files(folder, tmp_path):
    """A broken file is named when its turn comes; `broken="skip"` leaves out all and says how many."""
    spoil(folder)
    found = data.load(folder, size=8)
    said = set()
    for part in (found.train, found.held_out):
        for i, file in enumerate(part.files):
            try:
                part[i]
            except ValueError as error:
                assert str(file) in str(error) and "cannot be read as an image" in str(error)
                said.add(file.name)
    assert said == {"empty.png", "cut.png", "gone.png"}
    with pytest.warns(UserWarning, match=r"3 of 8 images in .* are left out; the first: .*empty.png"):
        kept = data.load(folder, size=8, broken="skip")
    assert len(kept.train) + len(kept.held_out) == 5
    assert all(kept.train[i][0].shape == (3, 8, 8) for i in range(len(kept.train)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.load(folder / "cats" / "..", size=8)
    (tmp_path / "none").mkdir()
    (tmp_path / "none/a.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="1 of 1"), pytest.raises(ValueError, match="holds no images"):
        data.load(tmp_path / "none", broken="skip")
    with pytest.raises(ValueError, match="broken must be one of error, skip, got 'ignore'"):
        data.load(folder, broken="ignore")
