"""When a task leaves the basin: barriers between forks, radii of minima and good shares of simplices."""

from __future__ import annotations

from collections.abc import Sequence

from mcanalysis.cli.figures import comparable, having, main, together
from mcanalysis.plotting.basin import basin_picture
from mcanalysis.plotting.picture import Picture
from mcanalysis.runs.finished import FinishedRun
from mcanalysis.studies.basin import half_table

PARTS = ("basin_forks", "basin_stable", "basin_radius", "basin_volume")


def draw(runs: Sequence[FinishedRun]) -> list[Picture]:
    """One picture of all runs together."""
    name = next((name for name in PARTS if any(run.has(name) for run in runs)), PARTS[0])
    runs = comparable(having(runs, name))
    tables = {name: together(runs, name) for name in PARTS if all(run.has(name) for run in runs)}
    if "basin_stable" in tables:
        tables["basin_half"] = half_table(tables["basin_stable"])
    return [basin_picture(tables)]


if __name__ == "__main__":
    main(["basin"], __doc__)
