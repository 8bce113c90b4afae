"""Loss and score along the paths between successive minima: train, measure, tabulate, draw.

With no flag: sequential fine-tuning, experience replay and I-LoRA on the embedded base and benchmark.
"""

from __future__ import annotations

from start import run_script

from mcanalysis.cli.console import bar, figure
from mcanalysis.cli.flags import Parser, comma_list, count_or_all, integers
from mcanalysis.cli.run_flags import (
    add_run_flags,
    add_workers_flags,
    engine,
    execution,
    limit_of_all,
    run_config,
    typed,
    workers,
)
from mcanalysis.cli.running import quiet_libraries


def main() -> None:
    parser = Parser(__doc__)
    add_run_flags(parser)
    parser.add_argument(
        "--strategy", type=comma_list, default=["sequential", "er", "ilora"], metavar="A,B", help="strategies"
    )
    parser.add_argument("--seed", type=integers, default=[0], metavar="0,1,2", help="one run per strategy and seed")
    parser.add_argument(
        "--output-dir", default=None, help="holds the run directories and comparison/ (default: runs, or runs/adapters)"
    )
    parser.add_argument("--run", action="append", metavar="DIR", help="a finished run to analyse; repeatable")
    parser.add_argument("--num-points", type=int, default=21, help="points on each path, both ends included")
    parser.add_argument("--num-examples", type=count_or_all, default=50, help="examples per task and split, or 'all'")
    paths = parser.group("paths")
    paths.add_argument(
        "--paths",
        type=comma_list,
        default=["linear-factor", "linear-delta", "bezier-factor"],
        metavar="PATH-SPACE,…",
        help="linear, bezier, polychain or, through all minima, segmented_bezier; in factor, delta or aligned space",
    )
    paths.add_argument(
        "--other-paths", type=comma_list, default=["linear-factor"], help="for all but the first strategy"
    )
    paths.add_argument("--num-bends", type=int, default=1, help="bends of a fitted curve (per segment)")
    paths.add_argument("--curve-steps", type=int, default=60, help="optimiser steps of each curve fit (per segment)")
    paths.add_argument(
        "--adaptive",
        type=float,
        metavar="TOL",
        help="measure where it helps, until loss barriers are known to TOL nats or --num-points are measured",
    )
    paths.add_argument(
        "--ensemble", type=int, nargs="?", const=5, default=0, metavar="N",
        help="average predictions over N points of each path (5): loss, accuracy, calibration",
    )  # fmt: skip
    paths.add_argument(
        "--simplex", type=integers, default=[], metavar="1,2,3", help="measure the simplex of these minima, by number"
    )
    add_workers_flags(parser)
    parser.add_argument(
        "--minima", type=comma_list, default=None, metavar="DIR1,DIR2", help="two PEFT adapters instead of runs"
    )
    parser.add_argument(
        "--data", type=comma_list, default=None, metavar="FILE[,FILE2]", help="with --minima: data to measure on"
    )
    parser.add_argument("--score", default=None, help="with --minima: how outputs are scored (default exact_match)")
    args = parser.parse()

    from dataclasses import replace

    from mcanalysis.errors import UserError
    from mcanalysis.studies.connectivity.settings import ConnectivitySettings

    if (args.minima is None) != (args.data is None):
        raise UserError("Expected --minima DIR1,DIR2 and --data FILE together, got one without the other; give both.")
    settings = ConnectivitySettings(
        num_points=args.num_points,
        num_examples=args.num_examples,
        paths=tuple(args.paths),
        curve_steps=args.curve_steps,
        num_bends=args.num_bends,
        adaptive=args.adaptive,
        ensemble=args.ensemble or 0,
        simplex=tuple(args.simplex),
    )
    output_dir = args.output_dir or ("runs/adapters" if args.minima else "runs")
    quiet_libraries()
    from mcanalysis.cli import reporting
    from mcanalysis.runs.run import load_run
    from mcanalysis.studies.adapters import connect_adapters
    from mcanalysis.studies.connectivity.study import Study, analyse_connectivity, study_connectivity
    from mcanalysis.studies.strategies import need_paths, study_configs

    study = Study(
        settings,
        other_paths=replace(settings, paths=tuple(args.other_paths)).paths,
        main=args.strategy[0] if args.strategy else "",
        resume=args.resume,
        device=args.device,
        workers=workers(args),
        execution=execution(args),
    )
    if args.minima:
        result = connect_adapters(
            args.minima, args.model, args.data, output_dir, settings,
            dtype=args.dtype, device=args.device, engine=engine(args), score=args.score,
            max_new_tokens=limit_of_all(args), max_length=args.max_length, progress=bar, on_figure=figure,
        )  # fmt: skip
    elif args.run:
        runs = [load_run(directory, args.device, engine(args)) for directory in args.run]
        study = replace(study, main=runs[0].strategy)
        result = analyse_connectivity(runs, output_dir, study, progress=bar, on_figure=figure)
    else:
        need_paths(args.strategy)
        base = run_config(args, args.strategy[0], args.seed[0], {})
        configs = study_configs(base, args.strategy, args.seed, typed(args.settings))
        result = study_connectivity(
            configs, output_dir, study, progress=bar, on_figure=figure, initializer=quiet_libraries
        )
    reporting.connectivity(result)


if __name__ == "__main__":
    run_script(main, shared=True)
