"""Which layers and kinds of module make what happens to old and new tasks on a straight path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from mcanalysis.cli.figures import having, main
from mcanalysis.plotting.attribution import Role, attributed_rows, attribution_caption, plot_attribution
from mcanalysis.plotting.picture import Picture
from mcanalysis.runs.finished import FinishedRun

ANALYSIS = "attribution"  # what measures the tables
TABLES = ("attribution_barriers",)


def draw(runs: Sequence[FinishedRun]) -> list[Picture]:
    """Two pictures per run, of the old tasks and of the new one."""
    pictures = []
    for run in having(runs, *TABLES, by=ANALYSIS):
        table = run.table("attribution_barriers")
        for role in get_args(Role):
            figure, words = plot_attribution(table, role), attribution_caption(table, role)
            pictures.append(
                Picture(f"layer_attribution_{run.name}_{role}", figure, {"": attributed_rows(table, role)[0]}, words)
            )
    return pictures


if __name__ == "__main__":
    main(["layer_attribution"], __doc__)
