"""CKA and weight distance per layer: what each task changed, and where."""

from __future__ import annotations

from collections.abc import Sequence

from mcanalysis.cli.figures import having, main
from mcanalysis.plotting.layers import layer_rows, layers_caption, plot_layers
from mcanalysis.plotting.picture import Picture
from mcanalysis.plotting.similarity import learners
from mcanalysis.runs.finished import FinishedRun

ANALYSIS = "similarity"  # what measures the tables
TABLES = ("cka", "weight_distance")


def draw(runs: Sequence[FinishedRun]) -> list[Picture]:
    """A picture per run and learner."""
    pictures = []
    for run in having(runs, *TABLES, by=ANALYSIS):
        tables = run.table("cka"), run.table("weight_distance")
        for learner in learners(tables[0]):
            alike, apart = layer_rows(*tables, learner)
            figure, words = plot_layers(*tables, learner), layers_caption(*tables, learner)
            pictures.append(Picture(f"layers_{run.name}_{learner}", figure, {"cka": alike, "distance": apart}, words))
    return pictures


if __name__ == "__main__":
    main(["layers"], __doc__)
