"""Linear connectivity: score and loss on the straight path between successive minima, one picture per run."""

from __future__ import annotations

from collections.abc import Sequence

from mcanalysis.cli.figures import having, main
from mcanalysis.plotting import caption, plot_transitions
from mcanalysis.plotting.picture import Picture
from mcanalysis.plotting.selection import are_from_base, rows_of_old_and_new
from mcanalysis.runs.finished import FinishedRun

ANALYSIS = "connectivity"  # what measures the tables
TABLES = ("profiles", "barriers")


def draw(runs: Sequence[FinishedRun]) -> list[Picture]:
    """A picture per run, of the straight path in factor space, or in the first space that was measured; and one of the
    paths from the base to each minimum (rewinding) where these were measured."""
    pictures = []
    for run in having(runs, *TABLES, by=ANALYSIS):
        straight = {}
        for name in ("profiles", "barriers"):
            table = run.table(name)
            straight[name] = table[(table.path == "linear") & (table.split == "test")]
        for of_base in sorted(set(are_from_base(straight["profiles"]))) or [False]:  # what is empty is refused below
            stem = "rewinding" if of_base else "linear_connectivity"
            tables = {name: table[are_from_base(table) == of_base] for name, table in straight.items()}
            for name, table in tables.items():
                spaces = list(dict.fromkeys(table.space))
                own = "factor" if "factor" in spaces else spaces[0] if spaces else ""
                tables[name] = table[table.space == own]
            figure, words = plot_transitions(**tables), caption(**tables)
            data = {"": rows_of_old_and_new(tables["profiles"]), "barriers": rows_of_old_and_new(tables["barriers"])}
            pictures.append(Picture(f"{stem}_{run.name}", figure, data, words))
    return pictures


if __name__ == "__main__":
    main(["linear_connectivity"], __doc__)
