"""The landscape about a transition: a plane through three minima, slices around them, and how sharp they are.

What loads torch or draws is imported where it is used: the settings are read for `--help`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from mcanalysis.errors import UserError
from mcanalysis.numbers_as_text import cell
from mcanalysis.settings import MOST_POINTS, OR_ALL, Bounds, Flag, check_bounds
from mcanalysis.store import base_minimum
from mcanalysis.studies.engine import Steps
from mcanalysis.studies.study import Rows, Setting, Study, Tables, check_transition

if TYPE_CHECKING:
    import pandas as pd

    from mcanalysis.evaluation.objective import Objective
    from mcanalysis.landscape.grid import Node
    from mcanalysis.plotting.picture import Picture
    from mcanalysis.runs.run import Run
    from mcanalysis.store.measurements import Measurement
    from mcanalysis.studies.landscape.stored_surface import Corner, StoredPlane, StoredSlice

COLUMNS = [
    "strategy", "learner", "seed", "space", "kind", "start", "end", "direction", "x", "y", "anchor", "task", "split",
    "loss", "score", "num_examples", "num_targets", "measured",
]  # fmt: skip
TRAJECTORY_COLUMNS = ["strategy", "learner", "seed", "space", "start", "end", "task", "step", "x", "y", "distance"]


@dataclass(frozen=True)
class Landscape(Study):
    """Planes through minima, slices around them and their sharpness.

    The plane through the minima of `transition` k, θ_k and θ_{k+1}, and a third (that of the run in the folder `third`,
    the base with `from_base`, or as `plane_corners` chooses), in a `space` (with the base always delta, as (A, 0) is
    the base for every A, and factors between it and two minima differ with A): `grid` nodes in x and y (one number: in
    both) about the minima and the trajectory, with a `margin` in units of the longer side; the first `num_examples` of
    the test split (None: all) of the tasks 1 … k+1. Slices: `num_directions` random ones from each minimum after the
    transition, `slice_points` from −`slice_radius` to `slice_radius`, where 1 is the minimum's own length, filter by
    filter; and a grid of `surface_grid` nodes a side along two such directions at once (0: none). Sharpness there:
    expected, over `sharpness_samples` directions of `sharpness_radius`, and ε-sharpness. With 0 directions, or samples,
    there is none.

    Tables: `landscape`, a row per node and task or mean; `trajectory`, per snapshot of training, where it falls on the
    plane; `sharpness`, per minimum, task and measure, where there is any.
    """

    transition: Annotated[int, "from the minimum K to K + 1", Flag(metavar="K", basic=True)] = 2
    third: Annotated[str | None, "a run whose minimum spans the plane, too", Flag(metavar="RUN_DIR")] = None
    from_base: Annotated[bool, "the base model spans the plane, too, which is then in delta space"] = False
    space: Annotated[str, "of the plane: factor, delta or aligned"] = "factor"
    grid: Annotated[tuple[int, ...], "nodes in x and in y", Flag(metavar="N[,M]", basic=True), Bounds(high=1000)] = (
        25,
    )
    margin: Annotated[float, "of the grid about the minima, in units of the longer side", Bounds(0.0, 1000.0)] = 0.3
    num_examples: Annotated[int | None, "test examples per task, or 'all'", OR_ALL, Bounds(1)] = 50
    num_directions: Annotated[int, "slices around each minimum (0: none)", Bounds(high=1000)] = 3
    slice_points: Annotated[int, "points of a slice", Bounds(high=MOST_POINTS)] = 21
    slice_radius: Annotated[float, "of slices, in units of each filter's length"] = 1.0
    surface_grid: Annotated[int, "nodes a side of a slice along two directions (0: none)", Bounds(high=1000)] = 11
    sharpness_samples: Annotated[int, "directions of the mean rise (0: none)", Bounds(high=100_000)] = 10
    sharpness_radius: Annotated[float, "of the mean rise, in units of each filter's length"] = 0.1
    epsilon: Annotated[float, "of ε-sharpness", Bounds(0.0, 1000.0)] = 1e-3

    strategies: ClassVar = ("sequential", "ilora")

    def __post_init__(self) -> None:
        from mcanalysis.landscape.grid import Axis
        from mcanalysis.params.spaces import get_space
        from mcanalysis.runs.finished import FinishedRun

        get_space(self.space)
        if len(self.grid) not in (1, 2):
            raise UserError(f"Expected one or two numbers of nodes, got {len(self.grid)}; give --grid N or N,M.")
        for number in self.grid:
            Axis(0.0, 1.0, number)
        check_bounds(self)
        if self.num_directions < 0:
            raise UserError(f"Expected at least 0 directions, got {self.num_directions}; 0 leaves slices out.")
        if self.num_directions:
            Axis(-self.slice_radius, self.slice_radius, self.slice_points)
        if self.surface_grid:
            Axis(-self.slice_radius, self.slice_radius, self.surface_grid)
        if self.sharpness_samples == 1 or self.sharpness_samples < 0:
            raise UserError(
                f"Expected 0 or at least 2 directions for sharpness, got {self.sharpness_samples}; 0 leaves it out."
            )
        if self.third is not None:
            if self.from_base:
                raise UserError("Expected one third point of the plane, got --third and --from-base; leave one out.")
            FinishedRun(self.third)  # refused now, not when the runs are trained
        if self.from_base and self.space == "aligned":
            raise UserError(
                "Expected the delta space with --from-base, got aligned: which A the base has beside its B = 0 is "
                "open, and aligned factors differ with it; give --space delta or leave it out."
            )

    @property
    def sharpness(self) -> tuple[int, float, float]:
        """Directions, radius and ε."""
        return self.sharpness_samples, self.sharpness_radius, self.epsilon

    def objectives(self, run: Run) -> list[Objective]:
        """The tasks learned up to the end of the transition, its own last."""
        return [run.task_objective(t, "test", self.num_examples) for t in run.task_names[: self.transition + 1]]

    def check(self, num_minima: int) -> None:
        check_transition(self.transition, num_minima)

    def measure(self, run: Run, setting: Setting) -> Steps[Tables]:
        """One piece per node and one per minimum's sharpness; raises what `plane_corners`, `Plane`, `random_slice` do.

        What is in the run's store is not measured again.
        """
        import pandas as pd

        from mcanalysis.studies.landscape.sharpness import sharpness_piece
        from mcanalysis.studies.landscape.stored_surface import AtNode
        from mcanalysis.studies.points import Points

        plane, walked = self._plane(run)
        surfaces = [plane, *self._slices(run, plane)]
        objectives = self.objectives(run)
        places = [(node.key, AtNode(part.surface, node)) for part in surfaces for node in part.nodes]
        minima = _minima_after(run, plane) if self.sharpness_samples else []
        found, *sharpness = yield [
            Points(run, setting.num_workers).measure(places, objectives),
            *(sharpness_piece(self, run, corner) for corner in minima),
        ]
        measured = {key: of_point for (key, _), of_point in zip(places, found, strict=True)}
        tables = {
            "landscape": _landscape_table(measured, surfaces, objectives),
            "trajectory": pd.DataFrame(walked, columns=TRAJECTORY_COLUMNS),
        }
        if sharpness:
            tables["sharpness"] = pd.DataFrame([row for rows in sharpness for row in rows])
        return tables

    def pictures(self, tables: Tables) -> Iterator[Picture]:
        from mcanalysis.plotting.landscape import plane_caption, plot_plane
        from mcanalysis.plotting.picture import Picture

        landscape, trajectory = tables["landscape"], tables["trajectory"]
        plane = landscape[landscape.kind == "plane"]
        name = f"plane_{plane.start.iloc[0]}--{plane.end.iloc[0]}"
        yield Picture(name, plot_plane(plane, trajectory), {}, plane_caption(plane, trajectory))

    def pictures_of_all(self, tables: Tables) -> Iterator[Picture]:
        """The slices of all runs together, a picture per seed."""
        from mcanalysis.plotting.picture import Picture
        from mcanalysis.plotting.slices import plot_slices, slices_caption

        landscape = tables["landscape"]
        several = landscape.seed.nunique() > 1
        for seed, slices in landscape[landscape.kind == "slice"].groupby("seed"):
            yield Picture(
                f"slices_seed{seed}" if several else "slices", plot_slices(slices), {}, slices_caption(slices)
            )

    def words(self, tables: Tables) -> Iterator[str | Rows]:
        """Per run the minima that span its plane, the lowest nodes of the grid, and how sharp the minima are."""
        landscape = tables["landscape"]
        planes = landscape[(landscape.kind == "plane") & landscape.measured]
        for (strategy, seed, space), of_run in planes.groupby(["strategy", "seed", "space"], sort=False):
            yield f"\n{strategy} / seed {seed}, {space} space, test split; loss in nats per target token"
            if base_minimum.LABEL in set(of_run.anchor):
                yield "(delta, as the base spans it: which A it has beside B = 0 is open, and factors differ with it)"
            yield _rows_of_plane(of_run)
        if "sharpness" in tables:
            sharpness = tables["sharpness"]
            size = sharpness[sharpness.measure == "expected"]["size"].iloc[0]
            yield f"\nSharpness: mean rise of the loss (nats/token) at {size:g} of each filter's length; ε-sharpness in"
            yield "percent of 1 + loss, of balanced factors"
            yield _rows_of_sharpness(sharpness)

    def _plane(self, run: Run) -> tuple[_Part, list[dict[str, Any]]]:
        """The plane of a run with a grid about its minima and the trajectory's projection, and that projection."""
        from mcanalysis.landscape.grid import surrounding_axes
        from mcanalysis.runs.run import check_space, load_run
        from mcanalysis.studies.landscape.stored_surface import StoredPlane, plane_corners
        from mcanalysis.studies.landscape.tables import trajectory_rows

        check_space(run.strategy, "delta" if self.from_base else self.space)
        third = None if self.third is None else load_run(self.third, run.device, run.engine_settings)
        corners = plane_corners(run, self.transition, third, self.from_base)
        plane = StoredPlane(corners, "delta" if self.from_base else self.space)
        start, end = corners[0].label, corners[1].label
        labels = {"strategy": run.strategy, "seed": run.seed, "space": plane.space, "start": start, "end": end}
        walked = trajectory_rows(plane.surface, run.directory, end, run.learners, labels)
        places = [*plane.surface.anchor_coordinates.tolist(), *((row["x"], row["y"]) for row in walked)]
        axes = surrounding_axes(places, (self.grid[0], self.grid[-1]), self.margin)
        labels |= {"learner": corners[0].learner, "kind": "plane", "direction": ""}
        return _Part(plane, plane.nodes(*axes), labels), walked

    def _slices(self, run: Run, plane: _Part) -> list[_Part]:
        """A slice along two directions for each minimum after the transition, and one for each direction."""
        from mcanalysis.landscape.grid import Axis
        from mcanalysis.studies.landscape.stored_surface import StoredSlice

        def part(corner: Corner, kind: str, direction: str, stored: StoredSlice, *axes: Axis) -> _Part:
            labels = {**plane.labels, "space": "delta", "learner": corner.learner, "kind": kind}
            labels |= {"start": corner.label, "end": corner.label, "direction": direction}
            stored.surface  # noqa: B018, an adapter that changes nothing is refused now
            return _Part(stored, stored.nodes(*axes), labels)

        minima, parts = _minima_after(run, plane), []
        for corner in minima if self.surface_grid else ():
            side = Axis(-self.slice_radius, self.slice_radius, self.surface_grid)
            parts.append(part(corner, "surface", "0,1", StoredSlice(corner, 2, 0), side, side))
        for corner in minima if self.num_directions else ():
            axis = Axis(-self.slice_radius, self.slice_radius, self.slice_points)
            for seed in range(self.num_directions):
                parts.append(part(corner, "slice", str(seed), StoredSlice(corner, 1, seed), axis))
        return parts


@dataclass(frozen=True)
class _Part:
    """One surface of a run, its nodes, and what its rows are called."""

    surface: StoredPlane | StoredSlice
    nodes: list[Node]
    labels: dict[str, Any]


def _minima_after(run: Run, plane: _Part) -> list[Corner]:
    """The corners of the plane that are this run's minima after the transition."""
    own = run.directory / "minima"
    corners: tuple[Corner, ...] = getattr(plane.surface, "corners", ())
    return [c for c in corners if c.label == plane.labels["end"] and own in c.directory.parents]


def _landscape_table(
    measured: Mapping[str, Sequence[Measurement]], parts: list[_Part], objectives: list[Objective]
) -> pd.DataFrame:
    import pandas as pd

    from mcanalysis.studies.landscape.tables import mean_slice_rows, node_rows

    rows = [row for part in parts for row in node_rows(measured, part.nodes, objectives, part.labels)]
    lines = [part for part in parts if part.labels["kind"] == "slice"]
    for learner in dict.fromkeys(part.labels["learner"] for part in lines):
        own = [part for part in lines if part.labels["learner"] == learner]
        labels = {**own[0].labels, "direction": "mean"}
        rows += mean_slice_rows(measured, [part.nodes for part in own], objectives, labels)
    table = pd.DataFrame(rows)
    return table[[*COLUMNS, *(c for c in table.columns if c not in COLUMNS)]]


def _rows_of_plane(of_run: pd.DataFrame) -> Rows:
    losses = of_run.pivot_table(index=["anchor", "x", "y"], columns="task", values="loss", dropna=False)
    losses = losses.dropna(subset=["mean"])
    is_node = losses.index.get_level_values("anchor") == ""
    shown: list[tuple[str, Any]] = [(str(anchor), (anchor, x, y)) for anchor, x, y in losses.index[~is_node]]
    if is_node.any():
        nodes = losses[is_node]
        shown.append(("lowest node, old tasks", nodes.mean_old.idxmin()))
        shown.append(("lowest node, ½ (old + new)", nodes["mean"].idxmin()))
    new = [task for task in dict.fromkeys(of_run.task) if task not in ("mean_old", "mean")][-1]
    rows = [["", "x", "y", "loss: old", f"{new} (new)", "½ (old + new)"]]
    for name, place in shown:
        values = [*place[1:], *losses.loc[place, ["mean_old", new, "mean"]]]  # the new task may be called "x"
        rows.append([name, *map(cell, values)])
    return rows


def _rows_of_sharpness(sharpness: pd.DataFrame) -> Rows:
    rows = [["strategy", "learner", "seed", "minimum", "task", "mean rise ± standard error", "ε-sharpness, %"]]
    for names, of_minimum in sharpness.groupby(["strategy", "learner", "seed", "minimum", "task"], sort=False):
        by_measure = of_minimum.set_index("measure")
        mean: Any = by_measure.loc["expected"]
        values = mean.value, mean.standard_error  # rises differ by orders of magnitude
        rise = " ± ".join(f"{value:.2g}" if abs(value) < 0.1 else cell(value) for value in values)
        rows.append([*map(str, names), rise, cell(by_measure.loc["epsilon"].value, 2)])
    return rows
