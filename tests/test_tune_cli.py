"""`scoreflow tune`, and the plans that it leaves in the commands that take them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_cli import run

import scoreflow as sf
from scoreflow._samplers.plan import Fit
from scoreflow._score.fingerprint import identity

MODEL = ("--model", "oracle:mixture(d=2)")
TUNE = ("tune", *MODEL, "--nfe", "4,5", "--seeds", "16,16,16", "--iterations", "5")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """The folder, and what was printed; samplers on two grids alone."""
    folder = tmp_path_factory.mktemp("runs") / "mixture"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scoreflow.tuning.screen.GRIDS", ("ode",))
        shown = run(*TUNE, "--out", str(folder))
    assert shown.returncode == 0 and shown.stderr == ""
    return folder, shown.stdout


def test_what_it_prints(tuned):
    """Of each budget the decision, what the test seeds say, the cost and the file."""
    folder, shown = tuned
    for nfe in (4, 5):
        one = sf.Tuned.load(folder / f"tuned-{nfe}.json")
        (part,) = re.findall(rf"^{nfe} evaluations: .*?plan-{nfe}\.json$", shown, flags=re.M | re.S)
        assert one.reason in part and f"plan: {folder / f'plan-{nfe}.json'}" in part
        for name in ("returned", "best", "auto"):
            (cells,) = re.findall(rf"^  {name} +(\S+) +(\S+) +(\S+)$", part, flags=re.M)
            assert [float(cell) for cell in cells] == pytest.approx(
                [one.test[name][figure] for figure in ("median", "quantile", "rms")], rel=5e-3
            )
        assert f"{one.screened} candidates" in part and "16 test seeds" in part
        assert sf.load_plan(folder / f"plan-{nfe}.json") == one.plan
    assert f"--sampler plan:{folder} " in shown.splitlines()[-1]


def test_again_it_is_read_as_one_document(tuned):
    """All was there already: nothing is fitted again, and more budgets could be added."""
    folder, _ = tuned
    before = {file.name: file.stat().st_mtime_ns for file in folder.glob("[pt]*-*.json")}
    shown = run(*TUNE, "--out", str(folder), "--json")
    told = json.loads(shown.stdout)
    assert [one["nfe"] for one in told["budgets"]] == [4, 5] and told["folder"] == str(folder)
    for one in told["budgets"]:
        kept = sf.Tuned.load(folder / f"tuned-{one['nfe']}.json")
        assert one["accepted"] == kept.accepted and one["reason"] == kept.reason and one["test"]["best"] == kept.test["best"]
        assert sf.load_plan(one["plan"]) == kept.plan
    assert before == {file.name: file.stat().st_mtime_ns for file in folder.glob("[pt]*-*.json")}


def test_a_folder_of_another_problem_is_refused(tuned):
    shown = run(*TUNE, "--seed", "7", "--out", str(tuned[0]))
    assert shown.returncode == 2 and "holds another problem: seeds was" in shown.stderr and len(shown.stderr.splitlines()) == 1


def test_sample_and_plan_take_it(tuned, tmp_path):
    folder, _ = tuned
    out, sampler = tmp_path / "x.npy", f"plan:{folder}"
    shown = run("sample", *MODEL, "--sampler", sampler, "--nfe", "4", "-n", "5", "--seed", "3", "--out", str(out))
    assert shown.returncode == 0 and ", a plan of tune, 4 evaluations" in shown.stdout
    model, plan = sf.studies.load(MODEL[1]).model, sf.load_plan(folder / "plan-4.json")
    x = sf.sample(model, (5, 2), plan, seed=3, dtype=torch.float64)
    assert np.array_equal(np.load(out), x.numpy())
    told = run("sample", *MODEL, "--sampler", f"{sampler}/plan-4.json", "-n", "5", "--seed", "3", "--out", str(out), "--json")
    assert json.loads(told.stdout)["tuned"] and np.array_equal(np.load(out), x.numpy())
    for words in (("--nfe", "4"), ("--nfe", "4", *MODEL)):
        assert run("plan", sampler, *words).stdout == f"{plan}\n{plan.check(sf.VPSDE())}\n"
    assert sf.Plan.from_json(run("plan", f"{sampler}/plan-5.json", "--json").stdout).nfe == 5


def test_a_study_takes_it(tuned, tmp_path):
    """Under the folder's name, at the budgets that it is for."""
    folder, _ = tuned
    shown = run(
        "study", *MODEL, "--samplers", f"ddim,plan:{folder}", "--nfe", "4,5,6", "-n", "4", "--seeds", "2", "--metrics",
        "trajectory", "--reference", "unipc", "--out", str(tmp_path / "s"), "--json",
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    told = json.loads(shown.stdout)
    cells = {(line["sampler"], line["asked"]) for line in told["figures"]}
    assert cells == {("ddim", 4), ("ddim", 5), ("ddim", 6), ("plan:mixture", 4), ("plan:mixture", 5)}
    assert "plan:mixture" in " ".join(told["findings"]["trajectory/median"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("sample", *MODEL, "--sampler", "plan:{}", "--nfe", "6", "--out", "x.npy"), "no plan for nfe=6; it has plans for 4"),
        (("sample", *MODEL, "--sampler", "plan:{}", "--out", "x.npy"), "is a folder, and nfe says which plan of it"),
        (("sample", *MODEL, "--sampler", "plan:{}@karras", "--nfe", "4", "--out", "x.npy"), "takes no grid or options"),
        (("sample", *MODEL, "--sampler", "plan:nowhere", "--nfe", "4", "--out", "x.npy"), "no file or folder 'nowhere'"),
        (("sample", "--model", "oracle:ring", "--sampler", "plan:{}", "--nfe", "4", "--out", "x.npy"), "fit it anew with tune"),
        (("study", *MODEL, "--samplers", "plan:{}", "--nfe", "9", "--out", "s"), "has plans for nfe=4, 5, and none for 9"),
        (("plan", "plan:{}", "--nfe", "4", "--path", "flow"), "the model stands on Flow()"),
        (("plan", "plan:{}", "--nfe", "4", "--model", "oracle:ring"), "fit it anew with tune"),
        (("show", "plan:{}"), "scoreflow plan plan:"),
        (("tune", *MODEL, "--nfe", "4,x", "--out", "t"), "nfe must be whole numbers with commas between, got '4,x'"),
        (("tune", *MODEL, "--nfe", "1", "--out", "t"), "nfe must be a whole number ≥ 2, got 1"),
        (("tune", *MODEL, "--nfe", "4", "--seeds", "16,16", "--out", "t"), "seeds must be three numbers"),
        (("tune", *MODEL, "--nfe", "4", "--form", "nois", "--out", "t"), "form must be one of noise, data, got 'nois'"),
        (("tune", *MODEL, "--nfe", "4", "--budget-s", "0", "--out", "t"), "budget_s must be a finite number > 0"),
        (("tune", *MODEL, "--nfe", "4", "-c", "y=3", "--out", "t"), "'y'"),
    ],
)  # fmt: skip
def test_mistakes(words, said, tuned, tmp_path, monkeypatch):
    """One line and exit code 2, and nothing is left."""
    monkeypatch.chdir(tmp_path)
    shown = run(*(word.format(tuned[0]) for word in words))
    assert shown.returncode == 2 and shown.stdout == "" and said in shown.stderr and len(shown.stderr.splitlines()) == 1
    assert not [*tmp_path.iterdir()]


def test_conditions_and_guidance_are_part_of_the_problem(monkeypatch, tmp_path):
    """`-c` is what states draw from, a model's own conditions stay else; `--guidance` is of the model that is fitted to."""
    asked = []

    def fit(model, nfe, **more):
        asked.append((model, nfe, more))
        raise ValueError("enough")

    monkeypatch.setattr(sf, "tune", fit, raising=False)
    for words in (
        ("-c", "y=[3,7]"),
        ("-c", "y=3", "--guidance", "2"),
        ("--workers", "1", "--form", "data", "--budget-s", "9.5"),
    ):
        run("tune", "--model", "zoo:digits", "--nfe", "5,6", "--out", str(tmp_path / "t"), *words)
    (plain, nfe, listed), (guided, _, one), (_, _, rest) = asked
    assert nfe == [5, 6] and listed["shape"] == (1, 8, 8) and listed["conditions"]["y"].tolist() == [3, 7]
    assert (
        isinstance(guided, sf.ClassifierFree) and repr(guided.model) == repr(plain) and one["conditions"]["y"].tolist() == [3]
    )
    assert callable(rest["conditions"]["y"]) and rest["form"] == "data" and rest["budget_s"] == 9.5
    assert rest["executor"] is not None and listed["executor"] is None


def test_auto_takes_a_plan_beside_a_trained_model(tmp_path):
    """`sample --model run:folder`, whose file has a plan for 3 evaluations."""
    net = sf.nets.UNet(widths=(8,))
    with torch.no_grad():  # it begins at 0
        [*net.parameters()][-2].normal_(0, 0.1)
    model = sf.ScoreModel(net.eval(), sf.VPSDE())
    plan = replace(sf.plan("ddim", model.path, 3), fit=Fit(identity(model), repr(model), 3))
    sf.save_model(model, tmp_path / "model.safetensors", plans=[plan])
    (tmp_path / "config.json").write_text(json.dumps({"notes": {"name": "digits", "labels": False}}), encoding="utf-8")
    out = tmp_path / "x.npy"
    words = ("sample", "--model", f"run:{tmp_path}", "-n", "2", "--out", str(out))
    assert run(*words, "--nfe", "3").stdout.startswith("2 samples by ddim(eta=0.0), a plan of tune, 3 evaluations")
    x = sf.sample(model, (2, 1, 8, 8), "ddim", steps=3, seed=0)
    torch.testing.assert_close(torch.from_numpy(np.load(out)), x)
    for other in (("--nfe", "4"), ("--steps", "3"), ("--nfe", "3", "--sampler", "auto(analytic=1)")):
        shown = run(*words, *other)
        assert shown.returncode == 0 and "a plan of tune" not in shown.stdout


def test_stopped_by_hand(tmp_path):
    """Ctrl-C: one line, exit code 130; the same command goes on from the folder, and does not screen again."""
    folder = tmp_path / "t"
    command = ("tune", *MODEL, "--nfe", "4", "--seeds", "16,16,16", "--iterations", "100000", "--out", str(folder))
    words = [sys.executable, "-m", "scoreflow", *command]
    begun = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (folder / "screen-4.json").exists() and begun.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(begun.pid, signal.SIGINT)
    out, err = begun.communicate(timeout=30)
    assert (begun.returncode, out) == (130, "")
    assert err == f"scoreflow: stopped; what was finished is in {folder}, and the same command goes on from there\n"
    before = (folder / "screen-4.json").stat().st_mtime_ns
    assert not (folder / "tuned-4.json").exists()
    assert run(*command, "--budget-s", "1").returncode == 0
    assert (folder / "screen-4.json").stat().st_mtime_ns == before and sf.load_plan(folder / "plan-4.json").fit.nfe == 4


def test_noise(tmp_path, few_grids):
    """A stochastic plan for each budget, which `sample` takes; what it has no use for; a folder of the other kind."""
    folder = tmp_path / "noise"
    call = ("tune", "--noise", *MODEL, "--nfe", "4,5", "--seeds", "16,16,16", "--iterations", "5", "--out")
    shown = run(*call, str(folder))
    assert shown.returncode == 0 and shown.stderr == "", shown.stderr
    for nfe in (4, 5):
        assert f"plan: {folder / f'plan-{nfe}.json'}" in shown.stdout
        plan = sf.load_plan(folder / f"plan-{nfe}.json")
        assert plan.noise_count and plan.fit.nfe == nfe
    assert "energy: returned" in shown.stdout
    image = tmp_path / "x.npy"
    drawn = run("sample", *MODEL, "--sampler", f"plan:{folder}", "--nfe", "4", "-n", "3", "--out", str(image))
    assert drawn.returncode == 0 and np.load(image).shape == (3, 2), drawn.stderr
    for more, said in ((("--workers", "2"), "--noise takes neither"), (("--form", "data"), "--noise takes neither")):
        refused = run(*call, str(tmp_path / "other"), *more)
        assert refused.returncode == 2 and said in refused.stderr
    (folder / "problem.json").write_text("{}")
    refused = run(*call, str(folder))
    assert refused.returncode == 2 and "holds plans of tune without --noise" in refused.stderr
