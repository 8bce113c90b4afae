"""Data sets in the form their authors publish, converted to TRACE's; adding one is adding a file here.

Each file has `NAME` and `read(source, seed) -> RawData`, where `source` is the folder of the raw files.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from mcanalysis.errors import UserError
from mcanalysis.registry import Registry
from mcanalysis.store.atomic import replace_directory_atomic, write_json_atomic
from mcanalysis.tasks.raw.questions import RawData
from mcanalysis.tasks.task import SPLITS

__all__ = ["Conversion", "convert", "raw_names"]

_READERS: Registry[ModuleType] = Registry("data set to convert", __name__, "NAME")


@dataclass(frozen=True)
class Conversion:
    """What a conversion wrote, and what it left out and why.

    The numbers of `kept` (by split) and `left_out` (by reason) add up to the rows of the raw files.
    """

    task: str
    folder: Path
    seed: int
    kept: Mapping[str, int]
    left_out: Mapping[str, int]
    remark: str = ""


def convert(
    name: str, source: str | os.PathLike[str], destination: str | os.PathLike[str], seed: int = 0
) -> Conversion:
    """Write the data set in folder `source` as `<destination>/<name>/{train,eval,test}.json`.

    The same files and seed give the same splits on every machine. Either all three files are written or
    none. Raises `UnknownNameError` for a data set of another name; `DataError` for raw files that are absent
    or malformed; `UserError` when the folder to write holds something already or cannot be written.

    >>> import json, tempfile
    >>> options = {"A": "盗窃罪", "B": "诈骗罪", "C": "抢劫罪", "D": "受贿罪"}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for number in (0, 1):
    ...         rows = [{"statement": f"第{number}{i}题", "option_list": options, "answer": ["B"]} for i in range(15)]
    ...         text = "\\n".join(json.dumps(row) for row in rows)
    ...         _ = Path(folder, f"{number}_train.json").write_text(text)
    ...     convert("JEC-QA", folder, Path(folder, "data")).kept
    {'train': 20, 'eval': 2, 'test': 8}
    """
    reader = _READERS.get(name)
    folder = Path(destination) / name
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            found = "a folder with files in it" if folder.is_dir() else "a file"
            raise UserError(f"Expected no folder at {folder}, got {found}; remove it or write to another --output-dir.")
        raw: RawData = reader.read(Path(source), seed)
        with replace_directory_atomic(folder) as fresh:
            for split in SPLITS:
                examples = [{"prompt": e.prompt, "answer": e.answer} for e in raw.splits[split]]
                write_json_atomic(fresh / f"{split}.json", examples)
    except OSError as error:
        raise UserError(
            f"Expected a folder that can be written at {folder}, got: {error.strerror or error}; "
            "write to another --output-dir."
        ) from error
    kept = {split: len(raw.splits[split]) for split in SPLITS}
    return Conversion(name, folder, seed, kept, dict(raw.left_out), raw.remark)


def raw_names() -> list[str]:
    """Return the names of the data sets that can be converted, sorted.

    >>> raw_names()
    ['JEC-QA', 'MedMCQA']
    """
    return _READERS.names()
