"""The main job: train strategies on a sequence of tasks, measure the paths between their minima, draw them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pandas as pd
import torch

from mcanalysis.benchmarks import load_benchmark
from mcanalysis.connectivity.analysis import (
    ConnectivitySettings,
    Transition,
    analyse_run,
    measure_between,
    measure_path,
    path_rows,
    run_transitions,
    unmeasured,
)
from mcanalysis.connectivity.curve_fitting import fit_curve
from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.evaluation.engine import Engine
from mcanalysis.evaluation.objective import make_objective
from mcanalysis.experiments.jobs import Job, run_jobs
from mcanalysis.experiments.strategies import metrics_table, run_name
from mcanalysis.models.adapter_files import load_adapter
from mcanalysis.models.encoding import collate, pad_id
from mcanalysis.models.loading import base_hash, check_base, default_device, load_base
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.params.point import content_hash
from mcanalysis.params.spaces import get_space
from mcanalysis.paths import Bezier
from mcanalysis.plotting.connectivity import caption, plot_transitions
from mcanalysis.plotting.stability_plasticity import plot_stability_plasticity
from mcanalysis.plotting.style import save_figure
from mcanalysis.progress import Progress, silent
from mcanalysis.run import Run, load_run
from mcanalysis.store.atomic import write_text_atomic
from mcanalysis.store.hashing import hash_json
from mcanalysis.store.manifest import claim_run_directory, mark_finished
from mcanalysis.store.measurements import MeasurementStore
from mcanalysis.tasks.trace_files import load_examples
from mcanalysis.training.config import Execution, RunConfig
from mcanalysis.training.continual_trainer import is_finished, train


@dataclass(frozen=True)
class ConnectivityResult:
    """The tables of all runs together: `profiles`, `barriers`, `metrics`; `figures` are the files drawn."""

    profiles: pd.DataFrame
    barriers: pd.DataFrame
    metrics: pd.DataFrame
    figures: list[Path]


@dataclass(frozen=True)
class Study:
    """What to train and to measure.

    `settings` are those of the `main` strategy's runs, whose paths are the subject; the runs of other strategies are
    there for comparison and measured along `other_paths`.
    """

    settings: ConnectivitySettings
    other_paths: tuple[str, ...]
    main: str = "sequential"
    resume: bool = False
    device: str | None = None
    workers: int = 1
    execution: Execution | None = None

    def settings_of(self, strategy: str) -> ConnectivitySettings:
        """The settings for a strategy's runs."""
        return self.settings if strategy == self.main else replace(self.settings, paths=self.other_paths)


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

    With several `workers` (processes that share the cores) runs train side by side, and paths are measured as soon as
    their run is trained; `initializer` is called in each.
    """
    directories = [Path(output_dir) / run_name(c) for c in configs]
    waiting: dict[Path, set[tuple[str, int]]] = {}

    def measuring(directory: Path) -> list[Job]:
        run = load_run(directory, study.device)
        todo = unmeasured(run, run.answering_learner, study.settings_of(run.strategy))
        waiting[directory] = set(todo)
        return [Job(_measure, (directory, study, path, number)) for path, number in todo]

    def follow(job: Job, result: object) -> list[Job]:
        if job.function is _train:
            return measuring(job.arguments[1])
        directory, _, path, number = job.arguments
        waiting[directory].discard((path, number))
        paths = study.settings_of(load_run(directory).strategy).paths
        if path == paths[0] and len(paths) > 1 and not any(p == path for p, _ in waiting[directory]):
            early = replace(study.settings, paths=(path,))
            on_figure(draw_transitions(*analyse_run(load_run(directory), early), directory / "figures")[-1])
        return []

    first = configs[0]
    check_base(first.model, first.dtype, study.device or default_device())
    tasks = load_benchmark(first.benchmark, first.data_dir, first.tasks, first.scores, first.sizes)
    jobs: list[Job] = []
    total = 0
    for config, directory in zip(configs, directories, strict=True):
        if is_finished(config, directory, tasks, study.resume):
            jobs += measuring(directory)
            total += len(waiting[directory])
        else:
            jobs.append(Job(_train, (config, directory, study)))
            total += 1 + len(study.settings_of(config.strategy).paths) * (len(tasks) - 1)
    if jobs:
        run_jobs(jobs, follow, study.workers, progress, initializer, total)
    runs = [load_run(d, study.device) for d in directories]
    return analyse_connectivity(runs, output_dir, study, progress=silent, on_figure=on_figure)


def _train(config: RunConfig, directory: Path, study: Study, progress: Progress) -> None:
    how = study.execution
    train(config, directory, resume=study.resume, device=study.device, execution=how, progress=progress)


@cache
def _opened(directory: Path, device: str | None) -> Run:
    """A worker's run, with its model and data, for all of its jobs."""
    return load_run(directory, device)


def _measure(directory: Path, study: Study, path: str, index: int, progress: Progress) -> None:
    run = _opened(directory, study.device)
    settings = study.settings_of(run.strategy)
    transition = run_transitions(run, run.answering_learner)[index]
    what = f"{run.strategy} {transition.start} → {transition.end} {path}"
    bar = progress(total=settings.num_points, desc=what)
    measure_path(run, run.answering_learner, transition, path, settings, bar.update)
    bar.close()


def analyse_connectivity(
    runs: Sequence[Run],
    output_dir: str | Path,
    study: Study,
    *,
    progress: Progress = silent,
    on_figure: Callable[[Path], None] = lambda _: None,
) -> ConnectivityResult:
    """Measure what is missing in finished runs, wherever they lie; the comparison goes to `<output_dir>/comparison`."""
    profiles, barriers, figures = [], [], []
    comparison = Path(output_dir) / "comparison"
    for run in runs:
        of_run = analyse_run(run, study.settings_of(run.strategy), progress=progress)
        profiles.append(of_run[0])
        barriers.append(of_run[1])
        figures += draw_transitions(*of_run, run.directory / "figures")
        on_figure(figures[-1])
    tables = pd.concat(profiles, ignore_index=True), pd.concat(barriers, ignore_index=True)
    metrics = metrics_table(runs)
    for name, table in (("profiles", tables[0]), ("barriers", tables[1]), ("metrics", metrics)):
        write_text_atomic(comparison / "tables" / f"{name}.csv", table.to_csv(index=False))
    seeds = sorted(set(metrics.seed))
    for seed in seeds:
        stem = comparison / "figures" / ("stability_plasticity" + (f"_seed{seed}" if len(seeds) > 1 else ""))
        of_seed = tables[0][tables[0].seed == seed]
        if "sequential" in set(of_seed.strategy):
            figures += save_figure(plot_stability_plasticity(of_seed), stem)
            on_figure(figures[-1])
    return ConnectivityResult(*tables, metrics, figures)


def draw_transitions(profiles: pd.DataFrame, barriers: pd.DataFrame, directory: Path) -> list[Path]:
    """One picture per learner, with its caption as a text file beside it."""
    drawn: list[Path] = []
    for learner, of_learner in profiles.groupby("learner", sort=False):
        of_barriers = barriers[barriers.learner == learner]
        stem = directory / f"connectivity_{learner}"
        drawn += save_figure(plot_transitions(of_learner, of_barriers), stem)
        write_text_atomic(stem.with_suffix(".txt"), caption(of_learner, of_barriers) + "\n")
    return drawn


def connect_adapters(
    directories: Sequence[str],
    model_name: str,
    data_files: Sequence[str],
    output_dir: str | Path,
    settings: ConnectivitySettings,
    *,
    dtype: str = "auto",
    device: str | None = None,
    score: str | None = None,
    max_length: int = 1024,
    progress: Progress = silent,
) -> ConnectivityResult:
    """The path between two adapters trained elsewhere, measured on one data file, or on two: old task, new task.

    A Bezier curve is fitted on the files themselves, since there is no training split to fit it on; with t* chosen on
    the data it is measured on a gain would be positive by selection, so none is reported.
    """
    if len(directories) != 2:
        raise UserError(f"Expected two adapter folders (--minima DIR1,DIR2), got {len(directories)}; name two.")
    if len(data_files) not in (1, 2):
        raise UserError(
            f"Expected one or two data files (--data FILE[,FILE2]), got {len(data_files)}; name one or two."
        )
    tasks = [load_examples(file, score) for file in data_files]
    adapters = [load_adapter(d) for d in directories]
    names = [set(a.point) for a in adapters]
    if names[0] != names[1]:
        different = sorted(names[0] ^ names[1])
        raise PointMismatchError(
            f"Expected adapters of the same modules, got {len(different)} differing tensor name(s), the first is "
            f"{different[0]}; train both with the same target_modules."
        )
    bases = {a.base_name for a in adapters if a.base_name}
    if len(bases) > 1:
        raise PointMismatchError(
            f"Expected adapters of one base model, got {' and '.join(sorted(bases))}; a path between adapters of "
            "different bases has no meaning."
        )
    base, tokenizer = load_base(model_name, dtype, device or default_device())
    model = LoraModel.attach(base, tokenizer, adapters[0].settings, 0, model_name)
    model.load_point(adapters[0].point)  # refuses an adapter that does not fit this base
    objectives = [make_objective(t, "test", tokenizer, max_length, settings.num_examples) for t in tasks]
    start, end = (f"{k}-{label}" for k, label in enumerate(_short_names(directories), start=1))
    points = (adapters[0].point, adapters[1].point)
    transition = Transition(
        start,
        end,
        points,
        (content_hash(points[0]), content_hash(points[1])),
        tuple(t.task.name for t in tasks[:-1]),
        tasks[-1].task.name,
        data_key=hash_json([o.settings_key for o in objectives]),
    )
    batches = [collate(list(o.encoded[:16]), pad_id(tokenizer)).to(model.device) for o in objectives]

    def loss(point: Mapping[str, torch.Tensor]) -> torch.Tensor:
        values = [model.forward_at(point, b) for b in batches]
        return torch.stack([v.nll.sum() / v.num_targets.sum() for v in values]).mean()

    def fit(curve: Bezier) -> Bezier:
        return fit_curve(
            curve,
            loss,
            num_steps=settings.curve_steps,
            learning_rate=settings.curve_learning_rate,
            max_grad_norm=1.0,
        )

    for path in settings.paths:  # refuses adapters that a space cannot join, before anything is written
        get_space(path.split("-")[1]).embed(points)
    output = Path(output_dir)
    # The store knows points and examples, not the model: another model needs another directory.
    identity = {"analysis": "connectivity of two adapters", "model": model_name, "dtype": dtype}
    claim_run_directory(output, identity, resume=True, base_hash=base_hash(model_name))
    bar = progress(total=len(settings.paths) * settings.num_points, desc="paths")
    rows: tuple[list[dict], list[dict]] = ([], [])
    with MeasurementStore(output / "measurements.sqlite") as store:
        for path in settings.paths:
            profiled = measure_between(
                transition,
                path,
                objectives,
                settings,
                store,
                engine=lambda: Engine(model),
                fit=fit,
                curves=output / "curves",
                on_point=bar.update,
            )
            labels = {"strategy": "adapters", "learner": "fast", "seed": 0}
            of_path = path_rows(transition, path, profiled, labels, settings)
            rows[0].extend(of_path[0])
            rows[1].extend(of_path[1])
    bar.close()
    mark_finished(output)
    profiles, barriers = pd.DataFrame(rows[0]), pd.DataFrame(rows[1])
    for name, table in (("profiles", profiles), ("barriers", barriers)):
        write_text_atomic(output / "tables" / f"{name}.csv", table.to_csv(index=False))
    return ConnectivityResult(
        profiles, barriers, pd.DataFrame(), draw_transitions(profiles, barriers, output / "figures")
    )


def _short_names(directories: Sequence[str]) -> list[str]:
    """What tells two folders apart: the last part of their paths that differs."""
    parts = [Path(d).resolve().parts for d in directories]
    for first, second in zip(*(reversed(p) for p in parts), strict=False):
        if first != second:
            return [first, second]
    return [p[-1] for p in parts]
