"""Which layers and which kinds of module make what happens between two minima of a run.

Points are measured through the run's store. What loads torch or draws is imported where it is used: the settings are
read for `--help`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, ClassVar, get_args

from mcanalysis.numbers_as_text import with_interval
from mcanalysis.settings import BASIC, MOST_POINTS, OR_ALL, Bounds, check_bounds
from mcanalysis.studies.engine import Steps
from mcanalysis.studies.study import Rows, Setting, Study, Tables, check_transition

if TYPE_CHECKING:
    from mcanalysis.connectivity.attribution import Hold
    from mcanalysis.evaluation.objective import Objective
    from mcanalysis.params.point import Point
    from mcanalysis.paths import Linear
    from mcanalysis.plotting.picture import Picture
    from mcanalysis.runs.run import Run
    from mcanalysis.runs.transitions import Transition


@dataclass(frozen=True)
class Attribution(Study):
    """Which layers and which kinds of module make the barrier between two successive minima: each alone on the path.

    Of the answering learner, on the straight path of one transition in a `space`: every layer, every kind of module and
    every module alone, the others held at the start and at the end, at `num_points` each, on the first `num_examples`
    of the test split (None: all). `transition` is the number (from 1) of the minimum it starts from. The first one is
    the default: it has one old task and one new one, so it is the cheapest.

    Tables, `attribution` of curves and `attribution_barriers`: both say whose they are (`strategy`, `learner`, `seed`,
    `space`, `start`, `end`), which group moves (`hold`, `grouping`: all, layer, kind or module; `group`, `layer`,
    `kind`) and of which `task` (`mean_old` and `mean` as in `barriers.csv`). Barriers have 95 % intervals over examples
    for `chord_barrier`, `above_chord` and `end_change`, and `few_events` where these cannot promise it.
    """

    transition: Annotated[int, "number of the minimum that the path starts from", BASIC] = 1
    space: Annotated[str, "factor, delta or aligned", BASIC] = "factor"
    num_points: Annotated[int, "points per group, both ends included", Bounds(2, MOST_POINTS)] = 11
    num_examples: Annotated[int | None, "test examples per task, or 'all'", OR_ALL, Bounds(1)] = 50

    strategies: ClassVar = ("sequential", "ilora")

    def __post_init__(self) -> None:
        from mcanalysis.params.spaces import get_space

        check_bounds(self)
        get_space(self.space)

    def check(self, num_minima: int) -> None:
        check_transition(self.transition, num_minima)

    def measure(self, run: Run, setting: Setting) -> Steps[Tables]:
        """All points of all groups at once; raises `UserError` for a transition that the run does not have."""
        from mcanalysis.studies.attribution_tables import attribution_tables
        from mcanalysis.studies.points import Points

        subject = Subject.of(run, self)
        points = subject.points
        measured = yield from Points(run, setting.num_workers).measure(points, subject.objectives)
        return attribution_tables(subject, {key: found for (key, _), found in zip(points, measured, strict=True)})

    def pictures(self, tables: Tables) -> Iterator[Picture]:
        from mcanalysis.plotting.attribution import Role, attribution_caption, plot_attribution
        from mcanalysis.plotting.picture import Picture

        barriers = tables["attribution_barriers"]
        for role in get_args(Role):
            stem = f"attribution_{role}_{barriers.learner.iloc[0]}"
            yield Picture(stem, plot_attribution(barriers, role), {}, attribution_caption(barriers, role))

    def words(self, tables: Tables) -> Iterator[str | Rows]:
        """What layers and kinds of module do to the loss of the old and of the new task when they move alone."""
        barriers = tables["attribution_barriers"]
        losses = barriers[barriers.quantity == "loss"]
        keys = ["strategy", "learner", "seed", "space", "start", "end"]
        for (strategy, learner, seed, space, start, end), of_run in losses.groupby(keys, sort=False):
            new = [task for task in dict.fromkeys(of_run.task) if task not in ("mean_old", "mean")][-1]
            rows = [
                ["moves", "old: above chord [95 %]", "change [95 %]", f"{new}: above chord [95 %]", "change [95 %]"]
            ]
            of_start = of_run[of_run.hold == "start"]
            for group in dict.fromkeys(of_start[of_start.grouping != "module"].group):
                of_group = of_start[of_start.group == group].set_index("task")
                columns = [(task, value) for task in ("mean_old", new) for value in ("above_chord", "end_change")]
                rows.append([group, *(with_interval(of_group.loc[task], value) for task, value in columns)])
            yield f"\n{strategy} / {learner} / seed {seed}, {space} space, {start} → {end}, others stay at the start;"
            told = "above the group's own chord where the whole path is farthest from its, and its change"
            yield f"loss (nats/token) {told}"
            yield rows


@dataclass(frozen=True, eq=False)
class Subject:
    """What is taken apart: one transition of a run, its straight path, and the test examples of its tasks."""

    run: Run
    study: Attribution
    transition: Transition
    path: Linear
    objectives: tuple[Objective, ...]

    @classmethod
    def of(cls, run: Run, study: Attribution) -> Subject:
        """Raises `UserError` for a transition that the run does not have."""
        from mcanalysis.paths import Linear
        from mcanalysis.runs.run import check_space
        from mcanalysis.runs.transitions import nth_transition

        check_space(run.strategy, study.space)
        transition = nth_transition(run, run.answering_learner, study.transition)
        objectives = tuple(run.task_objective(task, "test", study.num_examples) for task in transition.tasks)
        return cls(run, study, transition, Linear(*transition.points, space=study.space), objectives)

    @property
    def groups(self) -> list[tuple[str, str, tuple[str, ...]]]:
        """(grouping, group, tensor names), the whole path first."""
        from mcanalysis.connectivity.attribution import WHOLE
        from mcanalysis.params.groups import by_layer, by_module, by_module_kind

        start = self.path.anchors[0]
        groupings = {"layer": by_layer, "kind": by_module_kind, "module": by_module}
        made = [(grouping, *item) for grouping, make in groupings.items() for item in make(start).items()]
        return [(WHOLE, WHOLE, tuple(start)), *made]

    @property
    def ts(self) -> list[float]:
        """Where each group's path is measured."""
        from mcanalysis.connectivity.profile import grid

        return [float(t) for t in grid(self.study.num_points)]

    def point_keys(self, hold: Hold, names: Sequence[str]) -> list[str]:
        """The store's key of every point on a group's path.

        The held end is the minimum itself; the whole path shares its points with `connectivity.py`.
        """
        from mcanalysis.connectivity.attribution import held_t
        from mcanalysis.store.hashing import hash_json

        start, end = self.transition.keys
        at_ends = {0.0: start, 1.0: end}
        if set(names) == set(self.path.anchors[0]):
            between = hash_json([f"linear-{self.study.space}", start, end])
        else:
            between = hash_json(["attribution", self.study.space, start, end, hold, sorted(names)])
            at_ends = {held_t(hold): at_ends[held_t(hold)]}
        return [at_ends.get(t, f"{between[:24]}/{t!r}") for t in self.ts]

    @property
    def points(self) -> list[tuple[str, OnGroup]]:
        """The points of all groups by their keys in the store; the same points only once."""
        from mcanalysis.connectivity.attribution import Hold

        found: dict[str, OnGroup] = {}
        for hold in get_args(Hold):
            for _, _, names in self.groups:
                for t, key in zip(self.ts, self.point_keys(hold, names), strict=True):
                    found.setdefault(key, OnGroup(self.study, hold, names, t))
        return list(found.items())


@dataclass(frozen=True)
class OnGroup:
    """A point on a group's path."""

    study: Attribution
    hold: Hold
    names: tuple[str, ...]
    t: float

    def point(self, run: Run) -> Point:
        """The point itself, made from the run's minima."""
        from mcanalysis.connectivity.attribution import move_group

        return move_group(_subject(run, self.study).path, self.names, self.hold)(self.t)


@lru_cache(maxsize=1)
def _subject(run: Run, study: Attribution) -> Subject:
    return Subject.of(run, study)
