"""Planes through minima, slices around them and their sharpness: train what is missing, measure, tabulate, draw.

With no flag: sequential fine-tuning and I-LoRA on the embedded base and benchmark, about the second transition.
"""

from __future__ import annotations

from start import run_script

from mcanalysis.cli.studies import run_study
from mcanalysis.studies.landscape.study import Landscape


def main() -> None:
    run_study(Landscape, __doc__)


if __name__ == "__main__":
    run_script(main)
