"""What combining LoRA adapters must satisfy, asked of the installed PEFT's `add_weighted_adapter`, of mergekit where it
is installed, and of ours: what holds, and by how much the rest is off."""

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
