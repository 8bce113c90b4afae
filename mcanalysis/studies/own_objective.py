"""A loss of the user's own, `module:function`, as an objective."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mcanalysis.connectivity.objective_result import examples_of, has_examples, number_of
from mcanalysis.errors import UserError
from mcanalysis.evaluation.objective import Objective
from mcanalysis.models.encoding import EncodedExample
from mcanalysis.store.hashing import hash_json
from mcanalysis.store.measurements import Measurement
from mcanalysis.tasks.task import NO_SCORE, Example, Task, TaskData


def own_task(name: str) -> TaskData:
    """The task that stands for `module:function`, called as the function; its hash is that of the module's text.

    Raises `UserError` as `own_objective` does.
    """
    function = _function(name)
    task = Task(function.__name__, "und", NO_SCORE, 0)
    return TaskData(task, {"test": (Example("", ""),)}, hash_json([name, _text(function)]))


def own_objective(name: str, base_marker: str = "") -> Objective:
    """The objective that calls `module:function` with a model, its weights in place, and its tokenizer.

    The function returns the loss as a number, of which there are no intervals, or an object or dict with `nll` and
    `targets`, one per example, and perhaps `scores`, as every objective may. It is called without gradients. The module
    is looked for where Python looks, and in the folder in which the command is given. Stored values are those of the
    module's text: data that the function reads must stay as they are.

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
    key = hash_json([task.content_hash, base_marker])[:16]
    return Objective(task.task, "test", task.splits["test"], (token,), 0, key, own=measure)


def _measurement(result: Any) -> Measurement:
    """One number is a single example, of which no interval can be made."""
    if not has_examples(result):
        loss = number_of(result)
        return Measurement.of(np.array([loss]), np.array([1]), np.array([np.nan]))
    found = examples_of(result)
    scores = found.scores if found.scores is not None and found.scores.size else np.full(len(found.nll), np.nan)
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


def _text(function: Any) -> str:
    """The text of the whole module, in which other functions may be called."""
    try:
        return inspect.getsource(sys.modules[function.__module__])
    except (OSError, TypeError, KeyError):
        raise UserError(
            f"Expected a function of a Python file for --objective, got '{function!r}'; stored values are told apart "
            "by the file's text."
        ) from None
