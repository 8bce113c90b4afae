"""Which path finder connects which pair of successive minima, at what cost: success on test losses against gradients.

With no flag: eight curves on sequential fine-tuning, replay and I-LoRA on the embedded base and benchmark.
"""

from __future__ import annotations

from start import run_script

from mcanalysis.cli.studies import run_study
from mcanalysis.studies.finders import Finders


def main() -> None:
    run_study(Finders, __doc__, unsaid=("finders",))


if __name__ == "__main__":
    run_script(main)
