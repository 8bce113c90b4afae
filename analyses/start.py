"""How a script starts: with the package, or in a Python without it with one line and exit code 2."""

from __future__ import annotations

import sys

try:
    from mcanalysis.cli.running import run_script
except ModuleNotFoundError as error:
    if error.name != "mcanalysis":
        raise
    sys.stderr.write(
        "error: Expected the package mcanalysis, got none in this Python; do source .venv/bin/activate first, or use "
        ".venv/bin/python.\n"
    )
    sys.exit(2)

__all__ = ["run_script"]
