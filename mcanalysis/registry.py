"""Names found in a folder: a file is found by being there, and what it defines is asked for by name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Generic, TypeVar

from mcanalysis.errors import UnknownNameError

T = TypeVar("T")


def import_files(package: str) -> list[ModuleType]:
    """Import the files of a package, in the order of their names; folders in it are left out."""
    files = pkgutil.iter_modules(importlib.import_module(package).__path__)
    return [importlib.import_module(f"{package}.{file.name}") for file in files if not file.ispkg]


class Registry(Generic[T]):
    """What the files of a package define, by name; they are imported when it is first asked for.

    `attribute` of a file is something with a `name`, or a text, the name of the file's module itself; files without it
    are passed over. Where none is given, what files define is to `add` itself.

    >>> benchmarks = Registry("benchmark", "mcanalysis.benchmarks", "BENCHMARK")
    >>> benchmarks.names()
    ['embedded', 'ilora', 'trace']
    >>> benchmarks.get("ilroa")
    Traceback (most recent call last):
    mcanalysis.errors.UnknownNameError: Unknown benchmark 'ilroa'. Did you mean 'ilora'? Expected one of: embedded, ...
    """

    def __init__(self, kind: str, package: str, attribute: str = "", remedy: str = "") -> None:
        self.kind, self.package, self.attribute, self.remedy = kind, package, attribute, remedy
        self._things: dict[str, T] = {}
        self._searched = False

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self.all())

    def get(self, name: str) -> T:
        """What has the name; raises `UnknownNameError` that suggests the nearest name and ends with the `remedy`."""
        if name not in self.all():
            raise UnknownNameError(self.kind, name, self.all(), self.remedy)
        return self._things[name]

    def all(self) -> Mapping[str, T]:
        """Everything by name."""
        if not self._searched:
            self._things |= self.search()
            self._searched = True
        return self._things

    def add(self, name: str, thing: T) -> None:
        """Add a thing, in place of one of its name: a notebook's cell may be run again."""
        self._things[name] = thing

    def search(self) -> dict[str, T]:
        """Import the files and return what they define; raises `RuntimeError` for a name that two of them give."""
        found: dict[str, Any] = {}
        for module in import_files(self.package):
            if thing := getattr(module, self.attribute, None):
                name, value = (thing, module) if isinstance(thing, str) else (thing.name, thing)
                if name in found:
                    raise RuntimeError(f"Two files of {self.package} define the {self.kind} {name!r}.")
                found[name] = value
        return found
