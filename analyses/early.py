"""A first look at a path: its losses to a stated tolerance, from as few examples as that takes.

With no flag: the first transition of sequential fine-tuning on the embedded base and benchmark.
"""

from __future__ import annotations

from start import run_script

from mcanalysis.cli.console import bar
from mcanalysis.cli.flags import Parser
from mcanalysis.cli.run_flags import add_study_flags, study_runs
from mcanalysis.cli.running import quiet_libraries


def main() -> None:
    parser = Parser(__doc__)
    add_study_flags(parser, ["sequential"])
    parser.add_argument("--transition", type=int, default=1, help="number of the minimum that the path starts from")
    parser.add_argument("--space", default="factor", help="factor, delta or aligned")
    parser.add_argument("--num-points", type=int, default=11, help="points on the path, both ends included")
    parser.add_argument("--split", default="test", help="train, eval or test")
    parser.add_argument("--tolerance", type=float, default=0.05, help="nats per target token")
    parser.add_argument("--confidence", type=float, default=0.95, help="that no loss of any task is farther off")
    args = parser.parse()

    from mcanalysis.studies.early import EarlySettings, look_early

    settings = EarlySettings(args.transition, args.space, args.num_points, args.split, args.tolerance, args.confidence)
    quiet_libraries()
    from mcanalysis.cli import reporting

    runs = study_runs(args)
    reporting.early([look_early(run, settings, progress=bar) for run in runs], settings)


if __name__ == "__main__":
    run_script(main)
