"""A first look at a path: its losses to a stated tolerance, from as few examples as that takes.

With no flag: the first transition of sequential fine-tuning on the embedded base and benchmark.
"""

from __future__ import annotations

from start import run_script

from mcanalysis.cli.studies import run_study
from mcanalysis.studies.early import Early


def main() -> None:
    run_study(Early, __doc__)


if __name__ == "__main__":
    run_script(main)
