"""What raw data sets of multiple-choice questions share: sifting rows, and splitting what is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

from mcanalysis.errors import DataError
from mcanalysis.tasks.raw.json_lines import Row
from mcanalysis.tasks.task import Example

REPEATED = "the question, with the same options, was kept already"

T = TypeVar("T")


@dataclass(frozen=True)
class RawData:
    """The examples of a raw data set by split, and how many rows were left out by reason.

    `canary`: a text that its authors want kept with every copy, so that nobody trains on it unknowingly.
    """

    splits: Mapping[str, Sequence[Example]]
    left_out: Mapping[str, int]
    remark: str = ""
    canary: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its options in order, and the index of the right one."""

    text: str
    options: tuple[str, ...]
    answer: int

    def example(self, template: str) -> Example:
        """Return the prompt, `{question}` and `{options}` of the template filled in, and the answer's letter.

        >>> Question("2 + 2 = ?", ("3", "4"), 1).example("{question}\\n{options}\\nAnswer:")
        Example(prompt='2 + 2 = ?\\nA. 3\\nB. 4\\nAnswer:', answer='B')
        """
        lines = "\n".join(f"{letter}. {option}" for letter, option in zip("ABCD", self.options, strict=False))
        return Example(template.format(question=self.text, options=lines), "ABCD"[self.answer])


@dataclass
class Sieve:
    """Keeps each question once and counts by reason the rows it leaves out.

    `examine` turns a row into a question, or says why it has to be left out. A question with the same
    options in another order is the same question: it must not be trained on and tested on.

    >>> sieve = Sieve(lambda row: Question(row.text("q"), ("a", "b"), 0) if row.text("q") else "no question")
    >>> len(sieve.keep([Row({"q": "x"}, "line 1"), Row({"q": ""}, "line 2")]))
    1
    >>> dict(sieve.left_out)
    {'no question': 1}
    """

    examine: Callable[[Row], Question | str]
    left_out: Counter[str] = field(default_factory=Counter)
    _seen: set[tuple[str, tuple[str, ...]]] = field(default_factory=set)

    def keep(self, rows: Iterable[Row]) -> list[Question]:
        """Return the questions among the rows that neither these nor earlier rows had before."""
        kept: list[Question] = []
        for row in rows:
            question = self.examine(row)
            if isinstance(question, str):
                self.left_out[question] += 1
                continue
            key = (question.text, tuple(sorted(question.options)))
            if key in self._seen:
                self.left_out[REPEATED] += 1
                continue
            self._seen.add(key)
            kept.append(question)
        return kept


def split_seeded(items: Sequence[T], shares: Mapping[str, int], seed: int, name: str) -> dict[str, list[T]]:
    """Shuffle items and deal them out to disjoint splits in proportion to the shares, at least one to each.

    What rounding leaves over goes to the largest split. Python's Mersenne Twister is seeded with a text of
    `name` and `seed`, so the result is the same on every machine. Raises `DataError` for fewer items than
    splits.

    >>> splits = split_seeded(range(16), {"train": 10, "eval": 1, "test": 4}, 0, "x")
    >>> [len(part) for part in splits.values()]
    [11, 1, 4]
    """
    if len(items) < len(shares):
        raise DataError(
            f"Expected at least {len(shares)} usable example{'s' * (len(shares) > 1)} of {name} for "
            f"{' and '.join(shares)}, got {len(items)}; use the whole data set."
        )
    sizes = {split: max(1, len(items) * share // sum(shares.values())) for split, share in shares.items()}
    largest = max(shares, key=lambda split: shares[split])
    sizes[largest] += len(items) - sum(sizes.values())
    shuffled = list(items)
    Random(f"mcanalysis-split-1/{name}/{seed}").shuffle(shuffled)
    dealt = iter(shuffled)
    return {split: [next(dealt) for _ in range(size)] for split, size in sizes.items()}
