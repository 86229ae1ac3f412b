"""The command line: what it prints, and that a mistake is one line and exit code 2."""

import io
import json
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import scoreflow as sf
from scoreflow import cli

ROOT = Path(__file__).parent.parent


def run(*words):
    """In this process: exit code, what was printed, what was said of errors."""
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["scoreflow", *words]
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        sys.argv = argv
    return subprocess.CompletedProcess(words, ended.value.code or 0, out.getvalue(), err.getvalue())


def test_as_a_module():
    """`python -m scoreflow` in a process of its own, with a mistake."""
    words = [sys.executable, "-m", "scoreflow", "cite", "nobody"]
    shown = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
    told = run("cite", "nobody")
    assert (shown.returncode, shown.stdout, shown.stderr) == (
        told.returncode,
        told.stdout,
        told.stderr,
    ) and told.returncode == 2


def test_samplers():
    """At least 45 names with order, evaluations, noise, memory and reference; the docs' table is the same."""
    shown = run("samplers")
    assert shown.returncode == 0 and shown.stderr == ""
    lines = shown.stdout.splitlines()
    assert lines[0].split()[:2] == ["sampler", "order"] and len(lines) > 46
    told = json.loads(run("samplers", "--json").stdout)
    assert [line["name"] for line in told] == [line.name for line in sf.samplers()]
    assert all(re.search(r", \d{4}$", line["reference"]) for line in told)
    text = (ROOT / "docs/samplers.md").read_text(encoding="utf-8")
    assert text.endswith(run("samplers", "--markdown").stdout)


def test_show_is_the_page():
    assert run("show", "ddim(eta=0.5)").stdout.strip() == sf.get_sampler("ddim", eta=0.5).doc
    assert "no sampler is called" in run("show", "ddimm").stderr


def test_plan():
    """What auto picks at a budget with its health, and any sampler with its options."""
    shown = run("plan", "auto", "--nfe", "8")
    assert shown.returncode == 0
    path = sf.VPSDE.from_betas(sf.DDPMChain.linear().beta)
    chosen = sf.plan("auto", path, nfe=8)
    assert shown.stdout.rstrip("\n") == f"{chosen}\n{chosen.check()}"
    told = run("plan", "ddim", "--path", "vp", "--steps", "4", "--grid", "logsnr", "-o", "eta=0.5", "--json")
    assert sf.Plan.from_json(told.stdout) == sf.plan("ddim", sf.VPSDE(), 4, grid="logsnr", eta=0.5)


def test_cite():
    assert run("cite", "ddim", "ho2020ddpm").stdout.rstrip("\n") == sf.cite("ddim", "ho2020ddpm").rstrip("\n")


def test_sample_by_class_and_guided(tmp_path):
    """`-c` tells the network its classes, in turn; `--guidance` is classifier-free."""
    out = str(tmp_path / "x.npy")
    run("sample", "--model", "zoo:digits", "--nfe", "8", "-n", "5", "-c", "y=[3,7]", "--guidance", "2", "--out", out)
    y = torch.tensor([3, 7, 3, 7, 3])
    guided = sf.ClassifierFree(sf.zoo.digits(), 2.0)
    x = sf.sample(guided, (5, 1, 8, 8), nfe=8, seed=0, y=y)
    torch.testing.assert_close(torch.from_numpy(np.load(out)), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ending", ["npy", "pt", "png"])
def test_samples_are_read_back(ending, tmp_path):
    """As they were made; of a picture, something to see."""
    out = tmp_path / f"x.{ending}"
    assert run("sample", "--model", "zoo:digits", "--nfe", "4", "-n", "2", "-c", "y=3", "--out", str(out)).returncode == 0
    x = sf.sample(sf.zoo.digits(), (2, 1, 8, 8), nfe=4, seed=0, y=torch.tensor([3, 3]))
    if ending == "png":
        shown = np.asarray(Image.open(out).convert("L"))
        assert shown.std() > 20 and min(shown.shape) >= 8
    else:
        read = torch.from_numpy(np.load(out)) if ending == "npy" else torch.load(out)
        torch.testing.assert_close(read, x, rtol=1e-4, atol=1e-4)


SAMPLE = ("sample", "--model", "zoo:digits", "--nfe", "2", "--out", "never.png")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("plan", "dimm"), "did you mean"),
        (("plan", "ddim", "--path", "moon"), "path must be one of vp"),
        (("plan", "ddim", "--nfe", "0"), "nfe must"),
        (("plan", "ddim", "-o", "eta"), "option must be name=value"),
        (("plan", "ddim", "-o", "bogus=1"), "no option 'bogus'"),
        (("cite", "nobody"), "nobody"),
        ((*SAMPLE, "--sampler", "ddim(y=3)"), "has no option 'y'"),
        ((*SAMPLE, "--sampler", "ddim(seed=3)"), "has no option 'seed'"),
        ((*SAMPLE, "--sampler", "auto(start=0.5)"), "sampler 'auto' has no option 'start'; it has analytic"),
        ((*SAMPLE, "-n", "0"), "n must be a whole number ≥ 1, got 0"),
        ((*SAMPLE, "-c", "z=3"), "'z' is neither"),
        (
            ("sample", "--model", "zoo:digits", "--out", "/nowhere/x.png"),
            "out='/nowhere/x.png' must lie in a folder that is there; /nowhere is none",
        ),
    ],
)
def test_mistakes(words, said):
    shown = run(*words)
    assert shown.returncode == 2 and shown.stdout == ""
    assert said in shown.stderr and len(shown.stderr.splitlines()) == 1 and "Traceback" not in shown.stderr
