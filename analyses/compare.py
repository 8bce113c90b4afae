"""Several strategies × seeds in one table; runs that are not there yet are trained.

With no flag: every strategy on four tasks of the embedded benchmark, 100 steps each, three seeds.
"""

from __future__ import annotations

from start import run_script

from mcanalysis.cli.comparisons import run_comparison


def main() -> None:
    run_comparison(__doc__)


if __name__ == "__main__":
    run_script(main)
