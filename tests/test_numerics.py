"""Results do not change unawares: what every sampler gave for one seed is kept with the number of these numerics.

Where a change is meant, raise `NUMERICS`, say so in the CHANGELOG, and run `python tests/test_numerics.py`.
"""

import json
from pathlib import Path

import pytest
import torch
from problems import mixture

import scoreflow as sf
from scoreflow._core import NUMERICS
from scoreflow._samplers.step import SAMPLERS, VARIANTS

FILE = Path(__file__).with_suffix(".json")
KEPT = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {"numerics": 0, "values": {}}
NAMES = ("auto", *SAMPLERS, *VARIANTS)
BUDGET = {"restart": {"nfe": 60}, **{name: {"steps": 3} for name in ("dpm-adaptive", "gotta-go-fast", "scipy", "torchdiffeq")}}
BUDGET["gotta-go-fast"] |= {"rtol": 1.0}
"""No step is refused: a step that is refused ends at another point of a Brownian path, so that rounding changes the run."""
CHAIN = sf.VPSDE.from_betas(sf.DDPMChain.linear().beta)


def values(name):
    """One sample of a sampler on a chain, at 12 evaluations: the mixture's three numbers."""
    keywords = BUDGET.get(VARIANTS.get(name, (name,))[0], {"nfe": 12})
    return sf.sample(mixture().model(CHAIN), (1, 3), name, seed=[7], dtype=torch.float64, **keywords)[0].tolist()


def test_kept_for_all():
    assert KEPT["numerics"] == NUMERICS
    assert sorted(KEPT["values"]) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_as_it_was(name):
    assert values(name) == pytest.approx(KEPT["values"][name], rel=1e-7, abs=1e-9)


if __name__ == "__main__":
    FILE.write_text(json.dumps({"numerics": NUMERICS, "values": {name: values(name) for name in NAMES}}, indent=1) + "\n")
