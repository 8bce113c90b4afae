"""Loss and score along the paths between the minima of runs: the main study.

What loads torch or draws is imported where it is used: the settings are read for `--help`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from mcanalysis.errors import UserError
from mcanalysis.settings import BASIC, MOST_POINTS, MOST_STEPS, OR_ALL, Bounds, Flag, check_bounds
from mcanalysis.studies.engine import FIRST, FIRST_TRAINING, TRAINING, Steps
from mcanalysis.studies.study import Rows, Setting, Study, Tables

if TYPE_CHECKING:
    from pathlib import Path as FilePath

    import pandas as pd

    from mcanalysis.plotting.picture import Picture
    from mcanalysis.runs.run import Run, RunSoFar
    from mcanalysis.studies.connectivity.measuring import Measured, PathName, RunPaths

PATHS = ("linear-factor", "linear-delta", "bezier-factor")
_LEAST_TOLERANCE = 1e-6  # losses of about a nat in float32
_OTHERS = TRAINING + 1  # the turn of pieces that only compare


@dataclass(frozen=True)
class Connectivity(Study):
    """What is measured: `num_points` on each path, the first `num_examples` of the eval and test splits (None: all).

    Paths are named `<path>-<space>`: those of the strategy named first are the subject; runs of others are there for
    comparison and are measured along `other_paths`, without ensembles and simplexes. A curve has `num_bends` bends
    between two minima, fitted by `curve_steps` Adam steps at `curve_learning_rate`, each on one t and
    `curve_batch_size` train examples of the old tasks and as many of the new; one through all minima takes so many
    steps per segment, each on as many examples, of all tasks alike. `finder`: the rule by which bends are moved
    (`mcanalysis.connectivity.finders`); `curve_seed`: of jitter, t and minibatches (None: the run's).

    `tolerance`: in nats per target. Beside ends and middle, points are chosen, and measured on as many test examples
    as it takes, until the loss barriers of the new task and of the mean over the old ones are known to it, for at most
    1.1 times the evaluations of `num_points` (see `mcanalysis.connectivity.certificate`). `ensemble`: over how many
    points of each path predictions are averaged; 0 for none. `simplex`: the numbers (from 1; 0 is the base) of minima
    whose simplex is measured; () for none. `from_base`: whether the straight paths from the base model to each minimum
    are measured, too (rewinding: ΔW is scaled by t, one line in every space). `extrapolate`: the range (LOW, HIGH) of
    t, around [0, 1], in which straight paths are measured; barriers, gains and t* stay those of [0, 1]. `gauges`: over
    so many random factors (B·R, R⁻¹·A) of each later minimum the linear factor path is measured as well, on the test
    split between its ends; 0 for none.

    Tables: `profiles`, `barriers`, `paths`, `front`, where asked for `ensemble`, `simplex` and `certificates` (with a
    tolerance), `gauges`, and of all runs `metrics` and `barriers_over_seeds`.
    """

    begins_with: ClassVar[int] = 2
    num_points: Annotated[int, "points on each path, both ends included", Bounds(2, MOST_POINTS), BASIC] = 21
    num_examples: Annotated[int | None, "examples per task and split, or 'all'", OR_ALL, Bounds(1)] = 50
    paths: Annotated[
        tuple[str, ...],
        "linear, bezier, polychain or, through all minima, segmented_bezier; in factor, delta or aligned space",
        Flag(metavar="PATH-SPACE,…"),
    ] = PATHS
    other_paths: Annotated[tuple[str, ...], "for all but the first strategy"] = ("linear-factor",)
    num_bends: Annotated[int, "bends of a fitted curve (per segment)", Bounds(1, 1000)] = 1
    curve_steps: Annotated[int, "optimiser steps of each curve fit (per segment)", Bounds(high=MOST_STEPS)] = 60
    finder: Annotated[str, "how curves are fitted: mean; chains also by bisection, neb or layerwise"] = "mean"
    curve_learning_rate: float = 1e-2
    curve_batch_size: int = 16
    curve_seed: int | None = None
    tolerance: Annotated[
        float | None,
        "measure where it helps, on as many examples as it takes, until low and high of loss barriers are X nats apart",
        Flag(metavar="X"),
    ] = None
    ensemble: Annotated[
        int,
        "average predictions over N points of each path (5): loss, accuracy, calibration",
        Flag(metavar="N", bare=5),
        Bounds(high=1000),
    ] = 0
    simplex: Annotated[
        tuple[int, ...], "measure the simplex of these minima, by number; 0: the base", Flag(metavar="1,2,3")
    ] = ()
    from_base: Annotated[bool, "also measure the straight paths from the base to each minimum (rewinding)"] = False
    extrapolate: Annotated[
        tuple[float, ...],
        "measure straight paths beyond their ends, from t = LOW to t = HIGH (-0.5,1.5)",
        Flag(metavar="LOW,HIGH"),
    ] = ()

    gauges: Annotated[
        int,
        "measure the linear factor path over N random factors (BR, R⁻¹A) of its end, test split (10): N times its cost",
        Flag(metavar="N", bare=10),
        Bounds(high=10_000),
    ] = 0

    def __post_init__(self) -> None:
        from mcanalysis.connectivity.finders import get_finder
        from mcanalysis.connectivity.profile import grid_beyond
        from mcanalysis.paths.path_kinds import path_kind

        check_bounds(self)
        kinds = [path_kind(name) for name in (*self.paths, *self.other_paths)]
        finder = get_finder(self.finder)
        if not self.paths:
            raise UserError(f"Expected at least one path, got none; choose some, such as {', '.join(PATHS)}.")
        if len(set(self.paths)) < len(self.paths):
            raise UserError(f"Expected each path once, got {', '.join(self.paths)}; leave out the repeated one.")
        for kind in kinds:
            if kind.is_fitted:
                finder.check(kind.path_class, self.num_bends, self.curve_steps)
        if self.tolerance is not None and not (math.isfinite(self.tolerance) and self.tolerance >= _LEAST_TOLERANCE):
            raise UserError(
                f"Expected a tolerance of at least {_LEAST_TOLERANCE:g} nats, below which losses are rounding, got "
                f"{self.tolerance:g}; give --tolerance in nats, say 0.02."
            )
        apart = [name for name in (*self.paths, *self.other_paths) if not path_kind(name).path_class.joins_minima]
        if self.tolerance is not None and apart:
            raise UserError(
                f"Expected paths between the minima with --tolerance, got {', '.join(apart)}, of whose ends "
                "there is no barrier; leave them out, or the tolerance."
            )
        if self.ensemble and self.ensemble < 2:
            raise UserError(f"Expected an ensemble of at least 2 points, got {self.ensemble}; raise --ensemble.")
        if self.gauges and (self.gauges < 1 or "linear-factor" not in self.paths or self.num_points < 3):
            raise UserError(
                f"Expected 1 or more --gauges of linear-factor, on 3 points or more, got {self.gauges} on "
                f"{self.num_points} points of {', '.join(self.paths)}; name linear-factor among --paths, or leave "
                "--gauges out."
            )
        if self.simplex and (len(set(self.simplex)) < len(self.simplex) or len(self.simplex) < 3):
            raise UserError(
                f"Expected three or more different minima of a simplex, got {', '.join(map(str, self.simplex))}; "
                "name them by number, --simplex 1,2,3."
            )
        if self.extrapolate:
            if len(self.extrapolate) != 2:
                raise UserError(
                    f"Expected two ends of a range of t, got {len(self.extrapolate)}; give --extrapolate LOW,HIGH."
                )
            grid_beyond(self.num_points, *self.extrapolate)
            curves = [name for name in (*self.paths, *self.other_paths) if path_kind(name).is_fitted]
            if curves:
                raise UserError(
                    f"Expected straight paths with --extrapolate, got {', '.join(curves)}, whose bends say nothing of "
                    "what lies beyond their ends; choose --paths linear-factor,linear-delta."
                )

    @property
    def mark(self) -> tuple[str, float] | None:
        """A path and a t on it that figures point out; none for runs."""
        return None

    @property
    def from_base_kind(self) -> str:
        """The kind of the paths from the base: the first straight one that is asked for, as all are one line."""
        from mcanalysis.paths.path_kinds import path_kind

        return next((name for name in self.paths if path_kind(name).path == "linear"), "linear-delta")

    def check(self, num_minima: int) -> None:
        """Raises `UserError` where a run of so many minima has no path, or a simplex has others."""
        if num_minima < 2 and not self.from_base:
            raise UserError(
                f"Expected a run with at least two minima, got {num_minima}: train on more tasks one after another, or "
                "measure the path from the base, --from-base."
            )
        absent = [n for n in self.simplex if not 0 <= n <= num_minima]
        if absent:
            have = "minima 1 to" if num_minima > 1 else "minimum"
            raise UserError(f"The run has {have} {num_minima}, got {', '.join(map(str, absent))}: change --simplex.")

    def along(self, strategy: str, main: str) -> Connectivity:
        """What is measured of a run of a strategy, where `main` is the one named first."""
        return self if strategy == main else replace(self, paths=self.other_paths, ensemble=0, simplex=(), gauges=0)

    def measure(self, run: Run, setting: Setting) -> Steps[Tables]:
        """Every path of the answering learner; those of a kind named first are drawn one by one as they are there."""
        from mcanalysis.studies.connectivity.growing import Growing
        from mcanalysis.studies.connectivity.measuring import measure_path, measure_simplex, paths_of
        from mcanalysis.studies.points import Points

        is_main = run.strategy == setting.main
        study = self.along(run.strategy, setting.main)
        learner = run.answering_learner
        study.check(len(run.minima_of(learner)))
        points = Points(run, setting.num_workers)
        paths = paths_of(run, learner, study)
        growing = Growing(study, paths, setting.draw)
        # Several workers train first, so that a long training does not end alone; one finishes what the figure is of.
        main = FIRST_TRAINING if setting.num_workers() == 1 else TRAINING
        turn = main if is_main else _OTHERS

        def of_path(name: PathName) -> Steps[Measured]:
            is_first = is_main and name.kind == study.paths[0]
            found = yield from measure_path(points, paths, name, FIRST if is_first else turn)
            growing.add(name, found)
            if is_main and not points.was_complete:  # else all is there in a moment
                growing.draw()
            return found

        def of_kind(kind: str) -> Steps[list[Measured]]:
            return (yield [of_path(name) for name in paths.names(kind)])

        def from_base() -> Steps[list[Measured]]:
            return (yield [measure_path(points, paths, name, turn) for name in paths.names_from_base()])

        wanted: list[Any] = [*(of_kind(kind) for kind in study.paths), from_base()]
        if study.simplex:
            wanted.append(measure_simplex(points, learner, study, turn))
        found = yield wanted
        number = len(study.paths) + 1
        return tables_of(paths, found[:number], found[number:], run.directory / "tables" / ".Connectivity.json")

    def begin(self, run: RunSoFar, setting: Setting) -> Steps[None]:
        """The first transition, along the kind of path that is named first."""
        from mcanalysis.paths.path_kinds import path_kind
        from mcanalysis.studies.connectivity.growing import Growing
        from mcanalysis.studies.connectivity.measuring import measure_path, paths_of
        from mcanalysis.studies.points import Points

        if path_kind(self.paths[0]).is_of_whole_run:
            return
        paths = paths_of(run, run.answering_learner, self)
        growing = Growing(self, paths, setting.draw)
        (name,) = paths.names(self.paths[0])
        growing.add(name, (yield from measure_path(Points(run, setting.num_workers), paths, name, FIRST)))
        growing.draw()

    def compare(self, tables: Tables, runs: Sequence[Run]) -> Tables:
        from mcanalysis.studies.connectivity.over_seeds import barriers_over_seeds
        from mcanalysis.studies.strategy_tables import metrics_table
        from mcanalysis.studies.task_scores import task_scores

        of_all = {"metrics": metrics_table(runs), "barriers_over_seeds": barriers_over_seeds(tables["barriers"])}
        return tables | of_all | {"task_scores": task_scores(runs)}

    def pictures(self, tables: Tables, so_far: str = "", lacking: str = "") -> Iterator[Picture]:
        """Per learner one of the transitions and one of the paths from the base; one of each through the whole run.

        `so_far` is said above the panels of a figure that is not whole yet, `lacking` in its caption.
        """
        from mcanalysis.plotting.certificates import caption as of_certificates
        from mcanalysis.plotting.certificates import plot_certificates
        from mcanalysis.plotting.connectivity import plot_transitions
        from mcanalysis.plotting.connectivity_caption import caption
        from mcanalysis.plotting.picture import Picture
        from mcanalysis.plotting.selection import are_from_base
        from mcanalysis.plotting.whole_run import plot_whole_run

        profiles, barriers = tables["profiles"], tables["barriers"]
        for stem, is_drawn in (("connectivity", _between_minima), ("rewinding", are_from_base)):
            for learner, of_learner in profiles[is_drawn(profiles)].groupby("learner", sort=False):
                own = barriers[(barriers.learner == learner) & is_drawn(barriers)]
                drawn = plot_transitions(of_learner, own, so_far, self.mark)
                of_mark = self.mark and (
                    f"Diamonds: the recipe's point, t = {self.mark[1]:g} on {self.mark[0]}; between measured "
                    "points they lie on the line that joins these."
                )
                words = "\n\n".join(filter(None, (lacking, caption(of_learner, own), of_mark)))
                yield Picture(f"{stem}_{learner}", drawn, {}, words)
        for learner, known in tables.get("certificates", profiles[:0]).groupby("learner", sort=False):
            first = known[(known.path == known.path.iloc[0]) & (known.space == known.space.iloc[0])]
            own = barriers[
                (barriers.learner == learner) & barriers.path.isin(first.path) & barriers.space.isin(first.space)
            ]
            yield Picture(f"certificates_{learner}", plot_certificates(first), {}, of_certificates(first, own))
        if "gauges" in tables:
            from mcanalysis.plotting.gauges import caption as of_gauges
            from mcanalysis.plotting.gauges import plot_gauges

            for learner, drawn in tables["gauges"].groupby("learner", sort=False):
                own = barriers[barriers.learner == learner]
                yield Picture(f"gauges_{learner}", plot_gauges(drawn, own), {}, of_gauges(drawn, own))
        through = profiles[_of_whole_run(profiles)]
        for (learner, path, space), of_path in through.groupby(["learner", "path", "space"], sort=False):
            yield Picture(f"{path}_{space}_{learner}", plot_whole_run(of_path), {}, "")

    def pictures_of_all(self, tables: Tables) -> Iterator[Picture]:
        from mcanalysis.plotting.picture import Picture
        from mcanalysis.plotting.stability_plasticity import plot_stability_plasticity, stability_plasticity_caption

        profiles = tables["profiles"]
        between = profiles[_between_minima(profiles)]
        seeds = sorted(set(profiles.seed))
        for seed in seeds:
            of_seed = between[between.seed == seed]
            if "sequential" in set(of_seed.strategy):
                stem = "stability_plasticity" + (f"_seed{seed}" if len(seeds) > 1 else "")
                yield Picture(stem, plot_stability_plasticity(of_seed), {}, stability_plasticity_caption(of_seed))

    def words(self, tables: Tables) -> Iterator[str | Rows]:
        from mcanalysis.studies.connectivity.barrier_matrix import matrix_words
        from mcanalysis.studies.connectivity.words import words

        yield from matrix_words(tables["barrier_matrix"]) if "barrier_matrix" in tables else words(tables)


def tables_of(
    paths: RunPaths,
    of_kinds: Sequence[Sequence[Measured]],
    simplexes: Sequence[list] = (),
    kept: FilePath | None = None,
) -> Tables:
    """The tables of a run: by transition, in the order of the kinds; then the whole run, and last what starts at the
    base. Their rows are taken from the file `kept`, where it has them."""
    from mcanalysis.studies.connectivity.result_tables import ResultTables
    from mcanalysis.studies.connectivity.stored_rows import stored_rows

    run = paths.run
    labels: Mapping[str, Any] = {"strategy": run.strategy, "learner": paths.learner, "seed": run.seed}
    of_paths = [(number, m) for kind in of_kinds for number, m in enumerate(kind)]
    in_order = [m for _, m in sorted(of_paths, key=lambda each: (*_rank(each[1]), each[0]))]
    if kept is None:
        made = ResultTables()
        for measured in in_order:
            made.add(measured, labels)
    else:
        made = stored_rows(kept, in_order, labels)
    made.simplex = [{**labels, **row} for rows in simplexes for row in rows]
    return made.frames()


def _rank(measured: Measured) -> tuple[bool, bool]:
    return measured.path.transition.is_from_base, measured.path.kind.is_of_whole_run


def _between_minima(table: pd.DataFrame) -> pd.Series:
    """Which rows are of paths from one minimum to the next."""
    from mcanalysis.plotting.selection import are_from_base

    return ~_of_whole_run(table) & ~are_from_base(table)


def _of_whole_run(table: pd.DataFrame) -> pd.Series:
    """Which rows are of a path through all minima."""
    import pandas as pd

    from mcanalysis.paths.path_kinds import path_kind

    kinds = {(p, s): path_kind(f"{p}-{s}").is_of_whole_run for p, s in set(zip(table.path, table.space, strict=True))}
    return pd.Series([kinds[pair] for pair in zip(table.path, table.space, strict=True)], index=table.index, dtype=bool)
