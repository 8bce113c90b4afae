"""The spaces in which minima are joined; every file here that defines a `Space` with a `name` adds one."""

from mcanalysis.params.spaces.aligned import AlignedSpace
from mcanalysis.params.spaces.base import Space, get_space, space_names
from mcanalysis.params.spaces.delta import DeltaSpace
from mcanalysis.params.spaces.factor import FactorSpace

__all__ = ["AlignedSpace", "DeltaSpace", "FactorSpace", "Space", "get_space", "space_names"]
