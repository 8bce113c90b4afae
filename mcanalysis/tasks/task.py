"""What a task is: a dataset's name, how long an answer may get and how it is scored; and its examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from mcanalysis.errors import DataError, UserError
from mcanalysis.store.hashing import hash_json
from mcanalysis.tasks.names import GENERAL, check_name

SPLITS = ("train", "eval", "test")

NO_SCORE = ""
"""The score of text that is read and never answered: of it there are losses alone."""


LONGEST_TEXT = 5_000_000
"""Characters of a prompt or an answer: more than any model reads, and tokenizers need minutes for."""


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt, instruction included, and the answer the model should give.

    >>> Example("What is 2 + 2?\\nAnswer:", "4").answer
    '4'
    """

    prompt: str
    answer: str


def whole_prompt(prompt: str) -> str:
    """Return the prompt itself: the source text of a task whose prompt needs no trimming.

    >>> whole_prompt("Text:")
    'Text:'
    """
    return prompt


@dataclass(frozen=True)
class Task:
    """A dataset's name and how its answers are generated and scored; the examples come separately.

    `language` is an ISO 639-1 code, "und" where unknown. `score` names a score of
    `mcanalysis.metrics.scores`, or is `NO_SCORE`, with 0 new tokens. `max_new_tokens` is the most tokens
    generated for an answer. `source` gives the text a prompt is about, which only scores that compare with the source
    (SARI) read. Raises `ValueError` for an empty name or a `max_new_tokens` below 1, and `DataError`, which is one, for
    a name that `check_name` refuses.

    >>> Task("FOMC", "en", "accuracy", 4).source("Text:")
    'Text:'
    """

    name: str
    language: str
    score: str
    max_new_tokens: int
    source: Callable[[str], str] = whole_prompt
    description: str = ""

    def __post_init__(self) -> None:
        if not self.name or self.max_new_tokens < self.has_score:
            raise ValueError(
                f"Expected a task with a name and max_new_tokens of at least 1, got {self.name!r} and "
                f"{self.max_new_tokens}."
            )
        check_name(self.name.removeprefix(GENERAL))

    @property
    def has_score(self) -> bool:
        """Whether its answers are scored: those of plain text are not."""
        return self.score != NO_SCORE

    def with_score(self, score: str) -> Task:
        """Return the same task scored by another score.

        >>> Task("mine", "en", "exact_match", 64).with_score("rouge_l").score
        'rouge_l'
        """
        return replace(self, score=score)

    def with_limit(self, max_new_tokens: int) -> Task:
        """Return the same task with another limit of generated tokens; raises `UserError` for one below 1.

        >>> Task("mine", "en", "exact_match", 64).with_limit(256).max_new_tokens
        256
        """
        if max_new_tokens < 1:
            raise UserError(
                f"Expected a limit of at least 1 new token for {self.name}, got {max_new_tokens}; raise it."
            )
        return replace(self, max_new_tokens=max_new_tokens)


@dataclass(frozen=True)
class TaskData:
    """A task with the examples of its splits, and a hash of what those examples say.

    `splits` maps a split's name ("train", "eval", "test") to its examples in order. `content_hash` depends
    on the prompts and answers of every split and on nothing else: not on where they lay, nor on extra keys.
    `origin` says which data set of the hub they are of, and its commit: `OWNER/NAME@COMMIT`; "" for files.
    Make one with `TaskData.of`.
    """

    task: Task
    splits: Mapping[str, tuple[Example, ...]]
    content_hash: str
    origin: str = ""

    @classmethod
    def of(cls, task: Task, splits: Mapping[str, Iterable[Example]]) -> TaskData:
        """Return the task with these examples and their content hash (64 hex digits).

        Raises `DataError` for a text longer than `LONGEST_TEXT`.

        >>> data = TaskData.of(Task("FOMC", "en", "accuracy", 4), {"test": [Example("Text:", "A")]})
        >>> len(data.splits["test"]), len(data.content_hash)
        (1, 64)
        """
        kept = {split: tuple(examples) for split, examples in splits.items()}
        for split, examples in kept.items():
            for index, example in enumerate(examples):
                if (size := max(len(example.prompt), len(example.answer))) > LONGEST_TEXT:
                    raise DataError(
                        f"Expected texts of at most {LONGEST_TEXT:,} characters in the {split} split of {task.name}, "
                        f"got {size:,} in example {index}; cut it, or leave it out."
                    )
        content = {split: [(e.prompt, e.answer) for e in examples] for split, examples in kept.items()}
        return cls(task, kept, hash_json(content))

    def check_answers(self) -> None:
        """Raise `DataError` for an answer of the eval or test split that the task's score cannot read.

        >>> TaskData.of(Task("FOMC", "en", "accuracy", 4), {"test": [Example("Text:", "A")]}).check_answers()
        """
        if not self.task.has_score:
            return
        from mcanalysis.metrics.scores import get_score  # brings in the scorers' libraries: only when needed

        per_example = get_score(self.task.score).per_example
        for split in ("eval", "test"):
            for index, example in enumerate(self.splits.get(split, ())):
                try:
                    per_example("", example.answer, self.task.source(example.prompt))
                except DataError as error:
                    raise DataError(f"{self.task.name}, {split} split, example {index}: {error}") from None

    def first(self, sizes: Mapping[str, int]) -> TaskData:
        """Return the same task with only the first `sizes[split]` examples of each split named.

        A split that holds fewer keeps all of them.

        >>> examples = [Example("p", "A"), Example("q", "B")]
        >>> data = TaskData.of(Task("FOMC", "en", "accuracy", 4), {"test": examples})
        >>> [example.answer for example in data.first({"test": 1}).splits["test"]]
        ['A']
        """
        data = TaskData.of(self.task, {s: examples[: sizes.get(s)] for s, examples in self.splits.items()})
        return replace(data, origin=self.origin)
