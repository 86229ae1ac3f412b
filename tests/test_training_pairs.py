"""Pairs of noise and sample: killed and resumed, refused, read."""

import pickle
import random
import shutil
import time
from pathlib import Path

import pytest
import torch
from forked import FORKED
from problems import Classed
from torch.utils.data import DataLoader

import scoreflow as sf
from scoreflow.training import Pairs, pairs

FLOW, VP = sf.Flow(), sf.VPSDE()
MIXTURE = sf.GaussianMixture(torch.tensor([1.0, 2.0, 1.0]), torch.tensor([[-1.2, 0.0], [0.9, 0.9], [0.8, -1.1]]), 0.02)
MADE = {"sampler": "dpm-solver++", "steps": 60, "batch": 8, "seed": 3}


def made(out, n=200):
    return pairs(MIXTURE.model(VP), (2,), n, out, **MADE)


def content(folder):
    """The bytes of all that is written, but for what a killed process left."""
    return {file.name: file.read_bytes() for file in Path(folder).iterdir() if not file.name.startswith(".")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Made without a break."""
    out = tmp_path_factory.mktemp("whole")
    made(out)
    return out


def started(out):
    process = FORKED.Process(target=made, args=(out,))
    process.start()
    return process


def test_killed_and_made_again(whole, tmp_path):
    """Kill −9 at random moments, twice: what was written stays as it was, and in the end all is as without a break."""
    chance, before = random.Random(1), {}
    for least in (3, 9):
        process = started(tmp_path)
        while process.is_alive() and len(list(tmp_path.glob("pairs-*"))) < least:
            time.sleep(0.002)
        time.sleep(chance.random() * 0.1)
        process.kill()
        process.join()
        now = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in tmp_path.glob("pairs*")}
        assert least < len(now) < 25 and before.items() <= now.items()
        before = now
    made(tmp_path)
    after = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in tmp_path.glob("pairs*")}
    assert before.items() <= after.items() and content(tmp_path) == content(whole)


def test_two_processes_at_once(whole, tmp_path):
    """Both end well, and leave what one would."""
    both = [started(tmp_path) for _ in range(2)]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0] and content(tmp_path) == content(whole)


def test_a_pair_is_what_solve_makes_of_its_noise(whole):
    """x_0 is where the sampler leads from ε; ε is standard normal, and depends on the seed and the pair's number alone."""
    found = Pairs(whole)
    assert len(found) == 200 and found.shape == (2,) and "dpm-solver++" in repr(found)
    x_0, eps = (torch.stack(parts) for parts in zip(*((x, told["eps"]) for x, told in found), strict=True))
    x = sf.solve(MIXTURE.model(VP), eps * VP.prior_std(1.0), "dpm-solver++", steps=60).x
    torch.testing.assert_close(x_0, x, rtol=1e-5, atol=1e-5)
    assert abs(float(eps.mean())) < 5 / 400**0.5 and abs(float(eps.square().mean()) - 1) < 5 * (2 / 400) ** 0.5
    assert len(eps.unique(dim=0)) == 200
    assert torch.equal(found[-1][0], x_0[199]) and torch.equal(found[torch.tensor(17)][1]["eps"], eps[17])
    with pytest.raises(IndexError, match="pair 200 of 200"):
        found[200]


def test_a_larger_number_adds_to_them(whole, tmp_path):
    """Files that are there stay; pairs are those of one go, to rounding where a file was short, to the bit where not."""
    few = made(tmp_path, 20)
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in tmp_path.glob("pairs-*")}
    assert len(few) == 20 and len(before) == 3
    more, there = made(tmp_path, 61), Pairs(whole)
    assert before.items() <= {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in tmp_path.glob("pairs-*")}.items()
    assert len(more) == 61 and len(made(tmp_path, 30)) == 61
    ends = [int(file.stem.split("-")[2]) for file in sorted(tmp_path.glob("pairs-*"))]
    assert ends == [8, 16, 20, 24, 32, 40, 48, 56, 61]
    for i in range(61):
        for one, other in zip((more[i][0], more[i][1]["eps"]), (there[i][0], there[i][1]["eps"]), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
            assert torch.equal(one, other) or 16 <= i < 24 or i >= 56
    assert not torch.equal(
        pairs(MIXTURE.model(VP), (2,), 8, tmp_path / "other", **MADE | {"seed": 4})[0][1]["eps"], more[0][1]["eps"]
    )


def test_the_longest_of_two_files_is_read(whole, tmp_path):
    """Processes that make other numbers of pairs at once may leave two files that begin alike."""
    made(tmp_path, 20)
    for name in ("pairs-00000016-00000024.safetensors", "pairs-00000024-00000032.safetensors"):
        shutil.copy(whole / name, tmp_path)
    assert len(Pairs(tmp_path)) == 32 and torch.equal(Pairs(tmp_path)[23][0], Pairs(whole)[23][0])


OTHERS = [
    ({"seed": 4}, "seed=4, there 3"),
    ({"batch": 9}, "batch=9, there 8"),
    ({"steps": 9}, "times="),
    ({"sampler": "ddim"}, r"sampler='ddim\(eta=0.0\)', there \"dpm-solver"),
    ({"dtype": torch.float64}, "dtype='float64', there 'float32'"),
    ({"shape": (1, 2)}, r"shape=\[1, 2\], there \[2\]"),
    ({"model": sf.GaussianMixture(torch.ones(1), torch.zeros(1, 2), 0.3).model(VP)}, "weights='.*', there"),
    ({"model": MIXTURE.model(FLOW)}, r"path='Flow\(\)', there 'VPSDE"),
]


@pytest.mark.parametrize(("changes", "says"), OTHERS, ids=[next(iter(changes)) for changes, _ in OTHERS])
def test_a_folder_with_other_pairs(whole, changes, says):
    """What differs is named, and nothing is written."""
    before = content(whole)
    asked = {"model": MIXTURE.model(VP), "shape": (2,), "n": 8, "out": whole, **MADE, **changes}
    with pytest.raises(ValueError, match=f"holds other pairs: .*{says}.*Give another out"):
        pairs(**asked)
    assert content(whole) == before


def test_folders_refused(whole, tmp_path):
    """No folder, no manifest, no shard, one that is missing, cut short, renamed or of others."""
    for place, error, says in [
        (tmp_path / "none", FileNotFoundError, "no pairs at .*none"),
        (tmp_path, ValueError, "holds no pairs: there is no pairs.json"),
        (whole / "pairs.json", NotADirectoryError, "pairs.json is a file"),
    ]:
        with pytest.raises(error, match=says):
            Pairs(place)
    with pytest.raises(NotADirectoryError, match="is a file: give a folder"):
        made(whole / "pairs.json")
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    one = broken / "pairs-00000016-00000024.safetensors"
    data = one.read_bytes()
    one.unlink()
    with pytest.raises(ValueError, match="lacks the pairs from 16 to 23: make them again"):
        Pairs(broken)
    made(broken)
    assert one.read_bytes() == data and len(Pairs(broken)) == 200
    one.write_bytes(data[: len(data) // 2])
    assert Pairs(broken)[15][0].shape == (2,)
    for read in (lambda: Pairs(broken)[16], lambda: made(broken)):
        with pytest.raises(ValueError, match=r"00000016-00000024.safetensors is not a whole shard of pairs"):
            read()
    pairs(MIXTURE.model(VP), (2,), 24, tmp_path / "other", **MADE | {"seed": 4})
    shutil.copy(tmp_path / "other" / one.name, one)
    for read in (lambda: Pairs(broken)[16], lambda: made(broken)):
        with pytest.raises(ValueError, match=r"holds other pairs than pairs.json beside it says"):
            read()
    one.unlink()
    for file in broken.glob("pairs-*"):
        if file.name > "pairs-00000024":
            file.unlink()
    shutil.copy(whole / "pairs-00000008-00000016.safetensors", one)
    (broken / "pairs-00000008-00000016.safetensors").rename(broken / "pairs-00000008-00000024.safetensors")
    with pytest.raises(ValueError, match="holds 8 pairs, and its name says 16"):
        Pairs(broken)[8]
    (broken / "pairs.json").write_text("{}")
    with pytest.raises(ValueError, match="has format None, and this version reads 1"):
        Pairs(broken)
    (broken / "pairs.json").write_text("{")
    with pytest.raises(ValueError, match="is no manifest of pairs"):
        Pairs(broken)
    (broken / "pairs.json").unlink()
    with pytest.raises(ValueError, match=r"holds shards of pairs, and no pairs.json"):
        made(broken)
    shutil.copy(whole / "pairs.json", tmp_path)
    with pytest.raises(ValueError, match=r"holds no pairs yet: pairs.json is there"):
        Pairs(tmp_path)


def classed():
    torch.manual_seed(0)
    return sf.ScoreModel(Classed(), VP)


def test_guidance_and_conditions(tmp_path):
    """Rows, a row for all, a function of the numbers: each is kept with the pairs, and is what the model was told."""
    guided, y = sf.ClassifierFree(classed(), 3.0, null={"y": 0.0}), torch.arange(30.0)

    def told(numbers, seed):
        return numbers * 2.0 + seed

    for name, given, rows in [
        ("rows", y, y[:20]),
        ("each", sf.each(y[:20]), y[:20]),
        ("number", 3.0, torch.full((20,), 3.0)),
        ("one", torch.tensor([3.0]), torch.full((20,), 3.0)),
        ("function", told, told(torch.arange(20), 5)),
    ]:
        asked = {"sampler": "ddim", "steps": 4, "batch": 8, "seed": 5}
        found = pairs(guided, (2,), 20, tmp_path / name, y=given, **asked)
        assert found.conditions == ("y",) and torch.equal(found.condition("y"), rows)
        x_0, kept = next(iter(DataLoader(found, 20)))
        assert torch.equal(kept["y"], rows) and found.manifest["conditions"] == {"y": ["float32", []]}
        x = sf.solve(guided, kept["eps"] * VP.prior_std(1.0), "ddim", steps=4, y=rows).x
        torch.testing.assert_close(x_0, x, rtol=1e-5, atol=1e-6)
        plain = sf.solve(classed(), kept["eps"] * VP.prior_std(1.0), "ddim", steps=4, y=rows).x
        assert name == "each" or (x - plain).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"model=.*scale=2.0.*, there .*scale=3.0"):
        pairs(sf.ClassifierFree(classed(), 2.0, null={"y": 0.0}), (2,), 20, tmp_path / "rows", y=y, **asked)
    with pytest.raises(ValueError, match="condition 'y' is another than that of the pairs 8 to 15"):
        pairs(guided, (2,), 20, tmp_path / "rows", y=y + (torch.arange(30) == 9), **asked)
    assert len(pairs(guided, (2,), 30, tmp_path / "rows", conditions={"y": torch.cat([y, y])}, **asked)) == 30
    fewer = pairs(guided, (2,), 10, tmp_path / "rows", conditions={"y": y[:10]}, **asked)
    assert len(fewer) == 30  # of the file that goes further, the rows that are given are looked at
    with pytest.raises(KeyError, match="no condition 'z': the pairs have y"):
        found.condition("z")


def posterior(method):
    data = sf.Gaussian(torch.zeros(2), 1.0)
    return sf.Posterior(data.model(VP), sf.Observation(torch.eye(2, dtype=torch.float64)[:1], torch.ones(1), 0.1), method)


@pytest.mark.parametrize("kind", ["pigdm", "dps", "ve"])
def test_other_models(kind, tmp_path):
    """Posteriors by methods that draw nothing, and a path whose prior is wide."""
    model = sf.Gaussian(torch.zeros(2), 1.0).model(sf.VESDE()) if kind == "ve" else posterior(kind)
    found = pairs(model, (2,), 5, tmp_path, "ddim", steps=4, start=0.9, dtype=torch.float64)
    eps = torch.stack([told["eps"] for _, told in found])
    x = sf.solve(model, eps * model.path.prior_std(0.9), "ddim", steps=4, start=0.9).x
    torch.testing.assert_close(torch.stack([x_0 for x_0, _ in found]), x)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"sampler": "ddpm"}, ValueError, r"ddpm\(.*\) draws noise on its way, and x_0 must be a function of ε"),
        ({"sampler": "ddim", "eta": 0.5}, ValueError, "draws noise on its way"),
        ({"sampler": "sra", "steps": None}, ValueError, "draws noise on its way"),
        ({"sampler": "ddimm"}, ValueError, "no sampler is called 'ddimm'"),
        ({"model": posterior("replacement"), "start": 0.9}, ValueError, "the model draws noise of its own in a run"),
        ({"shape": 2}, TypeError, "shape must be a sequence of whole numbers, that of one sample, got 2"),
        ({"n": 0}, ValueError, "n must be a whole number ≥ 1, got 0"),
        ({"batch": 0}, ValueError, "batch must be a whole number ≥ 1, got 0"),
        ({"seed": -1}, ValueError, "seed must be a whole number ≥ 0, got -1"),
        ({"dtype": torch.int64}, TypeError, "dtype must be a floating-point torch.dtype, got torch.int64"),
        ({"z": 3}, TypeError, "'z' is neither an argument"),
        ({"y": torch.zeros(5)}, ValueError, r"condition 'y' has 5 rows for n=9 pairs: give one a pair, or one row for all"),
        ({"y": "a cat"}, TypeError, "condition 'y' must be a number, a tensor or a function .*, got str: .* texts as what"),
        ({"y": sf.shared(torch.zeros(9))}, ValueError, "condition 'y' belongs to all pairs alike"),
        ({"y": lambda numbers, seed: 3}, ValueError, "condition 'y' must give a tensor with a row for each of 1 .*, got int"),
        ({"model": MIXTURE}, TypeError, "model must be a ScoreModel"),
    ],
)  # fmt: skip
def test_calls_refused(tmp_path, changes, error, says):
    """Before anything is written."""
    asked = {"model": classed(), "shape": (2,), "n": 9, "out": tmp_path / "new", "sampler": "ddim", "steps": 2, **changes}
    with pytest.raises(error, match=says):
        pairs(**asked)
    assert not (tmp_path / "new").exists()


def test_a_condition_called_eps(tmp_path):
    def net(x, t, eps):
        return x

    with pytest.raises(ValueError, match="the condition 'eps' would be taken for the noise of the pairs"):
        pairs(sf.ScoreModel(net, VP), (2,), 4, tmp_path, "ddim", steps=2, conditions={"eps": 1.0})


def test_workers_read_them(whole):
    """In a DataLoader with two processes, and after pickling, opened or not."""
    found = Pairs(whole)
    found[3]
    alone = list(DataLoader(found, 64))
    for copy in (found, pickle.loads(pickle.dumps(found))):
        for one, other in zip(DataLoader(copy, 64, num_workers=2), alone, strict=True):
            assert torch.equal(one[0], other[0]) and torch.equal(one[1]["eps"], other[1]["eps"])
