"""Splits of published data: none of which has what another has, also where files do not keep them apart."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

from mcanalysis.errors import DataError
from mcanalysis.tasks.raw.rows import split_files
from mcanalysis.tasks.task import SPLITS, Example, Task, TaskData

logger = logging.getLogger(__name__)

NUM_EVAL = 50
"""The fewest eval examples that are drawn of a test split, unless that is more than half of it."""


def files_of(folder: Path, split: str) -> list[Path]:
    """The files of a split in a folder; raises `DataError` where there are none."""
    found = split_files(folder, split)
    if not found:
        raise DataError(
            f"Expected a file of {split} examples in {folder}, such as {split}.json or {split}.parquet, got none; add "
            "it."
        )
    return found


def eval_of_test(examples: Sequence[Example], name: str) -> tuple[list[Example], list[Example]]:
    """Eval examples drawn by seed of a test split whose authors validate on it, and the others; both in their order.

    A tenth, but no fewer than 50, or half where there are fewer than 100: what is chosen on examples that are also
    tested would be too good. Training stays as published, and scores on the rest are unbiased estimates of the whole's.

    >>> eval, test = eval_of_test([Example(str(n), "A") for n in range(80)], "cb")
    >>> len(eval), len(test)
    (40, 40)
    """
    number = max(len(examples) // 10, min(NUM_EVAL, len(examples) // 2))
    chosen = set(Random(f"mcanalysis-eval-1/{name}").sample(range(len(examples)), number))
    parts: tuple[list[Example], list[Example]] = ([], [])
    for n, example in enumerate(examples):
        parts[n not in chosen].append(example)
    return parts


def apart(task: Task, published: Mapping[str, Sequence[Example]], where: str) -> TaskData:
    """The task with its splits, no prompt in two of them: what test has is left out of eval, and both out of train.

    How many were left out is logged. Raises `DataError` for a split without any example.
    """
    seen = {e.prompt for e in published["test"]}
    splits = {"test": list(published["test"])}
    for split in ("eval", "train"):
        splits[split] = [e for e in published[split] if e.prompt not in seen]
        if (num := len(published[split]) - len(splits[split])) > 0:
            logger.warning(
                "%s: %d %s examples are left out, whose prompts are also in %s",
                task.name, num, split, "test" if split == "eval" else "eval or test",
            )  # fmt: skip
        seen |= {e.prompt for e in splits[split]}
    for split in SPLITS:
        if not splits[split]:
            raise DataError(f"Expected {split} examples of {task.name} in {where}, got none with a label; add rows.")
    return TaskData.of(task, {split: splits[split] for split in SPLITS})
