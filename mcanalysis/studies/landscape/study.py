"""The landscape about a transition: a plane through three minima, slices around them, and how sharp they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mcanalysis.errors import UserError
from mcanalysis.evaluation.objective import Objective
from mcanalysis.params.point import Point
from mcanalysis.params.spaces import get_space
from mcanalysis.plotting.landscape import plane_caption, plot_plane
from mcanalysis.plotting.slices import plot_slices, slices_caption
from mcanalysis.plotting.style import save_figure
from mcanalysis.progress import Progress, silent
from mcanalysis.runs.run import Opening, Run
from mcanalysis.store.atomic import write_text_atomic
from mcanalysis.store.lock import lock_measurements
from mcanalysis.store.measurements import MeasurementStore
from mcanalysis.studies.jobs import Job, opened_run, run_jobs
from mcanalysis.studies.landscape.grid import Axis, Node, surrounding_axes
from mcanalysis.studies.landscape.sharpness import known_rows, sharpness_key, sharpness_rows
from mcanalysis.studies.landscape.stored_surface import Corner, StoredPlane, StoredSlice, plane_corners
from mcanalysis.studies.landscape.tables import mean_slice_rows, node_rows, trajectory_rows
from mcanalysis.studies.point_jobs import PointJobs, evaluate


@dataclass(frozen=True)
class LandscapeSettings:
    """What is looked at.

    The plane through the minima of `transition` k, θ_k and θ_{k+1}, and a third, in a `space`: `grid` nodes in x and y
    (one number: in both) about the minima and the trajectory, with a `margin` in units of the longer side; the first
    `num_examples` of the test split (None: all) of the tasks 1 … k+1. Slices: `num_directions` random ones from each
    minimum after the transition, `slice_points` from −`slice_radius` to `slice_radius`, where 1 is the minimum's own
    length, filter by filter; and a grid of `surface_grid` nodes a side along two such directions at once (0: none).
    Sharpness there: expected, over `sharpness_samples` directions of `sharpness_radius`, and ε-sharpness. With 0
    directions, or samples, there is none.
    """

    transition: int = 2
    space: str = "factor"
    grid: tuple[int, ...] = (25,)
    margin: float = 0.3
    num_examples: int | None = 50
    num_directions: int = 3
    slice_points: int = 21
    slice_radius: float = 1.0
    surface_grid: int = 0
    sharpness_samples: int = 10
    sharpness_radius: float = 0.1
    epsilon: float = 1e-3

    def __post_init__(self) -> None:
        get_space(self.space)
        if len(self.grid) not in (1, 2):
            raise UserError(f"Expected one or two numbers of nodes, got {len(self.grid)}; give --grid N or N,M.")
        for number in self.grid:
            Axis(0.0, 1.0, number)
        if self.num_examples is not None and self.num_examples < 1:
            raise UserError(f"Expected at least 1 example per task, got {self.num_examples}; raise --num-examples.")
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

    @property
    def sharpness(self) -> tuple[int, float, float]:
        """Directions, radius and ε."""
        return self.sharpness_samples, self.sharpness_radius, self.epsilon


@dataclass(frozen=True)
class LandscapeResult:
    """The tables of all runs together; `figures` are the files drawn."""

    landscape: pd.DataFrame
    trajectory: pd.DataFrame
    sharpness: pd.DataFrame
    figures: list[Path]


@dataclass(frozen=True)
class _Part:
    """One surface of a run and its nodes."""

    run: Run
    surface: StoredPlane | StoredSlice
    nodes: list[Node]
    objectives: list[Objective]
    labels: dict[str, Any]

    @property
    def places(self) -> list[tuple[str, _AtNode]]:
        """The points by their keys in the store."""
        return [(node.key, _AtNode(self.surface, node)) for node in self.nodes]


@dataclass(frozen=True)
class _AtNode:
    """A point on a surface."""

    surface: StoredPlane | StoredSlice
    node: Node

    def point(self, run: Run) -> Point:
        return self.surface.point(self.node)


def study_landscape(
    runs: Sequence[Run],
    output_dir: str | Path,
    settings: LandscapeSettings,
    *,
    third: Run | None = None,
    workers: int = 1,
    progress: Progress = silent,
    on_figure: Callable[[Path], None] = lambda _: None,
    initializer: Callable[[], None] | None = None,
) -> LandscapeResult:
    """Measure what is missing of planes, slices and sharpness of finished runs; write their tables and figures.

    Per run `tables/landscape.csv`, `trajectory.csv`, `sharpness.csv` and `figures/plane_<start>--<end>`; the slices of
    all runs together in `<output_dir>/comparison/figures/slices`, one per seed. Points are shared out to `workers`
    processes; what is in a run's store is not measured again, so a stopped study goes on where it was.

    Raises, before anything is measured, what `plane_corners`, `Plane` and `random_slice` raise, and `RunDirectoryError`
    where another process measures one of the runs.
    """
    parts: dict[Path, tuple[_Part, list[_Part]]] = {}
    trajectories: dict[Path, list[dict[str, Any]]] = {}
    sharpness: dict[Path, dict[str, list[dict[str, Any]]]] = {}  # rows by key, in the order of the minima
    points: dict[Path, PointJobs] = {}
    jobs: list[Job] = []
    for run in runs:
        plane, trajectories[run.directory] = _plane_part(run, settings, third)
        parts[run.directory] = plane, _slice_parts(run, settings, plane)
        sharpness[run.directory], missing = _sharpness_jobs(run, settings, plane)
        points[run.directory] = PointJobs(run)
        for part in (plane, *parts[run.directory][1]):
            jobs += points[run.directory].jobs(part.places, part.objectives)
        jobs += missing

    def follow(job: Job, result: Any) -> list[Job]:
        if job.function is evaluate:
            points[job.arguments[0]].add(job, result)
        if job.function is _sharpness:
            directory, key = job.arguments[0], job.arguments[3]
            sharpness[directory][key] = result
            _write(directory, "sharpness", _flat([sharpness[directory]]))  # now, so that a stop does not lose it
        return []

    if jobs:
        with lock_measurements(*(run.directory for run in runs)):
            run_jobs(jobs, follow, workers, progress, initializer, len(jobs))

    tables: list[pd.DataFrame] = []
    figures: list[Path] = []
    for run in runs:
        plane, slices = parts[run.directory]
        tables.append(_landscape_table(run, plane, slices))
        trajectory = pd.DataFrame(trajectories[run.directory], columns=TRAJECTORY_COLUMNS)
        _write(run.directory, "landscape", tables[-1])
        _write(run.directory, "trajectory", trajectory)
        of_plane = tables[-1][tables[-1].kind == "plane"]
        stem = run.directory / "figures" / f"plane_{plane.labels['start']}--{plane.labels['end']}"
        figures += save_figure(plot_plane(of_plane, trajectory), stem)
        write_text_atomic(stem.with_suffix(".txt"), plane_caption(of_plane, trajectory) + "\n")
        on_figure(figures[-1])
    landscape = pd.concat(tables, ignore_index=True)
    for seed in sorted(set(landscape.seed)) if settings.num_directions else ():
        of_seed = landscape[(landscape.kind == "slice") & (landscape.seed == seed)]
        several = len(set(landscape.seed)) > 1
        stem = Path(output_dir) / "comparison" / "figures" / ("slices" + (f"_seed{seed}" if several else ""))
        figures += save_figure(plot_slices(of_seed), stem)
        write_text_atomic(stem.with_suffix(".txt"), slices_caption(of_seed) + "\n")
        on_figure(figures[-1])
    trajectory = pd.DataFrame([r for rows in trajectories.values() for r in rows], columns=TRAJECTORY_COLUMNS)
    return LandscapeResult(landscape, trajectory, _flat(sharpness.values()), figures)


TRAJECTORY_COLUMNS = [
    "strategy", "learner", "seed", "space", "start", "end", "task", "step", "x", "y", "distance",
]  # fmt: skip


def _plane_part(run: Run, settings: LandscapeSettings, third: Run | None) -> tuple[_Part, list[dict[str, Any]]]:
    """The plane of a run with a grid about its minima and the trajectory's projection, and that projection."""
    corners = plane_corners(run, settings.transition, third)
    plane = StoredPlane(corners, settings.space)
    start, end = corners[0].label, corners[1].label
    labels = {"strategy": run.strategy, "seed": run.seed, "space": settings.space, "start": start, "end": end}
    walked = trajectory_rows(plane.surface, run.directory, end, run.learners, labels)
    places = [*plane.surface.anchor_coordinates.tolist(), *((row["x"], row["y"]) for row in walked)]
    axes = surrounding_axes(places, (settings.grid[0], settings.grid[-1]), settings.margin)
    labels = {**labels, "learner": corners[0].learner, "kind": "plane", "direction": ""}
    return _Part(run, plane, plane.nodes(*axes), _objectives(run, settings), labels), walked


def _slice_parts(run: Run, settings: LandscapeSettings, plane: _Part) -> list[_Part]:
    """One slice per minimum after the transition and direction."""
    axis = Axis(-settings.slice_radius, settings.slice_radius, settings.slice_points)
    parts = []
    for corner in _minima_after(run, plane) if settings.surface_grid else ():
        both = StoredSlice(corner, 2, 0)
        sides = Axis(-settings.slice_radius, settings.slice_radius, settings.surface_grid)
        labels = {**plane.labels, "space": "delta", "learner": corner.learner, "kind": "surface"}
        labels |= {"start": corner.label, "end": corner.label, "direction": "0,1"}
        parts.append(_Part(run, both, both.nodes(sides, sides), plane.objectives, labels))
    for corner in _minima_after(run, plane):
        for direction in range(settings.num_directions):
            stored = StoredSlice(corner, 1, direction)
            labels = {**plane.labels, "space": "delta", "learner": corner.learner, "kind": "slice"}
            labels |= {"start": corner.label, "end": corner.label, "direction": str(direction)}
            nodes = stored.nodes(axis)
            stored.surface  # noqa: B018, an adapter that changes nothing is refused now
            parts.append(_Part(run, stored, nodes, plane.objectives, labels))
    return parts


def _minima_after(run: Run, plane: _Part) -> list[Corner]:
    """The corners of the plane that are this run's minima after the transition."""
    assert isinstance(plane.surface, StoredPlane)
    own = run.directory / "minima"
    return [c for c in plane.surface.corners if c.label == plane.labels["end"] and own in c.directory.parents]


def _objectives(run: Run, settings: LandscapeSettings) -> list[Objective]:
    tasks = run.task_names[: settings.transition + 1]
    return [run.task_objective(task, "test", settings.num_examples) for task in tasks]


def _sharpness_jobs(
    run: Run, settings: LandscapeSettings, plane: _Part
) -> tuple[dict[str, list[dict[str, Any]]], list[Job]]:
    """The rows that are known for these settings, by key, none where there are none; and the jobs that find those."""
    found: dict[str, list[dict[str, Any]]] = {}
    jobs: list[Job] = []
    by_key = known_rows(run)
    for corner in _minima_after(run, plane) if settings.sharpness_samples else ():
        key = sharpness_key(corner, *settings.sharpness, plane.objectives)
        found[key] = by_key.get(key, [])
        if not found[key]:
            jobs.append(Job(_sharpness, (run.directory, run.opening, corner, key, settings)))
    return found, jobs


def _flat(of_runs: Iterable[dict[str, list[dict[str, Any]]]]) -> pd.DataFrame:
    return pd.DataFrame([row for by_key in of_runs for rows in by_key.values() for row in rows])


def _sharpness(
    directory: Path, opening: Opening, corner: Corner, key: str, settings: LandscapeSettings, progress: Progress
) -> list[dict[str, Any]]:
    run = opened_run(directory, opening)
    return sharpness_rows(run, corner, key, _objectives(run, settings), *settings.sharpness)


def _landscape_table(run: Run, plane: _Part, slices: Sequence[_Part]) -> pd.DataFrame:
    rows = []
    with MeasurementStore(run.directory / "measurements.sqlite") as store:
        for part in (plane, *slices):
            rows += node_rows(store, part.nodes, part.objectives, part.labels)
        lines = [part for part in slices if part.labels["kind"] == "slice"]
        for learner in dict.fromkeys(part.labels["learner"] for part in lines):
            own = [part for part in lines if part.labels["learner"] == learner]
            labels = {**own[0].labels, "direction": "mean"}
            rows += mean_slice_rows(store, [part.nodes for part in own], own[0].objectives, labels)
    columns = [
        "strategy", "learner", "seed", "space", "kind", "start", "end", "direction", "x", "y", "anchor", "task",
        "split", "loss", "score", "num_examples", "num_targets", "measured",
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    return table[[*columns, *(c for c in table.columns if c not in columns)]]


def _write(directory: Path, name: str, table: pd.DataFrame) -> None:
    write_text_atomic(directory / "tables" / f"{name}.csv", table.to_csv(index=False))
