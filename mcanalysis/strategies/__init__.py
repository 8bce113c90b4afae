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
from dataclasses import fields
from typing import Any

from mcanalysis.errors import UnknownNameError
from mcanalysis.strategies.strategy import Strategy

SEARCH_PATH = "MCANALYSIS_STRATEGY_PATH"
ENTRY_POINTS = "mcanalysis.strategies"
__path__ += [folder for folder in os.environ.get(SEARCH_PATH, "").split(os.pathsep) if folder]


@functools.cache
def _registry() -> Mapping[str, type[Strategy]]:
    found: dict[str, type[Strategy]] = {}
    for module in pkgutil.iter_modules(__path__):
        for _, kind in inspect.getmembers(importlib.import_module(f"{__name__}.{module.name}"), inspect.isclass):
            if issubclass(kind, Strategy) and kind is not Strategy and kind.__module__ == f"{__name__}.{module.name}":
                found[kind.name] = kind
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        kind = entry_point.load()
        found[kind.name] = kind
    return found


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
        raise UnknownNameError("strategy", name, _registry())
    return _registry()[name]


def make_strategy(name: str, seed: int, **settings: Any) -> Strategy:
    """A strategy with its defaults, overridden by `settings`; unknown settings raise `UnknownNameError`.

    >>> make_strategy("er", seed=0, memory_size=30).config.memory_size
    30
    """
    kind = get_strategy(name)
    known = [f.name for f in fields(kind.config_class)]
    for setting in settings:
        if setting not in known:
            raise UnknownNameError(f"setting of {name}", setting, known or ["(it has none)"])
    return kind(kind.config_class(**settings), seed)
