"""The identities that paths, spaces and barriers must meet, computed now in float64: the error reached and its bound.

Exit code 1 if one of them is missed.
"""

from __future__ import annotations

import sys

from start import run_script

from mcanalysis.cli.flags import Parser


def main() -> None:
    Parser(__doc__).parse()

    from mcanalysis.cli import reporting
    from mcanalysis.closed_forms import check_closed_forms

    found = check_closed_forms()
    reporting.closed_forms(found)
    sys.exit(0 if found.holds.all() else 1)


if __name__ == "__main__":
    run_script(main)
