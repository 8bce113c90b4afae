"""A comparison: several strategies × seeds on one benchmark, trained where they are not there, in one table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from mcanalysis.errors import UserError
from mcanalysis.settings import BASIC, SEEDS, Bounds, Flag, check_bounds
from mcanalysis.studies.strategies import study_configs
from mcanalysis.studies.study import Rows
from mcanalysis.training.config import RunConfig

if TYPE_CHECKING:
    import pandas as pd

    from mcanalysis.runs.finished import FinishedRun


@dataclass(frozen=True)
class Comparison:
    """Which strategies and seeds, and where they lie; on the embedded benchmark a short one unless it is `full`."""

    strategy: Annotated[tuple[str, ...], "strategies, or all", BASIC] = ("all",)
    seed: Annotated[tuple[int, ...], "one run per strategy and seed", Flag(metavar="0,1,2", basic=True), SEEDS] = (
        0,
        1,
        2,
    )
    order: Annotated[tuple[str, ...] | None, "orders of the tasks: published ones, shuffledN"] = None
    num_orders: Annotated[
        int | None, "in place of names: the published orders, then shuffled ones", Bounds(high=10_000)
    ] = None
    against: Annotated[str | None, "the strategy that others are compared with (default: er, or sequential)", BASIC] = (
        None
    )
    full: Annotated[bool, "all tasks and 120 steps on the embedded benchmark, too, not four and 100"] = False
    tuned: Annotated[str | None, "tune.py's settings, whose runs lie in tuned/", Flag(metavar="FILE", basic=True)] = (
        None
    )
    results: Annotated[str | None, "holds a result file of each run; those there are done", Flag(metavar="DIR")] = None
    output_dir: Annotated[
        str | None, "holds run directories and comparison/ (default: runs/compare, or runs)", BASIC
    ] = None

    def __post_init__(self) -> None:
        check_bounds(self)

    def is_short(self, benchmark: str) -> bool:
        """Whether it is made on a few tasks in few steps, unless others are asked for."""
        return benchmark == "embedded" and not self.full

    def folder(self, benchmark: str) -> Path:
        """What holds the runs: tuned ones a folder `tuned` in it, where they meet no others."""
        folder = Path(self.output_dir or ("runs/compare" if self.is_short(benchmark) else "runs"))
        return folder if self.tuned is None else folder / "tuned"

    def configs(self, base: RunConfig, settings: Mapping[str, Any]) -> list[RunConfig]:
        """The runs, as `study_configs` makes them, for each order; raises `UserError` for orders that do not exist."""
        from mcanalysis.benchmarks import get_benchmark
        from mcanalysis.benchmarks.orders import order_names, tasks_to_load
        from mcanalysis.studies.strategy_comparisons import reference_of

        if self.order is not None and self.num_orders is not None:
            raise UserError("Expected --order or --num-orders, got both; leave one out.")
        orders: tuple[str | None, ...] = self.order or (None,)
        if self.num_orders is not None:
            orders = order_names(get_benchmark(base.benchmark), self.num_orders, base.tasks)
        for order in orders:
            tasks_to_load(get_benchmark(base.benchmark), order, base.tasks)
        runs = study_configs(base, self.strategy, self.seed, settings)
        reference_of(list(dict.fromkeys(run.strategy for run in runs)), self.against)
        runs = [replace(run, order=order) for order in dict.fromkeys(orders) for run in runs]
        return runs if self.tuned is None else self._tuned(self.tuned, runs)

    def _tuned(self, file: str, runs: Sequence[RunConfig]) -> list[RunConfig]:
        """Runs as the file has them; raises `UserError` where it is of others, or beside a learning rate."""
        from mcanalysis.studies.tuned import Tuned
        from mcanalysis.training.continual_trainer import load_tasks

        if (rate := runs[0].training.learning_rate) is not None:
            raise UserError(f"Expected --learning-rate or --tuned, got both, {rate:g} and '{file}'; leave one out.")
        found = Tuned.read(file)
        found.check(runs[0], [data.task.name for data in load_tasks(runs[0])])
        return [found.applied(run) for run in runs]

    def note(self, runs: Sequence[FinishedRun]) -> str:
        """Where the settings of tuned runs are from, in one line; "" for those of the flags."""
        if self.tuned is None:
            return ""
        from mcanalysis.studies.tuned import Tuned

        typed = {run.strategy: run.config["strategy_settings"] for run in runs}
        return Tuned.read(self.tuned).note(list(typed), typed)

    def words(self, runs: Sequence[FinishedRun], metrics: pd.DataFrame, folder: Path) -> Iterator[str | Rows]:
        """The table of all strategies, what its numbers are, and where it lies."""
        from mcanalysis.studies.strategy_tables import comparison_notes
        from mcanalysis.studies.strategy_words import strategy_words

        yield from strategy_words(metrics, self.against)
        yield comparison_notes(runs, metrics)
        if note := self.note(runs):
            yield note
        yield f"tables: {folder / 'comparison'}/strategies.csv, comparisons.csv, summary.csv, summary.md, summary.tex"
