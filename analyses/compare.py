"""Several strategies × seeds in one table; runs that are not there yet are trained.

With no flag: every strategy on four tasks of the embedded benchmark, 100 steps each, three seeds.
"""

from __future__ import annotations

from start import run_script

from mcanalysis.cli.console import bar
from mcanalysis.cli.flags import Parser, comma_list, integers
from mcanalysis.cli.run_flags import (
    add_general_flags,
    add_run_flags,
    add_workers_flags,
    execution,
    general,
    run_config,
    typed,
    workers,
)
from mcanalysis.cli.running import quiet_libraries


def main() -> None:
    parser = Parser(__doc__)
    add_run_flags(parser)
    add_general_flags(parser)
    parser.add_argument("--strategy", type=comma_list, default=["all"], metavar="A,B", help="strategies, or all")
    parser.add_argument(
        "--seed", type=integers, default=[0, 1, 2], metavar="0,1,2", help="one run per strategy and seed"
    )
    parser.add_argument(
        "--full", action="store_true", help="all tasks and 120 steps on the embedded benchmark, too, not four and 100"
    )
    parser.add_argument(
        "--output-dir", default=None, help="holds run directories and comparison/ (default: runs/compare, or runs)"
    )
    add_workers_flags(parser)
    args = parser.parse()

    quiet_libraries()
    from mcanalysis.benchmarks import get_benchmark
    from mcanalysis.cli import run_reporting
    from mcanalysis.studies.strategies import study_configs, train_runs
    from mcanalysis.studies.strategy_tables import write_comparison

    short = args.benchmark == "embedded" and not args.full
    output_dir = args.output_dir or ("runs/compare" if short else "runs")
    if short and args.steps is None:
        args.steps = 100
    if short and args.tasks is None:
        args.tasks = get_benchmark("embedded").tasks[:4]
    base = run_config(args, "sequential", args.seed[0], {})
    configs = study_configs(base, args.strategy, args.seed, typed(args.settings))
    runs = train_runs(
        configs, output_dir,
        resume=args.resume, execution=execution(args), general=general(args),
        workers=workers(args), progress=bar, initializer=quiet_libraries,
    )  # fmt: skip
    run_reporting.comparison(runs, write_comparison(runs, output_dir), output_dir)


if __name__ == "__main__":
    run_script(main, shared=True)
