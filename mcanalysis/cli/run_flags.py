"""The flags that say which runs: what is trained, on what and how, or finished ones; and what they describe."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mcanalysis.cli.flags import Parser, comma_list, integers
from mcanalysis.cli.workers import add_workers_flags
from mcanalysis.evaluation.engine_settings import EngineSettings
from mcanalysis.models.chat_template import read_template
from mcanalysis.tasks.names import GENERAL
from mcanalysis.training.config import Execution, RunConfig, TrainingConfig

if TYPE_CHECKING:
    from mcanalysis.runs.run import Run
    from mcanalysis.studies.training import Training


_MODEL = ("model", "revision", "dtype", "chat_template")


def add_model_flags(parser: Parser) -> None:
    """Which model, how it is asked, where it runs."""
    parser.add_settings(RunConfig, group="model", only=_MODEL)
    parser.add_settings(Execution, group="execution", only=("device",))
    parser.add_settings(EngineSettings, group="execution")
    parser.group("execution").add_argument(
        "--engine", type=comma_list, default=[], metavar="A,B",
        help="force how points are evaluated: merged or unmerged, shared or whole (prefixes), compiled",
    )  # fmt: skip
    parser.group("execution").add_argument(
        "--offline", action="store_true", help="ask no hub: models and data are those that lie on this machine"
    )
    parser.group("execution").add_argument(
        "--deterministic", action="store_true", help="only operations that give the same bits each time on one machine"
    )


def add_run_flags(parser: Parser, leave_out: Sequence[str] = ()) -> None:
    """What is trained, on what, and how; without the flags of the fields of `RunConfig` in `leave_out`."""
    for title in ("model", "data", "optimisation", "execution"):  # in this order in --help
        parser.group(title)
    add_model_flags(parser)
    parser.add_settings(RunConfig, group="optimisation", only=("strategy_settings",))
    lora = ("quantization", "lora_rank", "lora_alpha", "lora_dropout", "target_modules")
    parser.add_settings(RunConfig, group="model", only=lora)
    elsewhere = (*_MODEL, "strategy_settings", *lora, *leave_out)
    parser.add_settings(RunConfig, group="data", leave_out=elsewhere)
    parser.group("data").add_argument("--num-train", type=int, metavar="N", help="train examples per task")
    parser.add_settings(TrainingConfig, group="data", only=("max_length",))
    parser.add_settings(TrainingConfig, group="optimisation", leave_out=("max_length",))
    parser.group("execution").add_argument("--resume", action="store_true", help="go on with unfinished runs")
    parser.add_settings(Execution, group="execution", leave_out=("device",))


def add_general_flags(parser: Parser) -> None:
    """Tasks that are measured before training and after each task, and never trained."""
    data = parser.group("data")
    data.add_argument(
        "--general-data", default=None, metavar="DIR",
        help="<DIR>/<TASK>/test.json or <DIR>/<TASK>.txt, measured and never trained; 'pretraining': text like the "
        "embedded base's",
    )  # fmt: skip
    data.add_argument("--general-tasks", type=comma_list, default=None, metavar="A,B", help="some of them (all)")


def limit_of_all(args: argparse.Namespace) -> int | None:
    """The one number of `--max-new-tokens`; raises `UserError` for numbers of single tasks."""
    from mcanalysis.errors import UserError

    if set(args.max_new_tokens) - {""}:
        raise UserError("Expected one number for --max-new-tokens with --minima, got TASK=N; give --max-new-tokens N.")
    return args.max_new_tokens.get("")


def run_config(
    args: argparse.Namespace, strategy: str, seed: int, settings: dict[str, Any], **others: Any
) -> RunConfig:
    """The run configuration that the flags describe; `others`: values of fields in place of those of flags."""
    from mcanalysis.errors import UserError

    has_general = hasattr(args, "general_data")
    if "" in args.max_new_tokens:
        raise UserError(
            f"Expected TASK=N for --max-new-tokens, got {args.max_new_tokens['']} for no task; name the task."
        )
    limits = {n: v for n, v in args.max_new_tokens.items() if not (has_general and n.startswith(GENERAL))}
    return Parser.settings(
        RunConfig, args,
        strategy=strategy, strategy_settings=settings, seed=seed, max_new_tokens=limits,
        sizes={} if args.num_train is None else {"train": args.num_train},
        chat_template=read_template(args.chat_template),
        training=Parser.settings(TrainingConfig, args),
        **others,
    )  # fmt: skip


def engine(args: argparse.Namespace) -> EngineSettings:
    """How the flags want points evaluated."""
    from mcanalysis.errors import UnknownNameError

    known = {
        "merged": {"adapter": "merged"}, "unmerged": {"adapter": "unmerged"}, "shared": {"prefix": "shared"},
        "whole": {"prefix": "whole"}, "compiled": {"compile": True},
    }  # fmt: skip
    forced: dict[str, Any] = {}
    for name in args.engine:
        if name not in known:
            raise UnknownNameError("way of evaluating for --engine", name, list(known))
        forced |= known[name]
    return Parser.settings(EngineSettings, args, **forced)


def execution(args: argparse.Namespace) -> Execution:
    """How the flags want a run carried out."""
    return Parser.settings(Execution, args, engine=engine(args))


def general(args: argparse.Namespace) -> Any:
    """The held-out tasks that the flags name, or None."""
    from mcanalysis.errors import UserError
    from mcanalysis.runs.general import General

    if args.general_data is None and args.general_tasks is not None:
        raise UserError("Expected --general-data with --general-tasks, got the latter alone; name the folder.")
    limits = {n.removeprefix(GENERAL): v for n, v in args.max_new_tokens.items() if n.startswith(GENERAL)}
    if args.general_data is None:
        if limits:
            raise UserError(
                "Expected --general-data with limits of general tasks, got the latter alone; name the folder."
            )
        return None
    return General(args.general_data, None if args.general_tasks is None else tuple(args.general_tasks), limits)


def typed(settings: dict[str, str]) -> dict[str, Any]:
    """Values of strategy settings as numbers, booleans and None where they read so."""
    import yaml

    def read(text: str) -> Any:
        if text.strip().lower() == "none":  # as the documentation has it; YAML says null
            return None
        try:
            if re.fullmatch(r"[+-]?\d+", text.strip()):  # 010 is ten, and no octal number
                return int(text)
            value = yaml.safe_load(text)
        except (ValueError, OverflowError, yaml.YAMLError):  # no date, or a number of thousands of digits
            return text
        try:
            if isinstance(value, (int, float)) and ":" in text:  # 1:30 is no ninety
                return text
            return float(value) if isinstance(value, str) else value
        except ValueError:
            return value  # text that is no number, not even 1e5, which YAML 1.1 takes for text

    return {name: read(value) for name, value in settings.items()}


def add_study_flags(parser: Parser, strategies: Sequence[str]) -> None:
    """Flags of the runs; by default those of the main job, of these strategies."""
    add_run_flags(parser)
    add_general_flags(parser)
    parser.add_argument("--run", action="append", metavar="DIR", help="a finished run to analyse; repeatable")
    parser.add_argument("--strategy", type=comma_list, default=list(strategies), metavar="A,B", help="strategies")
    parser.add_argument("--seed", type=integers, default=[0], metavar="0,1,2", help="one run per strategy and seed")
    parser.add_argument("--output-dir", default=None, help="holds the run directories and comparison/ (default: runs)")
    add_workers_flags(parser)


def study_runs(args: argparse.Namespace) -> Sequence[Run | Training]:
    """The finished runs; without `--run` those of the strategies and seeds, which are trained if they are not there."""
    from mcanalysis.errors import UserError
    from mcanalysis.runs.run import load_run
    from mcanalysis.studies.strategies import need_paths, run_directories, study_configs
    from mcanalysis.studies.training import trainings

    held_out = general(args)
    if args.run:
        if held_out is not None:
            raise UserError(
                "Expected --general-data for runs that are to be trained, got it with --run; measure general tasks of "
                "a finished run with the train.py command of that run and --general-data."
            )
        runs = [load_run(directory, args.device, engine(args)) for directory in args.run]
        _check_told_apart(runs)
        return runs
    need_paths(args.strategy)
    _check_spaces(args)
    base = run_config(args, args.strategy[0], args.seed[0], {})
    configs = study_configs(base, args.strategy, args.seed, typed(args.settings))
    directories = run_directories(configs, args.output_dir or "runs")
    return trainings(configs, directories, resume=args.resume, execution=execution(args), general=held_out)


def _check_spaces(args: argparse.Namespace) -> None:
    """Raise `UserError` before anything is trained where a strategy's minima lie in none of the spaces asked for."""
    from mcanalysis.paths.path_kinds import path_kind
    from mcanalysis.runs.run import check_space

    for name in args.strategy:
        kinds = getattr(args, "paths" if name == args.strategy[0] else "other_paths", ())
        spaces = [path_kind(kind).space for kind in kinds]
        if hasattr(args, "space") and not getattr(args, "from_base", False):
            spaces.append(args.space)
        for space in spaces:
            check_space(name, space)


def _check_told_apart(runs: Sequence[Run]) -> None:
    """Raise `UserError` for finished runs that no table could tell apart or put side by side."""
    from mcanalysis.errors import UserError

    labels: dict[tuple[str, int], Run] = {}
    orders: dict[frozenset[str], Run] = {}
    for run in runs:
        twin = labels.setdefault((run.strategy, run.seed), run)
        if twin is not run:
            raise UserError(
                f"Expected one run of each strategy and seed, by which tables tell runs apart, got '{twin.directory}' "
                f"and '{run.directory}', both {run.strategy} of seed {run.seed}; analyse one at a time."
            )
        twin = orders.setdefault(frozenset(run.task_names), run)
        if twin.task_names != run.task_names:
            raise UserError(
                f"Expected runs of one order of the tasks, got {', '.join(twin.task_names)} in '{twin.directory}' and "
                f"{', '.join(run.task_names)} in '{run.directory}'; analyse one order at a time."
            )
