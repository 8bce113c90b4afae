"""Every example's loss and score at every point of a run's paths, as one long table that goes into a Parquet file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mcanalysis.connectivity.profile import Profile
from mcanalysis.progress import Progress, silent
from mcanalysis.runs.run import Run, load_run
from mcanalysis.store.atomic import write_bytes_atomic
from mcanalysis.store.lock import lock_measurements
from mcanalysis.studies.connectivity.measuring import Measured, measure_path, paths_of
from mcanalysis.studies.engine import TRAINING, Engine, Here, Steps
from mcanalysis.studies.points import Points

if TYPE_CHECKING:
    from mcanalysis.studies.connectivity.study import Connectivity

COLUMNS = (
    "run", "strategy", "seed", "order", "learner", "space", "path", "start", "end", "split", "task", "t", "example",
    "loss", "targets", "score",
)  # fmt: skip
"""The columns of `example_values`, in order."""
_TEXTS = ("run", "strategy", "order", "learner", "space", "path", "start", "end", "split", "task")


def example_values(
    run: Run | str | Path, study: Connectivity | None = None, progress: Progress = silent
) -> pd.DataFrame:
    """Every example's loss and score at every point of a run's paths, a row each.

    Columns: `run`, its directory; `strategy`, `seed`, `order` (empty for one without a name), `learner`; the path:
    `space`, `path`, `start`, `end`; `split`, `task`, `t`; `example`, its number in the split from 0; `loss` (nats per
    target token, float32), `targets` (how many those are) and `score` (in [0, 1], NaN where the task has none). The
    loss of a task at a point is the mean of `loss` weighted by `targets` over rows that have a target, its score the
    mean of `score`.

    `study`: the settings that `connectivity.py` was given (its defaults); what the run's store has is read, the rest is
    measured now and kept. Raises `UserError` as that study does, and `RunInUseError` where another process measures the
    run.

    >>> import mcanalysis as mc
    >>> values = mc.example_values("runs/embedded-ilora-seed0")  # doctest: +SKIP
    >>> values.to_parquet("values.parquet")  # doctest: +SKIP
    """
    from mcanalysis.studies.connectivity.study import Connectivity

    return all_values([run if isinstance(run, Run) else load_run(run)], study or Connectivity(), progress)


def all_values(runs: Sequence[Run], study: Connectivity, progress: Progress = silent) -> pd.DataFrame:
    """The rows of several runs in one table, along `other_paths` of those that are not of the first one's strategy, as
    the study has it."""
    steps = [value_steps(run, study.along(run.strategy, runs[0].strategy)) for run in runs]
    with lock_measurements(*(run.directory for run in runs)):
        return joined(Engine(Here(progress), progress).run(steps))


def value_steps(run: Run, study: Connectivity) -> Steps[pd.DataFrame]:
    """The table of a run whose measurements this process has locked, in steps."""
    study = replace(study, ensemble=0, simplex=(), gauges=0)  # which have no values of their own along paths
    study.check(len(run.minima_of(run.answering_learner)))
    paths = paths_of(run, run.answering_learner, study)
    names = [name for kind in study.paths for name in paths.names(kind)] + paths.names_from_base()
    found = yield [measure_path(Points(run), paths, name, TRAINING) for name in names]
    labels: dict[str, Any] = {"run": str(run.directory), "strategy": run.strategy, "seed": run.seed}
    labels |= {"order": run.order or "", "learner": run.answering_learner}
    return table_of(found, labels)


def table_of(measured: Sequence[Measured], labels: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of paths; texts are categories, so that a million rows take little memory."""
    parts = []
    for m in measured:
        kind, t = m.path.kind, m.path.transition
        where = {**labels, "space": kind.space, "path": kind.path, "start": t.start, "end": t.end}
        for of_path in (m.profiles, m.beyond or {}):
            parts += [_rows(p, {**where, "split": s, "task": n}) for s, of in of_path.items() for n, p in of.items()]
        for general in (m.general, m.general_beyond):
            profiles = {} if general is None else general.profiles
            parts += [_rows(p, {**where, "split": "test", "task": name}) for name, p in profiles.items()]
    return joined(parts)


def joined(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Tables one after another."""
    if not parts:
        return pd.DataFrame(columns=list(COLUMNS))
    for name in _TEXTS:  # the same categories, else pandas makes objects of them
        known = pd.api.types.union_categoricals([p[name].astype("category") for p in parts]).categories
        parts = [p.assign(**{name: pd.Categorical(p[name], known)}) for p in parts]
    return pd.concat(parts, ignore_index=True)[list(COLUMNS)]


def _rows(profile: Profile, labels: Mapping[str, Any]) -> pd.DataFrame:
    if profile.nll is None or profile.targets is None:
        return pd.DataFrame(columns=list(COLUMNS))
    num_points, num_examples = profile.nll.shape
    scores = np.full(profile.nll.shape, np.nan) if profile.example_scores is None else profile.example_scores
    with np.errstate(invalid="ignore", divide="ignore"):
        losses = profile.nll / profile.targets  # of an example without a target there is none: NaN
    return pd.DataFrame(
        {
            "t": np.repeat(profile.ts, num_examples),
            "example": np.tile(np.arange(num_examples, dtype=np.int32), num_points),
            "loss": losses.ravel().astype(np.float32),
            "targets": np.tile(np.asarray(profile.targets, dtype=np.int32), num_points),
            "score": scores.ravel().astype(np.float32),
        }
    ).assign(**labels)


def write_values(table: pd.DataFrame, file: str | os.PathLike[str]) -> int:
    """Write a table as Parquet, whole or not at all; returns how many bytes it has."""
    content = BytesIO()
    table.to_parquet(content, index=False, compression="zstd")
    write_bytes_atomic(Path(file), content.getvalue())
    return len(content.getvalue())
