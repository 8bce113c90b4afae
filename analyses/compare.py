"""Several strategies × seeds in one table; runs that are not there yet are trained.

With no flag: every strategy on four tasks of the embedded benchmark, 100 steps each, three seeds.
"""

from __future__ import annotations

from start import run_script

from mcanalysis.cli.console import answer
from mcanalysis.cli.flags import Parser
from mcanalysis.cli.run_flags import add_general_flags, add_run_flags, add_workers_flag, run_config, shorten, typed
from mcanalysis.cli.running import quiet_libraries
from mcanalysis.cli.studies import speak, trained_runs
from mcanalysis.studies.comparison import Comparison
from mcanalysis.studies.strategies import run_directories


def main() -> None:
    parser = Parser(__doc__)
    add_run_flags(parser)
    add_general_flags(parser)
    parser.add_settings(Comparison)
    add_workers_flag(parser)
    args = parser.parse()
    comparison = parser.settings(Comparison, args)
    if comparison.is_short(args.benchmark):
        shorten(args)
    quiet_libraries()
    from mcanalysis.studies.strategy_tables import summary_table, write_comparison

    configs = comparison.configs(run_config(args, "sequential", comparison.seed[0], {}), typed(args.settings))
    folder = comparison.folder(args.benchmark)
    runs = trained_runs(args, configs, run_directories(configs, folder))
    metrics = write_comparison(runs, folder)
    speak(comparison.words(runs, metrics, folder))
    answer({"strategies": metrics, "summary": summary_table(metrics)}, runs=[str(run.directory) for run in runs])


if __name__ == "__main__":
    run_script(main)
