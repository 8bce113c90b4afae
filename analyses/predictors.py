"""What predicts forgetting, barrier and gain of a transition: signals, ranked by how well they order unseen runs.

With no flag: every signal on runs of six strategies on the embedded base and benchmark.
"""

from __future__ import annotations

from start import run_script

from mcanalysis.cli.studies import run_study
from mcanalysis.studies.predictors import Predictors


def main() -> None:
    run_study(Predictors, __doc__, unsaid=("signals",))


if __name__ == "__main__":
    run_script(main)
