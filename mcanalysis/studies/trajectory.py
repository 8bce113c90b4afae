"""The way that training took, on the plane in which it moved most.

The coordinates are one file in `<run>/trajectory_pca/`, named by a hash of the points; losses are in the run's store.
What loads torch or draws is imported where it is used: the settings are read for `--help`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

from mcanalysis.errors import UserError
from mcanalysis.numbers_as_text import cell
from mcanalysis.progress import Progress
from mcanalysis.settings import BASIC, OR_ALL, Bounds, check_bounds
from mcanalysis.store.hashing import hash_json
from mcanalysis.store.results import JsonResult
from mcanalysis.studies.engine import Piece, Steps
from mcanalysis.studies.study import Rows, Setting, Study, Tables

if TYPE_CHECKING:
    from mcanalysis.evaluation.objective import Objective
    from mcanalysis.params.point import Point
    from mcanalysis.plotting.picture import Picture
    from mcanalysis.runs.run import Opening, Run
    from mcanalysis.store.measurements import Measurement

SPLIT = "test"
_VERSION = 1  # counts up when what is computed changes, so that results of before are not used


@dataclass(frozen=True)
class Trajectory(Study):
    """The training trajectory of runs by principal component analysis, and losses along it.

    The plane (`num_components` directions) is that in which the trained adapter, `fast`, moved most over all tasks: PCA
    in a `space`, about their mean, of its snapshots and minima, of which one that is equal to the one before counts
    once. Snapshots and minima of the other learners are projected onto it. For each task, old and new losses are
    measured at `num_losses` snapshots of each learner, evenly spaced, on the first `num_examples` of the test split
    (None: all).

    Tables: `trajectory_pca`, a row per snapshot and minimum, with its coordinates `pc_1`, `pc_2`, … and its `distance`
    from what they span, in units of distance in the space; `explained_1`, … are shares of the variance, and `fitted`
    says which points they are of. `trajectory_losses`, per snapshot and task, and the mean of the old ones, `mean_old`.
    """

    num_components: Annotated[int, "directions; the first two are drawn", Bounds(2, 1000)] = 2
    space: Annotated[str, "factor, delta or aligned", BASIC] = "factor"
    num_losses: Annotated[
        int, "snapshots per task and learner whose losses are measured; 0: none", Bounds(0), BASIC
    ] = 3
    num_examples: Annotated[int | None, "test examples per task, or 'all'", OR_ALL, Bounds(1)] = 50

    strategies: ClassVar = ("sequential", "ilora")

    def __post_init__(self) -> None:
        from mcanalysis.params.spaces import get_space

        get_space(self.space)
        check_bounds(self)

    def measure(self, run: Run, setting: Setting) -> Steps[Tables]:
        """One piece for the plane, and those of the losses; raises `UserError` for a run without snapshots."""
        from mcanalysis.studies.points import Points

        stops = _stops(run, self.space)
        key = hash_json([_VERSION, self.space, self.num_components, [(s.key, s.fitted) for s in stops]])
        kept = JsonResult(run.directory / "trajectory_pca" / f"{key[:12]}.json")
        arguments = (run.opening, self.space, self.num_components, tuple(stops))
        plane = Piece(str(kept.file), _fit, arguments, kept, name=f"trajectory of {run.directory.name}")
        points = Points(run, setting.num_workers)
        parts = self._parts(run, stops)
        found, *losses = yield [
            plane,
            *(points.measure([(s.key, s) for s in chosen], objectives) for chosen, objectives in parts),
        ]
        rows = [row for part, measured in zip(parts, losses, strict=True) for row in _loss_rows(run, *part, measured)]
        return {"trajectory_pca": self._places(run, stops, found)} | _if_any("trajectory_losses", rows)

    def pictures(self, tables: Tables) -> Iterator[Picture]:
        from mcanalysis.plotting.picture import Picture
        from mcanalysis.plotting.trajectory import plot_trajectory, trajectory_caption

        both = tables["trajectory_pca"], tables.get("trajectory_losses")
        yield Picture("trajectory_pca", plot_trajectory(*both), {}, trajectory_caption(*both))

    def words(self, tables: Tables) -> Iterator[str | Rows]:
        """Where the minima lie on the plane, and how losses of old and new tasks go."""
        places, losses = tables["trajectory_pca"], tables.get("trajectory_losses")
        for (strategy, seed, space), of_run in places.groupby(["strategy", "seed", "space"], sort=False):
            shares = [f"{of_run[f'explained_{i}'].iloc[0]:.0%}" for i in range(1, self.num_components + 1)]
            yield f"\n{strategy} / seed {seed}, {space} space: where the minima lie, in units of distance;"
            yield f"the directions hold {', '.join(shares)} of the variance of {of_run.fitted.sum()} points"
            coordinates = [f"pc_{i}" for i in range(1, self.num_components + 1)]
            rows: Rows = [["minimum", "learner", *(f"direction {c[3:]}" for c in coordinates), "off the plane"]]
            for row in of_run[of_run.kind == "minimum"].to_dict("records"):
                numbers = [cell(row[name]) for name in (*coordinates, "distance")]
                rows.append([row["minimum"], row["learner"], *numbers])
            yield rows
        if losses is None:
            return
        for (strategy, seed), of_run in losses.groupby(["strategy", "seed"], sort=False):
            yield f"\n{strategy} / seed {seed}: loss during training (nats per target token, test split)"
            rows = [["learner", "training of", "step", "old tasks", "new task"]]
            for (learner, minimum, step), one in of_run.groupby(["learner", "minimum", "step"], sort=False):
                old, new = one[one.task == "mean_old"].loss, one[one.role == "new"].loss
                rows.append([str(learner), str(minimum), str(step), *(cell(found.mean()) for found in (old, new))])
            yield rows

    def _parts(self, run: Run, stops: Sequence[_Stop]) -> list[tuple[list[_Stop], list[Objective]]]:
        """Per task of the training, the snapshots whose losses are measured, and of what."""
        parts = []
        for minimum in dict.fromkeys(s.minimum for s in stops) if self.num_losses else ():
            chosen = []
            for learner in dict.fromkeys(s.learner for s in stops):
                snapshots = [s for s in stops if (s.learner, s.minimum) == (learner, minimum) and s.step is not None]
                chosen += [snapshots[i] for i in _evenly(len(snapshots), self.num_losses)]
            tasks = run.task_names[: int(minimum.partition("-")[0])]
            parts.append((chosen, [run.task_objective(task, SPLIT, self.num_examples) for task in tasks]))
        return parts

    def _places(self, run: Run, stops: Sequence[_Stop], found: Mapping[str, Any]) -> Any:
        import pandas as pd

        labels = {"strategy": run.strategy, "seed": run.seed, "space": self.space}
        shares = {f"explained_{i}": share for i, share in enumerate(found["explained"], start=1)}
        rows = []
        for stop, (*coordinates, distance) in zip(stops, found["places"], strict=True):
            row = labels | {"learner": stop.learner, "minimum": stop.minimum, "step": stop.step}
            row |= {"kind": "minimum" if stop.step is None else "snapshot", "fitted": stop.fitted}
            row |= {f"pc_{i}": value for i, value in enumerate(coordinates, start=1)}
            rows.append(row | {"distance": distance} | shares)
        return pd.DataFrame(rows).astype({"step": "Int64"})


class _Stop(NamedTuple):
    """A point of the trajectory: a snapshot after `step` steps of the task of `minimum`, or the minimum itself.

    `key`: a hash of its contents, by which the store knows it. `fitted`: the plane is fitted to it, among others.
    """

    learner: str
    minimum: str
    step: int | None
    key: str
    fitted: bool

    def point(self, run: Run) -> Point:
        """The point itself, read from its file."""
        return _read(run, self.learner, self.minimum, self.step)


class _OnDisk(Sequence[Any]):
    """Points that are read when they are asked for, so that a long trajectory need not fit into memory."""

    def __init__(self, run: Run, stops: Sequence[_Stop]) -> None:
        self._run = run
        self._stops = stops

    def __len__(self) -> int:
        return len(self._stops)

    def __getitem__(self, index: Any) -> Any:
        return self._stops[index].point(self._run)


def _read(run: Run, learner: str, minimum: str, step: int | None) -> Point:
    from mcanalysis.runs.snapshots import read_snapshot, snapshot_files

    if step is None:
        return run.minimum(minimum, learner).point
    return read_snapshot(snapshot_files(run.directory, minimum, learner)[step])


def _stops(run: Run, space: str) -> list[_Stop]:
    """All snapshots and minima of a run, learner by learner, in order of time; every one is read once.

    Raises `UserError` for a run without snapshots and for one whose points have no common factors.
    """
    from mcanalysis.params.point import content_hash
    from mcanalysis.runs.snapshots import snapshot_files

    labels = [minimum.label for minimum in run.minima]
    steps = {
        learner: {label: [*snapshot_files(run.directory, label, learner)] for label in labels}
        for learner in run.learners
    }
    moving = [learner for learner in run.learners if any(steps[learner].values())]
    if not moving:
        raise UserError(
            f"The run '{run.directory}' has no snapshots of its training: train it in another --output-dir with "
            "--save-trajectory 10."
        )
    trained = "fast" if "fast" in moving else moving[0]
    stops, shapes = [], set()
    for learner in (trained, *(name for name in run.learners if name != trained)):
        before = ""
        for label in labels:
            for step in (*steps[learner][label], None):
                point = _read(run, learner, label, step)
                key = content_hash(point)
                stops.append(_Stop(learner, label, step, key, learner == trained and key != before))
                shapes.add(tuple((name, tuple(point[name].shape)) for name in sorted(point)))
                before = key
    if len(shapes) > 1 and space != "delta":
        raise UserError(
            f"The adapters of '{run.directory}' are of several ranks, so that the space {space} cannot hold them: use "
            "--space delta."
        )
    return stops


def _fit(
    opening: Opening, space: str, num_components: int, stops: Sequence[_Stop], progress: Progress
) -> dict[str, Any]:
    from mcanalysis.landscape.trajectory_pca import fit_trajectory_pca

    run = opening.run
    bar = progress(total=len(stops), desc=f"trajectory {run.strategy} (seed {run.seed})")
    fitted = _OnDisk(run, [stop for stop in stops if stop.fitted])
    pca = fit_trajectory_pca(fitted, num_components, center="mean", space=space)
    places = []
    for stop in stops:
        places.append(list(pca.project(stop.point(run))))
        bar.update(1)
    bar.close()
    return {"explained": pca.explained_variance_ratio.tolist(), "places": places}


def _loss_rows(
    run: Run, stops: Sequence[_Stop], objectives: Sequence[Objective], measured: Sequence[Sequence[Measurement]]
) -> list[dict[str, Any]]:
    """A row per snapshot and task, and one for the mean of the old tasks; in joint training all tasks are new."""
    import numpy as np

    rows = []
    for stop, found in zip(stops, measured, strict=True):
        labels = {"strategy": run.strategy, "seed": run.seed, "learner": stop.learner, "minimum": stop.minimum}
        labels |= {"step": stop.step, "split": SPLIT}
        is_joint = run.minimum(stop.minimum).task not in run.task_names
        num_old = 0 if is_joint else len(objectives) - 1
        for i, (objective, m) in enumerate(zip(objectives, found, strict=True)):
            row = labels | {"task": objective.name, "role": "old" if i < num_old else "new"}
            rows.append(row | {"loss": m.loss, "score": m.score, "num_examples": m.num_examples})
        if num_old:
            means = {name: float(np.mean([getattr(m, name) for m in found[:num_old]])) for name in ("loss", "score")}
            number = sum(m.num_examples for m in found[:num_old])
            rows.append(labels | {"task": "mean_old", "role": "old", **means, "num_examples": number})
    return rows


def _if_any(name: str, rows: list[dict[str, Any]]) -> Tables:
    import pandas as pd

    return {name: pd.DataFrame(rows)} if rows else {}


def _evenly(number: int, chosen: int) -> list[int]:
    """So many of the numbers from 0, evenly spaced: the last, and the first where it is more than one.

    >>> _evenly(6, 3), _evenly(6, 1), _evenly(2, 5)
    ([0, 2, 5], [5], [0, 1])
    """
    if chosen == 1 or number < 2:
        return list(range(number))[-1:]
    return sorted({round(i * (number - 1) / (chosen - 1)) for i in range(chosen)})
