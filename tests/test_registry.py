"""The registry of samplers: what is written down of each, what it cites, and that a sampler is a value."""

import pickle
import pydoc
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from problems import LINEAR, linear, mixture, states

import scoreflow as sf
from scoreflow._core.grid import GRIDS, grid_rule
from scoreflow._run import picard
from scoreflow._samplers.step import SAMPLERS, VARIANTS
from scoreflow._samplers.works import entry_field, references, short, untex
from scoreflow._uses import smc
from scoreflow.tuning import work

# -- the registry -------------------------------------------------------------------------------------------------------

every_sampler = pytest.mark.parametrize("name", SAMPLERS)

OPTIONS = [
    *((name, {}) for name in SAMPLERS),
    ("ddpm", {"variance": "learned"}),
    ("pf-ode", {"method": "RK45"}),
    ("pf-ode", {"method": "dopri5"}),
    ("reverse-sde", {"method": "srk"}),
]


@every_sampler
def test_docstring_of_a_sampler(name):
    """A formula in backquotes, options named, and a reference with its year."""
    doc = SAMPLERS[name].doc
    formulas = [text for text in re.findall(r"`([^`]+)`", doc) if re.search(r"[=~←]", text) and re.search(r"[σακεxμ]", text)]
    assert formulas
    assert re.search(r"Reference:\n\s+.*\(.*\d{4}\)", doc)


@every_sampler
def test_citation_of_a_sampler(name):
    cites = sf.get_sampler(name).cites
    assert cites
    assert set(cites) <= set(references())
    text = sf.cite(name)
    assert text.startswith("@")
    assert re.findall(r"(?m)^@\w+\{([^,]+),", text) == list(cites)


@every_sampler
def test_options_of_a_sampler_have_values(name):
    options = SAMPLERS[name].options
    assert all(p.default is not p.empty for p in options.values())
    assert set(sf.get_sampler(name).options) == set(options)


@pytest.fixture(scope="module")
def evaluations():
    """A step's, by name."""
    return {line.name: line.evaluations for line in sf.samplers()}


@every_sampler
def test_a_page_of_a_sampler(name, evaluations):
    """Docstring, options, cost, works and file; `help` shows it, and a class keeps its own docstring."""
    chosen = sf.get_sampler(name)
    page = chosen.doc
    assert SAMPLERS[name].doc in page
    facts = dict(line.split(maxsplit=1) for line in page.rpartition("\n\n")[2].splitlines())
    assert [f.split("=")[0] for f in facts["options"].split(", ")] == list(SAMPLERS[name].options)
    assert facts["order"] == ("by tolerance" if chosen.order is None else str(chosen.order))
    cost = evaluations[name]
    assert facts["cost"].startswith("what" if cost is None else f"{cost} evaluation")
    assert [re.search(r"\((\w+)\)", work)[1] for work in facts["cite"].split("; ")] == list(chosen.cites)
    file, line = facts["file"].split(":")
    assert f'"{name}"' in (Path(sf.__file__).parent.parent / file).read_text().splitlines()[int(line) - 1]
    assert SAMPLERS[name].doc.splitlines()[0] in pydoc.render_doc(chosen, renderer=pydoc.plaintext)
    assert type(chosen).__doc__ != page == pickle.loads(pickle.dumps(chosen)).__doc__


def test_a_page_has_the_options_chosen_and_the_names_elsewhere():
    page = sf.get_sampler("unipc", order=2).doc
    assert page.startswith("unipc(B='bh2', form='data', order=2)")
    assert "options  order=2, B='bh2'" in page
    assert "unipc-2" in page and "UniPCMultistepScheduler" in page
    assert "not registered" in sf.Linear(rows=lambda path, times, s: sf.Row(1.0, (0.0,))).doc
    assert sf.Linear.__doc__.startswith("A sampler given by its rows.")


def test_works_print_as_text():
    assert short("rossler2010srk") == "Rößler, 2010"
    assert short("hairer1993solving") == "Hairer et al., 1993"
    assert untex(r"Pich{\'e}-Taillefer, R{\'e}mi and N{\o}rsett and {\v{S}}mid") == "Piché-Taillefer, Rémi and Nørsett and Šmid"
    for key in references():
        assert not set(entry_field(key, "author") + entry_field(key, "title")) & set("\\{}")


def test_every_reference_is_cited():
    made = [sf.get_sampler(name, **options) for name, options in OPTIONS] + [linear(case) for case in LINEAR]
    inner = sf.ScoreModel(lambda x, t, y=None: x, sf.VPSDE())
    guided = [
        sf.ClassifierFree(inner, 2.0, null={"y": 0}, interval=(0, 1), rescale=0.5), sf.APG(inner, 2.0, null={"y": 0}),
        sf.CFGPlusPlus(inner, 0.5, null={"y": 0}), sf.Autoguidance(inner, inner, 2.0),
        sf.ClassifierGuidance(inner, torch.nn.Identity(), 1.0), sf.Thresholding(inner), sf.TCFG(inner, 2.0, null={"y": 0}),
        sf.CFGZeroStar(inner, 2.0, null={"y": 0}), sf.FDG(inner, (1.0, 2.0), null={"y": 0}),
    ]  # fmt: skip
    measured = {key for method in sf.posterior.METHODS.values() for key in method.cites}
    found = {key for one in (*made, *guided) for key in one.cites}
    assert found | {*picard.CITES, *work.CITES, *smc.CITES, *measured} == set(references())


def test_a_reference_is_cited_once():
    text = sf.cite("ddim", "ddim", "song2021ddim", "euler-maruyama")
    assert re.findall(r"(?m)^@\w+\{([^,]+),", text) == ["song2021ddim", "song2021sde"]
    for key, entry in references().items():
        assert all(re.search(rf"\b{field}\s*=\s*\{{", entry) for field in ("title", "author", "year")), key


def test_table_of_samplers():
    table = sf.samplers()
    assert sorted(line.name for line in table) == sorted([*SAMPLERS, *VARIANTS])
    printed = str(table).splitlines()
    assert len(printed) == len(SAMPLERS) + len(VARIANTS) + 1
    for line, text in zip(table, printed[1:], strict=True):
        assert text.split()[0] == line.name
        assert re.search(r", \d{4}$", text)
    lines = {line.name: line for line in table}
    assert (lines["ddim"].order, lines["ddim"].evaluations, lines["ddim"].stochastic) == (1, 1, False)
    assert (lines["pf-ode"].order, lines["pf-ode"].evaluations, lines["pf-ode"].stochastic) == (2, 2, False)
    assert (lines["ddpm"].stochastic, lines["predictor-corrector"].evaluations) == (True, 2)
    assert (lines["scipy"].order, lines["scipy"].evaluations) == (None, None)
    assert (lines["ddim"].memory, lines["ddpm"].memory, lines["dpm-solver++-2m"].memory, lines["scipy"].memory) == (
        3,
        4,
        4,
        None,
    )
    assert (lines["unipc"].options, lines["unipc-2"].options) == (("order", "B", "form"), ("B", "form"))
    assert lines["ddim"].reference == "Song et al., 2021"


@every_sampler
def test_a_name_is_taken_once(name):
    before = dict(SAMPLERS)

    def rows(path, times, s):
        """`x_s = x_t`."""
        return sf.Row(1.0, (0.0,))

    for register in (sf.sampler(name, order=1, cites=("ho2020ddpm",)), sf.family(name)):
        with pytest.raises(ValueError, match=re.escape(f"'{name}' is taken")):
            register(rows)
    assert before == SAMPLERS


@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_name_is_taken_once(name):
    before = dict(GRIDS)
    with pytest.raises(ValueError, match=re.escape(f"'{name}' is taken")):
        grid_rule(name)(lambda path, steps, start, stop: None)
    assert before == GRIDS


# -- samplers are values ------------------------------------------------------------------------------------------------

every_choice = pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)


class Word:
    """A network that says twice the channels: the prediction, and a word on the variance."""

    def __call__(self, x, t):
        return torch.cat([x.tanh(), -2 + 0.1 * x], dim=1)


def two_steps(sampler):
    """Two steps by the protocol, with memory and noise."""
    path = sf.VPSDE()
    model = sf.ScoreModel(Word(), path) if sampler.options.get("variance") == "learned" else mixture().model(path)
    noise, x, memory = sf.Brownian(3).draws(), states(4, 3), ()
    out = []
    for t, s in pairwise((0.6, 0.5, 0.4)):
        x, memory, _ = sampler.step(model, x, t, s, memory, noise)
        out.append(x)
    return out


@every_choice
def test_samplers_are_picklable(name, options):
    sampler = sf.get_sampler(name, **options)
    other = pickle.loads(pickle.dumps(sampler))
    assert repr(other) == repr(sampler)
    first, second = two_steps(sampler), two_steps(other)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])


@every_choice
def test_samplers_keep_nothing(name, options):
    """A second run is the first: no state stays on a sampler."""
    sampler = sf.get_sampler(name, **options)
    assert all(torch.equal(a, b) for a, b in zip(two_steps(sampler), two_steps(sampler), strict=True))


@every_choice
def test_samplers_are_immutable(name, options):
    sampler = sf.get_sampler(name, **options)
    for attribute in ("name", "order", "options", "new"):
        with pytest.raises(AttributeError):
            setattr(sampler, attribute, 3)
    with pytest.raises(AttributeError):
        del sampler.order


@pytest.mark.parametrize("name", [name for name in SAMPLERS if SAMPLERS[name].options])
def test_options_of_a_made_sampler_are_fixed(name):
    """Rows read the options: if they could be assigned, one thread could change another's run."""
    sampler = sf.get_sampler(name)
    with pytest.raises(TypeError):
        sampler.options[next(iter(sampler.options))] = 0.5


@pytest.mark.parametrize("case", LINEAR)
def test_plans_are_values(case):
    plan = linear(case).plan(sf.VPSDE(), (0.9, 0.5, 0.0))
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert hash(plan) == hash(linear(case).plan(sf.VPSDE(), (0.9, 0.5, 0.0)))
    with pytest.raises(AttributeError):
        plan.steps = ()
