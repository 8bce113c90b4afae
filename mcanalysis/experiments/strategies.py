"""Several strategies × seeds on one benchmark: trained where missing, in one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from mcanalysis.errors import DataError, UnknownNameError, UserError
from mcanalysis.experiments.jobs import Job, run_jobs
from mcanalysis.metrics.continual import intransigence, relative_gain
from mcanalysis.models.loading import check_base, default_device
from mcanalysis.progress import Progress, silent
from mcanalysis.runs.run import Run, load_run
from mcanalysis.store.atomic import write_text_atomic
from mcanalysis.store.manifest import MANIFEST_NAME
from mcanalysis.strategies import get_strategy, strategy_names
from mcanalysis.tasks.names import check_distinct
from mcanalysis.tasks.task import TaskData
from mcanalysis.tasks.trace_files import load_examples, split_file
from mcanalysis.training.config import Execution, RunConfig
from mcanalysis.training.continual_trainer import is_finished, is_general_measured, load_tasks, train

METRICS = ("average_accuracy", "backward_transfer", "forgetting", "learning_accuracy")
AGAINST_REFERENCE = ("intransigence", "relative_gain")
COSTS = ("train_seconds", "evaluation_seconds", "peak_memory_bytes")
REFERENCES = ("joint", "individual")  # the first that was run is what intransigence and relative gain refer to


@dataclass(frozen=True)
class General:
    """Held-out tasks that are only measured: `<folder>/<TASK>/test.json`, all of them or those named.

    `max_new_tokens` maps a task to the most tokens generated for an answer, where that is not to be the task's own.
    """

    folder: str
    tasks: tuple[str, ...] | None = None
    max_new_tokens: Mapping[str, int] = field(default_factory=dict)

    def load(self) -> list[TaskData]:
        """Their data; raises `DataError` for a folder without any, and for one that is named and absent."""
        root = Path(self.folder)
        files = {f.name: file for f in sorted(root.glob("*")) if (file := split_file(f, "test"))}
        present = list(files)
        if not present:
            raise DataError(
                f"Expected general tasks, <TASK>/test.json, in {root}, got "
                f"{'none' if root.is_dir() else 'no such folder'}; check --general-data."
            )
        for name in (*(self.tasks or ()), *self.max_new_tokens):
            if name not in present:
                raise UnknownNameError(f"general task in {root}", name, present)
        check_distinct(self.tasks or present)
        limits = self.max_new_tokens
        return [load_examples(files[name], max_new_tokens=limits.get(name)) for name in self.tasks or present]


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

    The strategy `all` is every one that is registered. `settings` go to those strategies that have them, `memory_size`
    to every replay method; `er.memory_size` goes to that strategy alone, and counts for more.

    >>> configs = study_configs(RunConfig(), ["er", "ilora"], [0], {"memory_size": 9, "er.memory_size": 30})
    >>> [(run_name(c), c.strategy_settings["memory_size"]) for c in configs]
    [('embedded-er-seed0', 30), ('embedded-ilora-seed0', 9)]
    """
    chosen = dict.fromkeys(s for name in strategies for s in (strategy_names() if name == "all" else [name]))
    if not chosen or not seeds:
        raise UserError("Expected at least one strategy and one seed, got none; name them.")
    known = {s: [f.name for f in fields(get_strategy(s).config_class)] for s in chosen}
    own: dict[str, dict[str, Any]] = {s: {} for s in chosen}
    for full, value in sorted((settings or {}).items(), key=lambda item: "." in item[0]):
        owner, _, name = full.rpartition(".")
        if owner and owner not in known:
            raise UnknownNameError("strategy of this comparison", owner, known)
        takers = [s for s in ([owner] if owner else known) if name in known[s]]
        if not takers:
            kind = f"setting of {owner}" if owner else "setting of these strategies"
            raise UnknownNameError(kind, name, {n for s in ([owner] if owner else known) for n in known[s]})
        for s in takers:
            own[s][name] = value
    configs = []
    for seed in dict.fromkeys(seeds):
        for s in chosen:
            configs.append(replace(base, strategy=s, seed=seed, strategy_settings=own[s]))
            configs[-1].resolved()  # checks the values
    return configs


def run_directories(configs: Sequence[RunConfig], output_dir: str | Path) -> list[Path]:
    """Where the runs lie in an output directory; raises `UserError` for one that is a run itself."""
    if (Path(output_dir) / MANIFEST_NAME).exists():
        raise UserError(f"Expected a folder to hold runs, got a run directory at {output_dir}; change --output-dir.")
    return [Path(output_dir) / run_name(c) for c in configs]


def need_paths(strategies: Sequence[str]) -> None:
    """Raise `UserError` for a strategy whose minima are no LoRA adapters, before hours are spent on training it.

    >>> need_paths(["er", "ilora"])
    """
    for name in strategies:
        if not get_strategy(name).has_paths:
            raise UserError(
                f"Expected strategies that train LoRA adapters, got {name}; paths, slices and curvature are for others."
            )


def train_runs(
    configs: Sequence[RunConfig],
    output_dir: str | Path,
    *,
    names: Sequence[str] | None = None,
    resume: bool = False,
    execution: Execution | None = None,
    general: General | None = None,
    workers: int = 1,
    progress: Progress = silent,
    initializer: Callable[[], None] | None = None,
) -> list[Run]:
    """The finished runs of several configurations, those that are not there trained now, `workers` at a time.

    `names` are those of their directories, by default `run_name` of each. Raises `RunDirectoryError` before anything is
    trained for a directory of another configuration.
    """
    execution = execution or Execution()
    directories = run_directories(configs, output_dir)
    if names is not None:
        directories = [Path(output_dir) / name for name in names]
    first = configs[0]
    check_base(first.model, first.dtype, execution.device or default_device())
    held_out = [] if general is None else general.load()
    tasks = load_tasks(first)
    jobs = []
    for config, directory in zip(configs, directories, strict=True):
        if not (is_finished(config, directory, tasks, resume) and is_general_measured(directory, held_out)):
            jobs.append(Job(_train, (config, directory, resume, execution, general)))
    if jobs:
        run_jobs(jobs, lambda job, result: [], workers, progress, initializer, len(jobs))
    return [load_run(d, execution.device, execution.engine) for d in directories]


def _train(
    config: RunConfig,
    directory: Path,
    resume: bool,
    execution: Execution,
    general: General | None,
    progress: Progress,
) -> None:
    held_out = general.load() if general else ()
    train(config, directory, resume=resume, execution=execution, progress=progress, general=held_out)


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


def comparison_table(runs: Sequence[Run]) -> pd.DataFrame:
    """`metrics_table` with intransigence and relative gain, their `reference`, and what each run cost.

    The reference R* is `joint` where it was run, else `individual`, of the same seed: the score of each task at the end
    of joint training, or with an adapter of its own. Without either the columns are empty.
    """
    table = metrics_table(runs)
    by_run = {(run.strategy, run.seed): run for run in runs}
    reference = next((name for name in REFERENCES if name in set(table.strategy)), None)
    rows = []
    for row in table.itertuples():
        run = by_run[str(row.strategy), int(row.seed)]  # type: ignore[arg-type]
        best = by_run.get((reference or "", run.seed))
        values: dict[str, Any] = {"reference": reference, **dict.fromkeys(AGAINST_REFERENCE, np.nan)}
        if best is not None:
            matrix, scores = whole_matrix(run, str(row.learner)), _reference_scores(best)
            values |= {"intransigence": intransigence(matrix, scores), "relative_gain": relative_gain(matrix, scores)}
        cost = run.cost or dict.fromkeys(COSTS)
        rows.append(values | {name: np.nan if v is None else v for name, v in cost.items()})
    return pd.concat([table, pd.DataFrame(rows)], axis=1)


def _reference_scores(run: Run) -> np.ndarray:
    matrix = whole_matrix(run, run.answering_learner)
    return matrix[-1] if run.strategy == "joint" else np.diagonal(matrix[1:])


def whole_matrix(run: Run, learner: str) -> np.ndarray:
    """A learner's accuracy matrix of shape (tasks + 1, tasks), NaN where its table has no row or cell."""
    table = run.accuracy_matrix_of(learner)
    matrix = np.full((len(run.task_names) + 1, len(run.task_names)), np.nan)
    matrix[table["after"]] = table[run.task_names]
    return matrix


def summary_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds, per strategy and learner, in the order they appear."""
    names = [n for n in (*METRICS, *AGAINST_REFERENCE, *COSTS) if n in metrics and not metrics[n].isna().all()]
    rows = []
    for (strategy, learner), group in metrics.groupby(["strategy", "learner"], sort=False):
        answers = bool(group.answers.iloc[0])
        row: dict[str, object] = {"strategy": strategy, "learner": learner, "answers": answers, "seeds": len(group)}
        for name in names:
            row[name] = group[name].mean()
            row[f"{name}_sd"] = group[name].std(ddof=1) if len(group) > 1 else np.nan
        rows.append(row)
    return pd.DataFrame(rows)


def summary_cells(summary: pd.DataFrame) -> list[list[str]]:
    """A summary as text, the first row its header.

    A dash where a value is undefined, memory in MB; of several learners the one that answers has a star.
    """
    shown = [n for n in (*METRICS, *AGAINST_REFERENCE, *COSTS) if n in summary]
    titles = {"train_seconds": "train s", "evaluation_seconds": "evaluation s", "peak_memory_bytes": "peak MB"}
    rows = [["strategy", "learner", "seeds", *(titles.get(n, n.replace("_", " ")) for n in shown)]]
    several = summary.strategy.duplicated(keep=False)
    for (_, row), one_of_several in zip(summary.iterrows(), several, strict=True):
        star = " *" if one_of_several and row.answers else ""
        cells = [str(row.strategy), f"{row.learner}{star}", str(row.seeds)]
        for name in shown:
            scale, digits = (1e-6, 0) if name == "peak_memory_bytes" else (1.0, 1 if name in COSTS else 2)
            value, spread = float(row[name]) * scale, float(row[f"{name}_sd"]) * scale
            text = "–" if np.isnan(value) else f"{value:.{digits}f}"
            cells.append(text if np.isnan(spread) else f"{text} ± {spread:.{digits}f}")
        rows.append(cells)
    return rows


def write_comparison(runs: Sequence[Run], output_dir: str | Path) -> pd.DataFrame:
    """Write `comparison/strategies.csv` (per run and learner), `summary.csv` and `summary.md`; returns the former."""
    table = comparison_table(runs)
    summary = summary_table(table)
    folder = Path(output_dir) / "comparison"
    write_text_atomic(folder / "strategies.csv", table.to_csv(index=False))
    write_text_atomic(folder / "summary.csv", summary.to_csv(index=False))
    header, *rows = summary_cells(summary)
    lines = [header, ["---"] * len(header), *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    write_text_atomic(folder / "summary.md", f"{text}\n\n{comparison_notes(runs, table)}\n")
    return table


def comparison_notes(runs: Sequence[Run], table: pd.DataFrame) -> str:
    """What the numbers of a comparison are, in one line."""
    config = runs[0].config
    notes = [
        f"Mean ± standard deviation over seeds {', '.join(map(str, dict.fromkeys(table.seed)))}; "
        f"{len(config['tasks'])} tasks of '{config['benchmark']}', {config['training']['num_steps']} steps each",
        "* the learner that answers",
        "seconds and peak memory are those of whole runs, which may have shared the machine",
    ]
    reference = table.reference[0]
    if isinstance(reference, str):
        notes.append(f"intransigence and relative gain refer to `{reference}` of the same seed")
    return "; ".join(notes) + "."


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
