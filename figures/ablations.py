"""Ablations of I-LoRA: EMA decay, consistency weight and buffer size, from runs that differ in one of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rendering import FinishedRun, Picture, main

from mcanalysis.errors import UserError
from mcanalysis.metrics.over_seeds import student_interval
from mcanalysis.plotting.ablation import QUANTITIES, SETTINGS, ablation_caption, plot_ablation

FOLDER = "ablations"  # in runs/: where such runs are looked for, besides runs/ itself


def draw(runs: Sequence[FinishedRun]) -> list[Picture]:
    """One picture: a panel per setting, the learners as lines."""
    ablation = ablation_table(runs)
    return [Picture("ablations", plot_ablation(ablation), {"": ablation}, ablation_caption(ablation))]


def ablation_table(runs: Sequence[FinishedRun]) -> pd.DataFrame:
    """A row per setting, value and learner: metrics over seeds.

    The base is the configuration that most others differ from in one of the settings alone. Raises `UserError`, naming
    the commands that make such runs, where there are no two configurations like that.
    """
    of_ilora = [run for run in runs if run.strategy == "ilora"]
    by_config: dict[str, list[FinishedRun]] = {}
    for run in of_ilora:
        config = {name: value for name, value in run.config.items() if name != "seed"}
        by_config.setdefault(json.dumps(config, sort_keys=True), []).append(run)
    configs = {key: json.loads(key) for key in by_config}
    near = {key: {k: s for k in configs if (s := _differs(configs[key], configs[k]))} for key in configs}
    base = max(near, key=lambda key: len(near[key]), default="")
    if not base or not near[base]:
        raise UserError(
            f"Expected runs of ilora that differ in one of {', '.join(SETTINGS)}, got {len(by_config)} setting(s) "
            f"of {len(of_ilora)} run(s); train them with python analyses/ablations.py."
        )
    rows = []
    for setting in SETTINGS:
        varied = [key for key, name in near[base].items() if name == setting]
        for key in [base, *varied] if varied else []:
            value = configs[key]["strategy_settings"][setting]
            for learner in by_config[key][0].metrics:
                told = {"setting": setting, "value": value, "is_base": key == base, "strategy": "ilora"}
                rows.append(told | {"learner": learner} | _over_seeds(by_config[key], learner))
    return pd.DataFrame(rows)


def _differs(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """The one of the settings in which two configurations differ, empty where it is another or not exactly one."""
    rest = [{name: value for name, value in c.items() if name != "strategy_settings"} for c in (a, b)]
    one, other = a["strategy_settings"], b["strategy_settings"]
    different = [name for name in one if one[name] != other.get(name)]
    alone = rest[0] == rest[1] and set(one) == set(other) and len(different) == 1
    return different[0] if alone and different[0] in SETTINGS else ""


def _over_seeds(runs: Sequence[FinishedRun], learner: str) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for quantity in QUANTITIES:
        by_seed = {run.seed: run.metrics[learner][quantity] for run in reversed(runs)}
        values = [float("nan") if by_seed[seed] is None else float(by_seed[seed]) for seed in sorted(by_seed)]  # type: ignore[arg-type]
        names = (quantity, f"{quantity}_low", f"{quantity}_high")
        row |= dict(zip(names, student_interval(values), strict=True))
        row[f"{quantity}_seeds"] = " ".join(map(repr, values))
    return row


if __name__ == "__main__":
    main(["ablations"], __doc__)
