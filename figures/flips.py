"""Which answers turn wrong and right along straight paths, against their start, one picture per run."""

from __future__ import annotations

from collections.abc import Sequence

from mcanalysis.cli.figures import having, main
from mcanalysis.plotting.flips import flips_caption, plot_flips, turned_rows
from mcanalysis.plotting.picture import Picture
from mcanalysis.plotting.selection import are_from_base
from mcanalysis.runs.finished import FinishedRun

ANALYSIS = "connectivity"  # what measures the tables
TABLES = ("flips",)


def draw(runs: Sequence[FinishedRun]) -> list[Picture]:
    """A picture per run, of the first kind of path that was measured between successive minima."""
    pictures = []
    for run in having(runs, *TABLES, by=ANALYSIS):
        table = run.table("flips")
        between = table[~are_from_base(table)]
        first = between if len(between) else table
        for column in ("path", "space"):
            first = first[first[column] == first[column].iloc[0]]
        pictures.append(Picture(f"flips_{run.name}", plot_flips(first), {"": turned_rows(first)}, flips_caption(first)))
    return pictures


if __name__ == "__main__":
    main(["flips"], __doc__)
