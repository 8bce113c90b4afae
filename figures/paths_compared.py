"""Bezier curves against straight lines, and factor against ΔW against aligned space: barriers and gains."""

from __future__ import annotations

from collections.abc import Sequence

from mcanalysis.cli.figures import having, main
from mcanalysis.plotting.path_comparison import compared_rows, path_comparison_caption, plot_path_comparison
from mcanalysis.plotting.picture import Picture
from mcanalysis.plotting.selection import are_from_base
from mcanalysis.runs.finished import FinishedRun

ANALYSIS = "connectivity"  # what measures the tables
TABLES = ("barriers",)


def draw(runs: Sequence[FinishedRun]) -> list[Picture]:
    """A picture per run whose minima are joined by several kinds of path, of one transition each."""
    pictures = []
    tables = {run.name: run.table("barriers") for run in having(runs, *TABLES, by=ANALYSIS)}
    between = {name: ~are_from_base(table) & (table.path != "segmented_bezier") for name, table in tables.items()}
    tables = {name: table[between[name]] for name, table in tables.items()}
    several = {n: t for n, t in tables.items() if len(t.drop_duplicates(["path", "space"])) > 1}
    for name, table in (several or tables).items():  # one kind everywhere: the first run's table says what to measure
        figure, rows = plot_path_comparison(table), compared_rows(table)
        pictures.append(Picture(f"paths_compared_{name}", figure, {"": rows}, path_comparison_caption(table)))
    return pictures


if __name__ == "__main__":
    main(["paths_compared"], __doc__)
