"""Pages for those who come from other libraries: their lines beside ours, their names and what they are here."""

import ast
import re
from pathlib import Path

import pytest

import scoreflow as sf
from scoreflow._core.aliases import PLAIN, plain
from scoreflow._core.grid import GRIDS

PAGES = Path(__file__).parent.parent / "docs/from"


@pytest.fixture
def diffusers():
    return pytest.importorskip("diffusers")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("page", ["diffusers", "k_diffusion"])
def test_their_lines_beside_ours(page, request):
    """Both run. Where they end with `theirs` and `ours`, these are equal up to what coefficients of 32 bits leave."""
    request.getfixturevalue(page)
    names, pairs = {}, 0
    for code in re.findall(r"```(?:py|python)\n(.*?)```", (PAGES / f"{page}.md").read_text(encoding="utf-8"), flags=re.S):
        exec(compile(code, page, "exec"), names)
        if {"theirs", "ours"} <= {*names}:
            theirs, ours = names.pop("theirs"), names.pop("ours")
            assert float((ours - theirs).abs().max()) < 1e-4 * float(theirs.std())
            pairs += 1
    assert pairs == 2


def rows(page):
    """Of the tables of names: theirs, ours, and its options."""
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    for theirs, ours, options in re.findall(
        r"^\| [^`|]*`([^`|]+)`[^|]* \| `([\w+.-]+)`((?:, \w+=[^,|]+)*) \|", text, flags=re.M
    ):
        given = [option.split("=", 1) for option in options.split(", ")[1:]]
        yield theirs, ours, {name: ast.literal_eval(value.strip()) for name, value in given}


@pytest.mark.parametrize("page", ["diffusers", "k_diffusion", "edm", "score_sde"])
def test_names_are_what_they_are_called_here(page):
    """Samplers and grids of the tables exist, with their options; what may be typed as theirs is the same."""
    path, found = sf.VPSDE.from_betas(sf.DDPMChain.linear().beta), list(rows(page))
    assert len(found) > 3
    for theirs, ours, options in found:
        if ours in GRIDS:
            assert len(sf.grid(path, 10, ours, **options)) == 11, theirs
            continue
        sampler = sf.get_sampler(ours, **options)
        if plain(theirs) in PLAIN:
            assert sf.get_sampler(theirs) == sampler, theirs


def test_every_function_of_k_diffusion_is_named(k_diffusion):
    text = (PAGES / "k_diffusion.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in text for name in vars(k_diffusion) if name.startswith("sample_"))
