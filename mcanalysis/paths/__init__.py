"""Paths between minima; every file here that defines a `Path` with a `name` adds one.

So does an installed package that declares one under the entry point group `mcanalysis.paths`.
"""

from mcanalysis.paths.base import Curve, Path, get_path, path_names
from mcanalysis.paths.bezier import Bezier
from mcanalysis.paths.linear import Linear
from mcanalysis.paths.plane import Plane
from mcanalysis.paths.polychain import PolyChain
from mcanalysis.paths.segmented_bezier import SegmentedBezier
from mcanalysis.paths.simplex import Simplex

__all__ = [
    "Bezier",
    "Curve",
    "Linear",
    "Path",
    "Plane",
    "PolyChain",
    "SegmentedBezier",
    "Simplex",
    "get_path",
    "path_names",
]
