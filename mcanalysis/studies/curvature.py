"""Curvature at the minima of runs: eigenvalues, trace, spectral density, and whether they foretell forgetting.

Every result is one file in `<run>/curvature/`, named by a hash of the point, the data and the settings, so that nothing
is computed twice and a killed study goes on with what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mcanalysis.errors import UserError
from mcanalysis.landscape.eigenvalues import NotConvergedError, eigenvalues
from mcanalysis.landscape.hessian import HessianOperator
from mcanalysis.landscape.predicted_forgetting import predicted_forgetting, same_ranks
from mcanalysis.landscape.spectral_density import spectral_density
from mcanalysis.landscape.trace import trace
from mcanalysis.params.point import norm
from mcanalysis.plotting.curvature import (
    eigenvalues_caption,
    plot_eigenvalues,
    plot_predicted_forgetting,
    plot_spectrum,
    predicted_forgetting_caption,
    spectrum_caption,
)
from mcanalysis.plotting.style import save_figure
from mcanalysis.progress import Progress, silent
from mcanalysis.runs.run import Minimum, Opening, Run
from mcanalysis.store.atomic import write_json_atomic, write_text_atomic
from mcanalysis.store.hashing import hash_json
from mcanalysis.store.small_files import read_json
from mcanalysis.studies.connectivity.transitions import Transition, run_transitions
from mcanalysis.studies.curvature_tables import (
    density_rows,
    eigenvalue_rows,
    forgetting_correlations,
    forgetting_rows,
    with_means,
)
from mcanalysis.studies.jobs import Job, opened_run, run_jobs

SPLIT = "test"
_MAX_RESTARTS = 15
_VERSION = 1  # counts up when what is computed changes, so that results of before are not used


@dataclass(frozen=True)
class CurvatureSettings:
    """What is measured, on the test split.

    At every minimum, of its own task's loss and of the mean loss of the tasks before it (each on about `num_examples`
    examples, shared evenly by its tasks): the `num_eigenvalues` largest and smallest eigenvalues to a relative
    `tolerance`, and the trace from `num_trace_samples` products. At `spectrum_minimum` (a number from 1, a label, or
    None: the last) the spectral density, from `num_probes` · `num_lanczos` products. For every transition and old
    task, predicted and measured forgetting on `num_forgetting_examples` examples (None: all).
    """

    num_examples: int = 40
    num_forgetting_examples: int | None = 100
    num_eigenvalues: int = 3
    tolerance: float = 0.01
    num_trace_samples: int = 10
    spectrum_minimum: int | str | None = None
    num_probes: int = 2
    num_lanczos: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        lowest = {
            "num_examples": 1, "num_forgetting_examples": 1, "num_eigenvalues": 1, "num_trace_samples": 2,
            "num_probes": 1, "num_lanczos": 2,
        }  # fmt: skip
        for name, least in lowest.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"Expected {name} of at least {least}, got {value}; raise --{name.replace('_', '-')}.")
        if not self.tolerance > 0:
            raise UserError(f"Expected a positive tolerance, got {self.tolerance}; 0.01 is one percent.")


@dataclass(frozen=True)
class CurvatureResult:
    """Tables of all runs together and the files drawn.

    `curvature`: a row per minimum and loss; `spectrum`: per place; `forgetting`: per transition and old task, and their
    mean `mean_old`; `correlations`: of predicted with measured forgetting.
    """

    curvature: pd.DataFrame
    spectrum: pd.DataFrame
    forgetting: pd.DataFrame
    correlations: pd.DataFrame
    figures: list[Path]


@dataclass(frozen=True)
class _Unit:
    """One piece of work: `kind` "eigenvalues" or "spectrum" at a minimum, "forgetting" at the start of a transition.

    `task`: the name of the one task whose loss it is, or `mean_old`.
    """

    kind: str
    minimum: Minimum
    task: str
    tasks: tuple[str, ...]
    transition: Transition | None = None


def study_curvature(
    runs: Sequence[Run],
    output_dir: str | Path,
    settings: CurvatureSettings,
    *,
    workers: int = 1,
    progress: Progress = silent,
    on_figure: Callable[[Path], None] = lambda _: None,
    initializer: Callable[[], None] | None = None,
) -> CurvatureResult:
    """Measure what is missing in finished runs; write tables and figures of each, and of all to `comparison/`.

    Work is split over `workers` processes; `initializer` is called in each. Tables: `curvature.csv`, `spectrum.csv`,
    `predicted_forgetting.csv`. Raises `UserError` before anything is computed for a run without adapters, with fewer
    than two minima, or without the minimum asked for.
    """
    jobs = []
    for run in runs:
        units = _units(run, settings)
        jobs += [
            Job(_measure, (run.directory, run.opening, settings, number))
            for number, unit in enumerate(units)
            if not _file(run, unit, settings).exists()
        ]
    if jobs:
        run_jobs(jobs, lambda job, result: [], workers, progress, initializer, len(jobs))
    parts, figures = [], []
    for run in runs:
        parts.append(_tables(run, settings))
        figures += _write(run.directory, *parts[-1])
        on_figure(figures[-1])
    tables = [pd.concat(of_kind, ignore_index=True) for of_kind in zip(*parts, strict=True)]
    if len(runs) > 1:
        figures += _write(Path(output_dir) / "comparison", *tables)
        on_figure(figures[-1])
    return CurvatureResult(*tables, forgetting_correlations(tables[2]), figures)


def _write(directory: Path, curvature: pd.DataFrame, spectrum: pd.DataFrame, forgetting: pd.DataFrame) -> list[Path]:
    correlations = forgetting_correlations(forgetting)
    tables = {"curvature": curvature, "spectrum": spectrum, "predicted_forgetting": forgetting}
    for name, table in (*tables.items(), ("forgetting_correlations", correlations)):
        write_text_atomic(directory / "tables" / f"{name}.csv", table.to_csv(index=False))
    drawn = {
        "spectrum": (plot_spectrum(spectrum), spectrum_caption(spectrum)),
        "eigenvalues": (plot_eigenvalues(curvature), eigenvalues_caption(curvature)),
        "predicted_forgetting": (
            plot_predicted_forgetting(forgetting, correlations), predicted_forgetting_caption(forgetting, correlations)
        ),
    }  # fmt: skip
    files: list[Path] = []
    for name, (figure, caption) in drawn.items():
        stem = directory / "figures" / f"curvature_{name}"
        files += save_figure(figure, stem)
        write_text_atomic(stem.with_suffix(".txt"), caption + "\n")
    return files


def _tables(run: Run, settings: CurvatureSettings) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    rows: dict[str, list[dict[str, Any]]] = {"eigenvalues": [], "spectrum": [], "forgetting": []}
    for unit in _units(run, settings):
        found = read_json(_file(run, unit, settings))
        labels: dict[str, Any] = {"strategy": run.strategy, "learner": unit.minimum.learner, "seed": run.seed}
        if unit.transition is None:
            labels["minimum"] = unit.minimum.label
        else:
            labels |= {"start": unit.transition.start, "end": unit.transition.end}
        objectives = [run.task_objective(task, SPLIT, _num_examples(unit, settings)) for task in unit.tasks]
        labels |= {"task": unit.task, "split": SPLIT, "num_examples": sum(len(o.examples) for o in objectives)}
        make = {"eigenvalues": eigenvalue_rows, "spectrum": density_rows, "forgetting": forgetting_rows}[unit.kind]
        rows[unit.kind] += make(found, labels)
    return pd.DataFrame(rows["eigenvalues"]), pd.DataFrame(rows["spectrum"]), with_means(rows["forgetting"])


def _units(run: Run, settings: CurvatureSettings) -> list[_Unit]:
    learner = run.answering_learner
    transitions = run_transitions(run, learner)
    minima = run.minima_of(learner)
    units = []
    wanted = settings.spectrum_minimum
    chosen = minima[-1] if wanted is None else run.minimum(int(wanted) if str(wanted).isdigit() else wanted, learner)
    for number, minimum in enumerate(minima):
        losses: list[tuple[str, tuple[str, ...]]] = [(minimum.task, (minimum.task,))]
        if number > 0:
            losses.append(("mean_old", tuple(run.task_names[:number])))
        for task, tasks in losses:
            units.append(_Unit("eigenvalues", minimum, task, tasks))
            if minimum.label == chosen.label:
                units.append(_Unit("spectrum", minimum, task, tasks))
    for minimum, transition in zip(minima, transitions, strict=False):
        units += [_Unit("forgetting", minimum, task, (task,), transition) for task in transition.old]
    return units


def _num_examples(unit: _Unit, settings: CurvatureSettings) -> int | None:
    if unit.kind == "forgetting":
        return settings.num_forgetting_examples
    return max(1, settings.num_examples // len(unit.tasks))


def _file(run: Run, unit: _Unit, settings: CurvatureSettings) -> Path:
    """Where a unit's result lies: everything that it depends on is in the name."""
    used = {
        "eigenvalues": ("num_eigenvalues", "tolerance", "num_trace_samples", "seed"),
        "spectrum": ("num_probes", "num_lanczos", "seed"),
        "forgetting": (),
    }[unit.kind]
    number = _num_examples(unit, settings)
    data = [run.task_objective(task, SPLIT, number).settings_key for task in unit.tasks]
    ends = [] if unit.transition is None else list(unit.transition.keys)
    key = hash_json(
        [_VERSION, unit.kind, unit.minimum.key, ends, data, {name: getattr(settings, name) for name in used}]
    )
    minimum = unit.minimum
    return run.directory / "curvature" / minimum.learner / f"{minimum.label}-{unit.task}-{unit.kind}-{key[:12]}.json"


def _measure(directory: Path, opening: Opening, settings: CurvatureSettings, number: int, progress: Progress) -> None:
    run = opened_run(directory, opening)
    unit = _units(run, settings)[number]
    bar = progress(total=1, desc=f"{run.strategy} {unit.minimum.label} {unit.task} {unit.kind}")
    losses = run.batch_losses(unit.tasks, SPLIT, _num_examples(unit, settings))
    start = unit.minimum.point
    measured: dict[str, Any]
    if unit.transition is not None:
        start, end = same_ranks(start, unit.transition.points[-1])
        foretold = predicted_forgetting(HessianOperator(losses, start), end)
        measured = asdict(foretold) | {"predicted": foretold.predicted}
    elif unit.kind == "spectrum":
        measured = asdict(
            spectral_density(HessianOperator(losses, start), settings.num_probes, settings.num_lanczos, settings.seed)
        )
    else:
        measured = _eigenvalues_and_trace(HessianOperator(losses, start), settings)
    write_json_atomic(_file(run, unit, settings), measured)
    bar.update(1)
    bar.close()


def _eigenvalues_and_trace(hessian: HessianOperator, settings: CurvatureSettings) -> dict[str, Any]:
    num, rest = settings.num_eigenvalues, (settings.tolerance, settings.seed, _MAX_RESTARTS)
    try:
        found = eigenvalues(hessian, num, "both", *rest)
        ends = {"top": found.values[:num], "bottom": found.values[: -num - 1 : -1]}
    except NotConvergedError:  # no eigenvalue is well below 0
        found = eigenvalues(hessian, num, "top", *rest)
        ends = {"top": found.values, "bottom": np.full(num, np.nan)}
    estimate = trace(hessian, settings.num_trace_samples, seed=settings.seed)
    return {
        "loss": hessian.loss(),
        "gradient_norm": norm(hessian.gradient()),
        **ends,
        "largest_residual": float(found.residuals.max()),
        "trace": estimate.value,
        "trace_standard_error": estimate.standard_error,
        "num_coordinates": hessian.num_coordinates,
        "num_products": hessian.num_products,
    }
