"""Does interpolation earn its place? The study of STUDY.md: runs, paths between their minima, tables with intervals.

It takes hours: a call begins no run after 100 minutes, and what is there counts as done. `--quick` makes a small
version of every table in minutes.
"""

from __future__ import annotations

from start import run_script

from mcanalysis.cli.the_study import run_the_study


def main() -> None:
    run_the_study(__doc__)


if __name__ == "__main__":
    run_script(main)
