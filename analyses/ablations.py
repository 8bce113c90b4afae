"""Ablations: a strategy with one setting changed at a time, over seeds; what is missing is trained, a table is printed.

With no flag: EMA decay, consistency weight and buffer size of I-LoRA, on four tasks of the embedded benchmark, 100
steps each, two seeds. `python figures --only ablations` draws them.
"""

from __future__ import annotations

from start import run_script

from mcanalysis.cli.comparisons import run_ablations


def main() -> None:
    run_ablations(__doc__)


if __name__ == "__main__":
    run_script(main)
