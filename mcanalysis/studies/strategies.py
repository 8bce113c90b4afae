"""Several strategies × seeds on one benchmark: which runs there are, trained where missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from mcanalysis.errors import UnknownNameError, UserError
from mcanalysis.models.loading import check_base, default_device
from mcanalysis.progress import Progress, silent
from mcanalysis.runs.run import Run, load_run
from mcanalysis.store.manifest import MANIFEST_NAME
from mcanalysis.strategies import get_strategy, strategy_names
from mcanalysis.studies.jobs import Job, run_jobs
from mcanalysis.studies.training import General
from mcanalysis.training.config import Execution, RunConfig
from mcanalysis.training.continual_trainer import is_finished, is_general_measured, load_tasks, train


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
