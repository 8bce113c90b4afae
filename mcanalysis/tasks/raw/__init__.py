"""Data sets in the form their authors publish, converted to TRACE's; adding one is adding a file here.

Each file of a data set has `NAME` and `read(source, seed) -> RawData`, where `source` is the folder of the raw files.
Whatever has no file of its own is read by `any_file`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

from mcanalysis.errors import DataError, UserError, did_you_mean
from mcanalysis.registry import Registry
from mcanalysis.store.atomic import replace_directory_atomic, write_json_atomic
from mcanalysis.tasks.names import check_name
from mcanalysis.tasks.raw import any_file
from mcanalysis.tasks.raw.questions import RawData
from mcanalysis.tasks.task import SPLITS

__all__ = ["Conversion", "convert", "raw_names"]

_READERS: Registry[ModuleType] = Registry("data set to convert", __name__, "NAME")


@dataclass(frozen=True)
class Conversion:
    """What a conversion wrote, and what it left out and why.

    The numbers of `kept` (by split) and `left_out` (by reason) add up to the rows of the raw files. `most_common` is
    the test split's most common answer, `most_common_share` its share: what always giving it scores by exact match.
    """

    task: str
    folder: Path
    seed: int
    kept: Mapping[str, int]
    left_out: Mapping[str, int]
    remark: str
    most_common: str
    most_common_share: float


def convert(
    name: str,
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    seed: int = 0,
    prompt: str = "prompt",
    answer: str = "answer",
) -> Conversion:
    """Write the data set in `source` as `<destination>/<name>/{train,eval,test}.json`, beside `conversion.json`.

    A name of `raw_names()` is read as its authors publish it, any other as `raw.any_file.read` says, to which `prompt`
    and `answer` go. `conversion.json` says what was converted, how many rows were kept and left out, and why; a canary
    text stands there and in the first record of each file. The same files and seed give the same splits on every
    machine. Either all files are written or none. Raises `DataError` for raw files that are absent or malformed, and a
    name that no task can have; `UserError` when the folder to write holds something already or cannot be written.

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
    check_name(name)
    folder = Path(destination) / name
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            found = "a folder with files in it" if folder.is_dir() else "a file"
            raise UserError(f"Expected no folder at {folder}, got {found}; remove it or write to another --output-dir.")
        raw = _read(name, Path(source), seed, prompt, answer)
        kept = {split: len(raw.splits[split]) for split in SPLITS}
        answers = Counter(e.answer for e in raw.splits["test"])
        most_common, number = min(answers.items(), key=lambda found: (-found[1], found[0]))
        done = Conversion(name, folder, seed, kept, dict(raw.left_out), raw.remark, most_common, number / kept["test"])
        with replace_directory_atomic(folder) as fresh:
            for split in SPLITS:
                examples = [{"prompt": e.prompt, "answer": e.answer} for e in raw.splits[split]]
                if raw.canary:
                    examples[0]["canary"] = raw.canary
                write_json_atomic(fresh / f"{split}.json", examples)
            note = {"source": str(source), **asdict(done), "canary": raw.canary or None}
            write_json_atomic(fresh / "conversion.json", {k: v for k, v in note.items() if k != "folder"})
    except OSError as error:
        raise UserError(
            f"Expected a folder that can be written at {folder}, got: {error.strerror or error}; "
            "write to another --output-dir."
        ) from error
    return done


def _read(name: str, source: Path, seed: int, prompt: str, answer: str) -> RawData:
    if name in raw_names():
        return _READERS.get(name).read(source, seed)
    try:
        return any_file.read(source, name, seed, prompt, answer)
    except DataError as error:
        raise DataError(f"{error}{did_you_mean(name, raw_names())}") from None


def raw_names() -> list[str]:
    """Return the names of the data sets that are read as their authors publish them, sorted.

    >>> raw_names()
    ['JEC-QA', 'MedMCQA']
    """
    return _READERS.names()
