"""Is it skill that a transition costs, or the format of the answers? Loss by first token and rest, score by outputs
that can be read and right ones, at the ends of every transition and at a few points between.

With no flag: sequential fine-tuning and I-LoRA on the embedded base and benchmark.
"""

from __future__ import annotations

from start import run_script

from mcanalysis.cli.studies import run_study
from mcanalysis.studies.skill_or_format import SkillOrFormat


def main() -> None:
    run_study(SkillOrFormat, __doc__)


if __name__ == "__main__":
    run_script(main)
