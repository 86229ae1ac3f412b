"""Cells run anywhere: in this process, in a pool, on Dask, as submitit's jobs; the tables are the same."""

import multiprocessing
import os
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pandas as pd
import pytest
import sweeps
import torch
from forked import FORKED

import scoreflow as sf
from scoreflow.studies.metrics import Metric

SMALL = {"samplers": ["ddpm", "ddim@logsnr"], "nfe": [4, 6], "seeds": 2}


@pytest.fixture(scope="module")
def here():
    return sweeps.run(None, **SMALL)


def same(study, other):
    pd.testing.assert_frame_equal(study.cells, other.cells, check_exact=True)
    pd.testing.assert_frame_equal(study.frame, other.frame, check_exact=True)


def test_dask(here):
    """A LocalCluster of two workers, each a process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Dask's own: ports, deprecations
        from dask.distributed import Client, LocalCluster

        with (
            LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, worker_dashboard_address=None) as cluster,
            Client(cluster) as client,
        ):
            client.wait_for_workers(2)
            same(sweeps.run(None, **SMALL, executor=client.get_executor()), here)


def test_process_pool(here):
    with ProcessPoolExecutor(2, FORKED) as pool:
        same(sweeps.run(None, **SMALL, executor=pool), here)


def test_threads(here):
    with ThreadPoolExecutor(2) as pool:
        same(sweeps.run(None, **SMALL, executor=pool), here)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves its logs open
def test_submitit(here, tmp_path):
    """Its jobs are no `Future`, and come with result(), done() and cancel() only."""
    import submitit

    same(sweeps.run(None, **SMALL, executor=submitit.DebugExecutor(folder=tmp_path)), here)


# -- what goes wrong ----------------------------------------------------------------------------------------------------


def dies(scene):
    """Takes its process with it."""
    if multiprocessing.parent_process() is not None:
        os._exit(1)
    return 0.0


def test_a_worker_that_dies(tmp_path):
    """Said in one sentence; what was finished before is kept, and the same call goes on."""
    keywords = {"samplers": ["ddim"], "nfe": [4], "seeds": 2, "out": tmp_path}
    sweeps.run(**keywords, metrics=["trajectory"])
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        with pytest.raises(RuntimeError, match=r"a worker process died.*finished cells are safe.*goes on from there"):
            sweeps.run(**keywords, metrics=["trajectory", Metric("dies", "lower", (), dies)], executor=pool)
    study = sf.Study.open(tmp_path)
    assert set(study.figures) == {"trajectory/median", "trajectory/q90", "trajectory/rms"} and not study.failures
    assert "dies" in sweeps.run(**keywords, metrics=[Metric("dies", "lower", (), dies)]).figures


def test_a_model_that_cannot_be_sent():
    """A pool of processes pickles; said before anything runs, with what to do."""
    model = sf.ScoreModel(lambda x, t: torch.zeros_like(x), sf.VPSDE(), prediction="x0")
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        with pytest.raises(ValueError, match=r"cannot be sent to another process .*top of a module"):
            sf.study(model, ["ddim"], nfe=[4], metrics=["trajectory"], shape=(2,), n=4, seeds=1, executor=pool)


def test_an_executor_that_fails():
    """An error of the executor's own is the cell's: recorded, and the rest goes on."""

    class Half(ThreadPoolExecutor):
        handed = 0

        def submit(self, fn, /, *args, **kwargs):
            self.handed += 1
            if self.handed == 34 + 3:  # after 32 floors and the two references
                return super().submit(lambda: 1 / 0)
            return super().submit(fn, *args, **kwargs)

    with Half(1) as pool:
        study = sweeps.run(None, samplers=["ddim"], nfe=[4, 5], seeds=2, executor=pool)
    (failure,) = study.failures
    assert failure.error == "ZeroDivisionError: division by zero" and failure.kind == "cell"
    assert sorted(study.frame["blocks"].unique()) == [1, 2]


# -- in lockstep --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 60, 10_000])
def test_lockstep(here, batch):
    """Cells of a block in shared network calls: the same figures to rounding, and the same evaluations and plans."""
    together = sweeps.run(None, **SMALL, batch=batch)
    pd.testing.assert_frame_equal(together.cells, here.cells, rtol=1e-9)
    pd.testing.assert_frame_equal(together.frame, here.frame, rtol=1e-9)


def test_lockstep_of_a_network():
    """In float32 a network rounds otherwise in a batch of another size: figures agree to that, which runs do not multiply."""
    torch.manual_seed(0)
    model = sf.ScoreModel(sf.nets.MLP(2, width=64), sf.VPSDE())
    more = {"samplers": ["ddim", "dpm-solver++"], "nfe": [4, 6], "seeds": 2, "n": 16, "shape": (2,), "metrics": ["trajectory"]}
    alone, together = (sf.study(model, **more, reference="ddim", batch=batch) for batch in (None, 10_000))
    x, y = (study.cells.query("kind == 'cell'")["value"] for study in (alone, together))
    assert len(x) == 2 * 2 * 2 * 3 and float(((x - y).abs() / x).max()) < 1e-4


def test_lockstep_shares_calls():
    """Of two samplers and two budgets, and of the reference's two runs: one call of the network for all that wait."""
    calls = []

    def net(x, t):
        calls.append(len(x))
        return 0.5 * x

    model = sf.ScoreModel(net, sf.VPSDE())
    more = {"nfe": [4, 6], "n": 8, "seeds": 1, "shape": (2,), "metrics": ["trajectory"]}
    sf.study(model, ["ddim", "dpm-solver++"], **more, batch=10_000)
    assert max(calls) == 32 and len(calls) < 113 + 6 + 5
    calls.clear()
    sf.study(model, ["ddim", "dpm-solver++"], **more, batch=20)
    assert max(calls) == 16


def test_lockstep_and_a_cell_that_fails():
    """Its error is recorded, and the others of its block have their figures; so has a cell that is timed."""

    def net(x, t):
        return torch.where(((t > 0.4) & (t < 0.45)).reshape(-1, 1), torch.nan, 0.5 * x)

    model = sf.ScoreModel(net, sf.VPSDE())
    more = {"n": 8, "seeds": 2, "shape": (2,), "grids": "uniform", "reference": "ddim@logsnr"}
    study = sf.study(
        model, ["ddim", "ddpm"], steps=[5, 7], metrics=[sweeps.FIRST, "time"], data=torch.zeros(40, 2), **more, batch=500
    )
    failed = {(failure.spec.sampler, failure.spec.steps) for failure in study.failures if failure.kind == "cell"}
    assert failed == {("ddim", 7), ("ddpm", 7)}
    assert set(study.frame.query("figure == 'time'")["steps"]) == {5}


def test_lockstep_is_for_this_process():
    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="batch=4 and executor exclude each other"):
        sweeps.run(None, **SMALL, batch=4, executor=pool)
    with pytest.raises(ValueError, match="batch must be a whole number ≥ 1, got 0"):
        sweeps.run(None, **SMALL, batch=0)
