"""Train one strategy on a sequence of tasks; writes a run directory with minima, accuracy matrix and metrics."""

from __future__ import annotations

from start import run_script

from mcanalysis.cli.console import bar, is_main_process
from mcanalysis.cli.flags import Parser
from mcanalysis.cli.run_flags import add_general_flags, add_run_flags, execution, general, run_config, typed
from mcanalysis.cli.running import quiet_libraries


def main() -> None:
    parser = Parser(__doc__)
    add_run_flags(parser)
    add_general_flags(parser)
    parser.add_argument("--strategy", default="ilora", help="the method")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output-dir", default=None, help="the run directory (default: runs/<benchmark>-<strategy>-seed<n>)"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done and needed, and write nothing")
    args = parser.parse()

    quiet_libraries()
    from pathlib import Path

    from mcanalysis.cli import run_reporting
    from mcanalysis.runs.run import load_run
    from mcanalysis.studies.strategies import run_name
    from mcanalysis.training.continual_trainer import train
    from mcanalysis.training.dry_run import dry_run

    config = run_config(args, args.strategy, args.seed, typed(args.settings))
    how, named = execution(args), general(args)
    if args.dry_run:
        if is_main_process():
            run_reporting.dry_run(dry_run(config, how, general=named.load() if named else ()))
        return
    directory = args.output_dir or f"runs/{run_name(config)}"
    if args.resume and is_main_process() and not Path(directory).exists():
        run_reporting.starting_anew(directory)
    train(config, directory, resume=args.resume, execution=how, progress=bar, general=named or ())
    if is_main_process():
        run_reporting.run(load_run(directory))


if __name__ == "__main__":
    run_script(main, launched=True)
