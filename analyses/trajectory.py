"""The way that training took, on the plane in which it moved most, and losses of old and new tasks along it.

With no flag: sequential fine-tuning and I-LoRA on the embedded base and benchmark.
"""

from __future__ import annotations

from start import run_script

from mcanalysis.cli.studies import run_study
from mcanalysis.studies.trajectory import Trajectory


def main() -> None:
    run_study(Trajectory, __doc__)


if __name__ == "__main__":
    run_script(main)
