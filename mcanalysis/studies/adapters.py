"""The path between two adapters trained elsewhere, measured on data files."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from mcanalysis.connectivity.curve_fitting import fit_curve
from mcanalysis.errors import UserError
from mcanalysis.evaluation.adapter_objective import attach_slot
from mcanalysis.evaluation.differentiable import WholeLoss
from mcanalysis.evaluation.engine import Engine
from mcanalysis.evaluation.engine_settings import AUTO, EngineSettings
from mcanalysis.evaluation.objective import make_objective
from mcanalysis.models.adapter_files import load_adapter, warn_of_missing
from mcanalysis.models.base_identity import accepted_identities, identity_marker
from mcanalysis.models.base_names import check_same_base, same_base
from mcanalysis.models.loading import default_device, load_base
from mcanalysis.params.point import content_hash
from mcanalysis.params.spaces import get_space
from mcanalysis.paths import Curve
from mcanalysis.progress import Progress, silent
from mcanalysis.store.hashing import hash_json
from mcanalysis.store.manifest import claim_run_directory, mark_finished, record_evaluation, recorded_base
from mcanalysis.store.measurements import MeasurementStore
from mcanalysis.studies.connectivity.analysis import CHECKPOINT_STEPS
from mcanalysis.studies.connectivity.measuring import measure_path_values
from mcanalysis.studies.connectivity.result_tables import ResultTables, write_tables
from mcanalysis.studies.connectivity.settings import ConnectivitySettings
from mcanalysis.studies.connectivity.stored_ensemble import ensemble_rows
from mcanalysis.studies.connectivity.stored_path import StoredPath
from mcanalysis.studies.connectivity.study import ConnectivityResult, draw_paths
from mcanalysis.studies.connectivity.transitions import Transition
from mcanalysis.tasks.trace_files import load_files

logger = logging.getLogger(__name__)


def connect_adapters(
    directories: Sequence[str],
    model_name: str,
    data_files: Sequence[str],
    output_dir: str | Path,
    settings: ConnectivitySettings,
    *,
    dtype: str = "auto",
    device: str | None = None,
    engine: EngineSettings = AUTO,
    score: str | None = None,
    max_new_tokens: int | None = None,
    max_length: int = 1024,
    progress: Progress = silent,
    on_figure: Callable[[Path], None] = lambda _: None,
) -> ConnectivityResult:
    """The path between two adapters trained elsewhere, measured on one data file, or on two: old task, new task.

    In the spaces delta and aligned their ranks and adapted modules may differ. A curve is fitted on the files
    themselves, since there is no training split to fit it on; with t* chosen on the data it is measured on a gain would
    be positive by selection, so none is reported. `max_new_tokens`: the most tokens generated for an answer, by default
    64, or the task's own for a file named after a task.
    """
    if len(directories) != 2:
        raise UserError(f"Expected two adapter folders (--minima DIR1,DIR2), got {len(directories)}; name two.")
    if len(data_files) not in (1, 2):
        raise UserError(
            f"Expected one or two data files (--data FILE[,FILE2]), got {len(data_files)}; name one or two."
        )
    if settings.simplex:
        raise UserError("Expected --simplex with runs, got it with --minima; two adapters span a line.")
    tasks = load_files(data_files, score, max_new_tokens)
    adapters = [load_adapter(d) for d in directories]
    bases = [a.base_name for a in adapters if a.base_name]
    unknown = check_same_base(bases)
    base, tokenizer = load_base(model_name, dtype, device or default_device())
    for adapter, directory in zip(adapters, directories, strict=True):
        warn_of_missing(adapter, base, directory)
    others = [b for b in dict.fromkeys(bases) if same_base(b, model_name) is not True]
    if others or unknown:
        logger.warning(
            "the adapters were trained on %s, and --model is '%s': that these are the same weights could not be "
            "established, and what is measured means something only if they are; to make sure, give --model a folder "
            "or id that both adapter_config.json name as base_model_name_or_path",
            " and ".join(f"'{name}'" for name in dict.fromkeys(bases)),
            model_name,
        )
    points = (adapters[0].point, adapters[1].point)
    model = attach_slot(base, tokenizer, points, model_name)
    output = Path(output_dir)
    recorded = recorded_base(output, model_name)
    marker = "" if recorded is None else identity_marker(recorded, model_name, output)
    objectives = [
        make_objective(t, "test", tokenizer, max_length, settings.num_examples, base_marker=marker) for t in tasks
    ]
    names = [re.sub(r"^\d+-", "", name) for name in _short_names(directories)]  # a run's minima have numbers already
    start, end = (f"{k}-{name}" for k, name in enumerate(names, start=1))
    transition = Transition(
        start,
        end,
        points,
        (content_hash(points[0]), content_hash(points[1])),
        tuple(t.task.name for t in tasks[:-1]),
        tasks[-1].task.name,
        data_key=hash_json([o.settings_key for o in objectives]),
    )
    loss = WholeLoss(model, [o.encoded[:16] for o in objectives])

    def fit(curve: Curve, checkpoint: Path) -> Curve:
        return fit_curve(
            curve,
            loss,
            num_steps=settings.curve_steps,
            learning_rate=settings.curve_learning_rate,
            max_grad_norm=1.0,
            checkpoint=checkpoint,
            checkpoint_steps=CHECKPOINT_STEPS,
        )

    paths = [StoredPath(transition, name, settings, output / "curves", fit) for name in settings.paths]
    for path in paths:  # refuses adapters that a space cannot join, before anything is written
        get_space(path.kind.space).embed(points)
    identity = {
        "analysis": "connectivity of two adapters", "model": model_name, "dtype": dtype,
        "minima": [f"{label} {key[:12]}" for label, key in zip((start, end), transition.keys, strict=True)],
        "data": [f"{t.task.name} {t.content_hash[:12]}" for t in tasks],
        "score": [t.task.score for t in tasks], "max_length": max_length,
    }  # fmt: skip
    if max_new_tokens is not None:  # else the tasks' own, which version 0.1 did not write
        identity["max_new_tokens"] = max_new_tokens
    evaluator = Engine(model, engine)
    evaluator.check_room(objectives)
    now, former = accepted_identities(model_name, None) or [None, None]
    claim_run_directory(output, identity, resume=True, base_hash=now, former_base_hash=former)
    bar = progress(total=len(paths) * settings.num_points, desc="paths")
    record_evaluation(output, evaluator.choices(objectives))
    tables = ResultTables()
    labels = {"strategy": "adapters", "learner": "fast", "seed": 0}
    with MeasurementStore(output / "measurements.sqlite") as store:
        for path in paths:
            measured = measure_path_values(path, objectives, store, lambda: evaluator, bar.update)
            averaged = ensemble_rows(path, objectives, lambda: model, output / "ensembles") if settings.ensemble else []
            tables.add(path, measured, labels, averaged)
    bar.close()
    mark_finished(output)
    frames = tables.frames()
    write_tables(frames, output / "tables")
    figures = draw_paths(frames, output / "figures")
    for file in figures:
        if file.suffix == ".png":
            on_figure(file)
    profiles, barriers = frames.pop("profiles"), frames.pop("barriers")
    return ConnectivityResult(profiles, barriers, pd.DataFrame(), figures, frames)


def _short_names(directories: Sequence[str]) -> list[str]:
    """What tells two folders apart: the last part of their paths that differs."""
    parts = [Path(d).resolve().parts for d in directories]
    for first, second in zip(*(reversed(p) for p in parts), strict=False):
        if first != second:
            return [first, second]
    return [p[-1] for p in parts]
