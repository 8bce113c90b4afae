"""Each strategy at its best: the same number of trials of its settings, scored on the eval split.

With no flag: every strategy, 8 trials each, on four tasks of the embedded benchmark, 100 steps each. It writes
runs/tuning/tuned.yaml, which `compare.py --tuned` reads.
"""

from __future__ import annotations

from start import run_script

from mcanalysis.cli.comparisons import run_tuning


def main() -> None:
    run_tuning(__doc__)


if __name__ == "__main__":
    run_script(main)
