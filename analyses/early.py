"""A first look at a path: its losses to a stated tolerance, from as few examples as that takes.

With no flag: the first transition of sequential fine-tuning on the embedded base and benchmark.
"""

from __future__ import annotations

from start import run_script

from mcanalysis.cli.console import bar
from mcanalysis.cli.flags import Parser
from mcanalysis.cli.run_flags import add_study_flags, study_runs
from mcanalysis.cli.running import quiet_libraries
from mcanalysis.studies.early import EarlySettings, look_early


def main() -> None:
    parser = Parser(__doc__)
    add_study_flags(parser, ["sequential"])
    parser.add_settings(EarlySettings)
    args = parser.parse()

    settings = parser.settings(EarlySettings, args)
    quiet_libraries()
    from mcanalysis.cli import reporting

    runs = study_runs(args)
    reporting.early([look_early(run, settings, progress=bar) for run in runs], settings)


if __name__ == "__main__":
    run_script(main)
