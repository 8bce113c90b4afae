"""How alike the minima of runs are: in their weights, in their hidden states, in their answers; tables and figures.

With no flag: sequential fine-tuning, experience replay and I-LoRA on the embedded base and benchmark.
"""

from __future__ import annotations

from start import run_script

from mcanalysis.cli.studies import run_study
from mcanalysis.studies.similarity import Similarity


def main() -> None:
    run_study(Similarity, __doc__)


if __name__ == "__main__":
    run_script(main)
