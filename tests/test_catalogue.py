"""What the command line shows before torch is loaded is what there is, and showing it loads no torch.

Where a sampler, path, grid, metric, feature space or data set came or went, run `python tests/test_catalogue.py`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import scoreflow as sf
from scoreflow._core.grid import GRIDS
from scoreflow._core.path import PATHS
from scoreflow.data import DATA
from scoreflow.studies import FEATURES, METRICS

FILE = Path(sf.__file__).parent / "catalogue.json"
HERE = {**os.environ, "PYTHONPATH": str(FILE.parents[1])}


def registered():
    """As in the file."""
    names = {"paths": PATHS, "grids": GRIDS, "metrics": METRICS, "features": FEATURES, "data": DATA}
    lines = [{**line._asdict(), "options": [*line.options]} for line in sf.samplers()]
    return {**{kind: [*known] for kind, known in names.items()}, "samplers": lines}


def test_the_file_is_the_registries():
    fresh = [sys.executable, __file__, "--print"]  # this process may have registered samplers and metrics of its own
    told = subprocess.run(fresh, capture_output=True, text=True, check=True, env=HERE)
    assert json.loads(FILE.read_text(encoding="utf-8")) == json.loads(told.stdout), "run python tests/test_catalogue.py"


WITHOUT_TORCH = {
    "--help": "Usage",
    "--version": f"scoreflow {sf.__version__}, torch",
    "samplers": "dpm-solver++-2m",
    "samplers --json": '"name": "ddim"',
    "samplers --markdown": "[`ddim`](sampler/ddim.md)",
    "--show-completion bash": "complete",
    **{
        f"{command} --help": "Usage"
        for command in (
            "show",
            "plan",
            "cite",
            "sample",
            "tune",
            "study",
            "pairs",
            "train",
            "report",
            "audit",
            "conform",
            "measure",
            "reference",
        )
    },
}
COMPLETED = {
    "show unipc-": "unipc-2",
    "plan ddim --grid ays": "ays",
    "plan ddim --path cos": "cosine",
    "study --samplers ddim,unipc-": "ddim,unipc-2",
    "study --metrics mode-": "mode-weights",
    "train --data dig": "digits",
}


def without_torch(words, **env):
    """What a process prints that must not load torch."""
    code = "import sys, scoreflow.cli as c\ntry: c.app()\nfinally: assert 'torch' not in sys.modules, 'torch'\n"
    code = f"import sys; sys.argv[0] = 'scoreflow'\n{code}"
    env = {**HERE, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", **env}
    run = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False, env=env)
    assert run.stderr == "" and run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize("words", WITHOUT_TORCH)
def test_starts_without_torch(words):
    assert WITHOUT_TORCH[words] in without_torch(words.split())


@pytest.mark.parametrize("typed", COMPLETED)
def test_names_are_completed_without_torch(typed):
    words = f"scoreflow {typed}".split()
    env = {"_SCOREFLOW_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    assert COMPLETED[typed] in without_torch([], **env).splitlines()


if __name__ == "__main__":
    kinds = (f"{json.dumps(kind)}: [\n" + ",\n".join(map(json.dumps, known)) + "\n]" for kind, known in registered().items())
    text = "{\n" + ",\n".join(kinds) + "\n}\n"
    sys.stdout.write(text) if "--print" in sys.argv else FILE.write_text(text, encoding="utf-8")
