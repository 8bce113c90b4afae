"""Accuracy matrices of all strategies, and how each task's score falls, or does not, as others are learned."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from mcanalysis.cli.figures import FinishedRun, comparable, having, main
from mcanalysis.plotting.accuracy_matrix import plot_accuracy_matrices
from mcanalysis.plotting.picture import Picture
from mcanalysis.plotting.scores_over_time import plot_scores_over_time, scores_over_time_caption
from mcanalysis.plotting.style import strategy_marks


def draw(runs: Sequence[FinishedRun]) -> list[Picture]:
    """Matrices per seed, and scores over time of all seeds, of the learner that answers."""
    runs = comparable(having(runs, "accuracy_matrix"))
    tables = [_long(run) for run in runs]
    scores = pd.concat(tables, ignore_index=True)
    pictures = []
    for seed in sorted(set(scores.seed)):
        titles = [
            strategy_marks([(run.strategy, _answering(run))])[run.strategy, _answering(run)].label for run in runs
        ]
        matrices = {t: run.table("accuracy_matrix") for t, run in zip(titles, runs, strict=True) if run.seed == seed}
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
    matrix = run.table("accuracy_matrix")
    tasks = [name for name in matrix.columns if name != "after"]
    cells = [(row["after"], task, row[task]) for task in tasks for _, row in matrix.iterrows()]
    rows = pd.DataFrame(cells, columns=["after", "task", "score"]).astype({"after": int})
    rows.insert(0, "seed", run.seed)
    rows.insert(0, "learner", _answering(run))
    rows.insert(0, "strategy", run.strategy)
    return rows.assign(number=[tasks.index(task) + 1 for task in rows.task])


def _answering(run: FinishedRun) -> str:
    """The learner whose scores the matrix has: the others have a file of their own."""
    others = {f.stem.removeprefix("accuracy_matrix_") for f in (run.directory / "tables").glob("accuracy_matrix_*.csv")}
    return next((name for name in run.metrics if name not in others), "fast")


if __name__ == "__main__":
    main(["accuracy_over_time"], __doc__)
