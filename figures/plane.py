"""Loss contours on the plane of the minima before and after a task and the slow or joint one, with trajectories."""

from __future__ import annotations

from collections.abc import Sequence

from mcanalysis.cli.figures import having, main
from mcanalysis.plotting.landscape import plane_caption, plane_rows, plot_plane
from mcanalysis.plotting.picture import Picture
from mcanalysis.runs.finished import FinishedRun

ANALYSIS = "landscape"  # what measures the tables
TABLES = ("landscape",)


def draw(runs: Sequence[FinishedRun]) -> list[Picture]:
    """A picture per run: contours, the three minima, and the projected way of each learner where it was saved."""
    pictures = []
    for run in having(runs, *TABLES, by=ANALYSIS):
        landscape = run.table("landscape")
        landscape = landscape[landscape.kind == "plane"]
        data = {"": plane_rows(landscape)}
        trajectory = run.table("trajectory") if run.has("trajectory") else None
        words = plane_caption(landscape, trajectory)
        if trajectory is not None and len(trajectory):
            data["trajectory"] = trajectory
        else:
            words += "\n\nNo trajectory: train with train.py --save-trajectory 5 to have one."
        pictures.append(Picture(f"plane_{run.name}", plot_plane(landscape, trajectory), data, words))
    return pictures


if __name__ == "__main__":
    main(["plane"], __doc__)
