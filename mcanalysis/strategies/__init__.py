"""Continual-learning strategies, one file per method: a module here with a `Strategy` subclass is found by itself.

So is one in a folder named by the environment variable MCANALYSIS_STRATEGY_PATH (folders separated as in PATH), and a
class that an installed package declares under the entry point group `mcanalysis.strategies`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import inspect
import os
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints

from mcanalysis.errors import UnknownNameError, UserError
from mcanalysis.strategies.strategy import Strategy

SEARCH_PATH = "MCANALYSIS_STRATEGY_PATH"
ENTRY_POINTS = "mcanalysis.strategies"
__path__ += [folder for folder in os.environ.get(SEARCH_PATH, "").split(os.pathsep) if folder]


@functools.cache
def _registry() -> Mapping[str, type[Strategy]]:
    found: dict[str, type[Strategy]] = {}
    own, *others = __path__
    names = {module.name for module in pkgutil.iter_modules([own])}
    for name in sorted(names):
        _add(found, importlib.import_module(f"{__name__}.{name}"))
    for folder in others:
        if not Path(folder).is_dir():
            raise UserError(f"Expected a folder in {SEARCH_PATH}, got '{folder}'; mend the variable.")
        for module in pkgutil.iter_modules([folder]):
            file = f"{folder}/{module.name}.py"
            if module.name in names:
                raise UserError(f"Expected a strategy file of another name, got a second {module.name}; rename {file}.")
            names.add(module.name)
            try:
                _add(found, importlib.import_module(f"{__name__}.{module.name}"))
            except UserError as error:
                raise UserError(f"{error} (in {file})") from None
            except Exception as error:  # whatever a file of someone else raises
                raise UserError(
                    f"Expected a strategy file that can be imported, got {type(error).__name__}: {error}; mend {file}, "
                    f"or take its folder out of {SEARCH_PATH}."
                ) from error
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        _register(found, entry_point.load())
    return found


def _add(found: dict[str, type[Strategy]], module: ModuleType) -> None:
    for _, kind in inspect.getmembers(module, inspect.isclass):
        if issubclass(kind, Strategy) and kind is not Strategy and kind.__module__ == module.__name__:
            _register(found, kind)


def _register(found: dict[str, type[Strategy]], kind: type[Strategy]) -> None:
    name = getattr(kind, "name", None)
    if not isinstance(name, str):
        raise UserError(f'Expected a strategy with a name, got {kind.__name__} without; write name = "…" in it.')
    if name in found:
        raise UserError(f"Expected strategies of different names, got two called {name}; rename {kind.__name__}.")
    schedules = get_args(get_type_hints(Strategy)["schedule"])[0]
    if kind.schedule not in get_args(schedules):
        raise UserError(
            f"Expected schedule of {name} to be one of {', '.join(get_args(schedules))}, got {kind.schedule!r}; change "
            f"{kind.__name__}."
        )
    found[name] = kind


def strategy_names() -> list[str]:
    """Names of all strategies, sorted.

    >>> strategy_names()[:3]
    ['agem', 'cls_er', 'er']
    """
    return sorted(_registry())


def get_strategy(name: str) -> type[Strategy]:
    """The strategy class of a name; raises `UnknownNameError` that suggests the nearest.

    >>> get_strategy("ilora").learners
    ('fast', 'slow')
    """
    if name not in _registry():
        remedy = f"One of your own is found through {SEARCH_PATH}."
        raise UnknownNameError("strategy", name, _registry(), remedy)
    return _registry()[name]


def make_strategy(name: str, seed: int, **settings: Any) -> Strategy:
    """A strategy with its defaults, overridden by `settings`; raises as `StrategyConfig.of` does.

    >>> make_strategy("er", seed=0, memory_size=30).config.memory_size
    30
    """
    kind = get_strategy(name)
    return kind(kind.config_class.of(name, settings), seed)
