"""Ablations of a strategy: runs that differ from a base in one setting, over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from mcanalysis.errors import UserError
from mcanalysis.experiments.strategies import METRICS, study_configs
from mcanalysis.metrics.over_seeds import student_interval
from mcanalysis.run import Run
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


def _rank(value: Any) -> tuple[bool, float, str]:
    """Numbers in order, then the rest."""
    is_number = isinstance(value, int | float)
    return not is_number, float(value) if is_number else 0.0, str(value)


def ablation_summary(tried: Sequence[Variant], runs: Sequence[Run]) -> pd.DataFrame:
    """A row per setting, value and learner: each metric's mean over seeds and the ends of its 95 % interval.

    The base stands among the values of each setting, marked by `is_base`.
    """
    base = next(run for variant, run in zip(tried, runs, strict=True) if not variant.setting)
    settings = dict.fromkeys(variant.setting for variant in tried if variant.setting)
    rows = []
    for setting in settings:
        of_setting = [(v, r) for v, r in zip(tried, runs, strict=True) if v.setting in ("", setting)]
        values = {v.value if v.setting else r.config["strategy_settings"][setting]: v.setting for v, r in of_setting}
        for value, varied in sorted(values.items(), key=lambda item: _rank(item[0])):
            of_value = [r for v, r in of_setting if v.setting == varied and (not varied or v.value == value)]
            for learner in base.metrics["learners"]:
                row: dict[str, Any] = {"setting": setting, "value": value, "is_base": not varied, "learner": learner}
                row |= {"answers": learner == base.answering_learner, "seeds": len(of_value)}
                for metric in METRICS:
                    found = [r.metrics["learners"][learner][metric] for r in of_value]
                    ends = student_interval([np.nan if x is None else float(x) for x in found])
                    row |= dict(zip((metric, f"{metric}_low", f"{metric}_high"), ends, strict=True))
                rows.append(row)
    return pd.DataFrame(rows)
