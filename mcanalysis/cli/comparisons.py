"""Scripts that train several runs and put them side by side: flags, runs, tables, words."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcanalysis.cli.console import answer, bar, duration, next_step, say
from mcanalysis.cli.flags import Parser, comma_list
from mcanalysis.cli.run_flags import (
    add_general_flags,
    add_run_flags,
    execution,
    general,
    run_config,
    typed,
)
from mcanalysis.cli.running import quiet_libraries
from mcanalysis.cli.studies import speak
from mcanalysis.cli.workers import add_workers_flags, number_of_workers, workers
from mcanalysis.studies.ablations import Ablations
from mcanalysis.studies.comparison import Comparison
from mcanalysis.studies.tuning import Tuning

if TYPE_CHECKING:
    from mcanalysis.runs.finished import FinishedRun
    from mcanalysis.training.config import RunConfig


def run_comparison(description: str | None) -> None:
    """The main of `compare.py`; `description`: the first lines of `--help`."""
    parser = Parser(description)
    add_run_flags(parser, leave_out=("order",))  # here there may be several
    add_general_flags(parser)
    parser.add_settings(Comparison, group="comparison")
    parser.add_argument("--dry-run", action="store_true", help="say which runs there are and what the others cost")
    add_workers_flags(parser)
    args = parser.parse()
    comparison = parser.settings(Comparison, args)
    if comparison.is_short(args.benchmark):
        _shorten(args)
    quiet_libraries()
    from mcanalysis.studies.strategies import run_directories
    from mcanalysis.studies.strategy_comparisons import compared_summary, comparisons
    from mcanalysis.studies.strategy_words import write_comparison

    configs = comparison.configs(
        run_config(args, "sequential", comparison.seed[0], {}, order=None), typed(args.settings)
    )
    folder = comparison.folder(args.benchmark)
    directories = run_directories(configs, folder)
    if args.dry_run:
        _tell_cost(args, configs, directories, comparison.results)
        return
    runs = _trained(args, configs, directories, comparison.results)
    note = comparison.note(runs)
    metrics = write_comparison(runs, folder, comparison.against, note)
    speak(comparison.words(runs, metrics, folder))
    tables = {"strategies": metrics, "summary": compared_summary(metrics, comparison.against)}
    tables["comparisons"] = comparisons(metrics, comparison.against)
    facts: dict[str, Any] = {"runs": [str(run.directory) for run in runs]} | ({"tuned": note} if note else {})
    answer(tables, **facts)
    next_step("report", folder) if comparison.tuned else next_step("tune")


def run_ablations(description: str | None) -> None:
    """The main of `ablations.py`; `description`: the first lines of `--help`."""
    parser = Parser(description)
    add_run_flags(parser)
    parser.add_settings(Ablations, group="ablation", basic=True)
    parser.add_argument(
        "--vary", action="append", metavar="NAME=V1,V2", help="a setting and its other values; repeatable"
    )
    parser.add_argument("--dry-run", action="store_true", help="say how many runs are missing and how long they take")
    add_workers_flags(parser)
    args = parser.parse()
    ablations = parser.settings(Ablations, args, varied=_varied(args.vary or ()))
    if args.benchmark == "embedded" and args.tasks is None:
        _shorten(args)
    quiet_libraries()
    from mcanalysis.studies.strategies import run_directories

    tried = ablations.variants(run_config(args, args.strategy, ablations.seed[0], typed(args.settings)))
    configs = [variant.config for variant in tried]
    directories = run_directories(configs, args.output_dir, [variant.name for variant in tried])
    if args.dry_run:
        _forecast(args, configs, directories)
        return
    table = ablations.table(_trained(args, configs, directories))
    speak(ablations.words(table))
    answer({"ablations": table})
    next_step("figures", "--only", "ablations")


def run_tuning(description: str | None) -> None:
    """The main of `tune.py`; `description`: the first lines of `--help`."""
    parser = Parser(description)
    add_run_flags(parser)
    parser.add_settings(Tuning, group="search")
    parser.add_argument("--dry-run", action="store_true", help="say what is searched and what it costs, and end")
    add_workers_flags(parser)
    args = parser.parse()
    tuning = parser.settings(Tuning, args)
    if args.benchmark == "embedded" and not tuning.full:
        _shorten(args)
    quiet_libraries()
    base = run_config(args, "sequential", tuning.seed[0], {})
    search = tuning.search(base, typed(args.settings), resume=args.resume or args.dry_run, execution=execution(args))
    speak(search.plan())
    if args.dry_run:
        answer({}, runs=[str(training.directory) for training in search.trainings])
        next_step("the same command without --dry-run")
        return
    with workers(args) as those:
        table = search.carry_out(those, bar)
    speak(search.words(table))
    answer({"trials": table})
    next_step("compare", "--tuned", Path(tuning.output_dir) / "tuned.yaml")


def _shorten(args: argparse.Namespace) -> None:
    """Four tasks of the embedded benchmark and 100 steps, where the flags do not say."""
    from mcanalysis.benchmarks import get_benchmark

    args.tasks = get_benchmark("embedded").tasks[:4] if args.tasks is None else args.tasks
    args.steps = 100 if args.steps is None and args.epochs is None else args.steps


def _tell_cost(
    args: argparse.Namespace, configs: Sequence[RunConfig], directories: Sequence[Path], results: str | None
) -> None:
    """Say which of these runs are there, and what the others cost as far as those tell; check all, and train none."""
    from mcanalysis.studies.training import cost_of, trainings

    wanted = trainings(
        configs, directories, resume=True, execution=execution(args), general=general(args), results=results
    )
    say(cost_of(wanted))
    answer({}, missing=[str(training.directory) for training in wanted if not training.found()])
    next_step("the same command without --dry-run")


def _forecast(args: argparse.Namespace, configs: Sequence[RunConfig], directories: Sequence[Path]) -> None:
    """Say how many of these runs are missing, and how long they take by what one of them would."""
    from mcanalysis.studies.connectivity.forecast import forecast
    from mcanalysis.studies.connectivity.study import Connectivity
    from mcanalysis.studies.training import trainings

    wanted = trainings(configs, directories, resume=args.resume, execution=execution(args))
    missing = [training for training in wanted if not training.is_there]
    num_workers = 1 if args.scheduler else number_of_workers(args)
    of_one = 0.0
    if missing:
        rows = forecast(Connectivity(paths=("linear-delta",), num_points=2), missing[:1], num_workers).rows
        of_one = float(rows.seconds[rows.work.isin(["training", "scoring"])].sum())
    seconds = of_one * math.ceil(len(missing) / num_workers)
    say(f"{len(missing)} of {len(wanted)} runs are missing: about {duration(seconds)} on {num_workers} worker(s),")
    say("from a few steps and batches of one of them timed here")
    answer({}, seconds=seconds, workers=num_workers, missing=[str(training.directory) for training in missing])
    next_step("the same command without --dry-run")


def _varied(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Values by setting, of texts NAME=V1,V2."""
    from mcanalysis.errors import UserError

    found = {}
    for text in texts:
        name, _, values = text.partition("=")
        if not values:
            raise UserError(f"Expected --vary NAME=V1,V2, got '{text}'; name a setting and its values.")
        found[name.strip()] = [typed({name: value})[name] for value in comma_list(values)]
    return found


def _trained(
    args: argparse.Namespace, configs: Sequence[RunConfig], directories: Sequence[Path], results: str | None = None
) -> list[FinishedRun]:
    """The finished runs of several configurations, trained as the flags say where they are not there."""
    from mcanalysis.studies.strategies import train_runs

    held_out = general(args) if hasattr(args, "general_data") else None
    with workers(args) as those:
        return train_runs(
            configs, directories, those,
            resume=args.resume, execution=execution(args), general=held_out, results=results, progress=bar,
        )  # fmt: skip
