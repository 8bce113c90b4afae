"""Linear connectivity: score and loss on the straight path between successive minima, one picture per run."""

from __future__ import annotations

from collections.abc import Sequence

from mcanalysis.cli.figures import having, main
from mcanalysis.plotting import caption, plot_transitions
from mcanalysis.plotting.picture import Picture
from mcanalysis.plotting.selection import rows_of_old_and_new
from mcanalysis.runs.finished import FinishedRun


def draw(runs: Sequence[FinishedRun]) -> list[Picture]:
    """A picture per run, of the straight path in factor space, or in the first space that was measured."""
    pictures = []
    for run in having(runs, "profiles", "barriers"):
        tables = {}
        for name in ("profiles", "barriers"):
            table = run.table(name)
            table = table[(table.path == "linear") & (table.split == "test")]
            spaces = list(dict.fromkeys(table.space))
            tables[name] = table[table.space == ("factor" if "factor" in spaces else spaces[0])] if spaces else table
        figure, words = plot_transitions(**tables), caption(**tables)
        data = {"": rows_of_old_and_new(tables["profiles"]), "barriers": rows_of_old_and_new(tables["barriers"])}
        pictures.append(Picture(f"linear_connectivity_{run.name}", figure, data, words))
    return pictures


if __name__ == "__main__":
    main(["linear_connectivity"], __doc__)
