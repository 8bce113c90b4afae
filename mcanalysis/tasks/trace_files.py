"""Tasks on disk in TRACE's form: `<root>/<TASK>/{train,eval,test}.json`, lists of prompts and answers.

A file whose name ends in `.jsonl` or `.ndjson` holds one such record a line instead.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mcanalysis.errors import DataError, UnknownNameError, did_you_mean
from mcanalysis.tasks import get_task, unknown_task
from mcanalysis.tasks.names import told_apart
from mcanalysis.tasks.task import SPLITS, Example, Task, TaskData

_FORM = 'a list of {"prompt": "...", "answer": "..."}'
_KEYS = ("prompt", "answer")
_LINES = (".jsonl", ".ndjson")  # a record a line
_TABLES = (".csv", ".tsv", ".parquet")


def load_trace_task(root: str | os.PathLike[str], name: str, score: str | None = None) -> TaskData:
    """Load all splits of the task in folder `<root>/<name>`, each a list in JSON or in JSON lines.

    A folder of a known name gets that task's settings, any other those of `unknown_task`; `score` overrides
    the score. Raises `DataError` when the folder or a split is absent, and for a file that is not JSON, not
    a list of prompts and answers, or empty; `UnknownNameError` for an unknown score.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     Path(root, "FOMC").mkdir()
    ...     for split in SPLITS:
    ...         _ = Path(root, "FOMC", f"{split}.json").write_text('[{"prompt": "Text:", "answer": "A"}]')
    ...     load_trace_task(root, "FOMC").splits["test"]
    (Example(prompt='Text:', answer='A'),)
    """
    _require_folder(Path(root))
    folder = Path(root) / name
    if name not in (entry.name for entry in Path(root).iterdir() if entry.is_dir()):
        raise DataError(_no_such_folder(Path(root), name))
    files = {split: split_file(folder, split) for split in SPLITS}
    absent = [f"{split}.json" for split, file in files.items() if file is None]
    if absent:
        raise DataError(f"Expected {_split_files()} in {folder}, got no {', no '.join(absent)}; add what is missing.")
    return TaskData.of(_task_of(name, score), {split: _read_examples(file) for split, file in files.items() if file})


def is_trace_task(folder: Path) -> bool:
    """Whether a folder has a file of each split in TRACE's form, by its names.

    >>> is_trace_task(Path("nowhere"))
    False
    """
    return all(split_file(folder, split) for split in SPLITS)


def split_file(folder: Path, split: str) -> Path | None:
    """Return the file of a task's split, in JSON or JSON lines, or None; raises `DataError` where there are both.

    >>> split_file(Path("nowhere"), "test")
    """
    there = [file for ending in (".json", *_LINES) if (file := folder / f"{split}{ending}").is_file()]
    if len(there) > 1:
        raise DataError(
            f"Expected one file of {split} examples in {folder}, got {there[0].name} and {there[1].name}; remove one."
        )
    return there[0] if there else None


def list_trace_tasks(root: str | os.PathLike[str], order: Sequence[str] = ()) -> list[str]:
    """Return the names of the task folders present: those of `order` first, in its order, the rest by name.

    A task folder is one that holds at least one split's file. Raises `DataError` when `root` is no folder.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for name in ("Mine", "FOMC", "C-STANCE"):
    ...         Path(root, name).mkdir()
    ...         _ = Path(root, name, "test.json").write_text("[]")
    ...     list_trace_tasks(root, order=["FOMC", "ScienceQA"])
    ['FOMC', 'C-STANCE', 'Mine']
    """
    _require_folder(Path(root))
    present = sorted(
        entry.name
        for entry in Path(root).iterdir()
        if not entry.name.startswith(".") and any(split_file(entry, split) for split in SPLITS)
    )
    known = [name for name in order if name in present]
    return known + [name for name in present if name not in known]


def load_files(
    files: Sequence[str | os.PathLike[str]], score: str | None = None, max_new_tokens: int | None = None
) -> list[TaskData]:
    """Load several files as `load_examples` does, as tasks of different names.

    Where two files give tasks of one name, results of the one would replace those of the other: `told_apart` renames
    both by what differs in their paths, and says so. Raises `UserError` for a file that is given twice.
    """
    loaded = [load_examples(file, score, max_new_tokens) for file in files]
    names = told_apart([data.task.name for data in loaded], files)
    return [replace(d, task=replace(d.task, name=name)) for d, name in zip(loaded, names, strict=True)]


def load_examples(
    file: str | os.PathLike[str], score: str | None = None, max_new_tokens: int | None = None
) -> TaskData:
    """Load a single file of prompts and answers, JSON or JSON lines, as a task with one split, "test".

    The task is named after the file, or after its folder where the file is called train, eval or test, and
    gets the settings of that task if it is known; `score` overrides the score, `max_new_tokens` how many tokens are
    generated for an answer. Raises as `load_trace_task` does, and `UserError` for a limit below 1.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     _ = Path(root, "mine.json").write_text('[{"prompt": "1 + 1 =", "answer": "2"}]')
    ...     data = load_examples(Path(root, "mine.json"))
    >>> data.task.name, data.splits["test"][0].answer
    ('mine', '2')
    """
    path = Path(file)
    if not path.is_file():
        raise DataError(f"Expected a JSON file at {path}, got {_what_is_at(path)}; name a file that holds {_FORM}.")
    name = path.resolve().parent.name if path.stem in SPLITS else path.stem
    task = _task_of(name, score)
    if max_new_tokens is not None:
        task = task.with_limit(max_new_tokens)
    data = TaskData.of(task, {"test": _read_examples(path)})
    data.check_answers()
    return data


def _task_of(name: str, score: str | None) -> Task:
    try:
        task = get_task(name)
    except UnknownNameError:
        task = unknown_task(name)
    if score is None:
        return task

    from mcanalysis.metrics.scores import get_score  # brings in the scorers' libraries: only when named

    return task.with_score(get_score(score).name)


def _read_examples(file: Path) -> tuple[Example, ...]:
    if file.suffix.lower() in _TABLES:
        raise DataError(
            f"Expected JSON or JSON lines in {file}, got a table ({file.suffix}); write its rows as {_FORM}, or make "
            f"train, eval and test of them with python analyses/convert.py --source {file}."
        )
    if file.suffix.lower() in _LINES:
        lines = _read_text(file).split("\n")  # not at U+2028, which JSON allows within a text
        places = {f"line {n}": _parse(line, file, n) for n, line in enumerate(lines, start=1) if line.strip()}
        form = '{"prompt": "...", "answer": "..."} on each line'
    else:
        records = _parse(_read_text(file), file)
        if not isinstance(records, list):
            raise DataError(f"Expected {_FORM} in {file}, got {_kind(records)}; put the examples into a list.")
        places = {f"index {n}": record for n, record in enumerate(records)}
        form = _FORM
    if not places:
        raise DataError(f"Expected at least one example in {file}, got an empty list; add examples.")
    for place, record in places.items():
        if not isinstance(record, dict):
            raise DataError(f"Expected {form} in {file}, got {_kind(record)} at {place}; rewrite or remove it.")
        for key in _KEYS:
            if key not in record:
                raise DataError(
                    f'Expected the key "{key}" in {file} at {place}, got '
                    f"{', '.join(map(repr, record)) or 'no keys'}; add it or rename the key that holds it."
                )
            value = record[key]
            if not isinstance(value, str):
                raise DataError(
                    f'Expected text at key "{key}" in {file} at {place}, got {_kind(value)}; write it in quotes.'
                )
            if not _is_unicode(value):
                raise DataError(
                    f'Expected Unicode text at key "{key}" in {file} at {place}, got half of a '
                    "surrogate pair; correct the text."
                )
    return tuple(Example(record["prompt"], record["answer"]) for record in places.values())


def _parse(text: str, file: Path, line: int | None = None) -> Any:
    """The JSON value of a file's text, or of one of its lines."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        must = f"write {_FORM}" if line is None else "write one record per line"
        hint = "; if it holds one record per line, name it .jsonl" if line is None and error.msg == "Extra data" else ""
        raise DataError(
            f"Expected JSON in {file}, got: {error.msg} at line {line or error.lineno}, column {error.colno}; "
            f"{must}{hint}."
        ) from error
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number of thousands of digits
        what = "JSON nested too deeply" if isinstance(error, RecursionError) else f"JSON that Python refuses: {error}"
        raise DataError(f"Expected {_FORM} in {file}, got {what}; write prompts and answers as plain text.") from error


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"Expected UTF-8 text in {file}, got byte 0x{error.object[error.start]:02x} at offset "
            f"{error.start}; save the file as UTF-8."
        ) from error
    except OSError as error:
        raise DataError(f"Expected a readable file at {file}, got: {error.strerror}; check its permissions.") from error


def _require_folder(root: Path) -> None:
    if not root.is_dir():
        raise DataError(f"Expected a folder of tasks at {root}, got {_what_is_at(root)}; check --data-dir.")


def _what_is_at(path: Path) -> str:
    if path.is_dir():
        return "a folder"
    return "a file" if path.exists() else "nothing there"


def _no_such_folder(root: Path, name: str) -> str:
    present = list_trace_tasks(root)
    found = f"only {', '.join(present)}" if present else "no task folders at all"
    remedy = "Name a folder that is there or add" if present else "Add"
    return (
        f"Expected a folder of task '{name}' in {root}, got {found}.{did_you_mean(name, present)} {remedy} "
        f"{root / name} with {_split_files()}."
    )


def _split_files() -> str:
    *first, last = (f"{split}.json" for split in SPLITS)
    return f"{', '.join(first)} and {last}"


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, dict):
        return f"an object with the keys {', '.join(map(repr, value))[:80]}" if value else "an empty object"
    return "a list" if isinstance(value, list) else f"the text {value[:40]!r}"
