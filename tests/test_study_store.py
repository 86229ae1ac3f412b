"""The store: a study that is killed goes on where it was, processes share a file, and what is wrong is said and not touched."""

import os
import random
import signal
import sqlite3
import time

import numpy as np
import pandas as pd
import pytest
import sweeps
from forked import FORKED

import scoreflow as sf
from scoreflow.studies.store import Done, Measured, Store


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The study, uninterrupted, and the seconds that it took."""
    out = tmp_path_factory.mktemp("whole")
    begun = time.perf_counter()
    study = sweeps.run(out / "study")
    return study, time.perf_counter() - begun


def cells(study):
    return study.cells.drop(columns="key")


def same(a, b):
    pd.testing.assert_frame_equal(cells(a), cells(b), check_exact=True)
    pd.testing.assert_frame_equal(a.frame, b.frame, check_exact=True)


def lines(log):
    return log.read_text().splitlines() if log.exists() else []


def ran(log):
    """(seed, plan) of every cell that was measured, in order."""
    return [tuple(line.split()[1:]) for line in lines(log) if not line.endswith(" -")]


def finished(out):
    """(seed, plan) of what the file holds."""
    store = sqlite3.connect(out / "study.sqlite")
    rows = store.execute("SELECT seed, plan FROM cell WHERE kind = 'cell'").fetchall()
    store.close()
    return rows


# -- going on -----------------------------------------------------------------------------------------------------------


def test_killed_at_twenty_random_moments(whole, tmp_path):
    """kill −9, twenty times: the final table is the uninterrupted one, and no finished cell ran again."""
    study, seconds = whole
    rng, log, kills, done = random.Random(0), tmp_path / "log", 0, 0
    while kills < 20:
        ready = FORKED.Event()
        before, known = len(ran(log)), _counts(tmp_path)
        process = FORKED.Process(target=sweeps.run, args=(tmp_path / "study", ready), kwargs={"log": log})
        process.start()
        assert ready.wait(60)
        time.sleep(rng.uniform(0.0, seconds / 12))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
        after = _counts(tmp_path)
        assert all(after.get(cell, 0) >= n for cell, n in known.items()), "a finished cell was lost"
        fresh = ran(log)[before:]
        # What ran and was not written is one cell at the most: the one that the kill fell on.
        assert len(fresh) - (sum(after.values()) - sum(known.values())) in (0, 1)
        done += len(fresh)
        if process.exitcode == 0:
            break
    assert kills >= 15
    resumed = sweeps.run(tmp_path / "study")
    same(resumed, study)
    assert len(resumed.cells["key"].unique()) == len(study.cells["key"].unique())


def _counts(folder):
    file = folder / "study" / "study.sqlite"
    if not file.exists():
        return {}
    store = sqlite3.connect(file, timeout=30)
    try:
        return {key: 1 for (key,) in store.execute("SELECT key FROM cell WHERE kind = 'cell'")}
    except sqlite3.OperationalError:  # killed before the tables were made
        return {}
    finally:
        store.close()


def test_two_processes_fill_one_file(whole, tmp_path):
    """Two at once give the table of one, and share the work: no cell is run by both."""
    log = tmp_path / "log"
    ready = [FORKED.Event(), FORKED.Event()]
    both = [FORKED.Process(target=sweeps.run, args=(tmp_path / "study", one), kwargs={"log": log}) for one in ready]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    same(sf.Study.open(tmp_path / "study"), whole[0])
    assert len(ran(log)) == len(set(whole[0].cells.query("kind == 'cell'")["key"]))
    assert len({line.split()[0] for line in lines(log)}) == 2, "one process did it all"


def test_four_writers(tmp_path):
    """Of one file at once, in orders of their own: no cell is lost, none is written twice, and no claim is left."""
    file, count = tmp_path / "study.sqlite", 400
    Store(file, sweeps.IDENTITY).close()
    answers = FORKED.SimpleQueue()
    writers = [FORKED.Process(target=sweeps.write, args=(file, count, i, answers)) for i in range(4)]
    for process in writers:
        process.start()
    written = [key for _ in writers for key in answers.get()]
    for process in writers:
        process.join()
    assert sorted(written) == sorted(key for key, _, _ in sweeps.many(count)), "each by one of them"
    store = Store(file)
    assert store.rows("SELECT count(*) AS n FROM cell") == [{"n": count}] and not store.rows("SELECT * FROM claim")
    found = {row["key"]: row["value"] for row in store.rows("SELECT key, value FROM value WHERE figure = 'm/a'")}
    assert found == {key: float(seed) for key, _, seed in sweeps.many(count)}
    assert np.array_equal(store.samples(written[0]), np.full((8, 2), float(int(written[0], 16))))


def test_a_store_whose_columns_are_in_another_order(tmp_path):
    """As earlier versions wrote it, samples before the plan: it is read, added to and merged; new ones have samples last."""
    file, spec, done = tmp_path / "study.sqlite", ("ddim", None, 4, None), Done(4.0, 1.0, np.ones(3), (), "a plan", ("key",))
    new = Store(file, {"model": "m"})
    (text,) = new._db.execute("SELECT sql FROM sqlite_master WHERE name = 'cell'").fetchone()
    assert text.endswith("samples BLOB\n)")
    new._db.execute("DROP TABLE cell")
    new._db.execute(text.replace(", samples BLOB\n)", ")").replace("seconds REAL,", "seconds REAL, samples BLOB,"))
    new.put("before", "cell", spec, 0, done)
    new.close()
    old, other = Store(file), Store(None, {"model": "m"})
    other.put("other", "cell", spec, 1, done)
    other.take(old)
    old.take(other)
    for store in (old, other):
        rows = store.rows("SELECT key, plan, cites, seed FROM cell ORDER BY seed")
        cites = '["key"]'
        assert rows == [{"key": key, "plan": "a plan", "cites": cites, "seed": k} for k, key in enumerate(("before", "other"))]
        assert all(np.array_equal(store.samples(key), np.ones(3)) for key in ("before", "other"))


def test_adding_runs_what_is_new(tmp_path):
    """More samplers, budgets, seeds and metrics; what is there is not run again."""
    log = tmp_path / "log"

    def go(samplers, nfe, seeds, out="study", **more):
        study = sweeps.run(tmp_path / out, samplers=samplers, nfe=nfe, seeds=seeds, **more)
        return study.cells.drop(columns="key"), study.frame, len(ran(log))

    os.environ[sweeps.LOG] = str(log)
    try:
        *_, small = go(["ddim"], [4], 2)
        *_, again = go(["ddim"], [4], 2)
        *grown, more = go(["ddim", "ddpm"], [4, 5], 3)
        _, frame, measured = go(["ddim", "ddpm"], [4, 5], 3, metrics=["modes", "trajectory", sweeps.FIRST])
        assert (small, again, more, measured) == (2, 2, 12, 12)
    finally:
        del os.environ[sweeps.LOG]
    *once, _ = go(["ddim", "ddpm"], [4, 5], 3, "at once")
    for a, b in zip(grown, once, strict=True):
        pd.testing.assert_frame_equal(a, b, check_exact=True)
    assert set(frame["figure"]) == {*once[1]["figure"], "modes"}


def test_a_metric_that_changed_is_measured_again(tmp_path):
    """A figure is found by the metric's code too, and samples that are there are not drawn again."""
    made = []
    for factor in (1.0, 2.0):

        def scaled(scene, factor=factor):
            """Scaled."""
            return factor * float(scene.x.mean())

        custom = sf.studies.Metric("scaled", "lower", (), scaled)
        study = sf.study("oracle:ring", ["ddpm"], nfe=[4], n=8, seeds=2, metrics=[custom], out=tmp_path)
        made.append(study.frame["value"].item())
        times = study.store.rows("SELECT made FROM cell WHERE kind = 'cell'")
    assert made[1] == 2 * made[0]
    assert times == sf.Study.open(tmp_path).store.rows("SELECT made FROM cell WHERE kind = 'cell'")


def test_merging(tmp_path):
    """Studies of one model merge to the study of all; a study of another is refused, and what differs is named."""
    a = sweeps.run(tmp_path / "a", samplers=["ddim"], nfe=[4], seeds=2)
    b = sweeps.run(tmp_path / "b", samplers=["ddpm"], nfe=[4], seeds=3)
    both = sweeps.run(tmp_path / "c", samplers=["ddim", "ddpm"], nfe=[4], seeds=3)
    merged = a.merge(b, sweeps.run(None, samplers=["ddim"], nfe=[4], seeds=3))
    same(merged, both)
    assert len(a.cells) < len(merged.cells), "merging does not write into its parts"
    other = sf.study("oracle:white", ["ddim"], nfe=[4], n=24, seeds=2, metrics=["energy"], reference="scipy(rtol=1e-4)")
    with pytest.raises(ValueError, match=r"of something else \(model: .* there, .* here; .*shape"):
        a.merge(other)


def test_a_failed_cell_is_replaced_by_a_finished_one():
    store, spec = Store(None, {"model": "m"}), ("ddim", None, 4, None)
    other = Store(None, {"model": "m"})
    store.put("key", "cell", spec, 0, Done(None, 0.0, None, (), error="ValueError: no"))
    assert store.measured("key") is None
    figures = (Measured("energy", "mark", {"energy": 0.5}), Measured("kid", "mark", {}, "NaN"))
    other.put("key", "cell", spec, 0, Done(4.0, 1.0, np.zeros((2, 3)), figures))
    store.take(other)
    assert store.measured("key") == {("energy", "mark")}
    assert np.array_equal(store.samples("key"), np.zeros((2, 3)))
    other.put("key", "cell", spec, 0, Done(None, 0.0, None, (Measured("kid", "mark", {"kid": 0.1}),)))
    store.take(other)
    assert store.measured("key") == {("energy", "mark"), ("kid", "mark")}


def test_samples_come_back_as_they_were(tmp_path):
    """Of any shape and dtype that NumPy has, also empty ones."""
    store = Store(tmp_path / "s.sqlite", {"model": "m"})
    for i, x in enumerate([np.random.default_rng(0).normal(size=(3, 1, 4, 4)), np.zeros((0, 2), np.float32), np.ones(5)]):
        store.put(str(i), "cell", ("ddim", None, 4, None), i, Done(1.0, 0.0, x, ()))
        back = store.samples(str(i))
        assert back.dtype == x.dtype and np.array_equal(back, x)


# -- claims -------------------------------------------------------------------------------------------------------------


def test_claims(tmp_path):
    """A claim holds against a living process, not against a dead one, nor one of another machine past its lease."""
    store = Store(tmp_path / "s.sqlite", {"model": "m"})
    assert store.claim("key") and store.claim("key"), "a process may take up its own"
    host, pid, until = store._db.execute("SELECT host, pid, until FROM claim").fetchone()
    cases = {
        "alive": ((host, os.getppid(), until), False),
        "dead": ((host, 2**22 + 1, until), True),
        "elsewhere": (("elsewhere", pid, until), False),
        "elsewhere, long ago": (("elsewhere", pid, time.time() - 1), True),
    }
    for case, (claim, free) in cases.items():
        store._db.execute("UPDATE claim SET host = ?, pid = ?, until = ?", claim)
        assert store.claim("key") is free, case


# -- what is wrong ------------------------------------------------------------------------------------------------------


def test_a_store_of_something_else(tmp_path):
    """Another model, n, data, reference or numerics: refused, with what differs; the file stays as it is."""
    sweeps.run(tmp_path, samplers=["ddim"], nfe=[4], seeds=1)
    before = (tmp_path / "study.sqlite").read_bytes()
    with pytest.raises(ValueError, match=r"n: 24 there, 25 here"):
        sweeps.run(tmp_path, samplers=["ddim"], nfe=[4], seeds=1, n=25)
    with pytest.raises(ValueError, match=r"reference: scipy\(rtol=1e-4\) there, scipy\(rtol=1e-5\) here"):
        sweeps.run(tmp_path, samplers=["ddim"], nfe=[4], seeds=1, reference="scipy(rtol=1e-5)")
    with pytest.raises(ValueError, match=r"model: \w+ there, \w+ here"):
        sf.study("oracle:ring(std=0.2)", ["ddim"], nfe=[4], n=24, seeds=1, reference="scipy(rtol=1e-4)", out=tmp_path)
    store = sqlite3.connect(tmp_path / "study.sqlite")
    store.execute("UPDATE meta SET value = '0' WHERE name = 'numerics'")
    store.commit()
    store.close()
    with pytest.raises(ValueError, match=r"numerics: 0 there, \d+ here"):
        sweeps.run(tmp_path, samplers=["ddim"], nfe=[4], seeds=1)
    (tmp_path / "study.sqlite").write_bytes(before)
    assert len(sweeps.run(tmp_path, samplers=["ddim"], nfe=[4], seeds=1).specs) == 1


def test_a_store_of_an_earlier_format(tmp_path):
    """It is not read wrongly."""
    sweeps.run(tmp_path, samplers=["ddim"], nfe=[4], seeds=1)
    store = Store(tmp_path / "study.sqlite")
    store._db.execute("UPDATE meta SET value = '1' WHERE name = 'format'")
    store.close()
    with pytest.raises(ValueError, match=r"has format 1, this version reads \d; it was not touched"):
        sf.Study.open(tmp_path)


@pytest.mark.parametrize("damage", ["text", "cut", "overwritten", "another"])
def test_a_damaged_store(damage, tmp_path):
    """A clear error, and not a byte of the file changes."""
    sweeps.run(tmp_path, samplers=["ddim"], nfe=[4], seeds=2)
    file = tmp_path / "study.sqlite"
    content = bytearray(file.read_bytes())
    if damage == "text":
        content = bytearray(b"this is no database\n" * 40)
    elif damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "overwritten":
        content[4096 : len(content) - 4096] = b"\xff" * (len(content) - 8192)
    else:
        file.unlink()
        other = sqlite3.connect(file)
        other.execute("CREATE TABLE recipe (name TEXT)")
        other.commit()
        other.close()
        content = bytearray(file.read_bytes())
    file.write_bytes(content)
    for go_on in (lambda: sweeps.run(tmp_path, samplers=["ddim"], nfe=[4], seeds=2), lambda: sf.Study.open(tmp_path)):
        with pytest.raises(ValueError, match=r"study\.sqlite is not a study, or is damaged .* not touched"):
            go_on()
    assert file.read_bytes() == bytes(content)


def test_a_large_store_is_not_read_through(tmp_path, monkeypatch):
    """It is opened at once; what is damaged shows, as clearly, where it is read."""
    sweeps.run(tmp_path, samplers=["ddim"], nfe=[4], seeds=2)
    file = tmp_path / "study.sqlite"
    content = file.read_bytes()
    file.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    monkeypatch.setattr("scoreflow.studies.store.CHECKED", len(content) - 1)
    with pytest.raises(ValueError, match=r"study\.sqlite is not a study, or is damaged"):
        _ = sf.Study.open(tmp_path).cells
    monkeypatch.setattr("scoreflow.studies.store.CHECKED", len(content))
    with pytest.raises(ValueError, match=r"study\.sqlite is not a study, or is damaged"):
        sf.Study.open(tmp_path)


def test_a_full_disk(tmp_path):
    """What was finished is safe, the error says so, and the study goes on once there is room."""
    sweeps.run(tmp_path, samplers=["ddim"], nfe=[4], seeds=1)
    store = Store(tmp_path / "study.sqlite")
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    big = Done(4.0, 1.0, np.zeros((4096, 64)), ())
    with pytest.raises(OSError, match=r"full; finished cells are safe: make room and run again"):
        store.put("new", "cell", ("ddim", None, 4, None), 7, big)
    assert store.measured("new") is None
    store._db.execute("PRAGMA max_page_count = 1000000")
    store.put("new", "cell", ("ddim", None, 4, None), 7, big)
    assert store.measured("new") == set()


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no study at"):
        sf.Study.open(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="out must be a folder"):
        sweeps.run(tmp_path / "file", samplers=["ddim"], nfe=[4], seeds=1)


def test_what_another_finished_since_the_look_is_not_run_again(tmp_path, monkeypatch):
    """A cell that was finished, and its claim given back, between a process's look at it and its own claim."""
    log, claim, others = tmp_path / "log", Store.claim, []
    monkeypatch.setenv(sweeps.LOG, str(log))
    small = {"samplers": ("ddim",), "nfe": (4,), "seeds": 1}

    def late(self, key):
        if not others:
            others.append(key)
            sweeps.run(tmp_path / "study", **small)  # all of it, in between
        return claim(self, key)

    monkeypatch.setattr(Store, "claim", late)
    sweeps.run(tmp_path / "study", **small)
    assert others and len(lines(log)) == 32 + 1 + 1  # of the floor, the reference and the cell, each once
