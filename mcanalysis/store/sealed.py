"""Small JSON files that are committed and come back: a line per field, with a hash of all of it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from mcanalysis.errors import DataError
from mcanalysis.store.atomic import plain_json, write_text_atomic
from mcanalysis.store.hashing import hash_json
from mcanalysis.store.small_files import read_json

FORMAT = 1


def write_sealed(file: str | os.PathLike[str], values: Mapping[str, Any]) -> None:
    """Write values with `format` and `sha256`, whole or not at all; a line per field, so that changes can be read."""
    sealed = plain_json({"format": FORMAT, **values})
    sealed["sha256"] = hash_json(sealed)
    lines = (f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in sealed.items())
    write_text_atomic(file, "{\n" + ",\n".join(lines) + "\n}\n")


def read_sealed(file: str | os.PathLike[str], what: str, remedy: str) -> dict[str, Any]:
    """What `write_sealed` wrote; raises `DataError` for `what` of another format, damaged or changed since."""
    values = read_json(file, remedy)
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise DataError(
            f"Expected {what} of format {FORMAT} at '{file}', got "
            f"{'no format' if found is None else f'format {found}'}; {remedy}."
        )
    if values.pop("sha256", None) != hash_json(values):
        raise DataError(
            f"Expected {what} as it was written at '{file}', got one that was changed or cut since; {remedy}."
        )
    return values
