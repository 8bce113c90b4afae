"""Continual-learning strategies, one file per method: a file here with a `Strategy` of the same name is one.

So is a `Strategy` in a folder named by the environment variable MCANALYSIS_STRATEGY_PATH (folders separated as in
PATH), and a class that an installed package declares under the entry point group `mcanalysis.strategies`.
"""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcanalysis.errors import UserError
from mcanalysis.registry import Registry

if TYPE_CHECKING:
    from mcanalysis.strategies.strategy import Strategy

SEARCH_PATH = "MCANALYSIS_STRATEGY_PATH"
__path__ += [folder for folder in os.environ.get(SEARCH_PATH, "").split(os.pathsep) if folder]


class _Strategies(Registry["type[Strategy]"]):
    """Our own, called as their files, are imported when wanted; those of the search path to learn their names."""

    def search(self) -> dict[str, Callable[[], type[Strategy]]]:
        own, *folders = __path__
        files = {module.name for module in pkgutil.iter_modules([own])}
        found: dict[str, Callable[[], type[Strategy]]] = {name: partial(_own, name) for name in files - {"strategy"}}

        def add(kind: type[Strategy]) -> None:
            name, cls = getattr(kind, "name", None), kind.__name__
            if not isinstance(name, str):
                raise UserError(f'Expected a strategy with a name, got {cls} without one; write name = "…" in it.')
            if name in found:
                raise UserError(f"Expected strategies of different names, got two called {name}; rename {cls}.")
            found[name] = lambda: kind

        for folder in folders:
            if not Path(folder).is_dir():
                raise UserError(f"Expected a folder in {SEARCH_PATH}, got '{folder}'; correct the variable.")
            for module in pkgutil.iter_modules([folder]):
                file = f"{folder}/{module.name}.py"
                if module.name in files:
                    raise UserError(
                        f"Expected a strategy file of another name, got a second {module.name}; rename {file}."
                    )
                files.add(module.name)
                try:
                    for kind in _strategies_of(module.name):
                        add(kind)
                except UserError as error:
                    raise UserError(f"{error} (in {file})") from None
                except Exception as error:  # whatever a file of someone else raises
                    raise UserError(
                        f"Expected a strategy file that can be imported, got {type(error).__name__}: {error}; correct "
                        f"{file}, or take its folder out of {SEARCH_PATH}."
                    ) from error
        return found


_STRATEGIES = _Strategies(
    "strategy", __name__, remedy=f"One of your own is found through {SEARCH_PATH}.", group="mcanalysis.strategies"
)


_BY_INPUT = "which mixes adapters anew for each input, so that its minima are no points of one space"
_LEFT_OUT = {"sapt": _BY_INPUT, "moe_lora": _BY_INPUT, "tree_lora": "which is not here yet"}


def _own(name: str) -> type[Strategy]:
    for kind in _strategies_of(name):
        if getattr(kind, "name", None) == name:
            return kind
    raise UserError(
        f"Expected a strategy called {name} in {__path__[0]}/{name}.py, got none; give file and strategy the same name."
    )


def _strategies_of(file: str) -> list[type[Strategy]]:
    from mcanalysis.strategies.strategy import Strategy

    module = import_module(f"{__name__}.{file}")
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Strategy)]
    return [kind for kind in kinds if kind.__module__ == module.__name__]


def strategy_names() -> list[str]:
    """Names of all strategies, sorted.

    >>> strategy_names()[:3]
    ['agem', 'cls_er', 'der']
    """
    return _STRATEGIES.names()


def get_strategy(name: str) -> type[Strategy]:
    """The strategy class of a name; raises `UnknownNameError` that suggests the nearest.

    >>> get_strategy("ilora").learners
    ('fast', 'slow')
    """
    if name in _LEFT_OUT and name not in strategy_names():
        raise UserError(
            f"Expected one of {', '.join(strategy_names())}, got {name}, {_LEFT_OUT[name]}; choose another."
        )
    return _STRATEGIES.get(name)


def make_strategy(name: str, seed: int, **settings: Any) -> Strategy:
    """A strategy with its defaults, overridden by `settings`; raises as `StrategyConfig.of` does.

    >>> make_strategy("er", seed=0, memory_size=30).config.memory_size
    30
    """
    kind = get_strategy(name)
    return kind(kind.config_class.of(name, settings), seed)
