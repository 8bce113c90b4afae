"""Accuracy matrices of all strategies, and how each task's score falls, or does not, as others are learned."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from mcanalysis.cli.figures import comparable, having, main
from mcanalysis.plotting.accuracy_matrix import plot_accuracy_matrices
from mcanalysis.plotting.picture import Picture
from mcanalysis.plotting.scores_over_time import plot_scores_over_time, scores_over_time_caption
from mcanalysis.plotting.style import strategy_marks
from mcanalysis.runs.finished import FinishedRun


def draw(runs: Sequence[FinishedRun]) -> list[Picture]:
    """Matrices per seed, and scores over time of all seeds, of the learner that answers."""
    runs = comparable(having(runs, "accuracy_matrix"))
    tables = [_long(run) for run in runs]
    scores = pd.concat(tables, ignore_index=True)
    pictures = []
    for seed in sorted(set(scores.seed)):
        marks = [(run.strategy, run.answering_learner) for run in runs]
        titles = [strategy_marks([mark])[mark].label for mark in marks]
        matrices = {t: run.accuracy_matrix for t, run in zip(titles, runs, strict=True) if run.seed == seed}
        words = (
            f"Score (0–1) on every task's test split (columns) after every task (rows), seed {seed}, of the learner "
            "that answers. Left of the heavy line: tasks already trained on."
        )
        stem = "accuracy_matrices" + (f"_seed{seed}" if scores.seed.nunique() > 1 else "")
        of_seed = scores[scores.seed == seed]
        pictures.append(Picture(stem, plot_accuracy_matrices(matrices), {"": of_seed}, words))
    over_time = scores.dropna(subset="score")
    words = scores_over_time_caption(over_time)
    return [*pictures, Picture("scores_over_time", plot_scores_over_time(over_time), {"": over_time}, words)]


def _long(run: FinishedRun) -> pd.DataFrame:
    matrix = run.accuracy_matrix
    cells = [(row["after"], task, row[task]) for task in run.task_names for _, row in matrix.iterrows()]
    rows = pd.DataFrame(cells, columns=["after", "task", "score"]).astype({"after": int})
    rows.insert(0, "seed", run.seed)
    rows.insert(0, "learner", run.answering_learner)
    rows.insert(0, "strategy", run.strategy)
    return rows.assign(number=[run.task_names.index(task) + 1 for task in rows.task])


if __name__ == "__main__":
    main(["accuracy_over_time"], __doc__)
