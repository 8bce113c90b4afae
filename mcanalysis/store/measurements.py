"""The measurement store: every measured value once, in one SQLite file per run.

A row is one (point, objective, settings). Each write is one transaction in write-ahead mode, so a process
killed at any moment leaves whole rows only, and a resumed analysis measures just the keys still `missing`. A row has a
checksum of all that it says: one that has changed since counts as missing, which a warning says.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mcanalysis.errors import UserError
from mcanalysis.store.manifest import run_identity
from mcanalysis.store.one_file import check_place

logger = logging.getLogger(__name__)

_APPLICATION_ID = 0x6D63616E  # "mcan": tells this store from any other SQLite file
_SCHEMA_VERSION = 2
_WITHOUT_CHECKSUMS = 1  # read as it is, brought up to date by the first write
_ABOUT = "CREATE TABLE IF NOT EXISTS about (run TEXT)"  # whose measurements they are, where they lie in a run
_CHECKSUM = "checksum BLOB"  # of the row; NULL in rows of earlier versions
_SCHEMA = f"""
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
    {_CHECKSUM},
    PRIMARY KEY (point_key, task, split, settings_key)
)
"""
_KEY_MATCHES = "point_key = ? AND task = ? AND split = ? AND settings_key = ?"
_COLUMNS = (
    "point_key, task, split, settings_key, loss, score, num_examples, num_targets, nll, targets, scores"  # checked
)
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
    nll: np.ndarray = field(repr=False)
    targets: np.ndarray = field(repr=False)
    scores: np.ndarray = field(repr=False)

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
        self._said: set[tuple[str, str, str, str]] = set()  # keys of damaged rows that were warned of
        for end in ("", "-wal", "-shm", "-journal"):  # all of which SQLite writes to
            check_place(self.path.with_name(self.path.name + end))
        with self._one_line_errors():
            self._connection = sqlite3.connect(self.path, timeout=_BUSY_TIMEOUT_SECONDS, isolation_level=None)
        try:
            with self._one_line_errors():
                self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def get(self, key: tuple[str, str, str, str]) -> Measurement | None:
        """Return the measurement stored under `key`; None where there is none, or one that is damaged.

        >>> with MeasurementStore(":memory:") as store:
        ...     store.get(("9f2c", "FOMC", "test", "01ab")) is None
        True
        """
        with self._one_line_errors():
            row = self._connection.execute(f"{self._select} WHERE {_KEY_MATCHES}", key).fetchone()
        if row is None:
            return None
        try:
            return _measurement(row)
        except (TypeError, ValueError, OverflowError) as error:
            if key not in self._said:
                self._said.add(key)
                logger.warning(
                    "a measurement of %s (%s) in '%s' is damaged (%s): it is left out and measured again",
                    key[1], key[2], self.path, error,
                )  # fmt: skip
            return None

    def put(self, key: tuple[str, str, str, str], measurement: Measurement) -> None:
        """Store one measurement, replacing what was under `key`; on return it is safe from a kill."""
        self.put_many([(key, measurement)])

    def put_many(self, items: Iterable[tuple[tuple[str, str, str, str], Measurement]]) -> None:
        """Store several (key, measurement) pairs in one transaction: all of them or none."""
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        rows = []
        for key, m in items:
            arrays = (m.nll.tobytes(), m.targets.tobytes(), m.scores.tobytes())
            loss, score = (None if math.isnan(value) else value for value in (m.loss, m.score))
            row = (*MeasurementKey(*key), loss, score, m.num_examples, m.num_targets, *arrays)
            rows.append((*row, created, _checksum(row)))
        with self._one_line_errors(), self._transaction():
            if self._pragma("user_version") == _WITHOUT_CHECKSUMS:
                self._connection.execute(f"ALTER TABLE measurements ADD COLUMN {_CHECKSUM}")
                self._mark()
            self._connection.executemany(
                f"INSERT OR REPLACE INTO measurements ({_COLUMNS}, created, checksum) VALUES ({', '.join('?' * 13)})",
                rows,
            )

    def missing(self, keys: Iterable[tuple[str, str, str, str]]) -> list[MeasurementKey]:
        """Return those keys that are not stored yet, or in damaged rows, each once, in the order given."""
        return [key for key in dict.fromkeys(MeasurementKey(*key) for key in keys) if self.get(key) is None]

    def drop_points(self, prefix: str) -> int:
        """Remove every measurement of points whose key begins with `prefix`; returns how many there were."""
        with self._one_line_errors(), self._transaction():
            return self._connection.execute(
                "DELETE FROM measurements WHERE substr(point_key, 1, ?) = ?", (len(prefix), prefix)
            ).rowcount

    def check(self) -> tuple[int, int, list[MeasurementKey]]:
        """Look at the file page by page and at all rows: how many are whole, how many have no checksum, and the keys of
        the damaged ones. Raises `UserError` where the file is not what SQLite wrote.
        """
        whole, unknown, damaged = 0, 0, []
        with self._one_line_errors():
            if (said := self._connection.execute("PRAGMA integrity_check(1)").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(said)
            for row in self._connection.execute(self._select):
                try:
                    _measurement(row)
                    whole, unknown = whole + (row[-1] is not None), unknown + (row[-1] is None)
                except (TypeError, ValueError, OverflowError):
                    damaged.append(MeasurementKey(*map(str, row[:4])))
        return whole, unknown, damaged

    def points(self) -> dict[str, int]:
        """How many values there are of each point, by its key."""
        with self._one_line_errors():
            return dict(self._connection.execute("SELECT point_key, COUNT(*) FROM measurements GROUP BY point_key"))

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

    @property
    def _select(self) -> str:
        has_checksums = self._pragma("user_version") >= _SCHEMA_VERSION
        return f"SELECT {_COLUMNS}, {'checksum' if has_checksums else 'NULL'} FROM measurements"

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
                    self._mark()
                    application, version = _APPLICATION_ID, _SCHEMA_VERSION
        if application != _APPLICATION_ID:
            raise UserError(
                f"Expected a measurement store at {self.path}, got a SQLite file of another program; "
                "move it away or choose another run directory."
            )
        if version not in (_WITHOUT_CHECKSUMS, _SCHEMA_VERSION):
            raise UserError(
                f"Expected a measurement store of version {_SCHEMA_VERSION} or before at {self.path}, got version "
                f"{version}; read it with the mcanalysis that wrote it, or choose another run directory."
            )
        if version == _SCHEMA_VERSION and (whose := self._connection.execute("SELECT run FROM about").fetchone()):
            here = run_identity(self.path.parent)
            if None not in (here, whose[0]) and here != whose[0]:
                raise UserError(
                    f"Expected the measurements of the run they lie in at {self.path}, got those of another run; "
                    "restore the file from a copy, or move it away to have them measured again."
                )
        self._start_write_ahead()
        self._connection.execute("PRAGMA synchronous = NORMAL")

    def _mark(self) -> None:
        """Write down the version, and whose measurements they are."""
        self._connection.execute(_ABOUT)
        self._connection.execute("INSERT INTO about VALUES (?)", (run_identity(self.path.parent),))
        self._connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")

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


def _measurement(row: tuple[Any, ...]) -> Measurement:
    """The measurement in a row; raises `ValueError` or `TypeError` for one that is not as it was written.

    Rows of earlier versions have no checksum: their loss and score must be those of their examples.
    """
    *_, loss, score, num_examples, num_targets, nll, targets, scores, checksum = row
    if checksum is not None and checksum != _checksum(row[:-1]):
        raise ValueError("its checksum is another")
    found = Measurement(
        loss=math.nan if loss is None else loss,
        score=math.nan if score is None else score,
        num_examples=num_examples,
        num_targets=num_targets,
        nll=np.frombuffer(nll, dtype="<f8"),
        targets=np.frombuffer(targets, dtype="<i4"),
        scores=np.frombuffer(scores, dtype="<f4"),
    )
    if checksum is None and not _is_plausible(found):
        raise ValueError("its values per example have another mean")
    return found


def _is_plausible(m: Measurement) -> bool:
    """Whether means are those of the values per example, to float32."""
    of_examples = Measurement.of(m.nll, m.targets, m.scores) if len(m.nll) and m.targets.any() else m
    pairs = [(m.loss, of_examples.loss), (m.num_targets, of_examples.num_targets)]
    pairs += [(m.score, of_examples.score)] if len(m.scores) else []
    return all(np.isclose(stored, made, rtol=1e-4, atol=1e-4, equal_nan=True) for stored, made in pairs)


def _checksum(row: tuple[Any, ...]) -> bytes:
    """Of the columns of a row, each by its type and to the last bit."""
    parts = [value if isinstance(value, bytes) else repr(_as_stored(value)).encode() for value in row]
    digest = hashlib.sha256(repr([len(part) for part in parts]).encode())
    for part in parts:
        digest.update(part)
    return digest.digest()[:16]


def _as_stored(value: Any) -> Any:
    """What SQLite gives back: no negative zero, no subclass of a string."""
    return value + 0.0 if isinstance(value, float) else str(value) if isinstance(value, str) else value
