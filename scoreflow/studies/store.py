"""Finished cells in an SQLite file: written at once, found by content, shared by processes."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FORMAT = "3"
SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS cell (
    key TEXT PRIMARY KEY, kind TEXT NOT NULL, sampler TEXT NOT NULL, grid TEXT, nfe INTEGER, steps INTEGER,
    seed INTEGER NOT NULL, counted REAL, seconds REAL, plan TEXT, cites TEXT, error TEXT, machine TEXT, made REAL, samples BLOB
);
CREATE TABLE IF NOT EXISTS value (
    key TEXT NOT NULL, metric TEXT NOT NULL, fingerprint TEXT NOT NULL, figure TEXT NOT NULL, value REAL, error TEXT,
    PRIMARY KEY (key, figure)
);
CREATE TABLE IF NOT EXISTS claim (key TEXT PRIMARY KEY, host TEXT NOT NULL, pid INTEGER NOT NULL, until REAL NOT NULL);
"""
CELL = "key, kind, sampler, grid, nfe, steps, seed, counted, seconds, plan, cites, error, machine, made, samples"
"""The columns by name: files from before have others last. Samples last, so that a look at a cell does not read them."""
CHECKED = 2**28
"""Bytes: a file that has no more is read through when it is opened, to see whether it is damaged; a larger one takes long."""
LEASE = 3600.0
"""Seconds after which a claim from another machine is void; one from this machine is as soon as its process is gone."""


HEALTH = "Plan.check"
"""The name under which the store keeps what a plan says of itself; no metric's."""
BACKWARD = "Solution.backward"
"""The name under which it keeps the backward passes of a run, where there were any; no metric's."""
MEASURED = f"metric NOT IN ('{HEALTH}', '{BACKWARD}')"
"""Of the values in the store, those that metrics gave."""


class Measured(NamedTuple):
    """What a metric gave on a cell: its figures, or an error. `fingerprint` is that of the metric."""

    metric: str
    fingerprint: str
    figures: Mapping[str, float]
    error: str | None = None


class Done(NamedTuple):
    """What a finished cell leaves.

    Attributes:
        counted: network evaluations, the mean over samples. backward: passes back through the network. seconds: of the run.
        samples: (n, ...), or None. measured: what each metric gave.
        plan: one line on what ran. cites: keys of works. error: why the run failed, or None.
    """

    counted: float | None
    seconds: float
    samples: np.ndarray | None
    measured: tuple[Measured, ...]
    plan: str = ""
    cites: tuple[str, ...] = ()
    error: str | None = None
    machine: str = ""
    backward: int = 0


class Store:
    """An SQLite file of finished cells; in memory if no file is given.

    Args:
        file: where; made if it is not there.
        identity: what its figures depend on. A store that was made with another one is refused; None takes any.

    Raises:
        ValueError: the file is no store, is damaged, or holds figures of something else; it is not touched.
    """

    def __init__(self, file: str | Path | None = None, identity: Mapping[str, str] | None = None) -> None:
        self.file = None if file is None else Path(file)
        if identity is None and self.file is not None and not self.file.is_file():
            raise FileNotFoundError(f"no study at {self.file}")
        with self._plainly():
            self._db = sqlite3.connect(":memory:" if self.file is None else self.file, timeout=60, isolation_level=None)
            if self.file is not None and (size := self.file.stat().st_size):
                if size <= CHECKED and (state := self._db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                    raise sqlite3.DatabaseError(state.splitlines()[-1])
                self._check()
            elif self.file is not None and identity is None:
                raise sqlite3.DatabaseError("it is empty")
            self._db.execute("PRAGMA journal_mode = TRUNCATE")
            if not _tables(self._db):
                with self._writing():  # all tables or none: it may be killed at any moment
                    for statement in SCHEMA.split(";"):
                        self._db.execute(statement)
        self._agree({} if identity is None else {"format": FORMAT, **identity})

    def _check(self) -> None:
        """Raise unless the file's tables are those of a study, and of this version."""
        there = _tables(self._db)
        if not there:  # a study that was stopped before it began
            return
        if {"name", "value"} <= there.get("meta", set()) and (known := self.identity.get("format", FORMAT)) != FORMAT:
            newer = known.isdigit() and int(known) > int(FORMAT)
            hint = "; it was written by a newer scoreflow: update this one" if newer else ""
            raise ValueError(f"{self.file} has format {known}, this version reads {FORMAT}; it was not touched{hint}")
        fresh = sqlite3.connect(":memory:")
        fresh.executescript(SCHEMA)
        missing = [f"{table}.{name}" for table, own in _tables(fresh).items() for name in sorted(own - there.get(table, set()))]
        fresh.close()
        if missing:
            raise sqlite3.DatabaseError(f"it has the tables {', '.join(sorted(there))}, and no {missing[0]}")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        """SQLite's errors, said with the file's name and what to do."""
        try:
            yield
        except sqlite3.OperationalError as error:
            full = "full" in str(error)
            hint = "finished cells are safe: make room and run again" if full else "is it writable, and not on a lost disk?"
            raise OSError(f"the study's file {self.file}: {error}; {hint}") from error
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{self.file} is not a study, or is damaged ({error}); it was not touched") from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """All of what is written inside, or none of it."""
        with self._plainly():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _agree(self, identity: dict[str, str]) -> None:
        if not identity:
            return
        with self._writing():
            known = self.identity
            if not known:
                self._db.executemany("INSERT INTO meta VALUES (?, ?)", identity.items())
                known = identity
        wrong = [
            f"{name}: {known.get(name)} there, {identity.get(name)} here"
            for name in sorted({*known, *identity})
            if known.get(name) != identity.get(name)
        ]
        if wrong:
            where = f"the study in {self.file}" if self.file else "the study"
            raise ValueError(f"{where} is of something else ({'; '.join(wrong)}): take another folder")

    @property
    def identity(self) -> dict[str, str]:
        """What its figures depend on."""
        return dict(self._db.execute("SELECT name, value FROM meta ORDER BY name"))

    # -- cells --------------------------------------------------------------------------------------------------------
    def claim(self, key: str) -> bool:
        """Whether the cell is this process's to run: nobody finished it, and nobody alive is at it."""
        if not self._free(key):  # a look is cheap, and leaves the file to those who write
            return False
        with self._writing():
            if mine := self._free(key):
                entry = (key, socket.gethostname(), os.getpid(), time.time() + LEASE)
                self._db.execute("INSERT OR REPLACE INTO claim VALUES (?, ?, ?, ?)", entry)
        return mine

    def release(self, keys: Iterable[str]) -> None:
        """Give back this process's claims, so that others need not wait for it to end."""
        with self._writing():
            own = [(key, socket.gethostname(), os.getpid()) for key in keys]
            self._db.executemany("DELETE FROM claim WHERE key = ? AND host = ? AND pid = ?", own)

    def _free(self, key: str) -> bool:
        row = self._db.execute("SELECT host, pid, until FROM claim WHERE key = ?", (key,)).fetchone()
        if row is None:
            return True
        host, pid, until = row
        here = host == socket.gethostname()
        return bool((here and (pid == os.getpid() or not _alive(pid))) or until < time.time())

    def put(self, key: str, kind: str, spec: tuple[str, str | None, int | None, int | None], seed: int, done: Done) -> None:
        """Write a finished cell, or more figures of one, and give back its claim; a cell that is there stays as it is."""
        samples = None if done.samples is None else _pack(done.samples)
        cell = (
            key, kind, *spec, seed, done.counted, done.seconds, done.plan, json.dumps(done.cites), done.error, done.machine,
            time.time(), samples,
        )  # fmt: skip
        values: list[tuple[str | float | None, ...]] = []
        # A value and no column, so that files from before are read as they are.
        passes = (Measured(BACKWARD, "", {BACKWARD: float(done.backward)}),) if done.backward else ()
        measured = (*done.measured, *passes)
        for one in measured:
            figures = {one.metric: None} if one.error else one.figures
            values += [(key, one.metric, one.fingerprint, figure, v, one.error) for figure, v in figures.items()]
        with self._writing():
            self._db.execute("DELETE FROM cell WHERE key = ? AND error IS NOT NULL", (key,))
            self._db.execute(f"INSERT OR IGNORE INTO cell ({CELL}) VALUES ({', '.join('?' * len(cell))})", cell)
            if samples is not None:  # it may have been measured without them before
                again = "UPDATE cell SET samples = ?, seconds = ? WHERE key = ? AND samples IS NULL"
                self._db.execute(again, (samples, done.seconds, key))
            self._db.executemany("DELETE FROM value WHERE key = ? AND metric = ?", [(key, one.metric) for one in measured])
            self._db.executemany("INSERT INTO value VALUES (?, ?, ?, ?, ?, ?)", values)
            self._db.execute("DELETE FROM claim WHERE key = ?", (key,))

    def forget(self, spec: tuple[str, str | None, int | None, int | None], plan: str) -> None:
        """Take out the cells of a spec that ran another plan."""
        of = "SELECT key FROM cell WHERE kind = 'cell' AND (sampler, grid, nfe, steps) IS (?, ?, ?, ?) AND plan IS NOT ?"
        keys = [(row["key"],) for row in self.rows(of, *spec, plan)]
        if keys:
            with self._writing():
                for table in ("cell", "value"):
                    self._db.executemany(f"DELETE FROM {table} WHERE key = ?", keys)

    def measured(self, key: str) -> set[tuple[str, str]] | None:
        """The metrics, with their marks, that a finished cell has figures of; None if it is not finished, or failed."""
        if self._db.execute("SELECT 1 FROM cell WHERE key = ? AND error IS NULL", (key,)).fetchone() is None:
            return None
        return set(self._db.execute("SELECT DISTINCT metric, fingerprint FROM value WHERE key = ? AND error IS NULL", (key,)))

    def samples(self, key: str) -> np.ndarray | None:
        """The samples of a finished cell."""
        row = self._db.execute("SELECT samples FROM cell WHERE key = ?", (key,)).fetchone()
        return None if row is None or row[0] is None else _unpack(row[0])

    def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """What a query gives, as dictionaries."""
        return [*self._each(query, *values)]

    def _each(self, query: str, *values: Any) -> Iterator[dict[str, Any]]:
        """The same, one after the other: samples need much memory at once."""
        with self._plainly():
            cursor = self._db.execute(query, values)
            names = [column[0] for column in cursor.description]
            for row in cursor:
                yield dict(zip(names, row, strict=True))

    def take(self, other: Store) -> None:
        """All that another store of the same identity holds and this one does not.

        Raises:
            ValueError: it is of something else; what differs is named.
        """
        self._agree(other.identity)
        with self._writing():
            for table, same in (("cell", "key = :key"), ("value", "key = :key AND metric = :metric")):
                for row in other._each(f"SELECT * FROM {table}"):
                    if row["error"] is None:
                        self._db.execute(f"DELETE FROM {table} WHERE {same} AND error IS NOT NULL", row)
                    elif self._db.execute(f"SELECT 1 FROM {table} WHERE {same} AND error IS NULL", row).fetchone():
                        continue  # what failed there succeeded here
                    named = ", ".join(f":{name}" for name in row)
                    self._db.execute(f"INSERT OR IGNORE INTO {table} ({', '.join(row)}) VALUES ({named})", row)


def _tables(db: sqlite3.Connection) -> dict[str, set[str]]:
    """The columns of every table."""
    names = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return {name: {row[0] for row in db.execute("SELECT name FROM pragma_table_info(?)", (name,))} for name in names}


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _pack(x: np.ndarray) -> bytes:
    head = json.dumps([str(x.dtype), x.shape]).encode()
    return len(head).to_bytes(4, "big") + head + np.ascontiguousarray(x).tobytes()


def _unpack(data: bytes) -> np.ndarray:
    size = 4 + int.from_bytes(data[:4], "big")
    dtype, shape = json.loads(data[4:size])
    return np.frombuffer(data, dtype=dtype, offset=size).reshape(shape).copy()
