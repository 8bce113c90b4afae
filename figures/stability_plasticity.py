"""Stability against plasticity: strategies as points with intervals, paths as curves, and the front."""

from __future__ import annotations

from collections.abc import Sequence

from mcanalysis.cli.figures import comparable, having, main, together
from mcanalysis.plotting import plot_stability_plasticity
from mcanalysis.plotting.picture import Picture
from mcanalysis.plotting.stability_plasticity import drawn_rows, stability_plasticity_caption
from mcanalysis.runs.finished import FinishedRun

ANALYSIS = "connectivity"  # what measures the tables
TABLES = ("profiles",)


def draw(runs: Sequence[FinishedRun]) -> list[Picture]:
    """A picture per seed, of the last transition."""
    pictures = []
    profiles = together(comparable(having(runs, *TABLES, by=ANALYSIS)), "profiles")
    profiles = profiles[profiles.path != "segmented_bezier"]
    several = profiles.seed.nunique() > 1
    for seed, of_seed in profiles.groupby("seed"):
        stem = f"stability_plasticity_seed{seed}" if several else "stability_plasticity"
        figure, words = plot_stability_plasticity(of_seed), stability_plasticity_caption(of_seed)
        pictures.append(Picture(stem, figure, {"": drawn_rows(of_seed)}, words))
    return pictures


if __name__ == "__main__":
    main(["stability_plasticity"], __doc__)
