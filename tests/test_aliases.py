"""Names as typed elsewhere: what they resolve to, and that the docs' table is the code's."""

import re
from pathlib import Path

import pytest
import torch
from problems import PATHS, mixture, states

import scoreflow as sf
from scoreflow._core.aliases import ALIASES, GRID_ALIASES
from scoreflow._samplers.step import SAMPLERS


@pytest.mark.parametrize("name", ALIASES)
def test_every_alias_is_a_sampler(name):
    """It has the options it says, the rest at their defaults; and no registered name is hidden by it."""
    meant, options = ALIASES[name]
    assert sf.get_sampler(name) == sf.get_sampler(meant, **options)
    assert name not in SAMPLERS


@pytest.mark.parametrize(
    "typed", ["dpmpp_2m", "DPM++ 2M", "dpm++ 2m", "sample_dpmpp_2m", "DPMSolverMultistepScheduler", "DPM_Solver++"]
)
def test_spellings(typed):
    """Case, spaces, underscores and ++ or pp do not matter."""
    assert sf.get_sampler(typed) == sf.get_sampler("dpm-solver++")


def test_aliases_where_names_are_taken():
    """solve with options of the sampler meant, plans, and citations."""
    model, x = mixture().model(PATHS["vp"]), states(2, 3)
    a = sf.solve(model, x, "Euler a", steps=5, seed=0)
    assert torch.equal(a.x, sf.solve(model, x, "ddim", eta=1.0, steps=5, seed=0).x) and a.sampler.name == "ddim"
    assert torch.equal(sf.solve(model, x, "Euler a", eta=0.0, steps=5).x, sf.solve(model, x, "ddim", steps=5).x)
    assert sf.plan("DPM++ 2M", model.path, steps=4) == sf.plan("dpm-solver++", model.path, steps=4)
    assert sf.cite("DDIMScheduler") == sf.cite("ddim")


def test_a_grid_in_the_name_is_told_apart():
    """As A1111 shows them: the sampler and its grid are two arguments here."""
    for typed, first, grid in (
        ("DPM++ 2M Karras", "DPM++ 2M", "karras"),
        ("Euler a Exponential", "Euler a", "exponential"),
        ("DPM++ 2M SGM Uniform", "DPM++ 2M", "sgm uniform"),
    ):
        with pytest.raises(ValueError, match=rf"is a grid, so give '{re.escape(first)}' and grid='{grid}'"):
            sf.get_sampler(typed)
        sf.plan(first, sf.VPSDE(), 3, grid=grid)


def test_the_table_in_the_docs():
    """Every alias stands in docs/conventions.md with what it means."""
    text = (Path(__file__).parent.parent / "docs/conventions.md").read_text(encoding="utf-8")
    for name, (meant, options) in ALIASES.items():
        assert f"| `{name}` | `{meant}`{''.join(f', {k}={v!r}' for k, v in options.items())} |" in text
    for name, meant in GRID_ALIASES.items():
        assert f"| `{name}` | `{meant}` |" in text
        assert sf.grid(PATHS["vp"], 7, name) == sf.grid(PATHS["vp"], 7, meant)


@pytest.mark.parametrize(
    ("typed", "options"), [("Euler a", {"eta": 1.0}), ("sample_euler_ancestral", {"eta": 1.0}), ("euler", {})]
)
def test_euler_is_ddim_and_ancestral_has_all_noise(typed, options):
    assert sf.get_sampler(typed) == sf.get_sampler("ddim", **options)
