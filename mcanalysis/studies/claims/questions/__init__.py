"""The questions of the study, a file each: a module of this folder with a `QUESTION` is one."""

from __future__ import annotations

from mcanalysis.registry import Registry
from mcanalysis.studies.claims.evidence import Question

_QUESTIONS: Registry[Question] = Registry("question", __name__, "QUESTION")


def questions() -> list[Question]:
    """All of them, by letter.

    >>> [question.letter for question in questions()]
    ['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i']
    """
    return sorted(_QUESTIONS.all().values(), key=lambda question: question.letter)
