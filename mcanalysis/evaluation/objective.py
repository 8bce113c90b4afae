"""What is measured at a point: the examples of one task's split, tokenised once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mcanalysis.errors import DataError
from mcanalysis.models.encoding import EncodedExample, encode_all
from mcanalysis.store.hashing import hash_json
from mcanalysis.tasks.task import Example, Task, TaskData


@dataclass(frozen=True, eq=False)
class Objective:
    """The first `len(examples)` examples of a split with their token ids.

    `settings_key` identifies everything that could change a measured number besides the point: the examples, their
    tokens (hence the tokenizer and the maximal length), the score and the length of generation.
    """

    task: Task
    split: str
    examples: tuple[Example, ...]
    encoded: tuple[EncodedExample, ...]
    num_cut: int
    settings_key: str

    @property
    def name(self) -> str:
        """The task's name."""
        return self.task.name


def make_objective(
    data: TaskData,
    split: str,
    tokenizer: Any,
    max_length: int = 1024,
    num_examples: int | None = None,
    *,
    base_marker: str = "",
) -> Objective:
    """Make the objective of one split; `num_examples` keeps the first ones (all of them where there are fewer).

    `base_marker` goes into the key where the store's folder does not say which base it is of.
    Raises `DataError` for a split that is missing or empty.
    """
    examples = data.splits.get(split, ())[:num_examples]
    if not examples:
        raise DataError(
            f"Expected examples in the split '{split}' of {data.task.name}, got none; "
            f"it has {', '.join(data.splits) or 'no split'}."
        )
    encoded, num_cut = encode_all(examples, tokenizer, max_length)
    key = hash_json(
        {
            "examples": [[e.prompt, e.answer] for e in examples],
            "ids": [[e.prompt_ids, e.answer_ids] for e in encoded],
            "score": data.task.score,
            "max_new_tokens": data.task.max_new_tokens,
            **({"base": base_marker} if base_marker else {}),
        }
    )
    return Objective(data.task, split, tuple(examples), tuple(encoded), num_cut, key[:16])
