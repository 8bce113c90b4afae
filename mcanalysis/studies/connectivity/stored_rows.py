"""Rows of a run's tables, kept: a second call of the study spends most of its time on intervals that it had made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mcanalysis.errors import DataError
from mcanalysis.store.atomic import write_text_atomic
from mcanalysis.store.hashing import hash_file, hash_json
from mcanalysis.store.small_files import read_json
from mcanalysis.studies.connectivity.measuring import Measured
from mcanalysis.studies.connectivity.result_tables import ResultTables
from mcanalysis.studies.drawn import drawing_key


def stored_rows(file: Path, measured: Sequence[Measured], labels: Mapping[str, Any]) -> ResultTables:
    """The rows of all paths, from `file` where it holds those of these values, made by this code; else made and kept.

    Every value that was measured, and where, is part of the key, and so are minima and fitted curves, whose lengths
    the rows have. Read from JSON either way, so that a first call and a second give the same.
    """
    key = _key(measured, labels)
    try:
        found = read_json(file) if file.exists() else {}
        if found.get("key") == key and found["sum"] == hash_json(found["rows"]):
            return ResultTables(**found["rows"])
    except (DataError, AttributeError, KeyError, TypeError):  # damaged, or of another version
        pass
    made = ResultTables()
    for of_path in measured:
        made.add(of_path, labels)
    rows = json.loads(json.dumps(vars(made), default=lambda number: number.item()))
    write_text_atomic(file, json.dumps({"key": key, "sum": hash_json(rows), "rows": rows}))
    return ResultTables(**rows)


def _key(measured: Sequence[Measured], labels: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps([drawing_key(), labels]).encode())
    for m in measured:
        t, curve = m.path.transition, m.path.file
        bends = hash_file(curve) if m.path.kind.is_fitted and curve.exists() else ""
        where = (m.path.key, t.start, t.end, t.keys, t.old, t.new, m.path.ts_beyond.tolist(), bends)
        values = [m.profiles, m.certified, m.num_cut, m.templates, m.ensemble, m.beyond, m.general, m.general_beyond]
        values += [
            m.path.settings.gauges,
            m.gauges,
            {name: objective.settings_key for name, objective in m.tested.items()},
        ]
        for part in _parts((where, values)):
            digest.update(part)
    return digest.hexdigest()


def _parts(value: Any) -> Iterator[bytes]:
    """A value piece by piece, each to the last bit."""
    if isinstance(value, np.ndarray):
        yield f"{value.dtype}{value.shape}".encode()
        yield value.tobytes()
    elif isinstance(value, Mapping):
        yield from _parts([*value.items()])
    elif isinstance(value, Sequence) and not isinstance(value, str):
        yield f"{len(value)} of".encode()
        for each in value:
            yield from _parts(each)
    elif is_dataclass(value):
        yield from _parts({field.name: getattr(value, field.name) for field in fields(value)})
    elif value is None or isinstance(value, (str, int, float, np.generic)):
        yield f"{value!r};".encode()
    else:  # whose text might leave something out
        raise TypeError(f"no key of a {type(value).__name__}")
