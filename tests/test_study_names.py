"""Names of samplers as typed, and fingerprints of what runs."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

import scoreflow as sf
from scoreflow._score.fingerprint import fingerprint
from scoreflow.studies import load
from scoreflow.studies.answers import Answer
from scoreflow.studies.spec import parse, split, typed
from scoreflow.studies.stats import Interval

LOOSE = "scipy(rtol=1e-4)"


def test_names_as_typed():
    assert parse("ddim(eta=0.5)@karras") == ("ddim", {"eta": 0.5}, "karras")
    assert parse("pf-ode(method=dopri5, rtol=1e-5)") == ("pf-ode", {"method": "dopri5", "rtol": 1e-5}, None)
    assert split("ddpm, ddim(eta=0.5, analytic=True),unipc@karras,") == ["ddpm", "ddim(eta=0.5, analytic=True)", "unipc@karras"]
    for name, options in {
        "ddim": {"eta": 0.25},
        "unipc": {"order": 2, "B": "bh1"},
        "ddpm": {},
        "edm-churn": {"S_churn": 3.0},
    }.items():
        sampler = sf.get_sampler(name, **options)
        again, kept, _ = parse(typed(sampler))
        assert sf.get_sampler(again, **kept) == sampler
    with pytest.raises(TypeError, match="samplers must be names or samplers"):
        typed(3)


class Net(nn.Module):
    """A network with a weight, a setting and a buffer."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale, self.layer = scale, nn.Linear(2, 2)
        nn.init.ones_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, x, t):
        return self.scale * self.layer(x)


def test_fingerprints():
    """The same for the same content, another for another weight, setting, default, closure or line."""
    one = fingerprint(Net())
    assert one == fingerprint(Net())
    moved = Net()
    with torch.no_grad():
        moved.layer.weight[0, 0] += 1e-6
    double = type("Net", (Net,), {"forward": lambda self, x, t: 2 * self.scale * self.layer(x)})
    assert len({one, fingerprint(moved), fingerprint(Net(2.0)), fingerprint(double()), fingerprint(Net().double())}) == 5
    model = sf.ScoreModel(Net(), sf.VPSDE(), prediction="x0")
    before = fingerprint(model)
    model(torch.zeros(1, 2), 0.5)
    assert fingerprint(model) == before
    others = [
        sf.ScoreModel(Net(), sf.VPSDE()),
        sf.ScoreModel(Net(), sf.VPSDE(), "x0", "log-snr"),
        sf.ScoreModel(Net(), sf.VPSDE(0.2), "x0"),
    ]
    assert len({before, *map(fingerprint, others)}) == 4

    def closed(weight):
        return lambda x, t: [weight * y for y in x]

    assert fingerprint(closed(torch.ones(2))) == fingerprint(closed(torch.ones(2))) != fingerprint(closed(torch.zeros(2)))
    assert fingerprint(partial(closed, 1)) != fingerprint(partial(closed, 2))
    assert fingerprint(lambda x: x + 1) != fingerprint(lambda x: x + 2)
    assert fingerprint({"a": [1, 2]}) == fingerprint({"a": [1, 2]}) != fingerprint({"a": [2, 1]})
    path = load("oracle:ring")
    assert fingerprint(path.model) == fingerprint(load("oracle:ring").model) != fingerprint(load("oracle:ring(std=0.2)").model)


def test_fingerprints_hold_in_other_processes():
    """They do not depend on hash randomisation or addresses."""
    code = (
        "from scoreflow.studies import load; from scoreflow._score.fingerprint import fingerprint as f;"
        "said = f(load('oracle:ring').model), f(load('zoo:digits').conditions), f(lambda x: x in {'a', 'b', 'c', 'd', 'e'})"
    )
    exec(code, here := {})
    there = subprocess.run([sys.executable, "-c", f"{code}; print(said)"], capture_output=True, text=True, check=True).stdout
    assert there.strip() == str(here["said"])


def test_what_an_answer_prints():
    """With its rivals, where there are any."""
    value = Interval(0.1, 0.08, 0.12)
    assert str(Answer("ddim", 10, "sliced-w2", value)) == f"ddim at 10 evaluations: sliced-w2 {value}"
    assert str(Answer("ddim", 10, "sliced-w2", value, ("unipc",))).endswith("; not told apart from it: unipc")
