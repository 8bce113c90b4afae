"""Whether the files of runs are as they were written, and what can be had again of those that are not.

Reads only. Ends with exit code 0 where nothing is damaged or missing, else with 1.
"""

from __future__ import annotations

import sys

from start import run_script

from mcanalysis.cli.flags import Parser


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run directory, finished or not")
    args = parser.parse()

    from mcanalysis.cli.reporting import verified
    from mcanalysis.runs.verify import verify

    if not verified({run: verify(run) for run in args.runs}):
        sys.exit(1)


if __name__ == "__main__":
    run_script(main)
