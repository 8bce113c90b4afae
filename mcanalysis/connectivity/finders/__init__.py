"""How the bends of a curve are found; every file here that defines a `Finder` with a `name` adds one.

So does an installed package that declares one under the entry point group `mcanalysis.finders`.
"""

from mcanalysis.connectivity.finders.base import Finder, Fit, StagedFinder, finder_names, get_finder

__all__ = ["Finder", "Fit", "StagedFinder", "finder_names", "get_finder"]
