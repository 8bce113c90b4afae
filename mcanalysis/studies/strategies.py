"""Several strategies × seeds on one benchmark: which runs there are, trained where missing."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcanalysis.errors import UnknownNameError, UserError
from mcanalysis.progress import Progress, silent
from mcanalysis.store.manifest import MANIFEST_NAME
from mcanalysis.strategies import get_strategy, strategy_names
from mcanalysis.studies.engine import Engine, Here, Workers
from mcanalysis.training.config import Execution, RunConfig

if TYPE_CHECKING:
    from mcanalysis.runs.finished import FinishedRun
    from mcanalysis.runs.general import General

logger = logging.getLogger(__name__)


def run_name(config: RunConfig) -> str:
    """The folder of a run inside an output directory.

    >>> run_name(RunConfig(strategy="er", seed=1)), run_name(RunConfig(strategy="er", order="shuffled2"))
    ('embedded-er-seed1', 'embedded-shuffled2-er-seed0')
    """
    order = f"-{config.order}" if config.order else ""
    return f"{config.benchmark}{order}-{config.strategy}-seed{config.seed}"


def study_configs(
    base: RunConfig,
    strategies: Sequence[str],
    seeds: Sequence[int],
    settings: Mapping[str, Any] | None = None,
) -> list[RunConfig]:
    """One configuration per seed and strategy; raises `UnknownNameError` before anything is trained.

    The strategy `all` is every one that is registered. `settings` go to those strategies that have them, `memory_size`
    to every replay method (a warning says where one keeps so many of each task instead); `er.memory_size` goes to that
    strategy alone, and counts for more. A file may have settings of strategies that are not chosen this time: they are
    checked by name, and nothing takes them.

    >>> configs = study_configs(RunConfig(), ["er", "ilora"], [0], {"memory_size": 9, "er.memory_size": 30})
    >>> [(run_name(c), c.strategy_settings["memory_size"]) for c in configs]
    [('embedded-er-seed0', 30), ('embedded-ilora-seed0', 9)]
    """
    chosen = dict.fromkeys(s for name in strategies for s in (strategy_names() if name == "all" else [name]))
    if not chosen or not seeds:
        raise UserError("Expected at least one strategy and one seed, got none; name them.")
    known = {s: _setting_names(s) for s in chosen}
    own: dict[str, dict[str, Any]] = {s: {} for s in chosen}
    by_task: set[str] = set()
    for full, value in sorted((settings or {}).items(), key=lambda item: "." in item[0]):
        owner, _, name = full.rpartition(".")
        takers = {owner: _setting_names(owner)} if owner else known
        if not any(name in names for names in takers.values()):
            kind = f"setting of {owner}" if owner else "setting of these strategies"
            raise UnknownNameError(kind, name, {n for names in takers.values() for n in names})
        for s in takers:
            if s in own and name in takers[s]:
                own[s][name] = value
            elif s in own and name == "memory_size" and "memory_per_task" in takers[s]:
                by_task.add(s)
    for s in sorted(by_task):
        if "memory_per_task" not in own[s]:
            kept = get_strategy(s).config_class().memory_per_task  # type: ignore[attr-defined]
            logger.warning(
                "%s has no memory_size, but keeps %d examples of each task: set %s.memory_per_task to give it the same "
                "memory as the others",
                s, kept, s,
            )  # fmt: skip
    configs = []
    for seed in dict.fromkeys(seeds):
        for s in chosen:
            configs.append(replace(base, strategy=s, seed=seed, strategy_settings=own[s]))
            configs[-1].resolved()  # checks the values
    return configs


def _setting_names(strategy: str) -> list[str]:
    return [f.name for f in fields(get_strategy(strategy).config_class)]


def run_directories(
    configs: Sequence[RunConfig], output_dir: str | Path, names: Sequence[str] | None = None
) -> list[Path]:
    """Where the runs lie in an output directory; raises `UserError` for one that is a run itself.

    `names` are those of their directories, by default `run_name` of each.
    """
    if (Path(output_dir) / MANIFEST_NAME).exists():
        raise UserError(f"Expected a folder to hold runs, got a run directory at {output_dir}; change --output-dir.")
    return [Path(output_dir) / name for name in names or map(run_name, configs)]


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
    directories: Sequence[Path],
    workers: Workers | None = None,
    *,
    resume: bool = False,
    execution: Execution | None = None,
    general: General | None = None,
    results: str | Path | None = None,
    progress: Progress = silent,
) -> list[FinishedRun]:
    """The finished runs of several configurations; `workers`, by default this process, train those that are not there.

    `results`: the folder of their result files, in which one that is there counts as finished (then it is a `FiledRun`,
    all others are a `Run`) and each other leaves its own as soon as it is. Raises as `trainings` does, before
    anything is trained.
    """
    from mcanalysis.studies.training import trainings

    wanted = trainings(configs, directories, resume=resume, execution=execution, general=general, results=results)
    return Engine(workers or Here(progress), progress).run([training.scored_steps() for training in wanted])
