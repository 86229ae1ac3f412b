"""Where a command that takes long is run: in processes of its own, on Dask, as jobs of a cluster."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from scoreflow._extras import needs

PLACES = "dask, dask://host:port or submitit:folder"
"""What `--executor` takes."""


@contextmanager
def processes(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes that leave Ctrl-C to this one, and end with it."""
    from scoreflow._core.check import whole

    if not whole("workers", workers, 0):
        yield None
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
    try:
        yield pool
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            sys.excepthook = lambda *_: None  # the thread that hands tensors to workers complains of those that end
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def place_of(executor: str) -> tuple[str, str]:
    """`--executor` as typed: "dask" or "submitit", and where; "" for a Dask cluster that is started here.

    Raises:
        ValueError: it is none of `PLACES`.
    """
    kind, _, place = executor.partition(":")
    place = place.removeprefix("//")
    if kind not in ("dask", "submitit") or (executor != "dask" and not place):
        raise ValueError(f"--executor must be {PLACES}, got {executor!r}")
    return kind, place


@contextmanager
def opened(executor: str, workers: int | None, options: dict[str, Any]) -> Iterator[tuple[Any, int]]:
    """What `--executor` names, which has `submit`, and the workers that it has; of submitit as many as were asked for.

    Args:
        workers: of a Dask cluster that is started here, as many as there are cores if None.
        options: of that cluster, of Dask's client, or of submitit's executor.
    """
    kind, place = place_of(executor)
    if kind == "submitit":
        needs("cluster", "submitit")
        import submitit

        pool = submitit.AutoExecutor(folder=place, cluster=options.pop("cluster", None))
        pool.update_parameters(**options)
        yield pool, workers or 1
        return
    needs("cluster", "distributed")
    from distributed import Client, LocalCluster

    connect, start = Client, LocalCluster  # neither has types
    if place:
        with connect(f"tcp://{place}", **options) as client:  # type: ignore[no-untyped-call]
            yield client.get_executor(pure=False), max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
        return
    with (
        start(n_workers=workers, threads_per_worker=1, **{"dashboard_address": None, **options}) as cluster,  # type: ignore[no-untyped-call]
        connect(cluster) as client,  # type: ignore[no-untyped-call]
    ):
        yield client.get_executor(pure=False), len(cluster.workers)
