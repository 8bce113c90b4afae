"""Text scores, one file each: how good is an output, per example, in [0, 1].

To add a score, add a file here that defines `SCORE = Score(name, per_example, parses, decided)`; it is found by
itself. So is one that an installed package declares under the entry point group `mcanalysis.scores`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from mcanalysis.registry import Registry

__all__ = ["SCORES", "PerExample", "Score", "get_score", "never"]


class PerExample(Protocol):
    """The signature that all scores share."""

    def __call__(self, output: str, reference: str, source: str = "") -> float:
        """Return the score of a generated `output`, in [0, 1]; 0 for an empty or unparsable one. Few read `source`."""
        ...


def never(beginning: str, reference: str) -> bool:
    """Return False: the score of an output depends on its end, so that it has to be written whole.

    >>> never("a cat", "a dog")
    False
    """
    return False


@dataclass(frozen=True)
class Score:
    """A named text score.

    >>> get_score("accuracy").per_example("B because of that", "B")
    1.0
    """

    name: str
    """The name it is asked for by."""
    per_example: PerExample
    """`(output, reference, source="") -> float` in [0, 1]."""
    parses: Callable[[str], bool]
    """Whether an output can be read at all; False implies a score of 0."""
    decided: Callable[[str, str], bool] = never
    """`(beginning, reference) -> bool`: whether all outputs that begin so, this one among them, have the same score.

    Where it is True nothing more is written for an example whose score alone is wanted. False is always right."""
    is_exact: bool = False
    """Whether an output is right (1) or wrong (0) and nothing between: answers that turn are counted of such scores."""


def get_score(name: str) -> Score:
    """Return the score registered under `name`.

    Raises:
        UnknownNameError: no score has that name.

    >>> get_score("rouge_l").name
    'rouge_l'
    """
    return _SCORES.get(name)


_SCORES: Registry[Score] = Registry("score", __name__, "SCORE", group="mcanalysis.scores")
SCORES: Mapping[str, Score] = _SCORES.all()
"""Every score of this folder by name; `get_score` knows those of other packages too."""
