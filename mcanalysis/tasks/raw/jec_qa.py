"""JEC-QA as published (Zhong et al. 2020): 0_train.json (concepts) and 1_train.json (cases), both JSON lines.

Its test files hold no answers, so the three splits are dealt out of the train files, 10 : 1 : 4 as in TRACE.
"""

from __future__ import annotations

from pathlib import Path

from mcanalysis.errors import DataError
from mcanalysis.tasks.raw.json_lines import Row, plain_text, read_json_lines, require_files
from mcanalysis.tasks.raw.questions import Question, RawData, Sieve, split_seeded

NAME = "JEC-QA"
PROMPT = (
    "下面是国家司法考试的一道单项选择题，选择正确的一项。输出A，B，C或者D。\n"
    "题目：\n{question}\n选项：\n{options}\n答案："
)
UNLABELLED = "no answer"
SEVERAL = "several answers"
INCOMPLETE = "the statement or an option has no text"
OTHER_OPTIONS = "the options are not A to D"
NO_OPTION = "the answer is none of A to D"


def read(source: Path, seed: int = 0) -> RawData:
    """Return the questions with one answer; raises `DataError` for absent or malformed files."""
    files = require_files(source, ["0_train.json", "1_train.json"])
    sieve = Sieve(_examine)
    questions = sieve.keep(row for file in files for row in read_json_lines(file))
    splits = split_seeded(questions, {"train": 10, "eval": 1, "test": 4}, seed, NAME)
    return RawData({split: [q.example(PROMPT) for q in part] for split, part in splits.items()}, sieve.left_out)


def _examine(row: Row) -> Question | str:
    answers, options, statement = row.get("answer"), row.get("option_list"), row.text("statement")
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise DataError(f'Expected a list of letters at "answer" in {row.place}, got {answers!r}; correct that line.')
    if not isinstance(options, dict):
        raise DataError(
            f'Expected an object with the keys A to D at "option_list" in {row.place}, got {str(options)[:40]!r}; '
            "correct that line."
        )
    if not answers:
        return UNLABELLED
    if len(answers) > 1:
        return SEVERAL
    if sorted(options) != list("ABCD"):
        return OTHER_OPTIONS
    texts = tuple(plain_text(options[letter], f"option {letter} in {row.place}") for letter in "ABCD")
    if not (statement and all(texts)):
        return INCOMPLETE
    if answers[0] not in options:
        return NO_OPTION
    return Question(statement, texts, "ABCD".index(answers[0]))
