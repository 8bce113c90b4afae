"""Ablations of a strategy: runs that differ from a base in one setting, over seeds."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from mcanalysis.errors import UserError
from mcanalysis.runs.run import Run
from mcanalysis.store.atomic import write_text_atomic
from mcanalysis.studies.ablation_table import AblationRun, ablation_table
from mcanalysis.studies.strategies import study_configs
from mcanalysis.training.config import RunConfig

VARIED = {"ema_decay": (0.5, 0.99), "consistency_weight": (0.0, 10.0), "memory_size": (20, 100)}
"""What is varied of I-LoRA unless something else is asked for."""


@dataclass(frozen=True)
class Variant:
    """One run of an ablation: the base itself where `setting` is empty."""

    setting: str
    value: Any
    config: RunConfig

    @property
    def name(self) -> str:
        """The name of its run directory."""
        what = f"{self.setting}-{self.value}" if self.setting else "base"
        return f"{what}-seed{self.config.seed}"


def variants(base: RunConfig, varied: Mapping[str, Sequence[Any]], seeds: Sequence[int]) -> list[Variant]:
    """The base and, for each setting, each other value of it, seed by seed; values the base has are left out.

    Raises `UserError` for nothing to vary, `UnknownNameError` for a setting that the strategy does not have.

    >>> from mcanalysis.training.config import RunConfig
    >>> [v.name for v in variants(RunConfig(strategy="ilora"), {"ema_decay": [0.5, 0.95]}, [0])]
    ['base-seed0', 'ema_decay-0.5-seed0']
    """
    own = base.strategy_settings
    (first,) = study_configs(base, [base.strategy], [base.seed], own)
    usual = first.resolved()["strategy_settings"]
    made = []
    for seed in dict.fromkeys(seeds):
        made.append(Variant("", None, replace(first, seed=seed)))
        for setting, values in varied.items():
            for value in dict.fromkeys(values):
                if usual.get(setting) == value:
                    continue
                (config,) = study_configs(base, [base.strategy], [seed], {**own, setting: value})
                made.append(Variant(setting, value, config))
    if not any(variant.setting for variant in made):
        raise UserError("Expected a setting to vary and a value the base does not have, got none; name one (--vary).")
    return made


def write_ablations(runs: Sequence[Run], settings: Collection[str], output_dir: str | Path) -> pd.DataFrame:
    """Write `<output_dir>/ablations.csv`, the `ablation_table` of the runs, and return it."""
    found = [AblationRun(run.strategy, run.seed, run.config, run.metrics["learners"]) for run in runs]
    table = ablation_table(found, runs[0].strategy, settings)
    write_text_atomic(Path(output_dir) / "ablations.csv", table.to_csv(index=False))
    return table
