"""The flow maps that ship: in a jump or two they draw what was asked for, near to where their teachers' ODE leads."""

import pytest
import torch

import scoreflow as sf
from scoreflow.studies import load

MAPS = {"digits": (1, 8, 8), "mnist": (1, 28, 28)}


@pytest.mark.parametrize("name", MAPS)
def test_one_jump(name):
    """Of 20 samples at most 2 are of another class than was asked for, by a classifier that never saw one; the rest of the
    distance to the ODE from the same noise is under half of what the teacher's own first step leaves."""
    jumps, teacher, judge = getattr(sf.zoo, f"{name}_map")(), getattr(sf.zoo, name)(), getattr(sf.zoo, f"{name}_classifier")()
    y, shape = torch.arange(10).repeat(2), (20, *MAPS[name])
    ode = sf.sample(teacher, shape, "dpm-solver++", steps=10, seed=range(20), y=y)

    def far(x):
        return float((x - ode).square().mean().sqrt())

    one = sf.sample(jumps, shape, nfe=1, seed=range(20), y=y)
    with torch.no_grad():
        assert int((judge(one).argmax(1) != y).sum()) <= 2
    assert far(one) < 0.5 * far(sf.sample(teacher, shape, "ddim", steps=1, seed=range(20), y=y))
    guided = sf.sample(jumps, shape, nfe=2, seed=range(20), y=y, scale=3.0)
    strong = sf.sample(sf.ClassifierFree(teacher, 3.0), shape, "dpm-solver++", steps=10, seed=range(20), y=y)
    assert float((guided - strong).square().mean().sqrt()) < 0.6 * float((ode - strong).square().mean().sqrt()) + 0.15
    none = sf.sample(jumps, shape, nfe=1, seed=range(20))
    assert none.isfinite().all() and float((none - one).square().mean()) > 0.01


@pytest.mark.parametrize("name", MAPS)
def test_at_one_level_it_is_the_teacher(name):
    """Its x̂_0 at r = t, of noised data, is the teacher's to a quarter of what the teacher errs, squared."""
    jumps, teacher, data = getattr(sf.zoo, f"{name}_map")(), getattr(sf.zoo, name)(), sf.data.load(name).held_out
    x_0, y = torch.stack([data[i][0] for i in range(32)]), torch.tensor([int(data[i][1]) for i in range(32)])
    for t in (0.3, 0.6):
        x = teacher.path.q_sample(
            x_0, torch.full((32,), t).double(), torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
        )
        with torch.no_grad():
            own, other = jumps.score_model().x0(x, t, y=y), teacher.x0(x, t, y=y)
        assert float((own - other).square().mean()) < 0.25 * float((other - x_0).square().mean())


def test_by_name_and_dtype():
    assert isinstance(load("zoo:digits-map").model, sf.FlowMap)
    assert sf.zoo.digits_map(dtype=torch.float64).net.first.weight.dtype == torch.float64
    study = sf.study(
        "zoo:digits", ["flow-map", "ddim"], nfe=[1, 2], flow_map="zoo:digits-map", metrics=["trajectory"], n=20, seeds=2,
        reference="dpm-solver++",
    )  # fmt: skip
    table = study.frame.query("figure == 'trajectory/median'").set_index(["sampler", "asked"])["value"]
    assert (table["flow-map"] < 0.8 * table["ddim"]).all() and table["flow-map"][1] < 0.2 * table["ddim"][1]
