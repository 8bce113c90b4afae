"""General tasks: held-out tasks and text that are measured and never trained, to see what a model keeps of its base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from mcanalysis.errors import DataError, UnknownNameError
from mcanalysis.store.hashing import hash_json
from mcanalysis.tasks.names import GENERAL, check_distinct
from mcanalysis.tasks.task import NO_SCORE, Example, Task, TaskData
from mcanalysis.tasks.trace_files import load_examples, split_file

PRETRAINING = "pretraining"
"""The folder's name that stands for text like what the embedded base was pre-trained on."""

PRETRAINING_TASK = "pretraining-text"
_SEED = 1_000_003  # the embedded base was trained on the documents of seed 0
# Of the documents of this seed the first 25 instructions and 25 plain ones that are not among those the base has read:
# the grammars are small, and every second document of another seed was.
_HELD_OUT = (
    1, 2, 3, 4, 5, 7, 10, 12, 14, 18, 19, 20, 22, 24, 27, 30, 31, 33, 35, 38, 39, 40, 42, 46, 47, 48, 49, 50, 51, 55,
    56, 57, 58, 61, 63, 66, 68, 69, 70, 72, 74, 75, 77, 78, 81, 83, 89, 90, 101, 107,
)  # fmt: skip


@dataclass(frozen=True)
class General:
    """Held-out tasks that are only measured, all of a folder or those named.

    `<folder>/<TASK>/test.json`: prompts and answers, scored as the task is. Where all prompts are empty, and in
    `<folder>/<TASK>.txt`, whose paragraphs are the examples, it is text without a score. The folder `pretraining` is no
    folder, but text like what the embedded base was pre-trained on (`pretraining_text`). `max_new_tokens` maps a task
    to the most tokens generated for an answer, where that is not to be the task's own.
    """

    folder: str
    tasks: tuple[str, ...] | None = None
    max_new_tokens: Mapping[str, int] = field(default_factory=dict)

    def load(self) -> list[TaskData]:
        """Their data; raises `DataError` for a folder without any, and for one that is named and absent."""
        root = Path(self.folder)
        if self.folder == PRETRAINING:
            files: dict[str, Path] = {PRETRAINING_TASK: root}
        else:
            files = {f.name: file for f in sorted(root.glob("*")) if (file := split_file(f, "test"))}
            texts = {f.stem: f for f in sorted(root.glob("*.txt")) if f.is_file()}
            check_distinct([*files, *texts])
            files |= texts
        if not files:
            raise DataError(
                f"Expected general tasks, <TASK>/test.json or <TASK>.txt, in {root}, got "
                f"{'none' if root.is_dir() else 'no such folder'}; check --general-data."
            )
        for name in (*(self.tasks or ()), *self.max_new_tokens):
            if name not in files:
                raise UnknownNameError(f"general task in {root}", name, list(files))
        check_distinct(self.tasks or list(files))
        return [self._load(name, files[name]) for name in self.tasks or files]

    def _load(self, name: str, file: Path) -> TaskData:
        if self.folder == PRETRAINING:
            return pretraining_text()
        if file.suffix == ".txt":
            return _paragraphs(name, file)
        data = load_examples(file, max_new_tokens=self.max_new_tokens.get(name))
        if any(example.prompt for example in data.splits["test"]):
            return data
        return TaskData.of(replace(data.task, score=NO_SCORE, max_new_tokens=0), data.splits)

    def record(self) -> dict[str, Any]:
        """As JSON types, for the manifest."""
        limits = {"max_new_tokens": dict(self.max_new_tokens)} if self.max_new_tokens else {}
        return {"folder": self.folder, "tasks": None if self.tasks is None else list(self.tasks), **limits}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> General:
        """What a manifest holds."""
        tasks = record.get("tasks")
        return cls(record["folder"], None if tasks is None else tuple(tasks), record.get("max_new_tokens", {}))


def pretraining_text() -> TaskData:
    """50 documents like those the embedded base was pre-trained on, none of which was among them.

    25 instructions of other domains than the tasks', whose answers are predicted, and 25 plain texts of their domains.

    >>> data = pretraining_text()
    >>> data.task.name, data.task.has_score, len(data.splits["test"])
    ('pretraining-text', False, 50)
    """
    from mcanalysis.pretraining.corpus import generated_documents

    documents = list(islice(generated_documents(_SEED), max(_HELD_OUT) + 1))
    task = Task(PRETRAINING_TASK, "und", NO_SCORE, 0, description="Text like what the embedded base was trained on.")
    held_out = [documents[number] for number in _HELD_OUT]
    return TaskData.of(task, {"test": [Example(d.prompt, d.text) for d in held_out]})


def _paragraphs(name: str, file: Path) -> TaskData:
    try:
        paragraphs = [p.strip() for p in file.read_text(encoding="utf-8-sig").split("\n\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Expected UTF-8 text in {file}, got: {error}; correct or remove the file.") from None
    examples = [Example("", p) for p in paragraphs if p]
    if not examples:
        raise DataError(f"Expected text in {file}, got none; write some or remove the file.")
    return TaskData.of(Task(name, "und", NO_SCORE, 0, description="Plain text."), {"test": examples})


def told_apart(general: Sequence[TaskData], trained: Sequence[str]) -> list[TaskData]:
    """The data by the names that all tables have: one that a trained task has as well gets `general/` in front.

    >>> [d.task.name for d in told_apart([pretraining_text()], ["pretraining-text"])]
    ['general/pretraining-text']
    """
    check_distinct([data.task.name for data in general])
    return [
        replace(data, task=replace(data.task, name=f"{GENERAL}{data.task.name}")) if data.task.name in trained else data
        for data in general
    ]


def general_hashes(general: Sequence[TaskData]) -> dict[str, str]:
    """What tells general tasks apart from others of their names, and what they were scored with."""
    return {
        g.task.name.removeprefix(GENERAL): hash_json([g.content_hash, g.task.score, g.task.max_new_tokens])
        for g in general
    }
