"""The plane that `landscape.py` has measured of a run, as arrays to draw a surface from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from mcanalysis.explore.walk import Reading, Walk
from mcanalysis.plotting.selection import where
from mcanalysis.runs.finished import FinishedRun

LOG_FROM = 8.0  # a logarithmic axis is drawn where the largest loss is so many times the smallest


@dataclass(frozen=True, eq=False)
class StoredSurface:
    """A grid over the plane of a transition, `start` to `end`, in a `space`.

    `xs` (nx,), `ys` (ny,): distances in the space. `heights[task, quantity]` (ny, nx): loss in nats per target token or
    score in [0, 1], NaN where not measured. `minima`: columns name, x, y; `minimum_heights[task, quantity]` in their
    order.
    """

    start: str
    end: str
    space: str
    xs: np.ndarray
    ys: np.ndarray
    heights: dict[tuple[str, str], np.ndarray]
    minima: pd.DataFrame
    minimum_heights: dict[tuple[str, str], np.ndarray]

    def is_log(self, task: str, quantity: str) -> bool:
        """Whether losses differ so much that they are drawn on a logarithmic axis."""
        heights = self.heights[task, quantity]
        finite = heights[np.isfinite(heights)]
        if quantity != "loss" or not len(finite):
            return False
        return bool(finite.min() > 0 and finite.max() > LOG_FROM * finite.min())

    def contains(self, walk: Walk) -> bool:
        """Whether a path is the straight line between the first two minima of the plane."""
        ends = [f"{m.label} {m.learner}" for m in (walk.start, walk.end)]
        straight = walk.kind.path == "linear" and walk.kind.space == self.space
        return straight and self.minima.name.tolist()[:2] == ends

    def path_on_it(self, walk: Walk, here: Reading, task: str, quantity: str) -> tuple[np.ndarray, np.ndarray]:
        """What is known of a path, (3, n), and where one stands on it, (3, 1): x, y and measured heights.

        Both are empty where the path does not lie in the plane, or the task is not measured along it.
        """
        if not self.contains(walk) or task not in here.values.index:
            return np.empty((3, 0)), np.empty((3, 0))
        curve = walk.curve(task)
        first, second = self.minima[["x", "y"]].to_numpy(dtype=float)[:2, :, None]

        def raised(ts: np.ndarray, values: np.ndarray) -> np.ndarray:
            return np.vstack([(1 - ts) * first + ts * second, values])

        path = raised(curve.t.to_numpy(dtype=float), curve[quantity].to_numpy(dtype=float))
        return path, raised(np.array([here.t]), np.array([here.values[quantity][task]]))


def stored_surface(run: FinishedRun) -> StoredSurface | None:
    """The plane in `tables/landscape.csv`; None where none was measured."""
    if not run.has("landscape"):
        return None
    rows = run.table("landscape")
    rows = where(rows, kind="plane", split="test")
    grid, exact = rows[rows.anchor.isna()], rows[rows.anchor.notna()]
    if grid.empty:
        return None
    xs, ys = np.sort(grid.x.unique()), np.sort(grid.y.unique())
    minima = exact.drop_duplicates("anchor")[["anchor", "x", "y"]].rename(columns={"anchor": "name"})
    heights, at_minima = {}, {}
    for task in dict.fromkeys(grid.task):
        of_minima = exact[exact.task == task].set_index("anchor")
        for quantity in ("loss", "score"):
            table = grid[grid.task == task].pivot(index="y", columns="x", values=quantity)
            heights[task, quantity] = table.reindex(index=ys, columns=xs).to_numpy(dtype=float)
            at_minima[task, quantity] = of_minima[quantity].reindex(minima.name).to_numpy(dtype=float)
    first = rows.iloc[0]
    return StoredSurface(str(first.start), str(first.end), str(first.space), xs, ys, heights, minima, at_minima)
