"""Names found in a folder and in installed packages: what is there is found by being there, and asked for by name."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from mcanalysis.errors import UnknownNameError, UserError

T = TypeVar("T")


def import_files(package: str) -> list[ModuleType]:
    """Import the files of a package, in the order of their names; folders in it are left out."""
    files = pkgutil.iter_modules(importlib.import_module(package).__path__)
    return [importlib.import_module(f"{package}.{file.name}") for file in files if not file.ispkg]


def first_line(source: str, name: str = "") -> str:
    """The first line that a module's text says about the class of a name in it, or about itself.

    >>> first_line("'''A file.'''\\nclass A:\\n    '''One of them.'''", "A")
    'One of them.'
    """
    module = ast.parse(source)
    of_class = [ast.get_docstring(node) for node in module.body if isinstance(node, ast.ClassDef) and node.name == name]
    said = next(filter(None, of_class), None) or ast.get_docstring(module) or ""
    return said.partition("\n")[0]


def unimported(module: str) -> str:
    """The text of a module's file, without importing it or what it lies in; raises `ImportError` where none is found.

    >>> first_line(unimported("json.tool")).startswith("Command-line tool")
    True
    """
    outer, *inner = module.split(".")
    spec, path = importlib.util.find_spec(outer), outer
    for part in inner:
        path = f"{path}.{part}"
        spec = PathFinder.find_spec(path, spec.submodule_search_locations) if spec else None
    if spec is None or not spec.has_location or spec.origin is None:
        raise ImportError(f"No file of the module {module}.")
    return Path(spec.origin).read_text("utf-8")


class Registry(Generic[T]):
    """What the files of a package define, by name; they are imported when it is first asked for.

    `attribute` of a file is something with a `name`, or a text, the name of the file's module itself; files without it
    are passed over. Where none is given, what files define is to `add` itself.

    `group`: other installed packages give more by an entry point of this group, `NAME = module` or
    `NAME = module:object`, where a module is read as a file of ours is. They are looked up only for a name that no file
    of ours has, and imported only when asked for by name: a package that is broken keeps nobody else from working.

    >>> benchmarks = Registry("benchmark", "mcanalysis.benchmarks", "BENCHMARK", group="mcanalysis.benchmarks")
    >>> benchmarks.names()
    ['embedded', 'ilora', 'long', 'standard', 'study', 'superni', 'trace']
    >>> benchmarks.get("ilroa")
    Traceback (most recent call last):
    mcanalysis.errors.UnknownNameError: Unknown benchmark 'ilroa'. Did you mean 'ilora'? Expected one of: embedded, ...
    """

    mismatch = "give entry point and name one name"
    """What to do where an entry point leads to no such thing."""

    def __init__(self, kind: str, package: str, attribute: str = "", remedy: str = "", group: str = "") -> None:
        self.kind, self.package, self.attribute, self.remedy, self.group = kind, package, attribute, remedy, group
        self._loaders: dict[str, Callable[[], T]] = {}
        self._searched = False

    def names(self) -> list[str]:
        """All names, sorted: of our files, of what was added, and of other packages, which are not imported."""
        return sorted({*self._own(), *(entry.name for entry in self._entry_points())})

    def get(self, name: str) -> T:
        """What has the name; raises `UnknownNameError` that suggests the nearest name and ends with the `remedy`.

        Raises `UserError` in one line that names the package where another package's cannot be had, or two give it.
        """
        own = self._own()
        if name not in own:
            entries = self._entry_points(name)
            if not entries:
                raise UnknownNameError(self.kind, name, self.names(), self.remedy)
            self.add(name, self._load(name, entries))
        return own[name]()

    def summary(self, name: str) -> str:
        """The first line of what another package says about what it gives, read without importing it; "" for none."""
        try:
            entry = self._entry_points(name)[0]
            return first_line(unimported(entry.module), entry.attr)
        except Exception:  # whatever is wrong with a package is said when it is asked for, and spoils no list
            return ""

    def all(self) -> Mapping[str, T]:
        """Everything of our files, and what was added, by name."""
        return {name: load() for name, load in self._own().items()}

    def add(self, name: str, thing: T) -> None:
        """Add a thing, in place of one of its name: a notebook's cell may be run again."""
        self._loaders[name] = lambda: thing

    def search(self) -> dict[str, Callable[[], T]]:
        """Import the files; how to get what they define. Raises `RuntimeError` for a name that two of them give."""
        found: dict[str, Any] = {}
        for module in import_files(self.package):
            if thing := getattr(module, self.attribute, None):
                name, value = (thing, module) if isinstance(thing, str) else (thing.name, thing)
                if name in found:
                    raise RuntimeError(f"Two files of {self.package} define the {self.kind} {name!r}.")
                found[name] = lambda value=value: value
        return found

    def chosen(self, found: Any, name: str) -> T | None:
        """Of what an entry point leads to, itself or something in a module, what has the name; None where nothing."""
        things: list[Any] = [found]
        if isinstance(found, ModuleType):
            classes: list[Any] = [thing for thing in vars(found).values() if isinstance(thing, type)]
            things = [getattr(found, self.attribute, None)] if self.attribute else classes
        return next((thing for thing in things if getattr(thing, "name", None) == name), None)

    def _own(self) -> dict[str, Callable[[], T]]:
        if not self._searched:
            self._loaders |= self.search()
            self._searched = True
        return self._loaders

    def _entry_points(self, name: str | None = None) -> list[metadata.EntryPoint]:
        if not self.group:
            return []
        found = metadata.entry_points(group=self.group)
        return [entry for entry in found if name in (None, entry.name)]

    def _load(self, name: str, entries: list[metadata.EntryPoint]) -> T:
        packages = sorted(entry.dist.name if entry.dist else entry.module for entry in entries)
        if len(entries) > 1:
            raise UserError(
                f"Expected one {self.kind} called {name}, got one each from the packages {' and '.join(packages)}; "
                "uninstall all but one."
            )
        (entry,), (package,) = entries, packages
        before = dict(self._loaders)
        try:
            found = entry.load()
        except Exception as error:  # whatever a package of someone else raises
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(
                f"Expected the package {package} to give the {self.kind} {name} ({entry.value}), got {text}; repair "
                "the package or uninstall it."
            ) from error
        finally:
            self._loaders |= before  # a class adds itself: under a name of ours it does not take the place of ours
        thing = self.chosen(found, name)
        if thing is None:
            raise UserError(
                f"Expected a {self.kind} called {name} at {entry.value} of the package {package}, got none; "
                f"{self.mismatch}."
            )
        return thing
