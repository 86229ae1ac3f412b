"""sampler="auto": what it picks, that it keeps to the budget, and that it is better than what it stands for."""

import math
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from problems import PATHS, mixture, states

import scoreflow as sf
from scoreflow._run import auto
from scoreflow._run.auto import DEFAULT_NFE, EXACT, FLOW, GUIDED, TABLE, Choice, chosen_at

CHAIN = PATHS["chain"]
MODEL, X = mixture().model(CHAIN), states(32, 3)


@pytest.mark.parametrize("nfe", [1, 2, 5, 8, 13, 50, 120])
@pytest.mark.parametrize("name", ["vp", "chain", "ve", "flow"])
def test_the_budget_is_kept_and_used(name, nfe):
    """n evaluations by `nfe=`, n steps by `steps=`; with the analytic first answer a step more for the same budget."""
    path = PATHS[name]
    model = sf.ScoreModel(lambda x, t: x.tanh(), path, "x0", "unit")
    sol = sf.solve(model, X, nfe=nfe)
    assert sol.nfe == sol.plan.nfe == nfe
    assert sol.times[0] == 1.0 and sol.times[-1] == 0.0
    assert len(sf.solve(model, X, steps=nfe).times) == nfe + 1


def test_it_is_the_default_and_says_what_it_took():
    a, b = sf.solve(MODEL, X), sf.solve(MODEL, X, "auto", nfe=DEFAULT_NFE)
    assert torch.equal(a.x, b.x) and a.nfe == DEFAULT_NFE
    for model, table in ((MODEL, EXACT), (sf.ScoreModel(MODEL.net, CHAIN, "x0"), TABLE)):
        choice, sol = chosen_at(table, 8), sf.solve(model, X, nfe=8)
        assert sol.sampler == sf.get_sampler(choice.sampler, **choice.options)
        assert sol.plan.analytic is None
        assert sol.sampler.name in str(sol.plan)
    assert sol.plan == sf.plan("auto", CHAIN, nfe=8)
    assert torch.equal(sf.sample(MODEL, (3, 3), nfe=8, seed=1), sf.sample(MODEL, (3, 3), "auto", nfe=8, seed=1))


def test_guided_models_and_runs_from_alpha_zero_have_tables_of_their_own():
    guided, free = sf.ScoreModel(MODEL.net, CHAIN, "x0"), sf.ScoreModel(lambda x, t: x.tanh(), PATHS["cosine"], "x0")
    guided.guided = True
    for model, table in ((guided, GUIDED), (free, FLOW)):
        choice, sol = chosen_at(table, 12), sf.solve(model, X, nfe=12)
        assert sol.sampler == sf.get_sampler(choice.sampler, **choice.options)
        assert sol.times == sf.grid(model.path, 12, "ode", power=choice.power, shift=choice.shift)


def test_choices_are_smooth_in_the_budget():
    """At its own budgets an entry is itself; between two of one sampler power and shift move one way."""
    for table in (TABLE, EXACT, GUIDED, FLOW):
        for here, ahead in pairwise(table):
            assert chosen_at(table, here.nfe) == here and chosen_at(table, ahead.nfe) == ahead
            between = [chosen_at(table, nfe) for nfe in range(here.nfe, ahead.nfe + 1)]
            if (here.sampler, here.options) == (ahead.sampler, ahead.options):
                for a, b in pairwise(between):
                    assert abs(b.power / a.power - 1) < 0.1 and abs(b.shift / a.shift - 1) < 0.2
            else:
                assert between[:-1] == [here] * (len(between) - 1)
        assert chosen_at(table, 1) == table[0] and chosen_at(table, 10**6) == table[-1]
    table = (Choice(4, "ddim", {}, 0.5, 1.0), Choice(16, "ddim", {}, 1.0, 4.0))
    assert chosen_at(table, 8)[3:] == pytest.approx((math.sqrt(0.5), 2.0))


def test_an_oracle_is_followed_below_the_times_of_training():
    """Its score is right there, and the error falls on; a network's run stops where it was trained."""
    net = sf.ScoreModel(MODEL.net, CHAIN, "x0")
    assert sf.solve(net, X, nfe=100).times[-2] == pytest.approx(1e-3)
    assert sf.solve(MODEL, X, nfe=100).times[-2] < 1e-4


@pytest.mark.parametrize("nfe", [3, 10, 100])
def test_labels_are_whole(nfe):
    """A network that knows the nodes of its chain only is asked there only."""
    seen = []

    def net(x, label):
        seen.append(label[0].item())
        return MODEL.net(x, (label.double() + 1) / 1000)

    sol = sf.solve(sf.ScoreModel(net, CHAIN, time="label"), X, nfe=nfe)
    assert sol.nfe == nfe == len(seen)
    assert all(isinstance(label, int) for label in seen)
    assert len(set(seen)) == nfe
    for t in sol.times:
        assert t * 1000 == pytest.approx(round(t * 1000), abs=1e-9)


@pytest.mark.parametrize("nfe", [6, 10, 20])
def test_it_beats_the_defaults(nfe):
    """On a mixture that its table was not made on, it is nearer to the ODE than DDIM, DPM++2M and UniPC as peers set them."""
    exact = sf.solve(MODEL, X, "exponential-ab-4", grid=sf.grid(CHAIN, 1500, "logsnr", t_min=1e-5)).x
    off = {"auto": sf.solve(MODEL, X, nfe=nfe)}
    for name, grid in (("ddim", "leading"), ("dpm-solver++-2m", "linspace"), ("unipc-2", "linspace")):
        off[name] = sf.solve(MODEL, X, name, nfe=nfe, grid=grid)
    errors = {name: (sol.x - exact).norm(dim=1).median().item() for name, sol in off.items()}
    assert errors.pop("auto") < 0.5 * min(errors.values()), errors


def test_a_grid_may_be_given():
    """Then only the sampler is chosen; a rule of one's own is called with path, steps and ends."""
    given = [1.0, 0.6, 0.3, 0.1, 0.0]
    assert sf.solve(MODEL, X, grid=given).times == tuple(given)
    asked = []

    def rule(path, steps, start, stop):
        asked.append((path, steps, start, stop))
        return torch.linspace(start, stop, steps + 1, dtype=torch.float64) ** 2

    sol = sf.solve(MODEL, X, steps=4, grid=rule)
    assert sol.times == tuple((torch.linspace(1, 0, 5, dtype=torch.float64) ** 2).tolist())
    assert asked[0] == (CHAIN, 4, 1.0, 0.0)
    assert sf.grid(CHAIN, 4, rule) == sol.times


@pytest.mark.parametrize(
    ("keywords", "error", "match"),
    [
        ({"nfe": 0}, ValueError, "nfe must"),
        ({"nfe": 3, "steps": 3}, ValueError, "exclude"),
        ({"start": 1.5}, ValueError, "start must"),
        ({"eta": 1.0}, TypeError, "'eta'"),
        ({"analytic": -1.0}, ValueError, "analytic must"),
    ],
)
def test_refusals(keywords, error, match):
    with pytest.raises(error, match=match):
        sf.solve(MODEL, X, **keywords)
    with pytest.raises(ValueError, match="chosen by the budget"):
        sf.get_sampler("auto")


@pytest.mark.parametrize("name", ["TABLE", "EXACT", "GUIDED", "FLOW"])
def test_the_tables_in_the_docs(name):
    """docs/auto.md prints what the code has."""
    text = (Path(__file__).parent.parent / "docs" / "auto.md").read_text(encoding="utf-8")
    (lines,) = re.findall(rf"\| `{name}` \| .*\n\|[-| ]+\n((?:\|.*\n)+)", text)
    rows = [tuple(cell.strip(" `") for cell in line.strip("|").split("|")) for line in lines.splitlines()]
    assert rows == [
        (str(c.nfe), c.sampler, ", ".join(f"{k}={v}" for k, v in c.options.items()), f"{c.power:g}", f"{c.shift:g}")
        for c in getattr(auto, name)
    ]
