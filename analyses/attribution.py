"""Which layers and which kinds of module make the barrier between two successive minima: each alone along the path.

With no flag: the first transition of sequential fine-tuning and I-LoRA on the embedded base and benchmark.
"""

from __future__ import annotations

from start import run_script

from mcanalysis.cli.studies import run_study
from mcanalysis.studies.attribution import Attribution


def main() -> None:
    run_study(Attribution, __doc__, unsaid=("attribution",))


if __name__ == "__main__":
    run_script(main)
