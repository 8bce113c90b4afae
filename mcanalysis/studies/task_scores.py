"""Scores of every task with standard errors: of the base, once learned, at the end, beside what guessing gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import pandas as pd

from mcanalysis.metrics.scores import get_score
from mcanalysis.runs.finished import FinishedRun
from mcanalysis.tasks.task import NO_SCORE, Example

STAGES = ("base", "learned", "end")


def task_scores(runs: Sequence[FinishedRun]) -> pd.DataFrame:
    """One row per run, learner and task, on the test split.

    `most_common`: what giving one of the answers throughout would score (`most_common_score`). `base`, `learned` (right
    after the task; the end, where all were learned at once), `end`: scores in [0, 1], each with its standard error
    `<name>_se` (`standard_error`). Raises `RunDirectoryError` for data that have changed since.
    """
    rows = []
    for run in runs:
        limit = run.config.get("num_test")
        shown = {task: data.splits["test"][:limit] for task, data in run.tasks.items()}
        best = {t: most_common_score(data.task.score, tuple(shown[t])) for t, data in run.tasks.items()}
        for learner in run.metrics_by_learner:
            matrix = run.accuracy_matrix_of(learner).set_index("after")
            for number, task in enumerate(run.task_names, start=1):
                examples, scores = shown[task], matrix[task]
                values = (scores.iloc[0], scores.get(number, scores.iloc[-1]), scores.iloc[-1])
                row = {
                    "strategy": run.strategy,
                    "learner": learner,
                    "seed": run.seed,
                    "task": task,
                    "num_examples": len(examples),
                    "most_common": best[task],
                }
                for name, value in zip(STAGES, values, strict=True):
                    row |= {name: float(value), f"{name}_se": standard_error(float(value), len(examples))}
                rows.append(row)
    return pd.DataFrame(rows)


@lru_cache(maxsize=256)  # runs of one comparison have the same examples
def most_common_score(score: str, examples: tuple[Example, ...]) -> float:
    """The mean score of one answer given to every example: what a model has to beat.

    Where outputs are right or wrong it is the answer with the highest one, among the 200 most common: of a letter task
    all answers with the same letter are one. Of graded scores it is the most common answer. NaN without a score.

    >>> texts = ("B) left", "A) up", "B. right", "C")
    >>> most_common_score("accuracy", tuple(Example("?", text) for text in texts))
    0.5
    """
    if score == NO_SCORE:
        return float("nan")
    kind = get_score(score)
    answers = Counter(example.answer.strip() for example in examples).most_common(200 if kind.is_exact else 1)
    return max(float(np.mean([kind.per_example(a, e.answer, e.prompt) for e in examples])) for a, _ in answers)


def standard_error(score: float, num_examples: int) -> float:
    """Of a mean of `num_examples` scores: √(p(1 − p)/n), which is exact where each is 0 or 1.

    Of values anywhere in [0, 1] it is an upper bound, since x² ≤ x there (Bhatia and Davis 2000).

    >>> standard_error(0.5, 100)
    0.05
    """
    return float(np.sqrt(max(score * (1 - score), 0.0) / num_examples))


def score_words(scores: pd.DataFrame) -> Iterator[str | list[list[str]]]:
    """What is said of them: per run and task each score with its standard error."""
    rows = [["strategy", "learner", "seed", "task", "most common", "base", "when learned", "at the end"]]
    for _, row in scores.iterrows():
        cells = [_cell(row[name], row[f"{name}_se"]) for name in STAGES]
        rows.append([row.strategy, row.learner, str(row.seed), row.task, f"{row.most_common:.2f}", *cells])
    yield "\nScores on the test split ± their standard errors; most common: that of one answer, always given"
    yield rows


def _cell(score: float, error: float) -> str:
    return "–" if np.isnan(score) else f"{score:.2f} ± {error:.2f}"
