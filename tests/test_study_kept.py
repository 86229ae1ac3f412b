"""What a study keeps when it is measured again, merged, interrupted, or grown; and what a metric and a network may be."""

import numpy as np
import pandas as pd
import pytest
import torch

import scoreflow as sf
from scoreflow._score.fingerprint import fingerprint
from scoreflow.studies import Metric
from scoreflow.studies.store import Done, Measured, Store
from scoreflow.studies.sweep import Study


def test_a_metric_that_fails_on_a_kept_cell_is_a_failure():
    """Whether the run or the metric fails the second time: what was measured stays, what failed is told."""
    store, spec = Store(None, {"model": "m"}), ("ddim", None, 4, None)
    store.put("k", "cell", spec, 0, Done(4.0, 1.0, None, (Measured("w2", "a", {"w2": 0.5}),)))
    store.put("k", "cell", spec, 0, Done(None, 0.0, None, (Measured("time", "b", {}, "RuntimeError: out of memory"),)))
    study = Study(store)
    assert [f.error for f in study.failures] == ["RuntimeError: out of memory"] and study.figures == ("w2",)


def test_merging_does_not_depend_on_the_order():
    """What failed in one store and succeeded in the other has succeeded, whoever takes from whom."""
    spec, found = ("ddim", None, 4, None), []
    for turn in (1, -1):
        good, bad = stores = Store(None, {"model": "m"}), Store(None, {"model": "m"})
        good.put("k", "cell", spec, 0, Done(4.0, 1.0, None, (Measured("trajectory", "a", {"trajectory/median": 0.5}),)))
        bad.put("k", "cell", spec, 0, Done(4.0, 1.0, None, (Measured("trajectory", "a", {}, "ValueError: no"),)))
        one, other = stores[::turn]
        one.take(other)
        found.append((len(Study(one).failures), Study(one).figures))
    assert found[0] == found[1] == (0, ("trajectory/median",))


def test_samples_come_to_a_cell_that_had_none():
    store, spec = Store(None, {"model": "m"}), ("ddim", None, 4, None)
    store.put("k", "cell", spec, 0, Done(4.0, 0.0, None, ()))
    store.put("k", "cell", spec, 0, Done(4.0, 2.0, np.ones((2, 3)), ()))
    assert store.samples("k").shape == (2, 3) and store.rows("SELECT seconds FROM cell") == [{"seconds": 2.0}]


def test_a_study_that_was_interrupted_leaves_no_claim(tmp_path):
    """Another process need not wait for this one to end."""

    def stop(scene):
        raise KeyboardInterrupt

    halted = Metric("halted", "lower", ("data",), stop)
    with pytest.raises(KeyboardInterrupt):
        sf.study("oracle:ring", "ddim", nfe=[4], n=8, seeds=2, metrics=["modes", halted], out=tmp_path)
    assert Store(tmp_path / "study.sqlite").rows("SELECT * FROM claim") == []


def test_strong_errors_are_measured_again_when_the_study_grows(tmp_path):
    """Their fine run has four times the largest budget: a grown study has the figures of one made at once."""
    grown, fresh = tmp_path / "grown", tmp_path / "fresh"
    how = {"n": 8, "seeds": 2, "metrics": "strong"}
    sf.study("oracle:ring", "ddpm", nfe=[4], out=grown, **how)
    a = sf.study("oracle:ring", "ddpm", nfe=[4, 16], out=grown, **how).frame
    b = sf.study("oracle:ring", "ddpm", nfe=[4, 16], out=fresh, **how).frame
    pd.testing.assert_frame_equal(a, b)
    assert len(a)


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        (dict(better="max"), ValueError, "better must be one of lower, higher, either, got 'max'"),
        (dict(needs=("dat",)), ValueError, "needs must be one of .*data.*, got 'dat'"),
        (dict(needs="data"), TypeError, "needs must be a sequence of .*, got 'data'"),
    ],
)
def test_metrics_refused(change, kind, says):
    with pytest.raises(kind, match=says):
        Metric(**{"name": "m", "better": "lower", "needs": ("data",), "measure": len, **change})


def test_two_metrics_of_one_name_are_refused():
    two = [Metric("m", "lower", ("data",), measure) for measure in (lambda s: 1.0, lambda s: 2.0)]
    with pytest.raises(ValueError, match="metrics has two of the name 'm'"):
        sf.study("oracle:ring", "ddim", nfe=[4], n=8, seeds=2, metrics=two)


class Net(torch.nn.Module):
    def forward(self, x, t):
        return self.body(x)

    def body(self, x):
        return x


class Other(Net):
    def body(self, x):
        return 2 * x


def test_methods_are_part_of_the_code():
    """A network whose helper changed is another."""
    changed = type("Net", (Net,), {"body": Other.body, "__module__": Net.__module__, "__qualname__": "Net"})
    plain = type("Net", (Net,), {"body": Net.body, "__module__": Net.__module__, "__qualname__": "Net"})
    assert fingerprint(plain()) != fingerprint(changed())
    assert fingerprint(plain()) == fingerprint(type("Net", (Net,), dict(vars(plain)) | {"body": Net.body})())


def test_the_floor_and_the_truth_are_two_halves_of_the_data():
    """No datum is compared with itself; other blocks have other halves; at most 2000 are compared with."""
    model = sf.ScoreModel(lambda x, t: 0 * x, sf.VPSDE())
    what = sf.Subject(model, (1,), data=torch.arange(100.0)[:, None])
    halves = []
    for seed in range(3):
        floor, truth = (set(part[:, 0].tolist()) for part in (what.block(50, seed), what.truth(seed)))
        assert not floor & truth and len(floor) == len(truth) == 50
        halves.append(floor)
    assert halves[0] != halves[1] != halves[2]
    many = sf.Subject(model, (1,), data=torch.zeros(5000, 1))
    assert len(many.truth(0)) == 2000


def test_every_block_has_its_own_conditions():
    """A function gives them from (n, seed) to the run and to the evaluation that is timed."""
    asked, told = [], []

    def conditions(n, seed):
        asked.append(seed)
        return torch.full((n,), float(seed))

    def net(x, t, y):
        told.append(float(y[0]))
        return 0 * x

    what = sf.Subject(sf.ScoreModel(net, sf.VPSDE()), (2,), data=torch.randn(40, 2), conditions={"y": conditions})
    study = sf.study(what, "ddim", nfe=[3], n=8, seeds=[5, 7], metrics=["time", "sliced-w2"])
    assert not study.failures and {5, 7} == set(asked) == set(told)


def test_time_is_measured_on_a_run_and_no_claim_is_left(tmp_path):
    """A metric of time that is added runs the cell again; when all is done nothing is claimed."""
    how = {"nfe": [4], "n": 8, "seeds": 2, "out": tmp_path}
    sf.study("oracle:ring", "ddim", metrics=["modes"], **how)
    study = sf.study("oracle:ring", "ddim", metrics=["modes", "time"], **how)
    values = study.frame.query("figure == 'time'")["value"]
    assert not study.failures and len(values) == 1 and 0 < float(values.iloc[0]) < 1e4
    store = Store(tmp_path / "study.sqlite")
    assert store.rows("SELECT * FROM claim") == []


def test_the_fine_run_has_four_times_the_largest_budget(tmp_path):
    sf.study("oracle:ring", "ddpm", nfe=[3, 5], n=8, seeds=1, metrics="strong", out=tmp_path)
    kinds = Store(tmp_path / "study.sqlite").rows("SELECT DISTINCT nfe FROM cell WHERE kind = 'finest'")
    assert kinds == [{"nfe": 20}]


def test_states_of_16_bits_are_kept():
    """numpy has no bfloat16: they are kept as float32."""
    what = sf.Subject(sf.Gaussian(torch.zeros(2), 0.3).model(sf.VPSDE()), (2,), dtype=torch.bfloat16)
    study = sf.study(what, "ddim", nfe=[3], n=8, seeds=2, metrics=["sliced-w2"])
    assert not study.failures and bool(np.isfinite(study.frame["value"]).all())


NET = sf.ScoreModel(lambda x, t: 0 * x, sf.VPSDE())
ORACLE = sf.Gaussian(torch.zeros(2), 0.3).model(sf.VPSDE())


@pytest.mark.parametrize(
    ("what", "kind", "says"),
    [
        (sf.Subject(NET, (2,), data=torch.zeros(9, 3)), TypeError, r"\(N, 2\), got torch.float32 of shape \(9, 3\)"),
        (sf.Subject(NET, (2,), data=torch.zeros(9, 2).byte()), TypeError, "floating-point tensor .*, got torch.uint8"),
        (sf.Subject(ORACLE, (2,), data=torch.zeros(9, 2)), ValueError, "data: those of an oracle's model are drawn from it"),
        (sf.Subject(ORACLE, (3,)), ValueError, r"shape must be that of the oracle, \(2,\), got \(3,\)"),
        (sf.Subject(NET, (2,), features="nothing"), ValueError, "nothing"),
    ],
)
def test_subjects_are_checked_before_anything_runs(what, kind, says):
    with pytest.raises(kind, match=says):
        sf.study(what, "ddim", nfe=[3], n=4, seeds=1)
