"""Which identities PEFT's, mergekit's and our ways to combine LoRA adapters hold, and by how much they miss others.

PEFT is asked as it is installed, mergekit where it is. Always ends with exit code 0: what others violate is the answer.
"""

from __future__ import annotations

from start import run_script

from mcanalysis.cli.flags import Parser


def main() -> None:
    Parser(__doc__).parse()

    from mcanalysis.cli import reporting
    from mcanalysis.models.check_merge import check_merge

    reporting.check_merge(check_merge())


if __name__ == "__main__":
    run_script(main)
