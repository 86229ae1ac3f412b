"""What a study keeps when it is measured again, merged, interrupted, or grown; and what a metric and a network may be."""

import numpy as np
import pandas as pd
import pytest
import torch

import scoreflow as sf
from scoreflow.studies import Metric
from scoreflow.studies.fingerprint import fingerprint
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
