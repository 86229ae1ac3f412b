"""What the README and CONTRIBUTING print, runs."""

import re
from pathlib import Path

import pytest
import torch

from scoreflow.step import SAMPLERS

ROOT = Path(__file__).parent.parent


def blocks(file):
    return re.findall(r"```python\n(.*?)```", (ROOT / file).read_text(encoding="utf-8"), flags=re.S)


def test_the_ten_lines(capsys):
    """The README's example runs as printed, and its last lines print the table, a plan and a citation."""
    (code,) = blocks("README.md")
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert names["x"].shape == (4, 1, 8, 8) and bool(names["x"].isfinite().all())
    assert names["sol"].states.shape == (3, 4, 1, 8, 8)
    assert "predictor-corrector" in printed and "5 steps, 5 evaluations" in printed and "@inproceedings{song2021ddim" in printed


def test_the_blocks_on_studies(capsys):
    """docs/study.md runs as printed."""
    for code in blocks("docs/study.md"):
        names = {}
        exec(compile(code, "docs/study.md", "exec"), names)
        assert not names["study"].failures and len(names["study"].frame)
    printed = capsys.readouterr().out
    assert "at 10 evaluations: trajectory/median" in printed and "Best within 5 evaluations" in printed


@pytest.mark.parametrize("page", ["docs/training.md", "docs/guidance.md"])
def test_the_blocks_on(page):
    """They run as printed, and give samples."""
    for code in blocks(page):
        names = {}
        exec(compile(code, page, "exec"), names)
        assert bool(names["x"].isfinite().all())
        assert page != "docs/guidance.md" or names["sol"].nfe == 18


def test_adding_a_sampler():
    """CONTRIBUTING's sampler is a sampler: registered by its decorator alone, and equal to ddim."""
    (code,) = blocks("CONTRIBUTING.md")
    import scoreflow as sf

    try:
        exec(compile(code, "CONTRIBUTING.md", "exec"), {})
        model = sf.Gaussian(torch.zeros(2), 0.3).model(sf.VPSDE())
        x = torch.ones(1, 2, dtype=torch.float64)
        for eta in (0.0, 0.7):
            a, b = (sf.solve(model, x, name, eta=eta, steps=7, seed=1).x for name in ("my-ddim", "ddim"))
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    finally:
        SAMPLERS.pop("my-ddim", None)


def test_links_lead_somewhere():
    """Every relative link of the texts is a file."""
    for file in ("README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / file).read_text(encoding="utf-8")):
            assert (ROOT / file).parent.joinpath(target).exists(), f"{file} links to {target}"


def test_every_identity_has_its_test():
    """docs/identities.md names tests that exist."""
    text = (ROOT / "docs/identities.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+)\.py::(test_\w+)`", text)
    assert len(named) > 25
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8"), f"{file}.py::{test}"
