"""Every figure of the paper from finished runs: pictures, captions (.txt) and the data in them (.csv).

What is missing is named with the command that measures it, and the rest is drawn; with --measure it is measured first.
"""

import sys
from pathlib import Path

try:
    from mcanalysis.cli.figures import main
except ModuleNotFoundError as error:
    if error.name != "mcanalysis":
        raise
    sys.stderr.write(
        "error: Expected the package mcanalysis, got none in this Python; do source .venv/bin/activate first, or use "
        ".venv/bin/python.\n"
    )
    sys.exit(2)

if __name__ == "__main__":
    main(sorted(file.stem for file in Path(__file__).parent.glob("[!_]*.py")), __doc__, group="mcanalysis.figures")
