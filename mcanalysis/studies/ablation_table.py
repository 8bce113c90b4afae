"""What changing one setting at a time does: metrics over seeds, found from the configurations of finished runs."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from mcanalysis.errors import UserError
from mcanalysis.metrics.over_seeds import student_interval
from mcanalysis.plotting.ablation import QUANTITIES, SETTINGS


class AblationRun(NamedTuple):
    """A finished run: `config` as its manifest has it, `learners` the metrics of each learner."""

    strategy: str
    seed: int
    config: Mapping[str, Any]
    learners: Mapping[str, Mapping[str, float | None]]


def ablation_table(
    runs: Sequence[AblationRun], strategy: str = "ilora", settings: Collection[str] = tuple(SETTINGS)
) -> pd.DataFrame:
    """A row per setting, value and learner: mean over seeds, ends of its 95 % interval, and each seed's value.

    The base is the configuration that most others differ from in one of the settings alone; it stands first in each
    setting. Raises `UserError`, naming the command that makes such runs, where there are no two such configurations.
    """
    chosen = [run for run in runs if run.strategy == strategy]
    by_config: dict[str, list[AblationRun]] = {}
    for run in chosen:
        config = {name: value for name, value in run.config.items() if name != "seed"}
        by_config.setdefault(json.dumps(config, sort_keys=True), []).append(run)
    configs = {key: json.loads(key) for key in by_config}
    near = {key: {k: s for k in configs if (s := _differs(configs[key], configs[k], settings))} for key in configs}
    base = max(near, key=lambda key: len(near[key]), default="")
    if not base or not near[base]:
        raise UserError(
            f"Expected runs of {strategy} that differ in one of {', '.join(settings)}, got {len(by_config)} setting(s) "
            f"of {len(chosen)} run(s); train them with python analyses/ablations.py."
        )
    rows = []
    for setting in settings:
        varied = [key for key, name in near[base].items() if name == setting]
        for key in [base, *varied] if varied else []:
            value = configs[key]["strategy_settings"][setting]
            for learner in by_config[key][0].learners:
                told = {"setting": setting, "value": value, "is_base": key == base, "strategy": strategy}
                rows.append(told | {"learner": learner} | _over_seeds(by_config[key], learner))
    return pd.DataFrame(rows)


def _differs(a: Mapping[str, Any], b: Mapping[str, Any], settings: Collection[str]) -> str:
    """The one of the settings in which two configurations differ, empty where it is another or not exactly one."""
    rest = [{name: value for name, value in c.items() if name != "strategy_settings"} for c in (a, b)]
    one, other = a["strategy_settings"], b["strategy_settings"]
    different = [name for name in one if one[name] != other.get(name)]
    alone = rest[0] == rest[1] and set(one) == set(other) and len(different) == 1
    return different[0] if alone and different[0] in settings else ""


def _over_seeds(runs: Sequence[AblationRun], learner: str) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for quantity in QUANTITIES:
        by_seed = {run.seed: run.learners[learner][quantity] for run in reversed(runs)}
        found = [by_seed[seed] for seed in sorted(by_seed)]
        values = [float("nan") if value is None else float(value) for value in found]
        names = (quantity, f"{quantity}_low", f"{quantity}_high")
        row |= dict(zip(names, student_interval(values), strict=True))
        row[f"{quantity}_seeds"] = " ".join(map(repr, values))
    return row
