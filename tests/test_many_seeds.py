"""Many samples in a folder: seeds and classes as typed, in files and from seeds; what each sample is told; images."""

import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_many import CLASSED, SEEDS, VP, made

import scoreflow as sf
from scoreflow._sets.read import Kept
from scoreflow._sets.seeds import Uniform, check_shard, classes_in, parse, share
from scoreflow.studies.registry import draws

# -- seeds, classes -----------------------------------------------------------------------------------------------------


def test_seeds_as_typed():
    assert parse("0-3") == [0, 1, 2, 3] and parse("7, 2-3") == [7, 2, 3]
    for text in ("", "3-1", "a", "1-2-3", "-4", "1,,2"):
        with pytest.raises(ValueError, match="seeds must be whole numbers and ranges"):
            parse(text)


@pytest.mark.parametrize("batch", [1, 3, 100])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_shares_are_a_partition(n, batch):
    """Of whole batches: every seed is in one part, and parts differ by a batch at most."""
    parts = [share(SEEDS, batch, check_shard((i, n))) for i in range(n)]
    assert sorted(seed for part in parts for seed in part) == [*SEEDS]
    assert max(map(len, parts)) - min(map(len, parts)) <= batch


def test_uniform_classes():
    """A function of the seed alone, that of the zoo's subjects; uniform: χ² with 9 degrees is above 33.7 once in 10 000."""
    seeds = torch.arange(5000)
    y = Uniform(10)(seeds)
    assert torch.equal(y[[7, 4000, 3]], Uniform(10)(torch.tensor([7, 4000, 3])))
    assert int(y[7]) == int(sf.studies.load("zoo:digits").conditions["y"](1, 7))
    assert int(y[7]) == int(torch.randint(10, (1,), generator=draws(7, "classes")))
    counts = torch.bincount(y, minlength=10).double()
    assert float(((counts - 500) ** 2 / 500).sum()) < 33.7 and len(counts) == 10
    with pytest.raises(ValueError, match="classes must be a whole number ≥ 1, got 0"):
        Uniform(0)


def test_classes_in_a_file(tmp_path):
    (tmp_path / "y.txt").write_text("3\n1\n4\n")
    np.save(tmp_path / "y.npy", np.array([3, 1, 4], np.int32))
    for name in ("y.txt", "y.npy"):
        assert classes_in(tmp_path / name).tolist() == [3, 1, 4] and classes_in(tmp_path / name).dtype == torch.int64
    (tmp_path / "a.txt").write_text("3 b")
    np.save(tmp_path / "f.npy", np.zeros(3))
    for name in ("a.txt", "f.npy"):
        with pytest.raises(ValueError, match=r"classes in .* must be whole numbers, one a line"):
            classes_in(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"no file '.*none' is there"):
        classes_in(tmp_path / "none")


def test_each_sample_is_told_its_own(tmp_path):
    """Rows in turn by seed, functions of it, one for all; in any batch, with the class beside the sample."""
    told = {"rows": torch.tensor([5, 6, 7]), "function": lambda seeds: seeds % 2, "one": 4}
    expected = {"rows": [6, 7, 5, 7], "function": [0, 1, 0, 1], "one": [4, 4, 4, 4]}
    for name, y in told.items():
        for batch in (1, 3):
            made(tmp_path / name / str(batch), CLASSED, [4, 5, 6, 1001], y=y, batch=batch, format="tar", sampler="ddim")
            assert [float(x[0]) for x in Kept(tmp_path / name / str(batch))] == pytest.approx(expected[name], abs=1e-12)
        with tarfile.open(tmp_path / name / "3" / "000004-000006.tar") as opened:
            assert opened.getnames() == [f"00000{s}.{kind}" for s in (4, 5, 6) for kind in ("npy", "cls")]
            assert [int(opened.extractfile(f"00000{s}.cls").read()) for s in (4, 5, 6)] == expected[name][:3]
    made(tmp_path / "st", CLASSED, [4, 5, 6], y=told["rows"], format="safetensors", sampler="ddim")
    held = load_file(tmp_path / "st" / "000004-000006.safetensors")
    assert held["seeds"].tolist() == [4, 5, 6] and held["condition.y"].tolist() == [6, 7, 5] and held["x"].shape == (3, 2)


def elsewhere(x, t, y):
    assert x.device == y.device == t.device
    return x + y


def test_a_network_elsewhere_is_told_there(tmp_path, monkeypatch):
    """States and conditions are where the network is, and samples come back from there: of "meta" none can."""
    monkeypatch.setattr(sf.ScoreModel, "device", property(lambda self: torch.device("meta")))
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        made(tmp_path, sf.ScoreModel(elsewhere, VP), [1, 2], y=torch.ones(3, 2), sampler="ddim")


def test_what_belongs_to_all(tmp_path):
    """A text, and a tensor that is shared, go to the network as they are."""

    def net(x, t, text, scales):
        assert text == "a digit" and scales.shape == (3,)
        return 0.5 * x

    shared = sf.shared(torch.ones(3))
    made(tmp_path, sf.ScoreModel(net, VP), range(3), text="a digit", scales=shared, sampler="ddim")
    with pytest.raises(ValueError, match="holds other samples: conditions="):
        made(tmp_path, sf.ScoreModel(net, VP), range(3), text="a letter", scales=shared, sampler="ddim")


# -- images -------------------------------------------------------------------------------------------------------------


def test_images_as_files(tmp_path):
    """8 bits of values from −1 to 1, cut there; in tar files too. A file of another's hand is taken as it is."""
    image = torch.linspace(-1.2, 1.2, 30).reshape(1, 5, 6)
    net = sf.ScoreModel(lambda x, t: image.to(x).expand_as(x), VP, prediction="x0")
    for format in ("png", "tar"):
        made(tmp_path / format, net, [0, 1], shape=(1, 5, 6), format=format, sampler="ddim")
        bits = (255 * (image.clamp(-1, 1) + 1) / 2).round()
        assert torch.allclose((Kept(tmp_path / format)[1] + 1) * 127.5, bits, atol=1e-3)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "png/000000/000001.png")), bits[0].numpy().astype(np.uint8))
    with tarfile.open(tmp_path / "tar/000000-000001.tar") as opened:
        assert opened.getnames() == ["000000.png", "000001.png"]
