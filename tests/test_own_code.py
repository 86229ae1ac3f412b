"""Functions of one's own from the shell: files, modules of the current folder, shapes, data, and what is refused."""

import re
import subprocess
import sys
import tomllib

import numpy as np
import pytest
import torch
from test_cli import ROOT, run

import scoreflow as sf
from scoreflow import studies
from scoreflow._extras import EXTRAS

CODE = """
import torch, scoreflow as sf

class Net(torch.nn.Module):
    def forward(self, x, t):
        return 0.7 * x

def make():
    return sf.ScoreModel(Net(), sf.VPSDE())

def pair():
    return sf.GaussianMixture([0.5, 0.5], [[1.0, 0.0], [-1.0, 0.0]], 0.1)

def subject():
    return sf.Subject(make(), (3,))

def broken():
    return 5
"""


@pytest.fixture
def name(tmp_path, monkeypatch, request):
    """A module of its own in an empty current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    own = f"mine_{abs(hash(request.node.name))}"
    (tmp_path / f"{own}.py").write_text(CODE)
    return own


def test_what_a_function_may_return(name, tmp_path):
    """A ScoreModel with a shape, an oracle on VPSDE, a Subject; from a file and from a module of the current folder."""
    done = run("sample", "--model", f"{name}.py:make", "--shape", "2", "--nfe", "4", "-n", "3", "--out", "x.npy")
    assert done.returncode == 0, done.stderr
    x_T = sf.White(0).draws("prior")(torch.empty(3, 2))
    model = sf.ScoreModel(lambda x, t: 0.7 * x, sf.VPSDE())
    np.testing.assert_allclose(np.load("x.npy"), sf.solve(model, x_T, nfe=4, seed=0).x, rtol=1e-5)
    assert studies.load(f"{name}:pair").oracle.event == (2,)
    assert studies.load(f"{name}:subject").shape == (3,)
    assert studies.load(str(tmp_path / f"{name}.py") + ":make", (5,)).shape == (5,)


def test_a_study_with_data_in_a_file(name):
    """Twice: the second adds a budget to the first."""
    np.save("mine.npy", np.random.default_rng(0).normal(size=(80, 2)).astype("float32"))
    common = ["study", "--model", f"{name}.py:make", "--shape", "2", "--data", "mine.npy", "--samplers", "ddim", "-n", "8"]
    common += ["--seeds", "2", "--metrics", "energy", "--out", "out"]
    for budgets, cells in (("4", "1 cell"), ("4,6", "2 cells")):
        done = run(*common, "--nfe", budgets)
        assert done.returncode == 0 and f"{cells} of 2 blocks, 0 failures" in done.stdout, done.stderr
    assert set(sf.Study.open("out").frame["nfe"]) == {4, 6}


def test_data_in_files(name, tmp_path):
    from PIL import Image

    x = torch.arange(12.0).reshape(6, 2)
    torch.save(x, "x.pt")
    assert torch.equal(studies.states_of("x.pt"), x)
    (tmp_path / "images").mkdir()
    for k in range(20):
        Image.new("RGB", (32, 32), (k, 0, 0)).save(tmp_path / "images" / f"{k}.png")
    assert studies.states_of(tmp_path / "images").shape == (2, 3, 32, 32)
    assert studies.states_of(tmp_path / "images", (1, 16, 16)).shape == (2, 1, 16, 16)
    np.save("whole.npy", np.arange(6).reshape(3, 2))
    for file, match in (("whole.npy", "must be floating-point states"), ("x.csv", "must be a .npy or .pt file or a folder")):
        with pytest.raises(ValueError, match=match):
            studies.states_of(file)


def test_plans_of_a_model_and_under_guidance(name):
    plan = run("plan", "auto", "--nfe", "8", "--model", f"{name}:pair").stdout
    assert plan.startswith(str(studies.load(f"{name}:pair").model and sf.solve(
        studies.load(f"{name}:pair").model, torch.zeros(1, 2), nfe=8).plan).partition("\n")[0])  # fmt: skip
    guided = sf.ClassifierFree(sf.zoo.digits(), 3.0)
    x = torch.zeros(1, 1, 8, 8)
    wanted = sf.solve(guided, x, nfe=8, y=torch.tensor([3])).plan
    assert run("plan", "auto", "--nfe", "8", "--guidance", "3", "--json").stdout.strip() == wanted.to_json()
    last = run("plan", "auto", "--nfe", "8", "--guidance", "3").stdout.splitlines()[-1]
    assert last == "under guidance 3 the network is evaluated 8 times, both branches counted"


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--model", "NAME.py:mke"], "has no function 'mke'; did you mean make?"),
        (["--model", "NAME:make"], "shape=None: give the shape of one sample"),
        (["--model", "nofile.py:make"], "no file 'nofile.py' is there"),
        (["--model", "no_module_here:make"], "cannot be loaded"),
        (["--model", "NAME.py:broken"], "NAME.py:broken must give a ScoreModel, a Subject or an oracle, and gives int"),
        (["--model", "NAME.py:make", "--shape", "2,x"], "shape must be whole numbers with commas between"),
    ],
)
def test_refused(words, match, name):
    done = run("sample", *(word.replace("NAME", name) for word in words), "--nfe", "4", "--out", "x.npy")
    assert done.returncode == 2 and match.replace("NAME", name) in done.stderr


def test_two_files_of_one_name(name, tmp_path):
    """A worker finds a function by its module's name: the second of a name is not taken for the first."""
    studies.load(f"{name}.py:make", shape=(2,), compare=False)
    other = tmp_path / "other"
    other.mkdir()
    (other / f"{name}.py").write_text("def make():\n    return None\n")
    with pytest.raises(ValueError, match=rf"has the name of a module that is there, .*{name}.py: rename the file"):
        studies.load(f"{other / name}.py:make", shape=(2,), compare=False)


def test_version_and_missing_packages(monkeypatch, tmp_path):
    """Samples of the zoo need no extra; what needs one says which."""
    assert run("--version").stdout.startswith(f"scoreflow {sf.__version__}, torch {torch.__version__}")

    def missing(*of, **more):
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn.datasets")

    monkeypatch.setattr(studies, "load", missing)
    done = run("sample", "--model", "zoo:digits", "--nfe", "4", "--out", str(tmp_path / "x.npy"))
    assert done.returncode == 1 and "No module named 'sklearn'; pip install 'scoreflow[data]'" in done.stderr
    use = "import scoreflow.studies as s; print(s.load('zoo:digits', compare=False).data)"
    code = f"import sys; sys.modules['sklearn'] = None; {use}"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "None"


@pytest.mark.parametrize(
    ("module", "words", "extra"),
    [
        ("plotly", ["study", "--model", "oracle:ring", "--samplers", "ddim", "--nfe", "4", "--out", "s"], "study"),
        ("ot", ["study", "--model", "no.such:model", "--samplers", "ddim", "--nfe", "4", "--out", "s"], "study"),
        ("pandas", ["report", "s"], "study"),
        ("lightning_fabric", ["train", "--data", "digits", "--out", "r"], "train"),
    ],
)
def test_an_extra_is_asked_for_before_anything_runs(module, words, extra, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    done = run(*words)
    assert done.returncode == 1 and done.stderr == f"scoreflow: this needs {module}; pip install 'scoreflow[{extra}]'\n"
    assert not [*tmp_path.iterdir()]


def test_extras_bring_what_they_are_named_for():
    """As in pyproject.toml, whose names are of packages and not of modules."""
    names = {"sklearn": "scikit-learn", "PIL": "pillow", "ot": "POT"}
    told = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for extra, modules in EXTRAS.items():
        brought = {re.split("[>=[]", requirement)[0] for requirement in told[extra]}
        assert {names.get(module, module.replace("_", "-")) for module in modules} <= brought
