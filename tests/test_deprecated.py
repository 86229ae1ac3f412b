"""Names of earlier releases work, warn at the caller's line, and are listed in the CHANGELOG."""

from pathlib import Path

import pytest
import torch

import scoreflow as sf
from scoreflow import studies

PATH = sf.VPSDE()
PLAN = sf.plan("ddim", PATH, 3)
STUDY = sf.study("oracle:ring", "ddim", nfe=2, n=4, seeds=1, metrics="trajectory", reference="ddim")
CASES = [
    (PLAN, "wants", "prediction"), (PLAN, "asked", "evaluation_times"), (PATH, "noised", "q_sample"),
    (PATH, "schedule", "noise_schedule"), (STUDY, "beside", "floor_values"), (studies, "Scene", "MetricInput"),
]  # fmt: skip


@pytest.mark.parametrize(("owner", "old", "new"), CASES, ids=[old for _, old, _ in CASES])
def test_an_earlier_name(owner, old, new):
    with pytest.warns(DeprecationWarning, match=rf"{old} is {new} now; the old name goes with \d") as seen:
        assert getattr(owner, old) == getattr(owner, new)
    assert seen[0].filename == __file__
    assert f"`{new}`" in (Path(__file__).parent.parent / "CHANGELOG.md").read_text(encoding="utf-8")


def test_an_unknown_name_of_studies():
    with pytest.raises(AttributeError, match="has no attribute 'Sceen'"):
        studies.Sceen  # noqa: B018


def test_a_plan_of_0_1_is_read():
    assert sf.Plan.from_json(PLAN.to_json().replace('"prediction"', '"wants"')) == PLAN
    assert torch.equal(PATH.q_sample(torch.ones(1, 2), 0.5, torch.zeros(1, 2)), torch.full((1, 2), PATH.alpha(0.5)))
