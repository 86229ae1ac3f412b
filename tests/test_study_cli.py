"""The command line of studies: what it writes and prints, its exit codes, and that a mistake is one line."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

import scoreflow as sf
from scoreflow import cli

pytestmark = pytest.mark.usefixtures("few_floors")

SMALL = [
    "study",
    "--model",
    "oracle:ring",
    "--samplers",
    "ddim,ddpm",
    "-n",
    "8",
    "--seeds",
    "2",
    "--reference",
    "scipy(rtol=1e-4)",
]


@pytest.fixture
def run(monkeypatch, capsys):
    """Run in this process: exit code, what was printed, what was said of errors."""

    def go(*words):
        monkeypatch.setattr(sys, "argv", ["scoreflow", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return go


def test_study_and_report(run, tmp_path):
    """A report and a file; findings in words; run again it adds; the report and tables can be had again."""
    code, out, err = run(*SMALL, "--nfe", "4,6", "--metrics", "trajectory,sliced-w2", "--out", tmp_path / "s")
    assert code == 0 and err == ""
    assert out.startswith("Means over 2 blocks of 8 samples, with 95 % intervals in parentheses.\n")
    assert "trajectory/median, lower is better\n" in out and "Best within 4 evaluations: ddim, " in out
    assert out.splitlines()[-1] == f"4 cells of 2 blocks, 0 failures. Report: {tmp_path / 's' / 'report.html'}"
    assert "<html" in (tmp_path / "s" / "report.html").read_text(encoding="utf-8")
    code, out, _ = run(*SMALL, "--nfe", "4,6,8", "--metrics", "trajectory,sliced-w2", "--out", tmp_path / "s", "--json")
    told = json.loads(out)
    assert code == 0 and len(told["figures"]) == 3 * (1 + 4) and told["failures"] == []
    code, out, _ = run(
        "report", tmp_path / "s", "--csv", tmp_path / "t.csv", "--parquet", tmp_path / "t.parquet", "--out", tmp_path / "r.html"
    )
    assert code == 0 and (tmp_path / "r.html").exists()
    frame = sf.Study.open(tmp_path / "s").frame
    assert len(pd.read_csv(tmp_path / "t.csv")) == len(frame) == len(pd.read_parquet(tmp_path / "t.parquet"))
    assert [line["value"] for line in told["figures"]] == pytest.approx(frame["value"].tolist())


def test_a_failed_cell_shows_in_the_exit_code(run, tmp_path):
    code, out, err = run(*SMALL[:4], "edict,ddim", *SMALL[5:], "--nfe", "1", "--metrics", "sliced-w2", "--out", tmp_path)
    assert code == 1 and "2 failures" in out
    assert err.startswith("failed: edict, nfe=1, block 0: ValueError: nfe=1 is less than") and "Traceback" not in err


@pytest.mark.parametrize("suffix", ["npy", "pt", "png"])
def test_sample(run, suffix, tmp_path):
    """Samples in a file, the same from the same seed, as `sample` would give them."""
    code, out, _ = run("sample", "--model", "oracle:ring", "--sampler", "ddim(eta=0.5)@logsnr", "--nfe", "6", "-n", "5",
                       "--seed", "3", "--out", tmp_path / f"x.{suffix}", "--json")  # fmt: skip
    assert code == 0 and json.loads(out)["nfe"] == 6
    model = sf.studies.load("oracle:ring").model
    x = sf.sample(model, (5, 2), "ddim", eta=0.5, grid="logsnr", nfe=6, seed=3, dtype=torch.float64)
    if suffix == "npy":
        assert np.array_equal(np.load(tmp_path / "x.npy"), x.numpy())
    elif suffix == "pt":
        assert torch.equal(torch.load(tmp_path / "x.pt"), x)
    else:
        assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["study", "--model", "zoo:digit", "--samplers", "ddim", "--nfe", "4"], "did you mean digits"),
        (["study", "--model", "oracle:ring", "--samplers", "dimm,ddim(x=1)", "--nfe", "4"], "dimm"),
        (["study", "--model", "oracle:ring", "--samplers", "ddim", "--nfe", "4,five"], "nfe must be whole numbers with commas"),
        (["study", "--model", "oracle:ring", "--samplers", "ddim"], "give nfe or steps"),
        (["study", "--model", "oracle:ring", "--samplers", ",", "--nfe", "4"], "samplers is empty"),
        (["study", "--model", "oracle:ring", "--samplers", "ddim", "--nfe", "4", "--metrics", "kid"], "metric 'kid' needs"),
        (["study", "--model", "oracle:ring", "--samplers", "ddim", "--nfe", "4", "--workers", "-1"], "workers must be"),
        ([*SMALL, "--nfe", "4", "--executor", "slurm:x"], "--executor must be dask, dask://host:port or submitit:folder, got"),
        ([*SMALL, "--nfe", "4", "--executor", "dask://"], "--executor must be dask, dask://host:port or submitit:folder, got"),
        ([*SMALL, "--nfe", "4", "--executor", "submitit:x", "--workers", "2"], "--workers=2 is of processes here"),
        ([*SMALL, "--nfe", "4", "-x", "cluster=slurm"], "--executor-option goes with --executor dask"),
        (["sample", "--model", "oracle:white"], "out must end in .png, .jpg, .gif, .npy, .pt, .safetensors"),
    ],
)
def test_mistakes(run, words, said, tmp_path):
    """One line and exit code 2, before anything runs."""
    out = tmp_path / ("x" if words[0] == "study" else "x.bmp")
    code, printed, err = run(*words, "--out", out)
    assert code == 2 and printed == ""
    assert said in err and len(err.splitlines()) == 1 and not out.exists()


def test_no_study(run, tmp_path):
    code, _, err = run("report", tmp_path / "nowhere")
    assert code == 2 and err == f"scoreflow: no study at {tmp_path / 'nowhere' / 'study.sqlite'}\n"


def test_debug_shows_where(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scoreflow", "--debug", "plan", "dimm"])
    with pytest.raises(ValueError, match="did you mean"):
        cli.main()


@pytest.mark.parametrize("workers", [0, 1])
def test_stopped_by_hand(workers, tmp_path):
    """Ctrl-C: one line, exit code 130, a file that the same command goes on from; nothing is left running."""
    more = ["--nfe", "40,60,80", "--metrics", "log-likelihood", "--out", tmp_path / "s", "--workers", workers, "--seeds", 12]
    words = [sys.executable, "-m", "scoreflow", *SMALL, *map(str, more)]
    begun = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline, done = time.monotonic() + 90, 0
    while done < 40 and time.monotonic() < deadline:  # past the floors, into the cells
        time.sleep(0.05)
        if (file := tmp_path / "s" / "study.sqlite").exists():
            store = sqlite3.connect(file, timeout=30)
            try:
                (done,) = store.execute("SELECT count(*) FROM cell").fetchone()
            except sqlite3.OperationalError:
                pass
            store.close()
    os.killpg(begun.pid, signal.SIGINT)
    out, err = begun.communicate(timeout=30)
    assert (begun.returncode, out) == (130, "")
    assert err == f"scoreflow: stopped; what was finished is in {tmp_path / 's'}, and the same command goes on from there\n"
    assert _gone(begun.pid)
    kept = sf.Study.open(tmp_path / "s")
    assert len(kept.cells["key"].unique()) >= done


@pytest.mark.filterwarnings("ignore")  # Dask's and submitit's own: ports, deprecations, logs left open
def test_executors(run, tmp_path):
    """A Dask cluster that the command starts, here of threads, and submitit's jobs, here in this process: the same table."""
    small = [*SMALL, "--nfe", "4", "--metrics", "sliced-w2", "--json"]
    executors = [
        [], ["--executor", "dask", "--workers", "2", "-x", "processes=false", "-x", "worker_dashboard_address=null"],
        ["--executor", f"submitit:{tmp_path}/jobs", "-x", "cluster=debug"],
    ]  # fmt: skip
    told = []
    for i, words in enumerate(executors):
        code, out, err = run(*small, "--out", tmp_path / str(i), *words)
        assert code == 0, err
        told.append(json.loads(out)["figures"])
    assert told[0] == told[1] == told[2] and told[0]


def _gone(group):
    """Whether no process of the group is left, after at most 10 seconds."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_the_bar_counts_all_evaluations_once(monkeypatch, tmp_path):
    """Its total is what is to be run, less what is there already; it ends at the total."""
    totals = []

    class Bar:
        def __init__(self, total, **more):
            self.total, self.n = total, 0
            totals.append(self)

        def update(self, n):
            self.n += n

        def __getattr__(self, name):
            return lambda *of, **more: None

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

    monkeypatch.setattr("tqdm.auto.tqdm", Bar)
    more = {"n": 4, "seeds": 2, "metrics": "trajectory", "reference": "ddim", "progress": True, "out": tmp_path}
    sf.study("oracle:ring", ["ddim"], nfe=[4, 6], **more)
    sf.study("oracle:ring", ["ddim"], nfe=[4, 6, 9], **more)
    assert [bar.total for bar in totals] == [2 * (113 + 4 + 6), 2 * 9] == [bar.n for bar in totals]
