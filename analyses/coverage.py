"""How often every 95 % interval of the package holds the truth, by simulation of populations that are known.

About seven minutes on one core, a third of it for populations that the intervals were not made with. Exit code 1 if an
interval misses one of the bars stated in docs/coverage.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

from start import run_script

from mcanalysis.cli.console import bar
from mcanalysis.cli.flags import Parser, whole


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="few samples of two sizes: that it works, no evidence")
    parser.add_argument(
        "--trials", type=whole(1, 1_000_000), default=None, help="samples of each population (200; --quick: 12)"
    )
    parser.add_argument("--output-dir", default="runs/coverage", help="for coverage.csv and coverage.md")
    parser.add_argument(
        "--certificates",
        type=whole(1, 1_000_000),
        metavar="N",
        help="instead: certificates of barriers of N random profiles; resumes",
    )
    args = parser.parse()

    from mcanalysis.cli import reporting
    from mcanalysis.coverage import study

    if args.certificates is not None:
        from mcanalysis.coverage.certificates import table, trials

        file = Path(args.output_dir) / "certificates.jsonl"
        reporting.certificates(table(trials(args.certificates, file, bar)), args.output_dir)
        return

    trials = args.trials or (12 if args.quick else study.NUM_TRIALS)
    table = study.coverage_table(trials, (50, 100) if args.quick else study.SIZES, progress=bar)
    missed = reporting.coverage(table, args.output_dir)
    sys.exit(1 if len(missed) and not args.quick else 0)


if __name__ == "__main__":
    run_script(main)
