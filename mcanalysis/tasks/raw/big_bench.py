"""BIG-bench's `task.json` (Srivastava et al. 2022, arXiv 2206.04615): `input` with `target` or `target_scores`.

A prompt is put together as BIG-bench does: its task prefix, input prefix, input, options and output prefix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from mcanalysis.errors import DataError
from mcanalysis.tasks.raw.rows import Values
from mcanalysis.tasks.task import Example

SEVERAL_BEST = "several options are the best"
TOO_MANY = "more than 26 options"
NO_TARGET = "no target"

_CHOICE = "\n  choice: "
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def is_big_bench(rows: Sequence[Values]) -> bool:
    """Whether rows are BIG-bench's.

    >>> is_big_bench([{"input": "2 + 2", "target": "4"}]), is_big_bench([{"input": "2 + 2", "output": "4"}])
    (True, False)
    """
    return bool(rows) and all("input" in row and ("target" in row or "target_scores" in row) for row in rows)


def examples(rows: Sequence[Values], about: Values, where: str) -> tuple[list[Example | str], str]:
    """The example of each row, or why it is left out; and a remark on how options and targets were taken.

    The answer of `target_scores` is the option of the highest score: as it stands where all rows have the same options
    (labels), else its letter, the options listed as `A. …` in an order drawn from the input (files tend to name the
    right one first). The answer of a `target` list is its first: other right answers count as wrong. Labels are listed
    in the prompt unless the file says `append_choices_to_input: false`, behind BIG-bench's usual prefix where the file
    has an empty one, which would write them into one word. Raises `DataError` for another form.

    >>> row = {"input": "I like it.", "target_scores": {"good": 1, "bad": 0}}
    >>> examples([row], {"task_prefix": "Good or bad?"}, "task.json")[0][0].prompt
    'Good or bad?\\nQ: I like it.\\n  choice: good\\n  choice: bad\\nA:'
    """
    scored = [row["target_scores"] for row in rows if "target_scores" in row]
    for scores in scored:
        if not isinstance(scores, dict) or not all(isinstance(v, int | float) for v in scores.values()):
            raise DataError(
                f'Expected numbers by option at "target_scores" in {where}, got {str(scores)[:60]}; correct the file.'
            )
    labels = list(scored[0]) if scored and len({frozenset(scores) for scores in scored}) == 1 else None
    several, made = 0, []
    for n, row in enumerate(rows):
        text, targets = row["input"], row.get("target")
        if not isinstance(text, str):
            raise DataError(
                f'Expected text at "input" in {where} at index {n}, got {str(text)[:40]!r}; correct the file.'
            )
        if "target_scores" in row:
            made.append(_choice(text, row["target_scores"], labels, about))
            continue
        targets = [targets] if isinstance(targets, str) else targets
        if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
            raise DataError(
                f'Expected a text or a list of texts at "target" in {where} at index {n}, got {str(targets)[:40]!r}; '
                "correct the file."
            )
        several += len(targets) > 1
        made.append(Example(_prompt(text, [], about), targets[0].strip()) if targets else NO_TARGET)
    remarks = []
    if scored:
        remarks.append("answers are the options as they stand" if labels else "answers are letters of the options")
    if several:
        remarks.append(f"of {several} rows with several right answers the first is taken")
    return made, "; ".join(remarks)


def _choice(text: str, scores: Mapping[str, Any], labels: list[str] | None, about: Values) -> Example | str:
    best = [option for option, score in scores.items() if score == max(scores.values())]
    if len(best) != 1:
        return SEVERAL_BEST if best else NO_TARGET
    if labels is not None:
        listed = labels if about.get("append_choices_to_input", True) else []
        prefix = about.get("choice_prefix") or _CHOICE
        return Example(_prompt(text, [f"{prefix}{label}" for label in listed], about), best[0].strip())
    if len(scores) > len(_LETTERS):
        return TOO_MANY
    options = sorted(scores)
    Random(f"mcanalysis-options-1/{text}").shuffle(options)
    lines = [f"\n{letter}. {option}" for letter, option in zip(_LETTERS, options, strict=False)]
    return Example(_prompt(text, lines, about), _LETTERS[options.index(best[0])])


def _prompt(text: str, options: Sequence[str], about: Values) -> str:
    """Without white space at its ends: prompt and answer become tokens apart."""
    before, behind = about.get("example_input_prefix", "\nQ: "), about.get("example_output_prefix", "\nA: ")
    return f"{about.get('task_prefix', '')}{before}{text}{''.join(options)}{behind}".strip()
