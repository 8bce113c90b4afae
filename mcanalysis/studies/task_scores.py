"""Scores of every task with standard errors: of the base, once learned, at the end, beside what guessing gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from mcanalysis.runs.finished import FinishedRun
from mcanalysis.tasks.task import Example

STAGES = ("base", "learned", "end")


def task_scores(runs: Sequence[FinishedRun]) -> pd.DataFrame:
    """One row per run, learner and task, on the test split.

    `most_common`: the share of the most common answer, which is what giving no other would score where answers are
    right or wrong. `base`, `learned` (right after the task; the end, where all were learned at once), `end`: scores in
    [0, 1], each with its standard error `<name>_se` (`standard_error`). Raises `RunDirectoryError` for data that have
    changed since.
    """
    rows = []
    for run in runs:
        limit = run.config.get("num_test")
        shown = {task: data.splits["test"][:limit] for task, data in run.tasks.items()}
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
                    "most_common": most_common_share(examples),
                }
                for name, value in zip(STAGES, values, strict=True):
                    row |= {name: float(value), f"{name}_se": standard_error(float(value), len(examples))}
                rows.append(row)
    return pd.DataFrame(rows)


def most_common_share(examples: Sequence[Example]) -> float:
    """The share of the most common answer.

    >>> most_common_share([Example("?", a) for a in ("B", "A", " B", "C")])
    0.5
    """
    counts = Counter(example.answer.strip() for example in examples)
    return max(counts.values()) / len(examples)


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
    yield "\nScores on the test split ± their standard errors; most common: the share of the most common answer"
    yield rows


def _cell(score: float, error: float) -> str:
    return "–" if np.isnan(score) else f"{score:.2f} ± {error:.2f}"
