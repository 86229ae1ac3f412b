"""`scoreflow sample --seeds`: ranks of torchrun, parts of job arrays, Dask, submitit; `scoreflow measure`."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_cli import run
from test_many import content

import scoreflow as sf
from scoreflow._sets.read import Kept
from scoreflow._sets.seeds import Uniform
from scoreflow.cli import many

ORACLE = "oracle:mixture(d=2)"
ASKED = ["sample", "--model", ORACLE, "--sampler", "ddpm", "--steps", "3", "--seeds", "0-29"]


def sampled(out, *more, asked=ASKED):
    done = run(*asked, "--out", str(out), "--json", *more)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    told = sampled(out)
    assert (told["made"], told["there"], told["failed"], told["nfe"], told["parts"]) == (30, 0, 0, 3, 1)
    assert told["samples_a_second"] > 0 and told["folder"] == str(out)
    return out


def test_the_library_makes_the_same(whole, tmp_path):
    what = sf.studies.load(ORACLE)
    sf.generate(what.model, (2,), range(30), tmp_path, "ddpm", steps=3, dtype=torch.float64)
    assert content(tmp_path) == content(whole)


def test_parts_of_a_job_array_and_of_ranks(whole, tmp_path, monkeypatch):
    """In any order; a part may be divided among ranks once more."""
    for i in (2, 0):
        assert sampled(tmp_path, "--shard", f"{i}/3", "--batch", "4")["made"] == (8 if i == 2 else 12)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        sampled(tmp_path, "--shard", "1/3", "--batch", "4")
    assert content(tmp_path) == content(whole)
    names = {file.name for file in tmp_path.glob("log/*")}
    assert names == {f"{i:05d}-of-{n:05d}.jsonl" for i, n in ((0, 3), (2, 3), (1, 6), (4, 6))}


def test_submitit(whole, tmp_path):
    """A job array; its cluster "debug" runs in this process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # submitit's own: logs left open
        told = sampled(
            tmp_path / "out", "--executor", f"submitit:{tmp_path}/jobs", "--jobs", "3", "--batch", "4", "-x", "cluster=debug"
        )
    assert (told["made"], told["parts"]) == (30, 3) and content(tmp_path / "out") == content(whole)


def test_dask(whole, tmp_path, capfd):
    """Workers in threads of this process, found by their scheduler's address; and one that fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Dask's own: ports, deprecations
        from dask.distributed import LocalCluster

        with LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, protocol="tcp://", dashboard_address=None,
            worker_dashboard_address=None,
        ) as cluster:  # fmt: skip
            where = ["--executor", cluster.scheduler_address.replace("tcp", "dask"), "--batch", "4"]
            told = sampled(tmp_path / "out", *where)
            again = run(*ASKED, "--steps", "4", "--out", str(tmp_path / "out"), *where, "--jobs", "3")
    assert (told["made"], told["parts"]) == (30, 2) and content(tmp_path / "out") == content(whole)
    assert again.returncode == 1 and "3 of 3 parts failed" in again.stderr and "holds other samples" in again.stderr


# -- what is typed ------------------------------------------------------------------------------------------------------

DIGITS = ["sample", "--model", "zoo:digits", "--sampler", "ddim", "--steps", "2", "--seeds", "5,7-8", "--batch", "2"]


def test_classes(tmp_path):
    """Of the zoo uniform by seed, by itself and by name; a file or a list in turn by seed; none."""
    (tmp_path / "y.txt").write_text("3\n1\n4\n")
    seeds = torch.tensor([5, 7, 8])
    given = {
        "itself": ([], Uniform(10)(seeds)), "uniform": (["--classes", "uniform"], Uniform(10)(seeds)),
        "five": (["--classes", "uniform:5"], Uniform(5)(seeds)), "list": (["-c", "y=[3,1,4]"], torch.tensor([4, 1, 4])),
        "file": (["--classes", str(tmp_path / "y.txt")], torch.tensor([4, 1, 4])),
        "one": (["-c", "y=6"], torch.tensor([6] * 3)),
        "none": (["--classes", "none"], None),
    }  # fmt: skip
    for name, (words, y) in given.items():
        sampled(tmp_path / name, *words, "--format", "safetensors", asked=DIGITS)
        held = load_file(tmp_path / name / "000005-000008.safetensors")
        assert ("condition.y" in held) == (y is not None) and (y is None or torch.equal(held["condition.y"], y))
    x = sf.sample(sf.zoo.digits(), (3, 1, 8, 8), "ddim", steps=2, seed=[5, 7, 8])
    torch.testing.assert_close(held["x"], x, rtol=1e-5, atol=1e-5)
    guided = sf.ClassifierFree(sf.zoo.digits(), 2.0)
    sampled(tmp_path / "guided", "-c", "y=6", "--guidance", "2", asked=DIGITS)
    x = sf.sample(guided, (3, 1, 8, 8), "ddim", steps=2, seed=[5, 7, 8], y=torch.tensor([6] * 3))
    torch.testing.assert_close(torch.stack([*Kept(tmp_path / "guided")]), x, rtol=1e-5, atol=1e-5)


WRONG = [
    (["-n", "4"], "-n does not go with --seeds"), (["--seed", "4"], "--seed does not go with --seeds"),
    (["--jobs", "4"], "--jobs and --executor-option go with --executor"),
    (["--executor", "dask://a:1", "--shard", "0/2"], "--shard makes one part, and --executor all of them"),
    (["--executor", "slurm:4"], "--executor must be dask, dask://host:port or submitit:folder, got 'slurm:4'"),
    (["--executor", "submitit:"], "--executor must be dask, dask://host:port or submitit:folder"),
    (["--executor", "submitit:jobs"], "needs --jobs, how many parts the array has"),
    (["--shard", "1"], "--shard must be i/n, as 0/8 to 7/8, got '1'"), (["--shard", "a/2"], "--shard must be i/n"),
    (["--shard", "2/2"], "shard must be a whole number from 0 to 1, got 2"),
    (["--seeds", "9-2"], "seeds must be whole numbers and ranges of them"),
    (["--batch", "0"], "batch must be a whole number ≥ 1"),
    (["--classes", "uniform"], "this model does not say how many classes it has"),
    (["--classes", "uniform:ten"], "--classes must be uniform, uniform:10, none or a file"),
    (["--classes", "nowhere"], "no file 'nowhere' is there"), (["--classes", "none", "-c", "y=3"], "both say the classes"),
    (["--device", "cpu"], "the model has no network that could be moved"),
    (["--format", "gif"], "format must be one of npy, png"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "says"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_what_is_typed_wrong(tmp_path, words, says):
    done = run(*ASKED, "--out", str(tmp_path / "out"), *words)
    assert done.returncode == 2 and says in done.stderr and not (tmp_path / "out").exists()


def test_what_goes_with_seeds_only(tmp_path):
    for word, value in (("--shard", "0/2"), ("--classes", "none"), ("--format", "npy"), ("--batch", "3"), ("-x", "a=b")):
        done = run("sample", "--model", ORACLE, "--out", str(tmp_path / "x.npy"), word, value)
        assert done.returncode == 2 and "goes with --seeds 0-49999" in done.stderr


def test_executors_that_are_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr("scoreflow._extras.find_spec", lambda name: None)
    for where in ("dask://localhost:1", "submitit:jobs"):
        done = run(*ASKED, "--out", str(tmp_path), "--executor", where, "--jobs", "2")
        assert done.returncode == 1 and "pip install 'scoreflow[cluster]'" in done.stderr


def test_a_device(tmp_path, monkeypatch):
    """The network goes there; under torchrun `cuda` is the rank's."""
    sampled(tmp_path, "--device", "cpu", "--noise-device", "cpu", asked=DIGITS)
    monkeypatch.setenv("LOCAL_RANK", "3")
    named = {"cuda": "cuda:3", "cuda:1": "cuda:1", "cpu": "cpu", None: None}
    assert {device: many._of_rank(device) for device in named} == named


def test_samples_that_fail(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text(
        "import torch, scoreflow as sf\n"
        "def make():\n    return sf.ScoreModel(lambda x, t: torch.where(x > 0, torch.nan, x), sf.VPSDE())\n"
    )
    words = ["sample", "--model", f"{tmp_path}/broken.py:make", "--shape", "1", "--seeds", "0-3", "--nfe", "2"]
    done = run(*words, "--out", str(tmp_path / "out"))
    failed = 4 - len(Kept(tmp_path / "out"))
    assert done.returncode == 1 and f"{failed} failed" in done.stdout and 0 < failed < 4


# -- measure ------------------------------------------------------------------------------------------------------------


def measured(*words):
    done = run("measure", *map(str, words), "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_measured(whole, tmp_path):
    """Figures and blocks; parts as of a job array, put together, are the whole."""
    data = tmp_path / "data.npy"
    np.save(data, sf.studies.load(ORACLE).oracle.sample(200, seed=3).numpy())
    told = measured(whole, "--data", data, "--metrics", "frechet,kid,sliced-w2", "--save", tmp_path / "all.npz")
    assert (told["n"], told["m"], told["sizes"], told["features"]) == (30, 200, [10, 10, 10], "the samples themselves")
    assert set(told["figures"]) == {"frechet", "kid", "sliced-w2"}
    files = [tmp_path / f"{i}.npz" for i in range(3)]
    for i, file in enumerate(files):
        measured(whole, "--shard", f"{i}/3", "--save", file)
    merged = measured(*reversed(files), "--data", data)["figures"]["frechet"]
    assert merged["all"] == pytest.approx(told["figures"]["frechet"]["all"], rel=1e-10)
    assert merged["blocks"][::-1] == pytest.approx(told["figures"]["frechet"]["blocks"], rel=1e-10)
    assert measured(tmp_path / "all.npz", "--data", data)["figures"] == {"frechet": {"all": merged["all"]}}
    shown = run("measure", str(whole), "--data", str(data), "--blocks", "2").stdout
    assert "30 samples against 200 data" in shown and "2 blocks of 15" in shown and " ± " in shown


def test_features_as_typed(whole, tmp_path):
    (tmp_path / "mine.py").write_text("def twice(x):\n    return 2 * x\n")
    words = [whole, "--data", whole, "--metrics", "frechet", "--shard", "0/2"]
    plain, twice = measured(*words), measured(*words, "--features", f"{tmp_path}/mine.py:twice")
    assert twice["features"] == "twice"
    assert twice["figures"]["frechet"]["all"] == pytest.approx(4 * plain["figures"]["frechet"]["all"], rel=1e-9)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "give --data to compare to, or --save"), (["--save", "x.npy"], "--save must end in .npz"),
        (["--save", "nowhere/x.npz"], "must lie in a folder that is there"), (["--data", "nowhere"], "nothing is there"),
        (["--data", "digits", "--metrics", "trajectory"], "metric 'trajectory' needs more than samples and data"),
        (["--data", "digits", "--metrics", "frechett"], "did you mean frechet"),
        (["--data", "digits", "--part", "test"], "one of train"),
        (["--data", "digits", "--features", "nothing"], "no features are called 'nothing'"),
    ],
)  # fmt: skip
def test_measures_typed_wrong(whole, words, says):
    done = run("measure", str(whole), *words)
    assert done.returncode == 2 and says in done.stderr


# -- in processes -------------------------------------------------------------------------------------------------------

RANKS = """
import sys, torch
torch.set_num_threads(1)
from scoreflow import cli
for words in {words}:
    sys.argv = ["scoreflow", *words]
    try:
        cli.main()
    except SystemExit as ended:
        assert not ended.code
"""


def test_torchrun(whole, tmp_path):
    """Two ranks make samples and then, with one another, their features: as one process does."""
    words = [
        [*ASKED, "--batch", "4", "--out", str(tmp_path / "out")],
        ["measure", str(whole), "--data", str(whole), "--shard", "0/2", "--metrics", "frechet,sliced-w2", "--json"],
    ]
    script = tmp_path / "ranks.py"
    script.write_text(RANKS.format(words=words))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    root = str(Path(sf.__file__).parents[1])
    done = subprocess.run(
        launch, env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "out") == content(whole) and len([*tmp_path.glob("out/log/*-of-00002.jsonl")]) == 2
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]  # the first rank's
    assert json.loads(line) == measured(*words[1][1:-1])
