"""A loss of the user's own, `module:function`, as an objective."""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from mcanalysis.connectivity.objective_result import examples_of, has_examples, number_of, score_of
from mcanalysis.errors import UserError
from mcanalysis.evaluation.objective import Objective
from mcanalysis.models.encoding import EncodedExample
from mcanalysis.store.hashing import hash_json
from mcanalysis.store.measurements import Measurement
from mcanalysis.tasks.task import NO_SCORE, Example, Task, TaskData

_VERSION = 2  # counts up when more of what a function returns is kept, so that stored values of before are not used
_first_texts: WeakKeyDictionary[ModuleType, str] = (
    WeakKeyDictionary()
)  # what runs is what was imported, whatever its file says now


def own_task(name: str) -> TaskData:
    """The task that stands for `module:function`, called as the function; its hash is that of the text.

    Raises `UserError` as `own_objective` does.
    """
    function = _function(name)
    task = Task(name.partition(":")[2], "und", NO_SCORE, 0)
    return TaskData(task, {"test": (Example("", ""),)}, hash_json([name, _texts(name, function)]))


def own_objective(name: str, base_marker: str = "") -> Objective:
    """The objective that calls `module:function` with a model, its weights in place, and its tokenizer.

    The function returns the loss as a number, of which there are no intervals, perhaps with a `score` beside it in a
    dict, or an object or dict with `nll` and `targets`, one per example, and perhaps `scores`, one per example as well.
    It is called without gradients. The module is looked for where Python looks, and in the folder in which the command
    is given. Stored values are those of the text of that module and of the one in which the function was made: what
    else it calls or reads must stay as it is.

    Raises `UserError` for a name that leads to no function, and where it raises or returns anything else.
    """
    task, function = own_task(name), _function(name)

    def measure(network: Any, tokenizer: Any) -> Measurement:
        try:
            result = function(network, tokenizer)
        except UserError:
            raise
        except Exception as error:
            place = inspect.trace()[-1]
            raise UserError(
                f"Expected a loss from '{name}', got {type(error).__name__}: {' '.join(str(error).split())} "
                f"({place.filename}, line {place.lineno}); mend the function of --objective."
            ) from error
        return _measurement(result)

    token = EncodedExample((0,), (0,))
    key = hash_json([_VERSION, task.content_hash, base_marker])[:16]
    return Objective(task.task, "test", task.splits["test"], (token,), 0, key, own=measure)


def _measurement(result: Any) -> Measurement:
    """One number is a single example, of which no interval can be made."""
    if not has_examples(result):
        score = score_of(result)
        scores = np.array([np.nan if score is None else score])
        return Measurement.of(np.array([number_of(result)]), np.array([1]), scores)
    found = examples_of(result)
    targets = np.asarray(found.targets)
    if not (targets == np.round(targets)).all() or (targets < 0).any():
        raise UserError(
            "Expected whole numbers of targets from --objective, by which its losses are weighed, got others; multiply "
            "losses and targets until they are."
        )
    has_own = found.scores is not None and found.scores.size
    if found.score is not None and not math.isnan(found.score) and not has_own:
        raise UserError(
            "Expected scores (n,) beside nll (n,) from --objective, got one score of all; return one per example, or "
            "the loss and the score as numbers, without nll."
        )
    scores = found.scores if has_own else np.full(len(found.nll), np.nan)
    return Measurement.of(found.nll, found.targets, scores)


def _function(name: str) -> Callable[[Any, Any], Any]:
    module, _, attribute = name.partition(":")
    if not module or not attribute.isidentifier():
        raise UserError(f"Expected --objective module:function, got '{name}'; write it as 'mylosses:perplexity'.")
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.append(folder)  # last, so that nothing of Python's is hidden
    try:
        function = getattr(importlib.import_module(module), attribute, None)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(
            f"Expected a module '{module}' for --objective, got {reason}; give it from the folder in which it lies."
        ) from None
    if not callable(function):
        got = "none of that name" if function is None else f"a {type(function).__name__}"
        raise UserError(f"Expected a function '{attribute}' in the module '{module}', got {got}; check --objective.")
    return function


def _texts(name: str, function: Any) -> list[str]:
    """The texts of the module that is named, and of that in which the function was made, where it is another one.

    Raises `UserError` for a module without a file, and for one whose file is not what it was when it was first used.
    """
    modules = {name.partition(":")[0], getattr(function, "__module__", None), type(function).__module__}
    found = []
    for module in sorted(filter(None, modules - {"builtins"})):
        try:
            text = inspect.getsource(sys.modules[module])
        except (OSError, TypeError, KeyError):
            raise UserError(
                f"Expected a function of Python files for --objective, got '{function!r}'; values are told apart "
                "by the files' texts."
            ) from None
        if _first_texts.setdefault(sys.modules[module], text) != text:
            raise UserError(
                f"Expected the file of the module '{module}' as it was when it was first used, got another one; start "
                "Python anew, which imports it anew."
            )
        found.append(text)
    return found
