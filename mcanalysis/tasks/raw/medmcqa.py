"""MedMCQA as published (Pal et al. 2022): train.json, dev.json and, unlabelled, test.json, all JSON lines.

train.json gives the train split and dev.json the eval and test splits, 1 : 4 as in TRACE. What dev.json asks
is left out of train.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from mcanalysis.errors import DataError
from mcanalysis.tasks.raw.json_lines import Row, read_json_lines, require_files
from mcanalysis.tasks.raw.questions import Question, RawData, Sieve, split_seeded

NAME = "MedMCQA"
PROMPT = (
    "Answer the following question of a medical entrance exam. Choose one from A, B, C and D.\n\n"
    "Question:\n{question}\n\nChoices:\n{options}\n\nAnswer:"
)
UNLABELLED = "no label"
UNUSED_LABEL = "labelled, but in test.json, which is published without labels"
SEVERAL = "choice_type is not 'single'"
INCOMPLETE = "the question or an option has no text"

_OPTIONS = ("opa", "opb", "opc", "opd")


def read(source: Path, seed: int = 0) -> RawData:
    """Return the single-choice questions of the folder; raises `DataError` for absent or malformed files."""
    train, dev = require_files(source, ["train.json", "dev.json"])
    test = source / "test.json"
    files = [train, dev] + [test] * test.is_file()
    first = first_label(row for file in files for row in read_json_lines(file))
    sieve = Sieve(partial(_examine, first))
    held_out = sieve.keep(read_json_lines(dev))  # before train: what is asked there must not be trained on
    splits = {
        **split_seeded(sieve.keep(read_json_lines(train)), {"train": 1}, seed, f"{NAME} in {train.name}"),
        **split_seeded(held_out, {"eval": 1, "test": 4}, seed, f"{NAME} in {dev.name}"),
    }
    if test.is_file():
        for row in read_json_lines(test):
            sieve.left_out[UNLABELLED if _label(row) is None else UNUSED_LABEL] += 1
    examples = {split: [q.example(PROMPT) for q in questions] for split, questions in splits.items()}
    return RawData(examples, sieve.left_out, f"the labels (cop) count from {first}")


def first_label(rows: Iterable[Row]) -> int:
    """Return whether `cop` counts from 0 (as on the Hugging Face hub) or from 1 (as its authors publish it).

    A 0 tells the one, a 4 the other. Rows without a label (none, null or -1) tell nothing. Raises
    `DataError` where both are there or neither, and for a label that is no number from 0 to 4.

    >>> first_label([Row({"cop": 2}, "line 1"), Row({"cop": 4}, "line 2")])
    1
    """
    places: dict[int, str] = {}
    for row in rows:
        label = _label(row)
        if label is not None:
            places.setdefault(label, row.place)
    if 0 in places and 4 in places:
        raise DataError(
            f"Expected labels (cop) that count from 0 or from 1, got 0 in {places[0]} and 4 in {places[4]}; "
            "use files from one source."
        )
    if 0 not in places and 4 not in places:
        got = f"only {', '.join(map(str, sorted(places)))}" if places else "no label at all"
        raise DataError(
            f"Expected a label (cop) of 0 or 4, which tells whether labels count from 0 or from 1, got {got}; "
            "use the whole data set."
        )
    return 0 if 0 in places else 1


def _examine(first: int, row: Row) -> Question | str:
    label = _label(row)
    if label is None:
        return UNLABELLED
    if row.text("choice_type") != "single":
        return SEVERAL
    text, options = row.text("question"), tuple(row.text(key) for key in _OPTIONS)
    if not (text and all(options)):
        return INCOMPLETE
    return Question(text, options, label - first)


def _label(row: Row) -> int | None:
    label = row.values.get("cop", -1)
    if label is None or label == -1:
        return None
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label <= 4:
        raise DataError(
            f'Expected a whole number from 0 to 4, or -1, at "cop" in {row.place}, got {label!r}; correct that line.'
        )
    return label
