"""Curvature at the minima of runs, and whether it foretells forgetting: eigenvalues, trace, spectrum; tables, figures.

With no flag: sequential fine-tuning, experience replay and I-LoRA on the embedded base and benchmark.
"""

from __future__ import annotations

from start import run_script

from mcanalysis.cli.studies import run_study
from mcanalysis.studies.curvature import Curvature


def main() -> None:
    run_study(Curvature, __doc__)


if __name__ == "__main__":
    run_script(main)
