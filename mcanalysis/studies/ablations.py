"""Ablations of a strategy: runs that differ from a base in one setting, over seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from mcanalysis.errors import UserError
from mcanalysis.numbers_as_text import cell
from mcanalysis.settings import SEEDS, Flag, check_bounds
from mcanalysis.store.atomic import write_text_atomic
from mcanalysis.store.small_files import table_text
from mcanalysis.strategies import make_strategy
from mcanalysis.studies.strategies import study_configs
from mcanalysis.studies.study import Rows
from mcanalysis.training.config import RunConfig

if TYPE_CHECKING:
    import pandas as pd

    from mcanalysis.runs.finished import FinishedRun

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


def _all_settings(strategy: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """With those that a manifest leaves out, at the values that they stand for."""
    return asdict(make_strategy(strategy, 0, **given).config)


@dataclass(frozen=True)
class Ablations:
    """What of a strategy is varied, over which seeds; raises `UserError` for another than I-LoRA and nothing to vary.

    `varied`: values by setting; those that the base has are left out.
    """

    strategy: Annotated[str, "the method"] = "ilora"
    seed: Annotated[tuple[int, ...], "seeds", Flag(metavar="0,1"), SEEDS] = (0, 1)
    output_dir: Annotated[str, "holds the run directories and ablations.csv"] = "runs/ablations"
    varied: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.varied and self.strategy != "ilora":
            raise UserError(f"Expected --vary NAME=V1,V2 with --strategy {self.strategy}, got none; say what to vary.")
        object.__setattr__(self, "varied", self.varied or VARIED)

    def variants(self, base: RunConfig) -> list[Variant]:
        """The base and, for each setting, each other value of it, seed by seed.

        Raises `UserError` for nothing to vary, `UnknownNameError` for a setting that the strategy does not have.

        >>> [v.name for v in Ablations(seed=(0,), varied={"ema_decay": [0.5, 0.95]}).variants(RunConfig())]
        ['base-seed0', 'ema_decay-0.5-seed0']
        """
        own = base.strategy_settings
        (first,) = study_configs(base, [self.strategy], [base.seed], own)
        usual = _all_settings(self.strategy, own)
        made = []
        for seed in dict.fromkeys(self.seed):
            made.append(Variant("", None, replace(first, seed=seed)))
            for setting, values in self.varied.items():
                for value in dict.fromkeys(values):
                    if usual.get(setting) == value:
                        continue
                    (config,) = study_configs(base, [self.strategy], [seed], {**own, setting: value})
                    made.append(Variant(setting, value, config))
        if not any(variant.setting for variant in made):
            raise UserError(
                "Expected a setting to vary and a value the base does not have, got none; name one (--vary)."
            )
        return made

    def table(self, runs: Sequence[FinishedRun]) -> pd.DataFrame:
        """Write `ablations.csv`, the `ablation_table` of the runs, and return it."""
        from mcanalysis.studies.ablation_table import AblationRun, ablation_table

        found = []
        for run in runs:
            every = {"strategy_settings": _all_settings(run.strategy, run.config["strategy_settings"])}
            found.append(AblationRun(run.strategy, run.seed, {**run.config, **every}, run.metrics["learners"]))
        table = ablation_table(found, self.strategy, tuple(self.varied))
        write_text_atomic(Path(self.output_dir) / "ablations.csv", table_text(table))
        return table

    def words(self, table: pd.DataFrame) -> Iterator[str | Rows]:
        """Per setting and value, what the learners reach; the base has a star."""
        from mcanalysis.plotting.ablation import QUANTITIES

        rows = [["setting", "value", "learner", *(name.replace("_", " ") for name in QUANTITIES)]]
        for row in table.to_dict("records"):
            value = f"{row['value']:g}" if isinstance(row["value"], float) else str(row["value"])
            means = [f"{cell(row[q])} [{cell(row[f'{q}_low'])}, {cell(row[f'{q}_high'])}]" for q in QUANTITIES]
            rows.append([row["setting"], f"{value}{' *' * row['is_base']}", row["learner"], *means])
        yield "\nMean over seeds [95 %, Student's t]; * is the base, the same runs in each setting"
        yield rows
        yield f"table: {Path(self.output_dir, 'ablations.csv')}; figure: python figures/ablations.py"
