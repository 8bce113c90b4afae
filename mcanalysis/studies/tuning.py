"""Each strategy at its best: an equal search of learning rate and settings, scored on the eval split."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any

from mcanalysis.errors import DataError, DivergedError, UserError
from mcanalysis.numbers_as_text import cell
from mcanalysis.progress import Progress, silent
from mcanalysis.settings import BASIC, SEEDS, Bounds, Flag, check_bounds
from mcanalysis.store.atomic import write_text_atomic
from mcanalysis.store.small_files import table_text
from mcanalysis.strategies import get_strategy
from mcanalysis.studies.engine import Engine, Here, Steps, Workers
from mcanalysis.studies.strategies import run_directories, run_name, study_configs
from mcanalysis.studies.study import Rows
from mcanalysis.training.config import Execution, RunConfig

if TYPE_CHECKING:
    import pandas as pd

    from mcanalysis.runs.finished import FinishedRun
    from mcanalysis.studies.training import Training

logger = logging.getLogger(__name__)

RATE_FACTORS = (1 / 3, 1.0, 3.0)
"""What the learning rate is multiplied by, of every strategy; ours."""
FURTHER = 2
"""How many rates more a strategy is tried with, one by one, while its best is the highest or lowest tried; ours."""


@dataclass(frozen=True)
class Trial:
    """One try of a strategy; number 0 is what it does unless told otherwise. `of`: how many its grid has."""

    config: RunConfig
    number: int
    of: int

    @property
    def name(self) -> str:
        """The name of its run directory."""
        return f"{run_name(self.config)}-trial{self.number}"


def trials_of(base: RunConfig, number: int) -> list[Trial]:
    """Up to `number` different trials of the strategy of `base`: as it is, then others drawn from its grid.

    The grid is of the learning rate times `RATE_FACTORS` and of what the strategy declares as `searched`, without
    settings that `base` has: these are given. The draw depends on the strategy's name, its grid and the seed alone, and
    more trials go on where fewer ended. Raises `UserError` for a grid of settings that the strategy refuses.

    >>> [(t.config.training.learning_rate, t.of) for t in trials_of(RunConfig(strategy="er"), 2)]
    [(0.003, 3), (0.009, 3)]
    """
    kind, given = get_strategy(base.strategy), base.strategy_settings
    rate = base.training.rate_for(base.model)
    space = {name: values for name, values in kind.searched.items() if name not in given}
    found: dict[str, RunConfig] = {}
    for factor, *values in [(1.0,), *product(RATE_FACTORS, *space.values())]:  # the first one as it is
        settings = {**given, **dict(zip(space, values, strict=bool(values)))}
        whole = asdict(kind.config_class.of(base.strategy, settings))
        training = replace(base.training, learning_rate=float(f"{rate * factor:.3g}") if factor != 1 else rate)
        key = json.dumps([training.learning_rate, whole], sort_keys=True, default=repr)
        found.setdefault(key, replace(base, strategy_settings=settings, training=training))
    first, *others = found.values()
    Random(f"tuning/{base.strategy}/{base.seed}").shuffle(others)
    return [Trial(config, n, len(found)) for n, config in enumerate([first, *others][:number])]


def further_trials(trials: Sequence[Trial], table: pd.DataFrame) -> list[Trial]:
    """Of each strategy whose best learning rate is the highest, or the lowest, that was tried: its best trial with
    three times, or a third of, that rate, one per seed; `table` is that of `trials`.

    Nothing of a strategy with a single rate, which has no highest one, and of one all of whose trials diverged.
    """
    found = []
    for name, of in table.groupby("strategy", sort=False):
        if not of.chosen.any() or of.learning_rate.nunique() == 1:
            continue
        best = of[of.chosen].iloc[0]
        if best.learning_rate not in (of.learning_rate.max(), of.learning_rate.min()):
            continue
        factor = RATE_FACTORS[-1] if best.learning_rate == of.learning_rate.max() else RATE_FACTORS[0]
        rate = float(f"{best.learning_rate * factor:.3g}")
        for trial in trials:
            if (trial.config.strategy, trial.number) == (name, best.trial):
                training = replace(trial.config.training, learning_rate=rate)
                number = int(of.trial.max()) + 1
                found.append(replace(trial, number=number, config=replace(trial.config, training=training)))
    return found


@dataclass(frozen=True)
class Tuning:
    """How much is searched, of which strategies, and where the runs lie.

    The seeds are not those of a comparison, so that no setting is chosen by the luck of a run that it is judged by.
    """

    strategy: Annotated[tuple[str, ...], "strategies, or all", BASIC] = ("all",)
    num_trials: Annotated[
        int, "of each strategy: its defaults, and others drawn from its grid", Bounds(high=10_000), BASIC
    ] = 8
    seed: Annotated[
        tuple[int, ...], "of the runs; other than a comparison's", Flag(metavar="100,101", basic=True), SEEDS
    ] = (100,)
    full: Annotated[bool, "all tasks and 120 steps on the embedded benchmark, too, not four and 100"] = False
    results: Annotated[str | None, "holds a result file of each run; those there are done", Flag(metavar="DIR")] = None
    output_dir: Annotated[str, "holds the run directories, trials.csv and tuned.yaml", BASIC] = "runs/tuning"

    def __post_init__(self) -> None:
        check_bounds(self)

    def search(
        self,
        base: RunConfig,
        settings: Mapping[str, Any],
        *,
        resume: bool = False,
        execution: Execution | None = None,
    ) -> Search:
        """The whole search, before anything of it is trained; `settings`, as of `study_configs`, are not searched.

        Raises `UserError` for strategies that train nothing, where none is left, `DataError` for a task without an eval
        split, and what `trainings` raises.
        """
        from mcanalysis.studies.training import trainings
        from mcanalysis.training.continual_trainer import load_tasks

        if self.num_trials < 1:
            raise UserError(f"Expected at least 1 trial, got {self.num_trials}; raise --num-trials.")
        base = replace(base, scored_split="eval")
        firsts = study_configs(base, self.strategy, self.seed[:1], settings)
        left_out = [c.strategy for c in firsts if get_strategy(c.strategy).schedule == "none"]
        firsts = [c for c in firsts if c.strategy not in left_out]
        if not firsts:
            raise UserError(f"Expected strategies that train, got {', '.join(left_out)} alone; name others.")
        tasks = load_tasks(base)
        for data in tasks:
            if not data.splits.get("eval"):
                raise DataError(
                    f"Expected an eval split of every task, on which settings are chosen, got none of "
                    f"{data.task.name}; add its eval.json: the test split is for what comes after."
                )
        found = [trial for first in firsts for trial in trials_of(first, self.num_trials)]
        found = [replace(t, config=replace(t.config, seed=seed)) for t in found for seed in dict.fromkeys(self.seed)]

        def trained(trials: Sequence[Trial]) -> list[Training]:
            configs = [trial.config for trial in trials]
            directories = run_directories(configs, self.output_dir, [trial.name for trial in trials])
            return trainings(configs, directories, resume=resume, execution=execution, results=self.results)

        return Search(self, base, [data.task.name for data in tasks], found, trained(found), left_out, trained)


@dataclass(frozen=True)
class Search:
    """The trials of all strategies, one per seed, strategy by strategy, each with its training.

    `trained` gives the trainings of further ones.
    """

    tuning: Tuning
    base: RunConfig
    tasks: list[str]
    trials: list[Trial]
    trainings: list[Training]
    left_out: list[str]
    trained: Callable[[Sequence[Trial]], list[Training]]

    def plan(self) -> Iterator[str | Rows]:
        """What is searched of each strategy, and what that costs."""
        from mcanalysis.studies.training import cost_of

        rows, kinds = [["strategy", "trials", "searched beside the learning rate"]], []
        for first in (t for t in self.trials if t.number == 0 and t.config.seed == self.tuning.seed[0]):
            name, given = first.config.strategy, first.config.strategy_settings
            space = {n: values for n, values in get_strategy(name).searched.items() if n not in given}
            words = "; ".join(f"{n} {', '.join(map(str, values))}" for n, values in space.items())
            rows.append([name, f"{min(first.of, self.tuning.num_trials)} of {first.of}", words or "–"])
            kinds += [name] * (first.of < self.tuning.num_trials)
        yield f"\nThe first trial of each strategy is its defaults; learning rate {self._rate:g} times 1/3, 1 and 3"
        yield rows
        if kinds:
            yield f"all of their grid, fewer than {self.tuning.num_trials} trials: {', '.join(kinds)}"
        yield (
            f"and up to {FURTHER} more, one by one, where the best learning rate is the highest or lowest tried: the "
            "best trial with 3 times or 1/3 of it"
        )
        if self.left_out:
            yield f"left out, as nothing is trained: {', '.join(self.left_out)}"
        yield cost_of(self.trainings)

    @property
    def _rate(self) -> float:
        return self.base.training.rate_for(self.base.model)

    def carry_out(self, workers: Workers | None = None, progress: Progress = silent) -> pd.DataFrame:
        """Train what is not there, write `trials.csv` and `tuned.yaml`, and return the former."""

        def train(trainings: Sequence[Training]) -> list[FinishedRun | None]:
            return Engine(workers or Here(progress), progress).run([_or_diverged(t) for t in trainings])

        search, runs = self, train(self.trainings)
        for _ in range(FURTHER):
            more = further_trials(search.trials, search.table(runs))
            if not more:
                break
            search, runs = replace(search, trials=[*search.trials, *more]), [*runs, *train(self.trained(more))]
        return self.write(search.table(runs))

    def table(self, runs: Sequence[FinishedRun | None]) -> pd.DataFrame:
        """A row per strategy and trial; scores are of the eval split. `runs`: one per trial and seed, None: diverged.

        `score` is the mean over the seeds of the average accuracy of the answering learner (of `individual`, which has
        none, learning accuracy); NaN where a seed diverged. `chosen` is the highest, the earlier of equals.
        """
        import pandas as pd

        rows: dict[tuple[str, int], dict[str, Any]] = {}
        for trial, run in zip(self.trials, runs, strict=True):
            row = rows.setdefault(
                (trial.config.strategy, trial.number),
                {
                    "strategy": trial.config.strategy,
                    "trial": trial.number,
                    "learning_rate": trial.config.training.learning_rate,
                    "settings": json.dumps(dict(trial.config.strategy_settings)),
                    "split": "eval",
                    "score": float("nan"),
                    "train_seconds": 0.0,
                },
            )
            row[f"score_seed{trial.config.seed}"] = float("nan") if run is None else answering_score(run.metrics)
            row["train_seconds"] += float("nan") if run is None else float(run.cost.get("train_seconds") or "nan")
        names = list(dict.fromkeys(name for name, _ in rows))
        table = pd.DataFrame([rows[key] for key in sorted(rows, key=lambda key: (names.index(key[0]), key[1]))])
        seeds = [name for name in table if str(name).startswith("score_seed")]
        table["score"] = table[seeds].mean(axis=1, skipna=False).round(12)  # equal ones differ by no rounding
        table["chosen"] = table.index.isin(table.dropna(subset="score").groupby("strategy").score.idxmax())  # the first
        return table

    def write(self, table: pd.DataFrame) -> pd.DataFrame:
        """Write `trials.csv`, and what is chosen as `tuned.yaml`; returns the table.

        Raises `UserError`, with the table written, for a strategy all of whose trials diverged.
        """
        import mcanalysis
        from mcanalysis.studies.tuned import Chosen, Tuned

        folder = Path(self.tuning.output_dir)
        write_text_atomic(folder / "trials.csv", table_text(table))
        chosen = {}
        for name, of in table.groupby("strategy", sort=False):
            if not of.chosen.any():
                raise UserError(f"Expected a trial of {name} that ends, got {len(of)} diverged; lower --learning-rate.")
            best, default = of[of.chosen].iloc[0], float(of.score.iloc[0])
            chosen[str(name)] = Chosen(
                float(best.learning_rate), json.loads(best.settings), float(best.score),
                None if default != default else default, len(of),
            )  # fmt: skip
        place = Tuned.place(self.base, self.tasks)
        seeds = list(dict.fromkeys(self.tuning.seed))
        Tuned(mcanalysis.__version__, **place, trials=self.tuning.num_trials, seeds=seeds, strategies=chosen).write(
            folder / "tuned.yaml"
        )
        return table

    def words(self, table: pd.DataFrame) -> Iterator[str | Rows]:
        """What was chosen for each strategy, and where it lies."""
        rows = [["strategy", "trial", "learning rate", "settings", "score", "of its defaults"]]
        defaults = table[table.trial == 0].set_index("strategy").score
        for row in table[table.chosen].to_dict("records"):
            settings = ", ".join(f"{n}={v}" for n, v in json.loads(row["settings"]).items())
            rate = f"{row['learning_rate']:g}"
            rows.append(
                [
                    row["strategy"],
                    str(row["trial"]),
                    rate,
                    settings,
                    cell(row["score"]),
                    cell(defaults[row["strategy"]]),
                ]
            )
        yield "\nChosen: the highest average accuracy on the eval split, the earlier of equals (0: the defaults)"
        yield rows
        folder = Path(self.tuning.output_dir)
        yield f"all trials: {folder / 'trials.csv'}; for compare.py --tuned: {folder / 'tuned.yaml'}"


def answering_score(metrics: Mapping[str, Any]) -> float:
    """The average accuracy of a run's metrics; of `individual`, which has none, the learning accuracy.

    >>> answering_score({"average_accuracy": None, "learning_accuracy": 0.5})
    0.5
    """
    average = metrics["average_accuracy"]
    return float(metrics["learning_accuracy"] if average is None else average)


def _or_diverged(training: Training) -> Steps[FinishedRun | None]:
    """Train a trial; None, and a warning, where its loss is no longer finite: it is one that is not chosen."""
    try:
        return (yield from training.scored_steps())
    except DivergedError as error:
        logger.warning("%s diverged, and is not chosen: %s", training.directory.name, error)
        return None
