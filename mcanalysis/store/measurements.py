"""The measurement store: every measured value once, in one SQLite file per run.

A row is one (point, objective, settings). Each write is one transaction in write-ahead mode, so a process
killed at any moment leaves whole rows only, and a resumed analysis measures just the keys still `missing`.
"""

from __future__ import annotations

import math
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mcanalysis.errors import UserError

_APPLICATION_ID = 0x6D63616E  # "mcan": tells this store from any other SQLite file
_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS measurements (
    point_key TEXT NOT NULL,
    task TEXT NOT NULL,
    split TEXT NOT NULL,
    settings_key TEXT NOT NULL,
    loss REAL,           -- NULL is NaN
    score REAL,          -- NULL is NaN
    num_examples INTEGER NOT NULL,
    num_targets INTEGER NOT NULL,
    nll BLOB NOT NULL,     -- float64, little-endian
    targets BLOB NOT NULL, -- int32, little-endian
    scores BLOB NOT NULL,  -- float32, little-endian
    created TEXT NOT NULL, -- UTC
    PRIMARY KEY (point_key, task, split, settings_key)
)
"""
_KEY_MATCHES = "point_key = ? AND task = ? AND split = ? AND settings_key = ?"
_BUSY_TIMEOUT_SECONDS = 30.0


class MeasurementKey(NamedTuple):
    """What a measurement is of: a point, a task's split, and the settings that could change the number.

    >>> MeasurementKey("9f2c", "FOMC", "test", "01ab").split
    'test'
    """

    point_key: str
    task: str
    split: str
    settings_key: str


@dataclass(frozen=True, eq=False)
class Measurement:
    """Loss and score of one point on one split, with the per-example values that intervals are made from.

    `loss` is in nats per target token, `score` in [0, 1]; NaN where not measured. `nll` (nats, float64),
    `targets` (target tokens, int32) and `scores` (float32) each have shape (num_examples,), or (0,) where
    per-example values were not kept. An example whose loss is NaN has no score either: what was written for it comes
    from logits that are no numbers. Arrays are copied and made read-only. Two measurements are equal when
    all fields are, NaN counting as equal to NaN. Raises `ValueError` for arrays of another shape.

    >>> m = Measurement(0.5, 1.0, 2, 4, np.array([1.5, 0.5]), np.array([3, 1]), np.array([1.0, 1.0]))
    >>> m.nll.sum() / m.num_targets
    np.float64(0.5)
    """

    loss: float
    score: float
    num_examples: int
    num_targets: int
    nll: np.ndarray
    targets: np.ndarray
    scores: np.ndarray

    @classmethod
    def of(cls, nll: np.ndarray, targets: np.ndarray, scores: np.ndarray | None = None) -> Measurement:
        """Put values per example together: loss Σ nll / Σ targets, score the mean of `scores` (None: not measured).

        >>> Measurement.of(np.array([1.5, 0.5]), np.array([3, 1])).loss
        0.5
        """
        return cls(
            loss=float(nll.sum() / targets.sum()),
            score=math.nan if scores is None or not len(scores) else float(scores.mean()),
            num_examples=len(nll),
            num_targets=int(targets.sum()),
            nll=nll,
            targets=targets,
            scores=np.empty(0) if scores is None else scores,
        )

    def __post_init__(self) -> None:
        for name in ("loss", "score"):
            object.__setattr__(self, name, float(getattr(self, name)))
        for name in ("num_examples", "num_targets"):
            object.__setattr__(self, name, int(getattr(self, name)))
        for name, dtype in (("nll", "<f8"), ("targets", "<i4"), ("scores", "<f4")):
            array = np.array(getattr(self, name), dtype=dtype)
            if array.shape not in ((self.num_examples,), (0,)):
                raise ValueError(
                    f"Expected {name} of shape ({self.num_examples},), one entry per example, or (0,); "
                    f"got {array.shape}."
                )
            object.__setattr__(self, name, array)
        lost = np.isnan(self.nll)
        if lost.any():
            object.__setattr__(self, "score", math.nan)
            if len(self.scores):
                self.scores[lost] = math.nan
        for array in (self.nll, self.targets, self.scores):
            array.setflags(write=False)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Measurement):
            return NotImplemented
        return all(
            np.array_equal(a, b, equal_nan=True) for a, b in zip(vars(self).values(), vars(other).values(), strict=True)
        )


class MeasurementStore:
    """Measurements in a SQLite file, made on first use; a context manager that closes its connection.

    Several processes may use one file at a time: a writer waits up to 30 s for another. Raises `UserError`
    when the file is no measurement store, cannot be opened or written, or stays locked.

    >>> import tempfile
    >>> key = MeasurementKey("9f2c", "FOMC", "test", "01ab")
    >>> value = Measurement(0.5, float("nan"), 1, 2, np.array([1.0]), np.array([2]), np.array([]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with MeasurementStore(Path(folder, "measurements.sqlite")) as store:
    ...         store.put(key, value)
    ...         store.get(key) == value, store.missing([key]), len(store)
    (True, [], 1)
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with self._one_line_errors():
            self._connection = sqlite3.connect(self.path, timeout=_BUSY_TIMEOUT_SECONDS, isolation_level=None)
        try:
            with self._one_line_errors():
                self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def get(self, key: tuple[str, str, str, str]) -> Measurement | None:
        """Return the measurement stored under `key`, or None.

        >>> with MeasurementStore(":memory:") as store:
        ...     store.get(("9f2c", "FOMC", "test", "01ab")) is None
        True
        """
        with self._one_line_errors():
            row = self._connection.execute(
                "SELECT loss, score, num_examples, num_targets, nll, targets, scores "
                f"FROM measurements WHERE {_KEY_MATCHES}",
                key,
            ).fetchone()
        if row is None:
            return None
        loss, score, num_examples, num_targets, nll, targets, scores = row
        try:
            return Measurement(
                loss=math.nan if loss is None else loss,
                score=math.nan if score is None else score,
                num_examples=num_examples,
                num_targets=num_targets,
                nll=np.frombuffer(nll, dtype="<f8"),
                targets=np.frombuffer(targets, dtype="<i4"),
                scores=np.frombuffer(scores, dtype="<f4"),
            )
        except (TypeError, ValueError) as error:  # never written so
            raise UserError(
                f"Expected whole measurements at {self.path}, got a damaged row ({error}); "
                "move the file away to have it measured again."
            ) from None

    def put(self, key: tuple[str, str, str, str], measurement: Measurement) -> None:
        """Store one measurement, replacing what was under `key`; on return it is safe from a kill."""
        self.put_many([(key, measurement)])

    def put_many(self, items: Iterable[tuple[tuple[str, str, str, str], Measurement]]) -> None:
        """Store several (key, measurement) pairs in one transaction: all of them or none."""
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        rows = [
            (
                *MeasurementKey(*key),
                _null_if_nan(m.loss),
                _null_if_nan(m.score),
                m.num_examples,
                m.num_targets,
                m.nll.tobytes(),
                m.targets.tobytes(),
                m.scores.tobytes(),
                created,
            )
            for key, m in items
        ]
        with self._one_line_errors(), self._transaction():
            self._connection.executemany(f"INSERT OR REPLACE INTO measurements VALUES ({', '.join('?' * 12)})", rows)

    def missing(self, keys: Iterable[tuple[str, str, str, str]]) -> list[MeasurementKey]:
        """Return those keys that are not stored yet, each once, in the order given."""
        query = f"SELECT 1 FROM measurements WHERE {_KEY_MATCHES}"
        with self._one_line_errors():
            return [
                key
                for key in dict.fromkeys(MeasurementKey(*key) for key in keys)
                if self._connection.execute(query, key).fetchone() is None
            ]

    def close(self) -> None:
        """Close the connection; the store is of no use afterwards."""
        self._connection.close()

    def __len__(self) -> int:
        with self._one_line_errors():
            return self._connection.execute("SELECT COUNT(*) FROM measurements").fetchone()[0]

    def __enter__(self) -> MeasurementStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _prepare(self) -> None:
        application, version = self._pragma("application_id"), self._pragma("user_version")
        if application == 0:
            with self._transaction():
                # Another process may have made the store since; the transaction shuts it out from here on.
                application, version = self._pragma("application_id"), self._pragma("user_version")
                num_tables = self._connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
                if application == 0 and num_tables == 0:
                    self._connection.execute(_SCHEMA)
                    self._connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                    self._connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
                    application, version = _APPLICATION_ID, _SCHEMA_VERSION
        if application != _APPLICATION_ID:
            raise UserError(
                f"Expected a measurement store at {self.path}, got a SQLite file of another program; "
                "move it away or choose another run directory."
            )
        if version != _SCHEMA_VERSION:
            raise UserError(
                f"Expected a measurement store of version {_SCHEMA_VERSION} at {self.path}, got version "
                f"{version}; read it with the mcanalysis that wrote it, or choose another run directory."
            )
        self._start_write_ahead()
        self._connection.execute("PRAGMA synchronous = NORMAL")

    def _pragma(self, name: str) -> Any:
        return self._connection.execute(f"PRAGMA {name}").fetchone()[0]

    def _start_write_ahead(self) -> None:
        # SQLite does not wait for a lock when it changes the journal mode, so wait here.
        deadline = time.monotonic() + _BUSY_TIMEOUT_SECONDS
        while self._pragma("journal_mode") not in ("wal", "memory"):
            try:
                self._pragma("journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.ProgrammingError, sqlite3.IntegrityError):  # a bug, not a bad file
            raise
        except sqlite3.OperationalError as error:
            remedy = (
                "wait for the other process that writes it"
                if "locked" in str(error)
                else "check that its folder exists, can be written and has space"
            )
            raise UserError(f"Cannot use the measurement store {self.path}: {error}; {remedy}.") from error
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"Expected a measurement store (SQLite) at {self.path}, got: {error}; "
                "move the file away or choose another run directory."
            ) from error


def _null_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
