"""The pictures of this folder from what `python figures` drew: `python docs/gallery/make.py runs/figures`.

One picture per figure, with at most 128 colours, so that the files are small.
"""

import sys
from pathlib import Path

from PIL import Image

PICTURES = {  # name here: which of the drawn ones, the first that is there
    "linear_connectivity": ("linear_connectivity_*sequential*", "linear_connectivity_*"),
    "paths_compared": ("paths_compared_*",),
    "plane": ("plane_*ilora*", "plane_*"),
    "slices_1d": ("slices_1d*",),
    "slices_2d": ("slices_2d*",),
    "stability_plasticity": ("stability_plasticity*",),
    "accuracy_matrices": ("accuracy_matrices*",),
    "scores_over_time": ("scores_over_time*",),
    "layers": ("layers_*sequential*", "layers_*"),
    "spectrum": ("spectrum*",),
    "eigenvalues": ("eigenvalues*",),
    "predicted_forgetting": ("predicted_forgetting*",),
    "ablations": ("ablations*",),
    "simplex": ("simplex_*",),
    "layer_attribution": ("layer_attribution_*sequential*_old*", "layer_attribution_*"),
}


def main(drawn: Path, gallery: Path) -> None:
    """Write the pictures that were drawn; those that were not stay as they are."""
    for name, patterns in PICTURES.items():
        found = [file for pattern in patterns for file in sorted(drawn.glob(f"{pattern}.png"))]
        if found:
            few = Image.open(found[0]).convert("RGB").quantize(128, dither=Image.Dither.NONE)
            few.save(gallery / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent)
