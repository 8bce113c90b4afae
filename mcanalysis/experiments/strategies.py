"""Several strategies × seeds on one benchmark: trained where missing, in one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from mcanalysis.errors import UnknownNameError, UserError
from mcanalysis.experiments.jobs import Job, run_jobs
from mcanalysis.models.loading import check_base, default_device
from mcanalysis.progress import Progress, silent
from mcanalysis.run import Run, load_run
from mcanalysis.strategies import get_strategy
from mcanalysis.training.config import RunConfig
from mcanalysis.training.continual_trainer import train

METRICS = ("average_accuracy", "backward_transfer", "forgetting", "learning_accuracy")


def run_name(config: RunConfig) -> str:
    """The folder of a run inside an output directory.

    >>> run_name(RunConfig(strategy="er", seed=1))
    'embedded-er-seed1'
    """
    return f"{config.benchmark}-{config.strategy}-seed{config.seed}"


def study_configs(
    base: RunConfig,
    strategies: Sequence[str],
    seeds: Sequence[int],
    settings: Mapping[str, Any] | None = None,
) -> list[RunConfig]:
    """One configuration per seed and strategy; raises `UnknownNameError` before anything is trained.

    `settings` go to those strategies that have them: `ema_decay` to I-LoRA, `memory_size` to every replay method.

    >>> [run_name(c) for c in study_configs(RunConfig(), ["er", "ilora"], [0])]
    ['embedded-er-seed0', 'embedded-ilora-seed0']
    """
    given = dict(settings or {})
    known = {s: [f.name for f in fields(get_strategy(s).config_class)] for s in strategies}
    for name in given:
        if not any(name in names for names in known.values()):
            raise UnknownNameError("setting of these strategies", name, {n for names in known.values() for n in names})
    configs = []
    for seed in seeds:
        for s in strategies:
            own = {k: v for k, v in given.items() if k in known[s]}
            configs.append(replace(base, strategy=s, seed=seed, strategy_settings=own))
            configs[-1].resolved()  # checks the values
    return configs


def train_runs(
    configs: Sequence[RunConfig],
    output_dir: str | Path,
    *,
    resume: bool = False,
    device: str | None = None,
    workers: int = 1,
    progress: Progress = silent,
    initializer: Callable[[], None] | None = None,
) -> list[Run]:
    """The finished runs of several configurations, those that are not there trained now, `workers` at a time."""
    directories = [Path(output_dir) / run_name(c) for c in configs]
    for config in configs:
        check_base(config.model, config.dtype, device or default_device())
    jobs = [Job(_train, (c, d, resume, device)) for c, d in zip(configs, directories, strict=True)]
    run_jobs(jobs, lambda job, result: [], workers, progress, initializer, len(jobs))
    return [load_run(d, device) for d in directories]


def _train(config: RunConfig, directory: Path, resume: bool, device: str | None, progress: Progress) -> None:
    train(config, directory, resume=resume, device=device, progress=progress)


def metrics_table(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per run and learner, `answers` marking the learner whose scores count."""
    rows = []
    for run in runs:
        for learner, metrics in run.metrics["learners"].items():
            rows.append(
                {
                    "strategy": run.strategy,
                    "learner": learner,
                    "seed": run.seed,
                    "answers": learner == run.answering_learner,
                }
                | {name: np.nan if metrics[name] is None else metrics[name] for name in METRICS}
            )
    return pd.DataFrame(rows)


def summary_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds, per strategy and learner, in the order they appear."""
    rows = []
    for (strategy, learner), group in metrics.groupby(["strategy", "learner"], sort=False):
        row: dict[str, object] = {"strategy": strategy, "learner": learner, "seeds": len(group)}
        for name in METRICS:
            row[name] = group[name].mean()
            row[f"{name}_sd"] = group[name].std(ddof=1) if len(group) > 1 else np.nan
        rows.append(row)
    return pd.DataFrame(rows)


def difference(
    metrics: pd.DataFrame, first: tuple[str, str], second: tuple[str, str], metric: str = "average_accuracy"
) -> tuple[float, float, float]:
    """First minus second (strategy, learner), paired by seed: mean and 95 % interval of Student's t over the seeds.

    The interval covers the randomness of training; with one seed it is NaN. Raises `UserError` without a common seed.
    """
    values = []
    for strategy, learner in (first, second):
        chosen = metrics[(metrics.strategy == strategy) & (metrics.learner == learner)]
        values.append(chosen.set_index("seed")[metric])
    gaps = (values[0] - values[1]).dropna()
    if gaps.empty:
        raise UserError(f"Expected a seed that both {first} and {second} were run with, got none; run both.")
    mean, n = float(gaps.mean()), len(gaps)
    half = float(stats.t.ppf(0.975, n - 1) * gaps.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    return mean, mean - half, mean + half
