"""Every figure of the paper from finished runs: pictures, captions (.txt) and the data in them (.csv).

Nothing is measured here; what is missing is named with the command that measures it, and the rest is drawn.
"""

import sys

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

FIGURES = (
    "linear_connectivity",
    "paths_compared",
    "plane",
    "slices",
    "stability_plasticity",
    "accuracy_over_time",
    "layers",
    "curvature",
    "ablations",
    "simplex",
    "layer_attribution",
)

if __name__ == "__main__":
    main(FIGURES, __doc__)
