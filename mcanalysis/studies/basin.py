"""When a task leaves the basin: forks of its training, the radius of its minimum, the good share of a simplex.

Forks are ordinary unfinished runs in `<run>/basin/<k>-<TASK>/`; points are in the run's store. What loads torch or
draws is imported where it is used: the settings are read for `--help`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

from mcanalysis.errors import UserError
from mcanalysis.numbers_as_text import cell
from mcanalysis.progress import Progress
from mcanalysis.settings import BASIC, MOST_POINTS, OR_ALL, Bounds, Flag, check_bounds
from mcanalysis.store.hashing import hash_json
from mcanalysis.studies.engine import TRAINING, Piece, Steps
from mcanalysis.studies.study import Rows, Setting, Study, Tables

if TYPE_CHECKING:
    import pandas as pd

    from mcanalysis.params.point import Point
    from mcanalysis.plotting.picture import Picture
    from mcanalysis.runs.run import Opening, Run

SPLIT = "test"
FEWEST, MOST = 3, 8
"""Corners of the simplices."""


@dataclass(frozen=True)
class Basin(Study):
    """When does a task leave the basin? Forks of its training, its minimum's radius, the good share of a simplex.

    **Forks.** Task k is trained again from the k−1 tasks before it, once as the run was and `num_forks` times with its
    examples in another order after a share `after` of its steps; adapter, optimiser, schedule and replay's draws go on
    as they are, so that nothing but the order differs. The chord barrier of the task's loss is measured between the
    trunk's end and each fork's, at `num_points`. `tasks`: numbers (from 1) of those forked; () for all. The numbers of
    `stable_from` use the largest barrier of several forks.

    **Radius.** How far task k's score at minimum k stays at `keep` of its value, along `num_directions` random
    directions, the worst one found by ascent of its loss, and towards the next minimum; steps are `radii`, relative to
    ‖ΔW‖ (0 directions: no radii at all).

    **Volume.** The share of the simplex of the first T minima, T = 3 … 8, where the mean score of their tasks is at
    least `keep` times that of the best of them, from `num_samples` uniform samples (0: none). Which of them is best is
    told by the eval split, where tasks have one (`chosen_on`): the highest of several scores on the examples that judge
    would be high by luck.

    Examples are the first `num_examples` of the test split (None: all). `space` is that of forks and simplices.

    Tables: `basin_forks`, `basin_stable` (from which step on barriers stay below `threshold`), `basin_radius`,
    `basin_volume`, and of all runs `basin_half`, k₅₀: from which share of a task's steps on half of them are stable.
    """

    strategies: ClassVar = ("sequential",)
    after: Annotated[
        tuple[float, ...],
        "shares of a task's steps after which its forks part; 1 is the control",
        Flag(metavar="S,…", basic=True),
        Bounds(0.0, 1.0),
    ] = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
    num_forks: Annotated[int, "other orders from each of them; 0: none", Bounds(0, 1000), BASIC] = 1
    forked: Annotated[
        tuple[int, ...], "numbers of the tasks that are forked (default: all)", Flag(metavar="1,2"), Bounds(1)
    ] = ()
    threshold: Annotated[
        float, "barrier, in nats per target, below which two forks share a basin", Bounds(0.0, 1000.0)
    ] = 0.05
    radii: Annotated[
        tuple[float, ...], "relative steps tried along each direction", Flag(metavar="R,…"), Bounds(0.0, 1000.0)
    ] = (
        0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0,
    )  # fmt: skip
    num_directions: Annotated[
        int, "random directions per minimum; six have an interval; 0: no radii", Bounds(0, 10_000)
    ] = 6
    epsilon: Annotated[float, "box in which the worst direction is found", Bounds(0.0, 1000.0)] = 0.01
    num_samples: Annotated[int, "points of each simplex; 0: none", Bounds(0, MOST_POINTS)] = 60
    keep: Annotated[float, "share τ of its value that a score keeps inside a basin", Bounds(0.0, 1.0)] = 0.9
    space: Annotated[str, "factor, delta or aligned"] = "factor"
    num_points: Annotated[int, "points measured between two forks, both ends included", Bounds(3, MOST_POINTS)] = 11
    num_examples: Annotated[int | None, "test examples per task, or 'all'", OR_ALL, Bounds(1)] = 50

    def __post_init__(self) -> None:
        from mcanalysis.params.spaces import get_space

        get_space(self.space)
        check_bounds(self)
        for name, values in (("after", self.after), ("radii", self.radii)):
            if not values or any(not a < b for a, b in pairwise(values)):
                raise UserError(f"Expected numbers that increase, got {values or 'none'}; change --{name}.")
        if not (self.keep and self.threshold and self.epsilon and self.radii[0]):
            raise UserError(
                f"Expected a positive keep, threshold and epsilon and positive radii, got {self.keep}, "
                f"{self.threshold}, {self.epsilon} and {self.radii}; change them."
            )
        if not (self.num_forks or self.num_directions or self.num_samples):
            raise UserError("Expected something to measure, got none; raise --num-forks, -directions or -samples.")

    def check(self, num_minima: int) -> None:
        """Raises `UserError` for tasks to be forked that the run does not have."""
        absent = [str(k) for k in self.forked if not 1 <= k <= num_minima]
        if absent:
            raise UserError(f"The run has tasks 1 to {num_minima}, got {', '.join(absent)}: change --forked.")

    def cost(self, num_tasks: int) -> str:
        """What a run of so many tasks takes where nothing of it is there yet, in words."""
        forks = self.num_forks * len(self.after) * (len(self.forked) or num_tasks)
        trained = forks + max(self.forked, default=num_tasks) if forks else 0
        radii = (self.num_directions + 2) * len(self.radii) * num_tasks if self.num_directions else 0
        simplices = max(0, min(MOST, num_tasks) - FEWEST + 1) * self.num_samples
        return (
            f"{trained} trainings of one task, {forks * self.num_points} points between forks, at most {radii} along "
            f"directions (one task each) and {simplices} in simplices (all tasks up to the last minimum)"
        )

    def measure(self, run: Run, setting: Setting) -> Steps[Tables]:
        """Trunks in turn, then forks; radii and simplices beside them. Raises `UserError` for a run without either."""
        import pandas as pd

        from mcanalysis.runs.run import check_space
        from mcanalysis.strategies import get_strategy
        from mcanalysis.studies.points import Points

        minima = run.minima
        self.check(len(minima))
        check_space(run.strategy, self.space)
        if get_strategy(run.strategy).schedule != "sequence":
            raise UserError(f"Expected a run of task after task, got {run.strategy}; choose another --run.")
        points = Points(run, setting.num_workers)
        whose = {"strategy": run.strategy, "learner": run.answering_learner, "seed": run.seed}
        forks, *others = yield [
            self._forks(run, points),
            *(self._radii(run, points, k) for k in range(1, len(minima) + 1) if self.num_directions),
            *(self._volume(run, points, k) for k in range(FEWEST, min(MOST, len(minima)) + 1) if self.num_samples),
        ]
        radii = others[: len(minima)] if self.num_directions else []
        rows = {
            "basin_forks": forks,
            "basin_radius": [row for found in radii for row in found],
            "basin_volume": others[len(radii) :],
        }
        tables = {name: pd.DataFrame([whose | row for row in found]) for name, found in rows.items() if found}
        if forks:
            tables["basin_stable"] = stable_table(tables["basin_forks"])
        return tables

    def _forks(self, run: Run, points: Any) -> Steps[list[dict[str, Any]]]:
        numbers = self.forked or tuple(range(1, len(run.minima) + 1))
        trunk, waiting = None, []
        for k in range(1, max(numbers) + 1) if self.num_forks else ():
            before, trunk = trunk, Branch.of(run, k, None)
            yield from trunk.steps(run, before)
            if k in numbers:
                steps = trunk.num_steps(run)
                waiting += [
                    self._fork(run, points, before, trunk, steps, after, run.seed + number)
                    for after in dict.fromkeys(round(share * steps) for share in self.after)
                    for number in range(1, self.num_forks + 1)
                ]
        return (yield waiting)

    def _fork(
        self, run: Run, points: Any, before: Branch | None, trunk: Branch, steps: int, after: int, seed: int
    ) -> Steps[dict[str, Any]]:
        from mcanalysis.connectivity.profile import Profile, grid
        from mcanalysis.params.point import content_hash
        from mcanalysis.paths import Linear

        task = run.task_names[trunk.number - 1]
        fork = Branch.of(run, trunk.number, (task, after, seed))
        yield from fork.steps(run, before)
        ends = [branch.end(run) for branch in (trunk, fork)]
        keys = [content_hash(end) for end in ends]
        key = hash_json([f"linear-{self.space}", *keys])[:24]
        ts = [float(t) for t in grid(self.num_points)]
        where = [
            ({0.0: keys[0], 1.0: keys[1]}.get(t, f"{key}/{t!r}"), BetweenForks((trunk, fork), t, self.space))
            for t in ts
        ]
        found = yield from points.measure(where, [run.task_objective(task, SPLIT, self.num_examples)])
        start, end = (path := Linear(*ends, space=self.space)).anchors  # side by side where they are aligned
        profile = Profile.of(ts, [of_point[0] for of_point in found])
        low, high = profile.chord_barrier_interval()
        return {
            "space": self.space, "task": f"{trunk.number}-{task}", "num_steps": steps, "after": after,
            "fork_seed": seed, "chord_barrier": profile.chord_barrier(), "chord_barrier_low": low,
            "chord_barrier_high": high, "loss_trunk": found[0][0].loss, "loss_fork": found[-1][0].loss,
            "distance": path.space.distance(end, [start], [1.0]), "threshold": self.threshold,
            "trunk_is_run": keys[0] == run.minima[trunk.number - 1].key, "num_examples": found[0][0].num_examples,
        }  # fmt: skip

    def _radii(self, run: Run, points: Any, k: int) -> Steps[list[dict[str, Any]]]:
        directions = [("random", number) for number in range(self.num_directions)] + [("worst", 0)]
        directions += [("forgetting", 0)] if k < len(run.minima) else []
        return (yield [self._radius(run, points, k, *direction) for direction in directions])

    def _radius(self, run: Run, points: Any, k: int, kind: str, number: int) -> Steps[dict[str, Any]]:
        from mcanalysis.landscape.basin_radius import level_kept, radius_of

        minimum, objective = run.minima[k - 1], run.task_objective(run.task_names[k - 1], SPLIT, self.num_examples)
        # The worst direction depends on the examples and the box as well.
        more = {"worst": [objective.settings_key, self.epsilon], "forgetting": [m.key for m in run.minima[k : k + 1]]}
        key = hash_json(["basin", kind, number, minimum.key, *more.get(kind, [])])[:24]
        at_zero, scores = math.nan, []
        for step in (0.0, *self.radii):
            here = key if step else minimum.key
            where = OnRay(k, kind, number, self.num_examples, self.epsilon, step)
            ((found,),) = yield from points.measure([(f"{here}/{step!r}" if step else here, where)], [objective])
            if not step:
                at_zero = found.score
                if not at_zero > 0:
                    break  # no share of nothing can be kept
                continue
            scores.append(found.score)
            if not found.score >= level_kept(at_zero, self.keep):
                break
        nothing = {"value": math.nan, "last_held": math.nan, "first_lost": math.nan}
        radius = radius_of(self.radii, scores, at_zero, self.keep)._asdict() if at_zero > 0 else nothing
        radius = {"radius" if name == "value" else name: value for name, value in radius.items()}
        labels = {"task": minimum.label, "direction": kind, "number": number, "keep": self.keep}
        return labels | radius | {"score": at_zero, "num_examples": len(objective.encoded)}

    def _volume(self, run: Run, points: Any, k: int) -> Steps[dict[str, Any]]:
        import numpy as np

        from mcanalysis.connectivity.connected_volume import Share, connected_volume, simplex_samples
        from mcanalysis.landscape.basin_radius import level_kept

        minima = run.minima[:k]
        names = run.task_names[:k]
        chosen_on = "eval" if all(run.tasks[task].splits.get("eval") for task in names) else SPLIT
        objectives, choosing = ([run.task_objective(task, split, self.num_examples) for task in names]
                                for split in (SPLIT, chosen_on))  # fmt: skip
        weights = [tuple(map(float, row)) for row in (*np.eye(k), *simplex_samples(k, self.num_samples, run.seed))]
        key = hash_json(["simplex", self.space, *(m.key for m in minima)])[:24]  # as connectivity.py's
        keys = [*(m.key for m in minima), *(f"{key}/{'/'.join(map(repr, row))}" for row in weights[k:])]
        where = [(name, OnSimplex(self.space, row)) for name, row in zip(keys, weights, strict=True)]
        found, told = yield [points.measure(where, objectives), points.measure(where[:k], choosing)]
        means, by_eval = (np.array([np.mean([m.score for m in of_point]) for of_point in of]) for of in (found, told))
        best = float(means[:k][by_eval >= by_eval.max() - 1e-9].mean())  # of corners that are alike on eval their mean
        threshold = self.keep * best
        # Where the best corner is never right, every point would be as good.
        share = (
            connected_volume(means[k:], level_kept(best, self.keep))
            if threshold > 0
            else Share(math.nan, math.nan, math.nan, self.num_samples)
        )
        return {
            "space": self.space, "num_minima": k, "keep": self.keep, "threshold": threshold,
            "chosen_on": chosen_on, "best_corner": best, "volume": share.value,
            "volume_low": share.low, "volume_high": share.high, "highest": means[k:].max(),
            "num_samples": share.num_samples,
        }  # fmt: skip

    def compare(self, tables: Tables, runs: Sequence[Run]) -> Tables:
        return {"basin_half": half_table(tables["basin_stable"])} if "basin_stable" in tables else {}

    def pictures_of_all(self, tables: Tables) -> Iterator[Picture]:
        from mcanalysis.plotting.basin import basin_picture

        yield basin_picture(tables)

    def words(self, tables: Tables) -> Iterator[str | Rows]:
        """From when on forks stay together, how far scores hold, and how much of the simplices is good."""
        if "basin_half" in tables:
            forks, half = tables["basin_forks"], tables["basin_half"].iloc[0]
            yield "\nChord barrier (nats) of a task's loss between two trainings of it that share its first steps"
            keys = ["task", "strategy", "seed"]
            wide = forks.groupby([*keys, "after"], sort=False).chord_barrier.max().unstack("after")
            rows = [["task", *(f"{step} steps" for step in wide.columns)]]
            yield rows + [[_whose(*i), *map(cell, of_task)] for i, of_task in zip(wide.index, wide.values, strict=True)]
            most = float(forks.after.div(forks.num_steps).max())
            at, low, high = (_up_to(value, most) for value in (half.half, max(half.half_low, 0.0), half.half_high))
            known = half.half_low > -math.inf or half.half_high < math.inf  # it takes six tasks
            yield (
                f"half of {int(half.units)} tasks stay below {half.threshold:g} nats from {at} of the steps on "
                f"{f'[{low}, {high}]' if known else '(too few for an interval)'}; {int(half.never)} of them at no "
                "share that was tried"
            )
            if not forks.trunk_is_run.all():
                yield (
                    f"{(~forks.trunk_is_run).sum()} of {len(forks)} trunks, trained here as the run was, do not end in "
                    "its own minimum, as on another machine or by other code; forks are compared with the trunk"
                )
        if "basin_radius" in tables:
            kept = f"{self.keep:.0%} of it"
            yield f"\nRelative step at which a task's score at its own minimum falls below {kept}, median of directions"
            rows = [["task", "direction", "directions", "radius [95 %]"]]
            for r in radius_summary(tables["basin_radius"]).to_dict("records"):
                of = [_up_to(r[name], max(self.radii)) for name in ("radius", "radius_low", "radius_high")]
                radius = f"{of[0]} [{of[1]}, {of[2]}]"
                whose = _whose(r["task"], r["strategy"], r["seed"])
                rows.append([whose, str(r["direction"]), str(r["directions"]), radius])
            yield rows
        if "basin_volume" in tables:
            yield f"\nShare of the simplex of the first T minima with a mean score of {self.keep:.0%} of the best one's"
            rows = [["run", "T", "threshold", "share [95 %]"]]
            for r in tables["basin_volume"].itertuples():
                share = f"{r.volume:.2f} [{r.volume_low:.2f}, {r.volume_high:.2f}]"
                rows.append([f"{r.strategy}, seed {r.seed}", str(r.num_minima), cell(r.threshold), share])
            yield rows


def _up_to(value: float, most: float) -> str:
    """A number that was looked for up to `most`; infinity is one beyond it.

    >>> _up_to(0.25, 1.0), _up_to(math.inf, 1.0)
    ('0.25', '> 1')
    """
    return f"{value:.2f}" if math.isfinite(value) else f"> {most:g}"


def _whose(task: str, strategy: str, seed: int) -> str:
    return f"{task} ({strategy}, seed {seed})"


def stable_table(forks: pd.DataFrame) -> pd.DataFrame:
    """From which step on the barriers of each run's tasks stay below the threshold, the largest of several forks.

    `stable_from`: that step, ∞ where it is none of those tried; `unstable_at`: the last step tried before it, −∞ where
    there is none: the true one lies between. `share`: of the task's steps.
    """
    import pandas as pd

    from mcanalysis.metrics.instability import stable_from

    rows = []
    keys = ["strategy", "learner", "seed", "space", "task", "num_steps", "threshold"]
    for key, group in forks.groupby(keys, sort=False):
        labels: dict[str, Any] = dict(zip(keys, key, strict=True))
        barriers = group.groupby("after").chord_barrier.max()
        step, before = stable_from(barriers.index.tolist(), barriers.tolist(), labels["threshold"])
        rows.append(labels | {"stable_from": step, "unstable_at": before, "share": step / labels["num_steps"]})
    return pd.DataFrame(rows)


def half_table(stable: pd.DataFrame) -> pd.DataFrame:
    """k₅₀: the share of a task's steps from which on half of all runs' tasks are stable, with an interval.

    The lower median over tasks and runs, all taken as independent, and the interval of `median_with_interval`. Ends are
    shares that were tried, ∞ for tasks that are never stable. `half_before`: the median of what was tried before.
    """
    import pandas as pd

    from mcanalysis.metrics.instability import median_with_interval

    half = median_with_interval(stable.share.tolist())
    before = median_with_interval((stable.unstable_at / stable.num_steps).tolist())
    found = {"half": half.value, "half_low": half.low, "half_high": half.high, "half_before": before.value}
    found |= {"units": len(stable), "never": int((stable.share == math.inf).sum())}
    return pd.DataFrame([found | {"threshold": stable.threshold.iloc[0]}])


def radius_summary(radii: pd.DataFrame) -> pd.DataFrame:
    """The median radius of each minimum's directions of a kind, with the interval of `median_with_interval`."""
    import pandas as pd

    from mcanalysis.metrics.instability import median_with_interval

    rows = []
    keys = ["strategy", "learner", "seed", "task", "direction"]
    for key, group in radii.dropna(subset="radius").groupby(keys, sort=False):
        median = median_with_interval(group.radius.tolist())
        ends = {"radius": median.value, "radius_low": max(median.low, 0.0), "radius_high": median.high}
        rows.append(dict(zip(keys, key, strict=True)) | {"directions": len(group)} | ends)
    return pd.DataFrame(rows, columns=[*keys, "directions", "radius", "radius_low", "radius_high"])


class Branch(NamedTuple):
    """The training of a run's task `number` again: as it was (`fork` None: the trunk), or with another order."""

    directory: Path
    number: int
    fork: tuple[str, int, int] | None

    @classmethod
    def of(cls, run: Run, number: int, fork: tuple[str, int, int] | None) -> Branch:
        """The branch with its place in the run's directory."""
        name = "trunk" if fork is None else f"after{fork[1]}-seed{fork[2]}"
        return cls(run.directory / "basin" / run.minima[number - 1].label / name, number, fork)

    def num_steps(self, run: Run) -> int:
        """Optimiser steps of its task."""
        from mcanalysis.training.config import RunConfig

        task = run.task_names[self.number - 1]
        training = RunConfig.from_resolved(run.config).training
        return training.steps_of(task, len(run.tasks[task].splits["train"]))

    def end(self, run: Run) -> Point:
        """Where the answering learner stands after it."""
        return _end(self.directory / "minima" / run.minima[self.number - 1].label / run.answering_learner)

    def steps(self, run: Run, before: Branch | None) -> Steps[None]:
        """Train it where it is not there; `before`: the trunk of the tasks before, None for the first task."""
        label = run.minima[self.number - 1].label
        if (self.directory / "minima" / label).exists() and (self.directory / "checkpoint").exists():
            return
        start = None if before is None else before.directory
        name = f"training of {label} of {run.directory.name}, {self.directory.name}"
        arguments = (run.opening, self, start)
        yield [Piece(str(self.directory), train_branch, arguments, turn=TRAINING, name=name, trains=True)]


@lru_cache(maxsize=64)
def _end(directory: Path) -> Point:
    from mcanalysis.models.adapter_files import load_adapter

    return load_adapter(directory).point


def train_branch(opening: Opening, branch: Branch, start_from: Path | None, progress: Progress) -> None:
    """What a piece does: it trains as the run was trained, from a trunk's checkpoint, or its own after a stop."""
    from dataclasses import replace

    from mcanalysis.studies.training import LOCK_SECONDS
    from mcanalysis.training.config import Execution, RunConfig
    from mcanalysis.training.continual_trainer import train

    run = opening.run
    config = RunConfig.from_resolved(run.config)
    config = replace(config, training=replace(config.training, fork=branch.fork))
    execution = Execution(device=run.device, save_trajectory=0, engine=run.engine_settings)
    train(
        config, branch.directory, resume=True, execution=execution, progress=progress, tasks=list(run.tasks.values()),
        lock_seconds=LOCK_SECONDS, until=branch.number, start_from=start_from,
    )  # fmt: skip


@dataclass(frozen=True)
class BetweenForks:
    """A point on the straight path between the ends of two branches."""

    branches: tuple[Branch, Branch]
    t: float
    space: str

    def point(self, run: Run) -> Point:
        from mcanalysis.paths import Linear

        return Linear(*(branch.end(run) for branch in self.branches), space=self.space)(self.t)


@dataclass(frozen=True)
class OnRay:
    """A point at a relative step from minimum `k` along one of its directions."""

    k: int
    kind: str
    number: int
    num_examples: int | None
    epsilon: float
    step: float

    def point(self, run: Run) -> Point:
        if not self.step:
            return run.minima[self.k - 1].point
        return _ray(run, self.k, self.kind, self.number, self.num_examples, self.epsilon)(self.step)


@lru_cache(maxsize=8)
def _ray(run: Run, k: int, kind: str, number: int, num_examples: int | None, epsilon: float) -> Any:
    import torch

    from mcanalysis.evaluation.differentiable import WholeLoss
    from mcanalysis.landscape.basin_radius import Ray, towards, worst_direction
    from mcanalysis.landscape.slices import filter_direction

    point = run.minima[k - 1].point
    if kind == "random":
        return Ray(point, filter_direction(point, torch.Generator().manual_seed(number)))
    if kind == "forgetting":
        return Ray(point, towards(point, run.minima[k].point))
    loss = WholeLoss(run.model, [run.task_objective(run.task_names[k - 1], SPLIT, num_examples).encoded])
    return Ray(point, worst_direction(loss, point, epsilon, num_starts=1))


@dataclass(frozen=True)
class OnSimplex:
    """A point of the simplex of a run's first minima."""

    space: str
    weights: tuple[float, ...]

    def point(self, run: Run) -> Point:
        from mcanalysis.paths import Simplex

        return Simplex(*(m.point for m in run.minima[: len(self.weights)]), space=self.space)(list(self.weights))
