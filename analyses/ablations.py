"""Ablations: a strategy with one setting changed at a time, over seeds; what is missing is trained, a table is printed.

With no flag: EMA decay, consistency weight and buffer size of I-LoRA, on four tasks of the embedded benchmark, 100
steps each, two seeds. `python figures --only ablations` draws them.
"""

from __future__ import annotations

from start import run_script

from mcanalysis.cli.console import answer
from mcanalysis.cli.flags import Parser
from mcanalysis.cli.run_flags import add_run_flags, add_workers_flag, run_config, shorten, typed, varied
from mcanalysis.cli.running import quiet_libraries
from mcanalysis.cli.studies import speak, trained_runs
from mcanalysis.studies.ablations import Ablations
from mcanalysis.studies.strategies import run_directories


def main() -> None:
    parser = Parser(__doc__)
    add_run_flags(parser)
    parser.add_settings(Ablations)
    parser.add_argument(
        "--vary", action="append", metavar="NAME=V1,V2", help="a setting and its other values; repeatable"
    )
    add_workers_flag(parser)
    args = parser.parse()
    ablations = parser.settings(Ablations, args, varied=varied(args.vary or ()))
    if args.benchmark == "embedded" and args.tasks is None:
        shorten(args)
    quiet_libraries()
    tried = ablations.variants(run_config(args, args.strategy, ablations.seed[0], typed(args.settings)))
    configs = [variant.config for variant in tried]
    directories = run_directories(configs, args.output_dir, [variant.name for variant in tried])
    table = ablations.table(trained_runs(args, configs, directories))
    speak(ablations.words(table))
    answer({"ablations": table})


if __name__ == "__main__":
    run_script(main)
