"""Ablations: a strategy with one setting changed at a time, over seeds; what is missing is trained, a table is printed.

With no flag: EMA decay, consistency weight and buffer size of I-LoRA, on four tasks of the embedded benchmark, 100
steps each, two seeds. `python figures --only ablations` draws them.
"""

from __future__ import annotations

from start import run_script

from mcanalysis.cli.console import bar
from mcanalysis.cli.flags import Parser, comma_list, integers
from mcanalysis.cli.run_flags import add_run_flags, add_workers_flags, execution, run_config, typed, workers
from mcanalysis.cli.running import quiet_libraries


def main() -> None:
    parser = Parser(__doc__)
    add_run_flags(parser)
    parser.add_argument("--strategy", default="ilora", help="the method")
    parser.add_argument("--seed", type=integers, default=[0, 1], metavar="0,1", help="seeds")
    parser.add_argument(
        "--vary", action="append", metavar="NAME=V1,V2", help="a setting and its other values; repeatable"
    )
    parser.add_argument("--output-dir", default="runs/ablations", help="holds the run directories and ablations.csv")
    add_workers_flags(parser)
    args = parser.parse()

    quiet_libraries()
    from mcanalysis.benchmarks import get_benchmark
    from mcanalysis.cli import run_reporting
    from mcanalysis.errors import UserError
    from mcanalysis.studies.ablations import VARIED, variants, write_ablations
    from mcanalysis.studies.strategies import train_runs

    if args.vary is None and args.strategy != "ilora":
        raise UserError(f"Expected --vary NAME=V1,V2 with --strategy {args.strategy}, got none; say what to vary.")
    varied = {name: list(values) for name, values in VARIED.items()} if args.vary is None else {}
    for text in args.vary or ():
        name, _, values = text.partition("=")
        if not values:
            raise UserError(f"Expected --vary NAME=V1,V2, got '{text}'; name a setting and its values.")
        varied[name.strip()] = [typed({name: value})[name] for value in comma_list(values)]
    if args.benchmark == "embedded" and args.tasks is None:
        args.tasks = get_benchmark("embedded").tasks[:4]
        args.steps = 100 if args.steps is None else args.steps
    base = run_config(args, args.strategy, args.seed[0], typed(args.settings))
    tried = variants(base, varied, args.seed)
    runs = train_runs(
        [variant.config for variant in tried], args.output_dir, names=[variant.name for variant in tried],
        resume=args.resume, execution=execution(args), workers=workers(args), progress=bar, initializer=quiet_libraries,
    )  # fmt: skip
    run_reporting.ablations(write_ablations(runs, list(varied), args.output_dir), args.output_dir)


if __name__ == "__main__":
    run_script(main, shared=True)
