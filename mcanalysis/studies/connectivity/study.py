"""The main job: train strategies on a sequence of tasks, measure the paths between their minima, draw them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from mcanalysis.benchmarks import load_benchmark
from mcanalysis.evaluation.engine_settings import AUTO, EngineSettings
from mcanalysis.models.loading import check_base, default_device
from mcanalysis.paths.path_kinds import path_kind
from mcanalysis.plotting.connectivity import plot_transitions
from mcanalysis.plotting.connectivity_caption import caption
from mcanalysis.plotting.stability_plasticity import plot_stability_plasticity
from mcanalysis.plotting.style import save_figure
from mcanalysis.plotting.whole_run import plot_whole_run
from mcanalysis.progress import Progress, silent
from mcanalysis.runs.run import Run, load_run
from mcanalysis.store.atomic import write_text_atomic
from mcanalysis.store.lock import lock_measurements
from mcanalysis.studies.connectivity.analysis import ConnectivitySettings, analyse_run
from mcanalysis.studies.connectivity.over_seeds import barriers_over_seeds
from mcanalysis.studies.connectivity.path_jobs import PathJobs
from mcanalysis.studies.connectivity.result_tables import write_tables
from mcanalysis.studies.connectivity.stored_simplex import check_numbers
from mcanalysis.studies.jobs import Job, num_ranks, run_jobs
from mcanalysis.studies.strategies import run_directories
from mcanalysis.studies.strategy_tables import metrics_table
from mcanalysis.tasks.task import TaskData
from mcanalysis.training.config import Execution, RunConfig
from mcanalysis.training.continual_trainer import is_finished, train

_MAIN, _TRAINING, _OTHERS = range(3)  # turns of jobs


@dataclass(frozen=True)
class ConnectivityResult:
    """The tables of all runs together: `profiles`, `barriers`, `metrics`, and the others by name in `tables` (see
    `ResultTables`; `barriers_over_seeds`); `figures` are the files drawn."""

    profiles: pd.DataFrame
    barriers: pd.DataFrame
    metrics: pd.DataFrame
    figures: list[Path]
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """What to train and to measure.

    `settings` are those of the `main` strategy's runs, whose paths are the subject; the runs of other strategies are
    there for comparison and measured along `other_paths`, without ensembles and simplexes.
    """

    settings: ConnectivitySettings
    other_paths: tuple[str, ...]
    main: str = "sequential"
    resume: bool = False
    device: str | None = None
    workers: int = 1
    execution: Execution | None = None

    @property
    def engine(self) -> EngineSettings:
        """How points are evaluated."""
        return self.execution.engine if self.execution else AUTO

    def settings_of(self, strategy: str) -> ConnectivitySettings:
        """The settings for a strategy's runs."""
        if strategy == self.main:
            return self.settings
        return replace(self.settings, paths=self.other_paths, ensemble=0, simplex=())

    def num_jobs(self, strategy: str, num_tasks: int) -> int:
        """How many paths, and simplexes, a run of so many tasks is measured on."""
        settings = self.settings_of(strategy)
        of_run = [path_kind(name).is_of_whole_run for name in settings.paths]
        return sum(1 if whole else num_tasks - 1 for whole in of_run) + bool(settings.simplex)


def study_connectivity(
    configs: Sequence[RunConfig],
    output_dir: str | Path,
    study: Study,
    *,
    progress: Progress = silent,
    on_figure: Callable[[Path], None] = lambda _: None,
    initializer: Callable[[], None] | None = None,
) -> ConnectivityResult:
    """Train (or reuse) each run, measure its paths, draw its figure as soon as one path is there; then compare.

    With several `workers` (processes that share the cores), or as many ranks of a launch, runs train side by side, and
    paths are measured as soon as their run is trained; `initializer` is called in each worker. Raises
    `RunDirectoryError` where another process measures one of the runs.
    """
    directories = run_directories(configs, output_dir)
    first = configs[0]
    check_base(first.model, first.dtype, study.device or default_device())
    tasks = load_benchmark(
        first.benchmark, first.data_dir, first.tasks, first.scores, first.sizes, first.max_new_tokens
    )
    check_numbers(study.settings.simplex, len(tasks))
    with ExitStack() as held:
        _compute(configs, directories, study, tasks, held, progress, on_figure, initializer)
        runs = [load_run(d, study.device, study.engine) for d in directories]
        return analyse_connectivity(runs, output_dir, study, progress=silent, on_figure=on_figure)


def _compute(
    configs: Sequence[RunConfig],
    directories: Sequence[Path],
    study: Study,
    tasks: Sequence[TaskData],
    held: ExitStack,
    progress: Progress,
    on_figure: Callable[[Path], None],
    initializer: Callable[[], None] | None,
) -> None:
    """Train and measure what is missing; the runs are locked as long as `held` is open."""
    paths: dict[Path, PathJobs] = {}

    def measuring(directory: Path) -> list[Job]:
        held.enter_context(lock_measurements(directory))
        run = load_run(directory, study.device, study.engine)
        paths[directory] = PathJobs(run, study.settings_of(run.strategy), progress)
        return in_turn(directory, paths[directory].start())

    def in_turn(directory: Path, jobs: list[Job]) -> list[Job]:
        # What a first figure needs, then training, so that a long one does not end alone, then the others' paths.
        is_main = paths[directory].run.strategy == study.main
        return [replace(job, turn=_MAIN if is_main else _OTHERS) for job in jobs]

    def follow(job: Job, result: object) -> list[Job]:
        if job.function is _train:
            directory = job.arguments[1]
            jobs = measuring(directory)
            expected = study.num_jobs(configs[directories.index(directory)].strategy, len(tasks))
            overall.update(1 + expected - paths[directory].num_open)
            return jobs
        directory = job.arguments[0]
        of_run = paths[directory]
        settings, before, first = of_run.settings, of_run.num_open, of_run.settings.paths[0]
        was_open = of_run.is_open(first)
        jobs = in_turn(directory, of_run.follow(job, result))
        overall.update(before - of_run.num_open)
        if len(settings.paths) > 1 and was_open and not of_run.is_open(first):
            early = replace(study.settings, paths=(first,), ensemble=0, simplex=())
            on_figure(draw_paths(analyse_run(load_run(directory), early), directory / "figures")[-1])
        return jobs

    jobs: list[Job] = []
    total = 0
    for config, directory in zip(configs, directories, strict=True):
        if is_finished(config, directory, tasks, study.resume):
            jobs += measuring(directory)
            total += paths[directory].num_open
        else:
            jobs.append(Job(_train, (config, directory, study), _TRAINING))
            total += 1 + study.num_jobs(config.strategy, len(tasks))
    if not jobs:
        return
    overall = progress(total=total, desc="jobs")
    try:
        run_jobs(jobs, follow, study.workers, progress, initializer)
    finally:
        overall.close()


def _train(config: RunConfig, directory: Path, study: Study, progress: Progress) -> None:
    how = study.execution
    train(config, directory, resume=study.resume, device=study.device, execution=how, progress=progress)


def _measure_on_ranks(runs: Sequence[Run], study: Study, progress: Progress) -> None:
    """Let the ranks of a launch measure what is missing."""
    paths = {run.directory: PathJobs(run, study.settings_of(run.strategy), progress) for run in runs}
    jobs = [job for of_run in paths.values() for job in of_run.start()]
    if jobs:
        run_jobs(jobs, lambda job, result: paths[job.arguments[0]].follow(job, result), num_ranks(), progress)


def analyse_connectivity(
    runs: Sequence[Run],
    output_dir: str | Path,
    study: Study,
    *,
    progress: Progress = silent,
    on_figure: Callable[[Path], None] = lambda _: None,
) -> ConnectivityResult:
    """Measure what is missing in finished runs, wherever they lie; the comparison goes to `<output_dir>/comparison`.

    Raises `RunDirectoryError` where another process measures one of the runs.
    """
    comparison = Path(output_dir) / "comparison"
    figures: list[Path] = []
    of_runs = []
    with lock_measurements(*(run.directory for run in runs)):
        if num_ranks() > 1:
            _measure_on_ranks(runs, study, progress)
        for run in runs:
            of_runs.append(analyse_run(run, study.settings_of(run.strategy), progress=progress))
            figures += draw_paths(of_runs[-1], run.directory / "figures")
            on_figure(figures[-1])
    names = dict.fromkeys(name for tables in of_runs for name in tables)
    tables = {name: pd.concat([t[name] for t in of_runs if name in t], ignore_index=True) for name in names}
    tables["metrics"] = metrics = metrics_table(runs)
    tables["barriers_over_seeds"] = barriers_over_seeds(tables["barriers"])
    write_tables(tables, comparison / "tables")
    between = tables["profiles"][~_of_whole_run(tables["profiles"])]
    seeds = sorted(set(metrics.seed))
    for seed in seeds:
        stem = comparison / "figures" / ("stability_plasticity" + (f"_seed{seed}" if len(seeds) > 1 else ""))
        of_seed = between[between.seed == seed]
        if "sequential" in set(of_seed.strategy):
            figures += save_figure(plot_stability_plasticity(of_seed), stem)
            on_figure(figures[-1])
    named = {name: tables.pop(name) for name in ("profiles", "barriers", "metrics")}
    return ConnectivityResult(**named, figures=figures, tables=tables)


def draw_paths(tables: Mapping[str, pd.DataFrame], directory: Path) -> list[Path]:
    """Per learner one picture of the transitions, with its caption as a text file beside it, and one of each path
    through the whole run."""
    drawn: list[Path] = []
    profiles, barriers = tables["profiles"], tables["barriers"]
    for learner, of_learner in profiles[~_of_whole_run(profiles)].groupby("learner", sort=False):
        of_barriers = barriers[(barriers.learner == learner) & ~_of_whole_run(barriers)]
        stem = directory / f"connectivity_{learner}"
        drawn += save_figure(plot_transitions(of_learner, of_barriers), stem)
        write_text_atomic(stem.with_suffix(".txt"), caption(of_learner, of_barriers) + "\n")
    through = profiles[_of_whole_run(profiles)]
    for (learner, path, space), of_path in through.groupby(["learner", "path", "space"], sort=False):
        drawn += save_figure(plot_whole_run(of_path), directory / f"{path}_{space}_{learner}")
    return drawn


def _of_whole_run(table: pd.DataFrame) -> pd.Series:
    """Which rows are of a path through all minima."""
    kinds = {(p, s): path_kind(f"{p}-{s}").is_of_whole_run for p, s in set(zip(table.path, table.space, strict=True))}
    return pd.Series([kinds[pair] for pair in zip(table.path, table.space, strict=True)], index=table.index, dtype=bool)
