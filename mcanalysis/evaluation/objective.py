"""What is measured at a point: the examples of one task's split, tokenised once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from mcanalysis.errors import DataError, UserError
from mcanalysis.evaluation.reach import reach, warn_of_unreachable
from mcanalysis.models.chat_template import template_for
from mcanalysis.models.encoding import EncodedExample, encode, encode_each, encode_text
from mcanalysis.models.end_tokens import end_ids, reference
from mcanalysis.models.positions import Texts
from mcanalysis.store.hashing import hash_json
from mcanalysis.store.measurements import Measurement
from mcanalysis.tasks.task import Example, Task, TaskData

logger = logging.getLogger(__name__)

VERSION = 1
"""Of the code that makes losses and scores: raised where a number changes, so that none of before is served."""

_warned: set[tuple] = set()  # of which splits this process has said that their prompts were cut


@dataclass(frozen=True, eq=False)
class Objective:
    """The first `len(examples)` examples of a split with their token ids.

    The answers of `examples` are what an output is scored against (`reference`), the `encoded` ones what is read.
    `num_cut` prompts have lost their middle. `template` names the chat template they were put into, if any.
    `settings_key` identifies everything that could change a measured number
    besides the point: the examples, their tokens (hence the tokenizer and the maximal length), the score and the length
    of generation, and what ends it where that is more than the tokenizer's end token. `own`: a function of network and
    tokenizer that measures it in place of all this; the examples are then placeholders.
    """

    is_divisible: ClassVar[bool] = True  # whether some of its examples can be measured by themselves

    task: Task
    split: str
    examples: tuple[Example, ...]
    encoded: tuple[EncodedExample, ...]
    num_cut: int
    settings_key: str
    template: str = ""
    own: Callable[[Any, Any], Measurement] | None = None

    @property
    def name(self) -> str:
        """The task's name."""
        return self.task.name

    def texts(self, generate: bool = True) -> Texts:
        """What of it a model reads, and writes if `generate`."""
        limit = self.task.max_new_tokens if generate else 0
        return Texts(f"the {self.split} split of {self.name}", self.encoded, limit)


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

    Warns of answers that no model can give (`reach`). `base_marker` goes into the key where the store's folder does not
    say which base it is of. Raises `DataError` for a split that is missing or empty, `UserError` for a number below 1.
    """
    if num_examples is not None and num_examples < 1:
        raise UserError(f"Expected num_examples of at least 1, got {num_examples}; leave it out to take all.")
    if not data.splits.get(split, ()):
        raise DataError(
            f"Expected examples in the split '{split}' of {data.task.name}, got none; "
            f"choose a split that it has ({', '.join(data.splits) or 'none'})."
        )
    encoded, num_cut = encode_split(data, split, tokenizer, max_length, num_examples)
    template = template_for(data, tokenizer)
    examples = [replace(e, answer=reference(e.answer, tokenizer)) for e in data.splits[split][:num_examples]]
    if data.task.has_score:
        warn_of_unreachable(data.task, split, reach(data.task, examples, encoded, tokenizer))
    key: dict[str, Any] = {
        "examples": [[e.prompt, e.answer] for e in examples],
        "ids": [[e.prompt_ids, e.answer_ids] for e in encoded],
        "score": data.task.score,
        "max_new_tokens": data.task.max_new_tokens,
    }
    ends = end_ids(tokenizer)
    if len(ends) > 1:
        key["ends"] = sorted(ends)
    if base_marker:
        key["base"] = base_marker
    if VERSION != 1:  # absent at first, so that what was stored stays
        key["version"] = VERSION
    name = "" if template is None else template.name
    return Objective(data.task, split, tuple(examples), tuple(encoded), num_cut, hash_json(key)[:16], name)


def encode_split(
    data: TaskData, split: str, tokenizer: Any, max_length: int, num_examples: int | None = None
) -> tuple[list[EncodedExample], int]:
    """The first examples of a split as tokens, and how many of their prompts were cut, which is said once a process.

    They are put into the tokenizer's chat template where it has one to use (`models.chat_template`). What has neither
    prompt nor score is plain text (`encode_text`).
    """
    examples = data.splits[split][:num_examples]
    if data.task.has_score:
        pairs = encode_each(examples, tokenizer, max_length, template_for(data, tokenizer))
    else:
        pairs = [(encode if e.prompt else encode_text)(e, tokenizer, max_length) for e in examples]
    num_cut = sum(lost > 0 for _, lost in pairs)
    which = (data.task.name, split, data.content_hash, max_length, getattr(tokenizer, "name_or_path", None))
    if num_cut and which not in _warned:
        _warned.add(which)
        what, part = ("prompts", "middle") if data.task.has_score else ("texts", "end")
        logger.warning(
            "%d of %d %s %s of %s were cut: they lost their %s to fit into --max-length %d with their "
            "answers; --max-length %d keeps them whole",
            num_cut, len(pairs), split, what, data.task.name, part, max_length,
            max_length + max(lost for _, lost in pairs),
        )  # fmt: skip
    return [example for example, _ in pairs], num_cut
