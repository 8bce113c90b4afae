"""The simplex of three minima: is there one mixture that is good for all tasks?"""

from __future__ import annotations

from collections.abc import Sequence

from mcanalysis.cli.figures import having, main
from mcanalysis.plotting.picture import Picture
from mcanalysis.plotting.ternary import plot_ternary, ternary_caption, ternary_rows
from mcanalysis.runs.finished import FinishedRun

ANALYSIS = "connectivity --simplex 1,2,3"  # what measures the tables
TABLES = ("simplex",)


def draw(runs: Sequence[FinishedRun]) -> list[Picture]:
    """A picture per run whose simplex was measured."""
    pictures = []
    for run in having(runs, *TABLES, by=ANALYSIS):
        simplex = run.table("simplex")
        figure, rows = plot_ternary(simplex), ternary_rows(simplex)[0]
        pictures.append(Picture(f"simplex_{run.name}", figure, {"": rows}, ternary_caption(simplex)))
    return pictures


if __name__ == "__main__":
    main(["simplex"], __doc__)
