"""Path finders: how often they succeed and how high their paths are, against the gradients they take."""

from __future__ import annotations

from collections.abc import Sequence

from mcanalysis.cli.figures import comparable, having, main, together
from mcanalysis.plotting.finders import finders_picture
from mcanalysis.plotting.picture import Picture
from mcanalysis.runs.finished import FinishedRun
from mcanalysis.studies.finders import success_table

ANALYSIS = "finders"  # what measures the tables
TABLES = ("finders",)


def draw(runs: Sequence[FinishedRun]) -> list[Picture]:
    """One picture of all runs together."""
    finders = together(comparable(having(runs, *TABLES, by=ANALYSIS)), "finders")
    return [finders_picture(success_table(finders), finders)]


if __name__ == "__main__":
    main(["finders"], __doc__)
