"""Paths between minima; every file here that defines a `Path` with a `name` adds one.

So does an installed package that declares one under the entry point group `mcanalysis.paths`.
"""

from mcanalysis.paths.base import Curve, Path, get_path, path_names
from mcanalysis.paths.bezier import Bezier
from mcanalysis.paths.linear import Linear
from mcanalysis.paths.merges import Dare, Karcher, MagMax, Merge, Slerp, TaskArithmetic, Ties
from mcanalysis.paths.plane import Plane
from mcanalysis.paths.polychain import PolyChain
from mcanalysis.paths.segmented_bezier import SegmentedBezier
from mcanalysis.paths.simplex import Simplex

__all__ = [
    "Bezier",
    "Curve",
    "Dare",
    "Karcher",
    "Linear",
    "MagMax",
    "Merge",
    "Path",
    "Plane",
    "PolyChain",
    "SegmentedBezier",
    "Simplex",
    "Slerp",
    "TaskArithmetic",
    "Ties",
    "get_path",
    "path_names",
]
