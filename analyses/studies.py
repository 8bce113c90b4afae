"""Which runs an analysis is of: those named by `--run`, or those of `--strategy`, `--seed`, trained where missing."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from arguments import (
    Parser,
    add_run_flags,
    add_workers_flag,
    comma_list,
    engine,
    execution,
    integers,
    run_config,
    typed,
    workers,
)
from console import bar
from running import quiet_libraries

if TYPE_CHECKING:
    from mcanalysis.runs.run import Run


def add_study_flags(parser: Parser, strategies: Sequence[str]) -> None:
    """Flags of the runs; by default those of the main job, of these strategies."""
    add_run_flags(parser)
    parser.add_argument("--run", action="append", metavar="DIR", help="a finished run to analyse; repeatable")
    parser.add_argument("--strategy", type=comma_list, default=list(strategies), metavar="A,B", help="strategies")
    parser.add_argument("--seed", type=integers, default=[0], metavar="0,1,2", help="one run per strategy and seed")
    parser.add_argument("--output-dir", default="runs", help="holds the run directories and comparison/")
    add_workers_flag(parser)


def study_runs(args: argparse.Namespace) -> list[Run]:
    """The finished runs; those that `--run` does not name are trained if they are not there."""
    from mcanalysis.experiments.strategies import need_paths, study_configs, train_runs
    from mcanalysis.runs.run import load_run

    if args.run:
        return [load_run(directory, args.device, engine(args)) for directory in args.run]
    need_paths(args.strategy)
    base = run_config(args, args.strategy[0], args.seed[0], {})
    return train_runs(
        study_configs(base, args.strategy, args.seed, typed(args.settings)), args.output_dir,
        resume=args.resume, execution=execution(args), workers=workers(args), progress=bar, initializer=quiet_libraries,
    )  # fmt: skip
