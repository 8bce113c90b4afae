"""Filter-normalised slices around the minima of each strategy, along one random direction and along two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mcanalysis.cli.figures import comparable, having, main, together
from mcanalysis.plotting.picture import Picture
from mcanalysis.plotting.slice_surfaces import plot_slice_surfaces, slice_surfaces_caption, surface_rows
from mcanalysis.plotting.slices import plot_slices, slices_caption, slices_rows
from mcanalysis.runs.finished import FinishedRun

ANALYSIS = "landscape"  # what measures the tables
TABLES = ("landscape",)


def draw(runs: Sequence[FinishedRun]) -> Iterator[Picture]:
    """Two pictures per seed, each with all strategies: lines, and then surfaces, which not every study measures."""
    landscape = together(comparable(having(runs, *TABLES, by=ANALYSIS)), "landscape")
    by_seed = list(landscape.groupby("seed"))
    ends = [f"_seed{seed}" if len(by_seed) > 1 else "" for seed, _ in by_seed]
    for end, (_, of_seed) in zip(ends, by_seed, strict=True):
        lines = of_seed[of_seed.kind == "slice"]
        yield Picture(f"slices_1d{end}", plot_slices(lines), {"": slices_rows(lines)}, slices_caption(lines))
    for end, (_, of_seed) in zip(ends, by_seed, strict=True):
        rows, words = surface_rows(of_seed)[0], slice_surfaces_caption(of_seed)
        yield Picture(f"slices_2d{end}", plot_slice_surfaces(rows), {"": rows}, words)


if __name__ == "__main__":
    main(["slices"], __doc__)
