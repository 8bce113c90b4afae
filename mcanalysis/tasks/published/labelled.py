"""A published data set of texts with labels: how its rows become prompts, and which of its rows are taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from mcanalysis.errors import DataError
from mcanalysis.tasks.published.hub import HubFile, rows_from_hub
from mcanalysis.tasks.published.splits import apart, eval_of_test, files_of
from mcanalysis.tasks.raw.rows import NamedRows, Rows, read_file, read_files, split_files
from mcanalysis.tasks.task import SPLITS, Example, Task, TaskData

TRAIN_PER_CLASS, EVAL_PER_CLASS, NUM_TEST = 1000, 500, 7600
"""What O-LoRA's paper and files have: train and validation examples of each class, and the most test examples."""


@dataclass(frozen=True)
class Labelled:
    """A data set on the hub, or in O-LoRA's files, whose answer is one of a few labels.

    `hub` is its name there, `config` its configuration. `classes` maps the hub's classes, in the order of their
    numbers from `first` on, to answers. A prompt is the instruction, the line `Option: …` with `options`, and the text,
    which `text` makes of the hub's columns. `options`: as the published files list them; None: the answers in the
    order of the classes, (): no such line. `test` is the hub's split whose labels are public.
    """

    task: Task
    hub: str
    classes: Mapping[str, str]
    text: str
    instruction: str = ""
    options: tuple[str, ...] | None = None
    config: str | None = None
    label: str = "label"
    test: str = "test"
    first: int = 0
    folders: tuple[str, ...] = ()

    @property
    def folder_names(self) -> tuple[str, ...]:
        """What its folder may be called, in any case."""
        return self.task.name, *self.folders

    def prompt(self, text: str) -> str:
        """The prompt of a text, as O-LoRA writes it (Wang et al. 2023, arXiv 2310.14152), without the task's name."""
        options = tuple(dict.fromkeys(self.classes.values())) if self.options is None else self.options
        line = f"Option: {', '.join(options)} \n" if options else ""
        return f"{self.instruction}{line}{text}\nAnswer:"

    def answer(self, label: Any, where: str) -> str | None:
        """The answer of a class, given by its name or its number; None for a row without a label.

        Raises `DataError` for a class that is none of those known.
        """
        if label is None or str(label) in ("", "-1"):
            return None
        numbered = {str(self.first + n): answer for n, answer in enumerate(self.classes.values())}
        answers = {**numbered, **self.classes}
        if str(label) not in answers:
            raise DataError(
                f"Expected one of {', '.join(self.classes)} or their numbers from {self.first} on at '{self.label}' in "
                f"{where}, got {label!r}; give the data set as it is on the hub ({self.hub})."
            )
        return answers[str(label)]

    def from_folder(self, folder: Path) -> TaskData:
        """Load it from a folder: in O-LoRA's form, whose train rows are all taken, or with the hub's columns.

        O-LoRA's form is `train.json`, `dev.json`, `test.json`, lists of `{"sentence", "label"}`, beside `labels.json`.
        Its dev and test rows are the same: see `eval_of_test`.
        """
        if (folder / "labels.json").is_file():
            train, dev, test = (self._of_olora(folder, split) for split in SPLITS)
            if not dev or dev == test:
                dev, test = eval_of_test(test, self.task.name)
            return apart(self.task, {"train": train, "eval": dev, "test": test}, str(folder))
        public = split_files(folder, "test", self.test)  # GLUE's test labels are not, nor are SuperGLUE's
        if not public and self.test != "test":
            public = split_files(folder, "eval")
        train, test = files_of(folder, "train"), public or files_of(folder, "test")
        return self._drawn(read_files(train), read_files(test), str(folder))

    def from_hub(self, commit: str | None = None) -> TaskData:
        """Load it from the hub; see `rows_from_hub`. Its `origin` is the data set and the commit that was loaded."""
        sizes = [TRAIN_PER_CLASS, EVAL_PER_CLASS, NUM_TEST]
        recipe = ["draw-1", sizes, self.prompt(self.text), dict(self.classes), self.label, self.test, self.first]
        file = HubFile(self.hub, self.config, self.task.name, recipe)
        return rows_from_hub(file, self._draw_from_hub, commit).task_data(self.task)

    def _draw_from_hub(self, load: Callable[[str], NamedRows]) -> TaskData:
        return self._drawn(load("train"), load(self.test), self.hub)

    def _drawn(self, train: Rows | NamedRows, test: Rows | NamedRows, where: str) -> TaskData:
        """What papers take: of each class 1000 train and up to 500 eval examples of the train rows, 7600 test rows.

        Of a class with fewer than 1500 train rows a tenth (of two to nine one), or what is beyond 1000, is eval. Drawn
        with a seed of the task's name, the same in every run and on every machine.
        """
        rng = Random(f"mcanalysis-draw-1/{self.task.name}")
        by_answer: dict[str, list[int]] = {answer: [] for answer in self.classes.values()}
        for n, answer in self._labelled(train, f"train rows of {where}"):
            by_answer[answer].append(n)
        kept: dict[str, list[int]] = {"train": [], "eval": []}
        for of_class in by_answer.values():
            rng.shuffle(of_class)
            tenth = max(len(of_class) // 10, min(1, len(of_class) - 1))
            num_eval = min(EVAL_PER_CLASS, max(len(of_class) - TRAIN_PER_CLASS, tenth))
            kept["eval"] += of_class[:num_eval]
            kept["train"] += of_class[num_eval:][:TRAIN_PER_CLASS]
        tested = [n for n, _ in self._labelled(test, f"test rows of {where}")]
        for rows in (*kept.values(), tested):
            rng.shuffle(rows)  # the first N of a split are a mixture
        kept["test"] = tested[:NUM_TEST]
        of_split = {"train": train, "eval": train, "test": test}
        return apart(self.task, {s: self._examples(of_split[s], rows, where) for s, rows in kept.items()}, where)

    def _labelled(self, rows: Rows | NamedRows, where: str) -> Iterator[tuple[int, str]]:
        """The numbers of the rows that have a label, with their answers."""
        for n, label in enumerate(rows.column(self.label)):
            answer = self.answer(label, where)
            if answer is not None:
                yield n, answer

    def _examples(self, rows: Rows | NamedRows, numbers: Sequence[int], where: str) -> list[Example]:
        made = []
        for row in rows.take(numbers):
            try:
                text = self.text.format_map(row)
            except KeyError as error:
                raise DataError(
                    f"Expected the column {error} in {where}, got {', '.join(map(repr, row))}; give the data set as it "
                    f"is on the hub ({self.hub})."
                ) from None
            made.append(Example(self.prompt(text), self.answer(row[self.label], where) or ""))
        return made

    def _of_olora(self, folder: Path, split: str) -> list[Example]:
        """The rows of a file in O-LoRA's form whose label is one of the task's; MNLI has some without one."""
        found = []
        for file in files_of(folder, split) if split != "eval" or split_files(folder, split) else []:
            for n, row in enumerate(read_file(file)[0]):
                text, label = row.get("sentence"), row.get("label")
                if not isinstance(text, str) or not isinstance(label, str):
                    raise DataError(
                        f'Expected {{"sentence": "...", "label": "..."}} in {file} at index {n}, got '
                        f"{', '.join(map(repr, row)) or 'no keys'}; give O-LoRA's file."
                    )
                if label in self.classes.values():
                    found.append(Example(self.prompt(text), label))
                elif label != "-":
                    raise DataError(
                        f"Expected a label of {self.task.name} ({', '.join(dict.fromkeys(self.classes.values()))}) in "
                        f"{file} at index {n}, got {label!r}; give O-LoRA's file."
                    )
        return found
