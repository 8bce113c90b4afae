"""Rows of `flips.csv` (which answers turn along a path, per t and task) and of `kept_questions.csv` (those that the
middle of a path answers right and both of its ends answer wrong), from scores that are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from mcanalysis.connectivity.profile import Profile
from mcanalysis.evaluation.objective import Objective
from mcanalysis.metrics import flips
from mcanalysis.metrics.scores import get_score
from mcanalysis.metrics.task_means import role
from mcanalysis.tasks.task import Task

_EXCERPT = 160  # characters of a question
_AGAINST = {  # by what the answers at t are compared with: what is lost, and what is gained, over start, t and end
    "start": ((1, 0, None), (0, 1, None)),
    "end": ((None, 0, 1), (None, 1, 0)),
    "both": ((1, 0, 1), (0, 1, 0)),
}

Rows = list[dict[str, Any]]


def flip_rows(
    profiles: Mapping[str, Profile],
    objectives: Mapping[str, Objective],
    old: Sequence[str],
    new: str,
    labels: Mapping[str, Any],
) -> tuple[Rows, Rows]:
    """Rows of both tables for one path, of tasks with an exact score that is stored per example; none of others.

    `flips`: per t and `against` (`start`, `end`, `both`) how many answers are `lost` (right there, wrong at t) and
    `gained`; of `both` what is right at both ends and at t not, and what at t alone. `<name>_rate`: of `num_examples`,
    `<name>_corrected` the same of what is known (`mcanalysis.metrics.flips`) with its standard error, NaN where t is an
    end that it is compared with. `p_value`: of McNemar's exact test, one per row, not corrected for the number of rows.

    `kept_questions`: per question that both ends answer wrong and a point between them right: `example`, its number in
    the split from 0, `num_right` of the `num_points` between the ends that answer it right, from `first_t` to `last_t`.
    """
    rows: Rows = []
    questions: Rows = []
    for name, profile in profiles.items():
        objective, scores = objectives[name], profile.example_scores
        if scores is None or not counts_answers(objective.task):
            continue
        of_task = {**labels, "task": name, "split": objective.split}
        of_task["role"] = role(name, old, new) if name in (*old, new) else "general"
        rows += [{**of_task, **row} for row in _counted(profile.ts, scores, guess_rate_of(objective))]
        between = (profile.ts > 0) & (profile.ts < 1)
        right = scores[between] == 1
        for example in np.flatnonzero((scores[0] == 0) & (scores[-1] == 0) & right.any(axis=0)):
            at, shown = profile.ts[between][right[:, example]], objective.examples[example]
            row = {"example": int(example), "num_right": len(at), "num_points": int(between.sum())}
            row |= {"first_t": float(at[0]), "last_t": float(at[-1])}
            questions.append({**of_task, **row, "question": excerpt(shown.prompt), "answer": excerpt(shown.answer)})
    return rows, questions


def _counted(ts: np.ndarray, scores: np.ndarray, guess_rate: float) -> Rows:
    counts = flips.answer_counts(scores[0], scores, scores[-1])
    number = counts.sum(axis=(1, 2, 3))
    columns: dict[str, dict[str, np.ndarray]] = {}
    is_itself = {"start": ts == 0, "end": ts == 1, "both": (ts == 0) | (ts == 1)}  # a guess that is made once
    with np.errstate(invalid="ignore"):  # nothing was scored: NaN
        right = counts[:, :, 1].sum(axis=(1, 2)) / number
        for against, both_ways in _AGAINST.items():
            found: dict[str, np.ndarray] = {"num_examples": number, "right": right}
            for name, known in zip(("lost", "gained"), both_ways, strict=True):
                left_out = tuple(i for i, value in enumerate(known, start=1) if value is None)
                states = tuple(value for value in known if value is not None)
                table = counts.sum(axis=left_out)
                found[name] = table[(slice(None), *states)]
                found[f"{name}_rate"] = found[name] / number
                for end, value in zip(("", "_se"), flips.corrected_share(table, states, guess_rate), strict=True):
                    found[f"{name}_corrected{end}"] = np.where(is_itself[against], np.nan, value)
            columns[against] = found
    for against, found in columns.items():
        tested = flips.mcnemar(found["lost"], found["gained"])
        found["p_value"] = tested if against != "both" else np.full(len(ts), np.nan)  # no two points are compared there
    return [
        {"t": float(t), "against": against, "guess_rate": guess_rate, **{k: v[i].item() for k, v in found.items()}}
        for i, t in enumerate(ts)
        for against, found in columns.items()
    ]


def counts_answers(task: Task) -> bool:
    """Whether its answers are right or wrong; a graded score may be 0 or 1 throughout by luck, on some of the paths."""
    return task.has_score and get_score(task.score).is_exact


@lru_cache(maxsize=256)  # the same examples on all paths of a run
def guess_rate_of(objective: Objective) -> float:
    """The chance that the right answer of another example is right."""
    return flips.guess_rate([e.answer for e in objective.examples], get_score(objective.task.score).per_example)


def excerpt(text: str, length: int = _EXCERPT) -> str:
    """Beginning and end of a text in one line of at most `length` characters; what does not print is escaped.

    A table is for spreadsheets, too: a leading =, +, - or @ that begins no number would be a formula there and is
    escaped as well.

    >>> excerpt("What is\\n 2 + 2?\\x07"), excerpt("abcdefghij", 5), excerpt("=1+1"), excerpt("-3")
    ('What is 2 + 2?\\\\x07', 'ab…ij', "'=1+1", '-3')
    """
    line = " ".join(text.split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    if line[:1] in tuple("=+-@") and not line[1:].replace(".", "", 1).replace(",", "").isdigit():
        line = f"'{line}"
    half = length // 2
    return line if len(line) <= length else f"{line[: length - half - 1]}…{line[-half:]}"
