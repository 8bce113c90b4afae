"""The spaces in which minima are joined; every file here that defines a `Space` with a `name` adds one."""

import importlib
import pkgutil

from mcanalysis.params.spaces.aligned import AlignedSpace
from mcanalysis.params.spaces.base import Space, get_space, space_names
from mcanalysis.params.spaces.delta import DeltaSpace
from mcanalysis.params.spaces.factor import FactorSpace

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["AlignedSpace", "DeltaSpace", "FactorSpace", "Space", "get_space", "space_names"]
