"""Many samples in a folder: the same files whoever makes them, and in whatever order; killed, refused, read by others."""

import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import scoreflow as sf
from scoreflow._core.files import whole_file
from scoreflow._sets import log as logs
from scoreflow._sets.files import Shards
from scoreflow._sets.log import Log, Progress
from scoreflow._sets.read import Kept
from scoreflow._sets.seeds import Uniform

VP = sf.VPSDE()
MIXTURE = sf.GaussianMixture(torch.tensor([1.0, 2.0, 1.0]), torch.tensor([[-1.2, 0.0], [0.9, 0.9], [0.8, -1.1]]), 0.02)
ORACLE = MIXTURE.model(VP)
SEEDS = range(975, 1020)
"""Of two subfolders, or shards."""


def slowly(x, t):
    """A network that takes its time, and answers every sample by itself."""
    time.sleep(0.003)
    return 0.5 * x


def classed(x, t, y):
    """Its x̂_0 is the class, and of class 3 no number."""
    return torch.where(y == 3, torch.nan, y.to(x))[:, None].expand_as(x)


SLOW = sf.ScoreModel(slowly, VP)
CLASSED = sf.ScoreModel(classed, VP, prediction="x0")


def made(out, model=ORACLE, seeds=SEEDS, sampler="ddpm", shape=(2,), **more):
    return sf.generate(model, shape, seeds, out, sampler, **{"steps": 4, "dtype": torch.float64, **more})


def content(folder):
    """The bytes of all samples and of the manifest; not the logs, nor what a killed process left."""
    files = [file for file in sorted(Path(folder).rglob("*")) if file.is_file() and file.parent.name != "log"]
    return {str(name): file.read_bytes() for file in files if "/." not in f"/{(name := file.relative_to(folder))}"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Made by one process in one batch, by format."""
    out = {format: tmp_path_factory.mktemp(format) for format in ("npy", "safetensors", "tar")}
    for format, folder in out.items():
        made(folder, batch=100, format=format)
    return {format: content(folder) for format, folder in out.items()}


# -- the same files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 7, 64])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_any_number_of_parts_in_any_order_and_any_batch(whole, tmp_path, world, batch):
    """The later parts first; nobody makes what another has made."""
    counts = [made(tmp_path, batch=batch, shard=(i, world)) for i in reversed(range(world))]
    assert content(tmp_path) == whole["npy"] and len(whole["npy"]) == 46
    assert sum(one.made for one in counts) == 45 and not any(one.there or one.failed for one in counts)
    again = made(tmp_path, batch=5)
    assert (again.made, again.there, again.nfe) == (0, 45, 0) and content(tmp_path) == whole["npy"]


@pytest.mark.parametrize("format", ["safetensors", "tar"])
@pytest.mark.parametrize(("world", "batch"), [(1, 7), (3, 4)])
def test_shards_too(whole, tmp_path, format, world, batch):
    for i in reversed(range(world)):
        made(tmp_path, batch=batch, shard=(i, world), format=format)
    assert content(tmp_path) == whole[format]
    assert [*whole[format]] == [f"000975-000999.{format}", f"001000-001019.{format}", "samples.json"]
    assert not [*(tmp_path / ".parts").rglob("*.npy")]
    again = made(tmp_path, batch=5, format=format)
    assert (again.made, again.there) == (0, 45) and content(tmp_path) == whole[format]


def test_a_sample_is_that_of_its_seed(tmp_path):
    """To the bit that of `sample`, alone, with noise on its way, on a Brownian path or white."""
    for sampler in ("ddpm", "er-sde", "euler-maruyama"):
        made(tmp_path / sampler, sampler=sampler, seeds=[3, 12_345, 999_999, 1_000_000], batch=3)
        for k, seed in enumerate((3, 12_345, 999_999, 1_000_000)):
            x = sf.sample(ORACLE, (1, 2), sampler, steps=4, seed=[seed], dtype=torch.float64)
            assert torch.equal(Kept(tmp_path / sampler)[k], x[0])
    assert (tmp_path / "ddpm/012000/012345.npy").is_file()


def test_more_seeds_later(whole, tmp_path):
    """Files of before stay; of a shard that was made of some of its seeds there is another with the rest."""
    for format in ("npy", "tar"):
        folder = tmp_path / format
        made(folder, seeds=range(975, 990), format=format)
        before = content(folder)
        done = made(folder, seeds=[*SEEDS, *SEEDS], format=format)
        assert (done.made, done.there) == (30, 15) and before.items() <= content(folder).items()
        for k, x in enumerate(Kept(folder)):
            assert np.array_equal(x.numpy(), np.load(_io(whole["npy"][f"{(975 + k) // 1000:03d}000/{975 + k:06d}.npy"])))
    assert sorted(file.name for file in folder.glob("*.tar")) == [
        "000975-000989.tar", "000990-000999.tar", "001000-001019.tar"
    ]  # fmt: skip


def _io(data):
    import io

    return io.BytesIO(data)


def test_the_noise_of_one_kind_of_device_is_that_of_all(whole, tmp_path):
    made(tmp_path, noise_device="cpu")
    assert content(tmp_path) == whole["npy"]
    assert json.loads((tmp_path / "samples.json").read_text())["noise"] == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises((RuntimeError, AssertionError), match=r"(?i)cuda"):
            made(tmp_path / "other", noise_device="cuda")


# -- killed -------------------------------------------------------------------------------------------------------------

KILLED = {"model": SLOW, "seeds": range(600, 1400), "sampler": "ddpm", "steps": 3, "batch": 4}


def killed_ten_times(folder, format):
    """In a process of its own: two parts at once, one of them killed at a random moment, ten times."""
    chance, hit, before = random.Random(5), 0, {}
    made(folder.parent / f"first-{format}", **KILLED | {"seeds": range(3)}, format=format)  # all is loaded when parts begin
    for turn in range(10):
        parts = []
        for i in range(2):
            if (process := os.fork()) == 0:
                made(folder, **KILLED, format=format, shard=(i, 2))
                os._exit(0)
            parts.append(process)
        time.sleep(chance.uniform(0.02, 0.08))
        victim = turn % 2
        os.kill(parts[victim], signal.SIGKILL)
        hit += os.WIFSIGNALED(os.waitpid(parts[victim], 0)[1])
        os.kill(parts[1 - victim], signal.SIGTERM)
        os.waitpid(parts[1 - victim], 0)
        now = content(folder)
        assert before.items() <= now.items(), "a file that was there has changed"
        lines = [json.loads(line) for log in folder.glob("log/*") for line in log.read_text().splitlines()]
        told = sum(line["samples"] for line in lines if line["event"] == "batch")
        kept = kept_in(folder)
        assert told <= kept <= told + 2 * 4 * (turn + 1), "a batch that was logged is not there"
        before = now
    assert hit == 10 and kept < 800
    made(folder, **KILLED | {"batch": 7}, format=format)


def kept_in(folder):
    """How many samples there are, in files, shards, or waiting for their shard."""
    names = {file.name for place in ("*", ".parts/*") for file in folder.glob(f"{place}/[0-9]*.npy")}
    for file in folder.glob("*.tar"):
        with tarfile.open(file) as opened:
            names |= {*opened.getnames()}
    return len(names)


def test_killed_ten_times_and_made_again(tmp_path):
    script = [sys.executable, __file__, str(tmp_path)]
    subprocess.run(script, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120)
    for format in ("npy", "tar"):
        made(tmp_path / f"whole-{format}", **KILLED | {"batch": 50}, format=format)
        assert content(tmp_path / format) == content(tmp_path / f"whole-{format}")
        assert len(Kept(tmp_path / format)) == 800


def test_a_shard_whose_parts_were_all_there_when_it_was_killed(whole, tmp_path, monkeypatch):
    """Before the shard was made, and before the parts were taken away."""
    with monkeypatch.context() as patched:
        patched.setattr(Shards, "_pack", lambda self, first: None)
        made(tmp_path, format="tar")
    assert len([*tmp_path.glob(".parts/*/*.npy")]) == 45 and made(tmp_path, format="tar").made == 0
    assert content(tmp_path) == whole["tar"]
    with monkeypatch.context() as patched:
        patched.setattr(Shards, "_remove", lambda self, seeds: None)
        made(tmp_path / "other", format="tar")
    assert len([*(tmp_path / "other").glob(".parts/*/*.npy")]) == 45
    assert made(tmp_path / "other", format="tar").there == 45 and not [*(tmp_path / "other").glob(".parts/*/*.npy")]
    assert content(tmp_path / "other") == whole["tar"]


def test_a_shard_that_another_made_at_that_moment(whole, tmp_path, monkeypatch):
    """Two see that all is there; one takes the parts away before the other has read them."""
    made(tmp_path, seeds=SEEDS[:20], format="tar")
    (late,) = [Shards(tmp_path, "tar", SEEDS, lambda seeds: {}, {})]
    made(tmp_path, format="tar")
    monkeypatch.setattr(late.parts, "within", lambda first: {*SEEDS})
    late._pack(0)
    late._pack(1000)
    assert late.packed == {*SEEDS} and len(Kept(tmp_path)) == 45
    other = Shards(tmp_path / "other", "tar", SEEDS, lambda seeds: {}, {})
    monkeypatch.setattr(other.parts, "within", lambda first: {*SEEDS})
    with pytest.raises(FileNotFoundError):
        other._pack(1000)


def test_who_comes_first_writes(tmp_path):
    """A file that is there by then stays; of others the last."""
    file = tmp_path / "file"
    for first, text, says in ((True, "a", "a"), (True, "b", "a"), (False, "c", "c")):
        with whole_file(file, first=first) as part:
            part.write_text(text)
        assert file.read_text() == says and [*tmp_path.iterdir()] == [file]


# -- refused ------------------------------------------------------------------------------------------------------------

OTHERS = [
    ({"model": sf.GaussianMixture(torch.ones(1), torch.zeros(1, 2), 0.3).model(VP)}, "weights='.*', there"),
    ({"model": MIXTURE.model(sf.Flow())}, r"path='Flow\(\)', there 'VPSDE"),
    ({"sampler": "ddim"}, r"sampler='ddim\(eta=0.0\)', there \"ddpm"),
    ({"steps": 5}, "times="),
    ({"dtype": torch.float32}, "dtype='float32', there 'float64'"),
    ({"format": "tar"}, "files='tar', there 'npy'"),
    ({"shape": (1, 2)}, r"shape=\[1, 2\], there \[2\]"),
    ({"noise_device": "cuda"}, "noise='cuda', there 'cpu'"),
]


@pytest.mark.parametrize(("changes", "says"), OTHERS, ids=[next(iter(changes)) for changes, _ in OTHERS])
def test_a_folder_of_other_samples(tmp_path, changes, says):
    """What differs is named, and nothing is made."""
    made(tmp_path, seeds=[1])
    before = content(tmp_path)
    with pytest.raises(ValueError, match=f"holds other samples: .*{says}.*Give another out"):
        made(tmp_path, **changes)
    assert content(tmp_path) == before and len([*tmp_path.iterdir()]) == 3


def test_a_folder_of_other_classes(tmp_path):
    net = sf.ScoreModel(lambda x, t, y: x * 0.5 + y[:, None], VP)
    more = {"model": net, "seeds": [1]}
    made(tmp_path, **more, y=Uniform(10))
    assert made(tmp_path, **more, y=lambda seeds: Uniform(10)(seeds)).there == 1  # the same, by another name
    rows, others = torch.arange(100), torch.arange(100)
    others[80] = 7
    made(tmp_path / "rows", **more, y=rows)
    with pytest.raises(ValueError, match=r"holds other samples: conditions=.*there"):
        made(tmp_path / "rows", **more, y=others)
    for other in (Uniform(9), torch.arange(10), 3):
        with pytest.raises(ValueError, match=r"holds other samples: conditions=.*there"):
            made(tmp_path, **more, y=other)


WRONG = [
    ({"seeds": []}, ValueError, "seeds is empty"),
    ({"seeds": [3, -1]}, ValueError, "seeds must be a whole number ≥ 0, got -1"),
    ({"seeds": 2.5}, TypeError, "seeds must be a whole number ≥ 0, got 2.5"),
    ({"batch": 0}, ValueError, "batch must be a whole number ≥ 1, got 0"),
    ({"shard": (3, 3)}, ValueError, "shard must be a whole number from 0 to 2, got 3"),
    ({"format": "jpg"}, ValueError, "format must be one of npy, png, safetensors, tar, got 'jpg'"),
    ({"format": "png"}, ValueError, r"format='png' is for images.*shape \(2,\)"),
    ({"noise_device": "abacus"}, ValueError, "device must be one of torch's"),
    ({"sampler": "scipy", "steps": None}, ValueError, "sets its steps by all of a batch.*control='sample'"),
    ({"sampler": "torchsde", "adaptive": True, "steps": None}, ValueError, "sets its steps by all of a batch"),
    ({"sampler": "ddpmm"}, ValueError, "did you mean ddpm"),
    (
        {"model": CLASSED, "y": lambda seeds: torch.zeros(3)},
        ValueError,
        "'y' must give a tensor with a row for each of 64 seeds",
    ),
]


@pytest.mark.parametrize(("changes", "kind", "says"), WRONG)
def test_wrong_calls(tmp_path, changes, kind, says):
    with pytest.raises(kind, match=says):
        made(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_what_sets_its_steps_by_the_sample(tmp_path):
    for more in ({"control": "sample"}, {"batch": 1}):
        assert made(tmp_path / next(iter(more)), sampler="scipy", steps=None, rtol=1e-2, seeds=[1, 2], **more).made == 2


def test_an_out_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file: give a folder"):
        made(tmp_path / "file")


# -- what goes wrong, what is told ------------------------------------------------------------------------------------------


def test_samples_that_are_not_finite(tmp_path):
    """They alone are missing, whatever the batch; the log has their seeds, and the same call tries them again."""
    seeds, y = range(12), torch.tensor([0, 1, 2, 3])
    for batch in (1, 5, 12):
        out = made(tmp_path / str(batch), CLASSED, seeds, y=y, batch=batch, sampler="ddim")
        assert (out.made, out.failed) == (9, 3)
        assert sorted(int(file.stem) for file in tmp_path.glob(f"{batch}/000000/*.npy")) == [s for s in seeds if s % 4 != 3]
    lines = [json.loads(line) for line in (tmp_path / "12/log/00000-of-00001.jsonl").read_text().splitlines()]
    wrong = [line for line in lines if line["event"] == "error"]
    assert [line["seed"] for line in wrong] == [3, 7, 11] and "FloatingPointError" in wrong[0]["error"]
    assert Counter(line["event"] for line in lines) == {"start": 1, "batch": 6, "error": 3, "end": 1}
    assert (lines[-1]["made"], lines[-1]["left"], lines[-1]["errors"]) == (9, 0, 3) and lines[-1]["seconds"] > 0
    assert made(tmp_path / "12", CLASSED, seeds, y=y, sampler="ddim")[3:6] == (0, 9, 3)


def test_an_error_of_the_network_is_logged(tmp_path):
    def net(x, t):
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        made(tmp_path, sf.ScoreModel(net, VP), [1], sampler="ddim")
    assert (
        json.loads((tmp_path / "log/00000-of-00001.jsonl").read_text().splitlines()[-1])["error"] == "OSError: the disk is gone"
    )


def test_progress_adds_up_processes(tmp_path, capsys):
    """From the last line of each log; of a process without one yet, and of one of another run, what it lacked."""
    bar = Progress(tmp_path, 100, [40, 30, 20])
    assert (bar.bar.total, bar.bar.n) == (100, 10)
    one, two = Log(tmp_path, (0, 3), 40), Log(tmp_path, (1, 3), 25)
    one.made_of([*range(16)], 0.1)
    two.failed(3, ValueError("wrong"))
    with open(two.file, "a") as file:
        file.write('{"half a li')
    Log(tmp_path, (2, 4), 0)  # of another number of processes
    bar.update()
    assert bar.bar.n == 100 - 24 - 24 - 20 and "errors=1" in bar.bar.postfix
    old = logs.file_of(tmp_path, 2, 3)
    old.write_text(json.dumps({"time": time.time() - 1000, "left": 3, "errors": 5}) + "\n")
    bar.close()
    assert bar.bar.n == 32
    made(tmp_path / "out", seeds=[1, 2], progress=True)
    assert "2/2" in capsys.readouterr().err


def test_readers_of_damaged_files(tmp_path):
    made(tmp_path / "npy", seeds=[1, 2])
    (tmp_path / "npy/000000/000002.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"000002.npy is no whole array"):
        Kept(tmp_path / "npy")[1]
    for format in ("safetensors", "tar"):
        made(tmp_path / format, seeds=[1, 2], format=format)
        file = tmp_path / format / f"000001-000002.{format}"
        file.write_bytes(file.read_bytes()[:100])
        with pytest.raises(ValueError, match="is not a whole shard of samples"):
            Kept(tmp_path / format)
        with pytest.raises(ValueError, match="is not a whole shard of samples"):
            made(tmp_path / format, seeds=[1, 2, 3], format=format)
    with pytest.raises(FileNotFoundError, match=r"no samples at .*none: nothing is there"):
        Kept(tmp_path / "none")
    with pytest.raises(ValueError, match=r"one kind in a folder, and .* holds \.npy and \.safetensors and \.tar"):
        Kept(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds none"):
        Kept(tmp_path / "empty")
    np.save(tmp_path / "npy/000000/000002.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"must have one shape, and .*000002.npy has \(3,\), the first \(2,\)"):
        Kept(tmp_path / "npy")[1]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for format in ("npy", "tar"):
        killed_ten_times(Path(sys.argv[1]) / format, format)
