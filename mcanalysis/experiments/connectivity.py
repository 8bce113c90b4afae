"""The main job: train strategies on a sequence of tasks, measure the paths between their minima, draw them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from mcanalysis.connectivity.analysis import (
    ConnectivitySettings,
    Transition,
    analyse_run,
    analyse_transition,
)
from mcanalysis.connectivity.curve_fitting import fit_curve
from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.evaluation.engine import Engine
from mcanalysis.evaluation.objective import make_objective
from mcanalysis.experiments.strategies import metrics_table, train_or_load
from mcanalysis.models.encoding import collate, pad_id
from mcanalysis.models.loading import default_device, load_base
from mcanalysis.models.lora_model import LoraModel, load_adapter
from mcanalysis.params.point import content_hash
from mcanalysis.paths import Bezier
from mcanalysis.plotting.connectivity import caption, plot_transitions
from mcanalysis.plotting.stability_plasticity import plot_stability_plasticity
from mcanalysis.plotting.style import save_figure
from mcanalysis.progress import Progress, silent
from mcanalysis.run import Run
from mcanalysis.store.atomic import write_text_atomic
from mcanalysis.store.measurements import MeasurementStore
from mcanalysis.tasks.trace_files import load_examples
from mcanalysis.training.config import RunConfig


@dataclass(frozen=True)
class ConnectivityResult:
    """The tables of all runs together: `profiles`, `barriers`, `metrics`; `figures` are the files drawn."""

    profiles: pd.DataFrame
    barriers: pd.DataFrame
    metrics: pd.DataFrame
    figures: list[Path]


def study_connectivity(
    configs: Sequence[RunConfig],
    output_dir: str | Path,
    settings: ConnectivitySettings,
    *,
    resume: bool = False,
    device: str | None = None,
    progress: Progress = silent,
    on_figure: Callable[[Path], None] = lambda _: None,
) -> ConnectivityResult:
    """Train (or reuse) each run, measure its paths, draw its figure as soon as it can be drawn; then compare."""

    def runs():
        for config in configs:
            yield train_or_load(config, output_dir, resume=resume, device=device, progress=progress)

    return _analyse(runs(), Path(output_dir) / "comparison", settings, progress, on_figure)


def analyse_connectivity(
    runs: Sequence[Run],
    output_dir: str | Path,
    settings: ConnectivitySettings,
    *,
    progress: Progress = silent,
    on_figure: Callable[[Path], None] = lambda _: None,
) -> ConnectivityResult:
    """The same for finished runs, wherever they lie; the comparison is written to `<output_dir>/comparison`."""
    return _analyse(runs, Path(output_dir) / "comparison", settings, progress, on_figure)


def _analyse(runs, comparison: Path, settings, progress, on_figure) -> ConnectivityResult:
    finished: list[Run] = []
    profiles, barriers, figures = [], [], []
    for run in runs:
        of_run = analyse_run(run, settings, progress=progress)
        profiles.append(of_run[0])
        barriers.append(of_run[1])
        figures += draw_transitions(*of_run, run.directory / "figures")
        on_figure(figures[-1])
        finished.append(run)
    tables = pd.concat(profiles, ignore_index=True), pd.concat(barriers, ignore_index=True)
    metrics = metrics_table(finished)
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
    labels = [Path(d).resolve().name for d in directories]
    start, end = (f"{k}-{label}" for k, label in enumerate(labels, start=1))
    points = (adapters[0].point, adapters[1].point)
    transition = Transition(
        start,
        end,
        points,
        (content_hash(points[0]), content_hash(points[1])),
        tuple(t.task.name for t in tasks[:-1]),
        tasks[-1].task.name,
    )
    batches = [collate(list(o.encoded[:16]), pad_id(tokenizer)).to(model.device) for o in objectives]

    def loss(point):
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

    output = Path(output_dir)
    output.mkdir(parents=True, exist_ok=True)
    bar = progress(total=len(settings.paths) * settings.num_points, desc="paths")
    with MeasurementStore(output / "measurements.sqlite") as store:
        rows = analyse_transition(
            transition,
            objectives,
            settings,
            store,
            engine=lambda: Engine(model),
            fit=fit,
            curves=output / "curves",
            labels={"strategy": "adapters", "learner": "fast", "seed": 0},
            on_point=bar.update,
        )
    bar.close()
    profiles, barriers = pd.DataFrame(rows[0]), pd.DataFrame(rows[1])
    for name, table in (("profiles", profiles), ("barriers", barriers)):
        write_text_atomic(output / "tables" / f"{name}.csv", table.to_csv(index=False))
    return ConnectivityResult(
        profiles, barriers, pd.DataFrame(), draw_transitions(profiles, barriers, output / "figures")
    )
