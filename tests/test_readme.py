"""What the README and CONTRIBUTING print, runs."""

import importlib
import re
import runpy
from pathlib import Path

import pytest
import torch

from scoreflow._catalogue import page_name
from scoreflow._samplers.step import SAMPLERS

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md") if not {"_build", "sampler"} & {*page.parts}
)


OWN = ("docs/study.md", "docs/metrics.md", "docs/from/diffusers.md")
"""Pages whose blocks have a test of their own."""


def blocks(file):
    return re.findall(r"```python\n(.*?)```", (ROOT / file).read_text(encoding="utf-8"), flags=re.S)


def test_the_ten_lines(capsys):
    """The README's example runs as printed, and its last lines print the table, a plan and a citation."""
    code, guidance, measured = blocks("README.md")
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    exec(compile(guidance, "README.md", "exec"), {})
    exec(compile(measured, "README.md", "exec"), names)
    assert names["filled"].shape == (4, 1, 8, 8) and bool((names["filled"] == names["images"])[:, :, :4].all())
    printed = capsys.readouterr().out
    assert names["x"].shape == (4, 1, 8, 8) and bool(names["x"].isfinite().all())
    assert names["sol"].states.shape == (3, 4, 1, 8, 8)
    assert "predictor-corrector" in printed and "5 steps, 5 evaluations" in printed and "@inproceedings{song2021ddim" in printed


def test_the_table_of_conditions():
    """Every call of it gives samples, with the network that stands beside it."""
    import scoreflow as sf

    rows = re.findall(r"^\| .+ \| (any|`sf\.nets.+`) \| `(sf\.sample.+)` \|$", (ROOT / "README.md").read_text("utf-8"), re.M)
    generator = torch.Generator().manual_seed(0)
    maps, segments = torch.randn(2, 1, 8, 8, generator=generator), torch.randint(5, (2, 8, 8), generator=generator)
    names = {
        "sf": sf, "torch": torch, "shape": (2, 1, 8, 8), "labels": torch.tensor([3, 7]), "depth": maps[..., ::2, ::2],
        "text": torch.randn(2, 4, 32, generator=generator), "audio": torch.randn(2, 9, 16, generator=generator),
        "segments": segments, "picture": maps, "mask": maps[0] > 0, "blur": lambda x: (x + x.roll(1, -1)) / 2,
        "blurred": maps,
    }  # fmt: skip
    for net, call in rows:
        names["model"] = sf.ScoreModel(eval(net.strip("`"), names), sf.VPSDE()) if net != "any" else sf.zoo.digits()
        x = eval(call.removesuffix(")") + ", nfe=4, seed=0)", names)
        assert x.shape == (2, 1, 8, 8) and bool(x.isfinite().all()), call
    assert len(rows) == 9


def test_the_blocks_on_studies(capsys, few_floors):
    """docs/study.md runs as printed."""
    for code in blocks("docs/study.md"):
        names = {}
        exec(compile(code, "docs/study.md", "exec"), names)
        assert not names["study"].failures and len(names["study"].frame)
    printed = capsys.readouterr().out
    assert "at 10 evaluations: trajectory/median" in printed and "Best within 5 evaluations" in printed


@pytest.mark.parametrize("page", [page for page in PAGES if page not in OWN and blocks(page)])
def test_the_blocks_on(page, few_grids, tmp_path, monkeypatch):
    """They run as printed, one after the other, in a folder of their own; tuning runs fewer of the samplers that there are."""
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in blocks(page):
        exec(compile(code, page, "exec"), names)
    if page in ("docs/training.md", "docs/guidance.md"):
        assert bool(names["x"].isfinite().all())
    if page == "docs/guidance.md":
        assert names["sol"].nfe == 18
    if page == "docs/ddpm.md":
        assert (names["closed"] - names["substituted"]).abs().max() < 1e-12


def test_every_test_that_a_page_names_is_there():
    """Pages name tests as `tests/test_x.py::test_y`."""
    named = {
        found for page in PAGES for found in re.findall(r"tests/(test_\w+)\.py::(test_\w+)", (ROOT / page).read_text("utf-8"))
    }
    assert len(named) > 30
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8"), f"{file}.py::{test}"


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


def test_every_public_name_is_in_a_table_of_the_api():
    """And every name in them is there, and says what it is."""
    import scoreflow as sf

    listed = re.findall(r"^   ([A-Za-z][\w.]*)$", (ROOT / "docs/api.md").read_text(encoding="utf-8"), flags=re.M)
    assert {*sf.__all__} <= {*listed} and len(listed) == len({*listed})
    for name in listed:
        module, _, last = name.rpartition(".")
        place = importlib.import_module(f"scoreflow.{module}") if module else sf
        if last != "DiffusersScheduler":  # needs diffusers
            assert getattr(place, last).__doc__, name


def test_links_lead_somewhere():
    """Every relative link of the texts is a file, or the page of a sampler, which the book makes."""
    for file in ("README.md", "CONTRIBUTING.md", "REPRODUCE.md", *PAGES):
        for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / file).read_text(encoding="utf-8")):
            made = target in {f"sampler/{page_name(name)}.md" for name in SAMPLERS}
            assert made or (ROOT / file).parent.joinpath(target).exists(), f"{file} links to {target}"


def test_every_command_of_reproduce_is_one():
    """`benchmarks/reproduce.py` finds every row of the table, each starts a program, and its script is there."""
    found = runpy.run_path(str(ROOT / "benchmarks/reproduce.py"))["commands"]()
    rows = [line for line in (ROOT / "REPRODUCE.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
    assert len({where for where, _ in found}) == len(rows) > 10
    for where, command in found:
        program, first, *_ = command.split()
        assert program in ("python", "scoreflow", "torchrun", "make"), where
        assert program != "python" or (ROOT / first).exists(), command


def test_every_picture_is_in_the_table():
    """Whatever picture docs/ has, REPRODUCE.md names."""
    table = (ROOT / "REPRODUCE.md").read_text(encoding="utf-8")
    assert all(f"docs/{picture.name}" in table for picture in (ROOT / "docs").glob("*.png"))


def test_every_identity_has_its_test():
    """docs/identities.md names tests that exist."""
    text = (ROOT / "docs/identities.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+)\.py::(test_\w+)`", text)
    assert len(named) > 25
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8"), f"{file}.py::{test}"


def test_names_in_the_book_break_between_their_words():
    """After a slash, two colons, an underscore or a dot, but for that of `.py`; short code and formulas do not break."""
    context = {"body": '<span class="pre">tests/test_x.py::test_a_b</span> <span class="pre">x_t</span> tests/test_x.py/x_y'}
    runpy.run_path(str(ROOT / "docs/conf.py"))["breakable"](None, None, None, context, None)
    broken = "tests/<wbr>test_<wbr>x.py::<wbr>test_<wbr>a_<wbr>b"
    assert context["body"] == f'<span class="pre">{broken}</span> <span class="pre">x_t</span> tests/test_x.py/x_y'


def test_both_environments_have_one_torch():
    """The demo's pins what that of the tests does, in the call that installs the library."""
    pinned = [
        re.findall(r"^torch==\S+$", (ROOT / f"requirements{name}.txt").read_text("utf-8"), re.M) for name in ("", "-demo")
    ]
    assert pinned[0] == pinned[1] and len(pinned[0]) == 1
