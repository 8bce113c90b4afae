"""Several strategies × seeds in one table; runs that are not there yet are trained."""

from __future__ import annotations

from arguments import (
    Parser,
    add_run_flags,
    add_workers_flag,
    bar,
    comma_list,
    integers,
    quiet_libraries,
    run_config,
    run_script,
    typed,
    workers,
)


def main() -> None:
    parser = Parser(__doc__)
    add_run_flags(parser)
    parser.add_argument(
        "--strategy", type=comma_list, default=["sequential", "er", "ilora"], metavar="A,B", help="strategies"
    )
    parser.add_argument(
        "--seed", type=integers, default=[0, 1, 2], metavar="0,1,2", help="one run per strategy and seed"
    )
    parser.add_argument("--output-dir", default="runs", help="holds the run directories")
    add_workers_flag(parser)
    args = parser.parse()

    quiet_libraries()
    import reporting

    from mcanalysis.experiments.strategies import metrics_table, study_configs, train_runs

    base = run_config(args, args.strategy[0], args.seed[0], {})
    configs = study_configs(base, args.strategy, args.seed, typed(args.settings))
    runs = train_runs(
        configs, args.output_dir,
        resume=args.resume, device=args.device, workers=workers(args), progress=bar, initializer=quiet_libraries,
    )  # fmt: skip
    reporting.strategies(metrics_table(runs))


if __name__ == "__main__":
    run_script(main)
