"""Tasks, one file per dataset: a module of this folder with a `TASK` is a task, found by itself."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping

from mcanalysis.errors import UnknownNameError
from mcanalysis.tasks.task import SPLITS, Example, Task, TaskData, whole_prompt

__all__ = ["SPLITS", "Example", "Task", "TaskData", "get_task", "task_names", "unknown_task", "whole_prompt"]


def get_task(name: str) -> Task:
    """Return a known task by name; raises `UnknownNameError` that suggests the nearest name.

    >>> get_task("FOMC").score
    'accuracy'
    """
    known = _registry()
    if name not in known:
        raise UnknownNameError("task", name, known)
    return known[name]


def task_names() -> list[str]:
    """Return the names of all known tasks, sorted.

    >>> "C-STANCE" in task_names()
    True
    """
    return sorted(_registry())


def unknown_task(name: str, score: str = "exact_match") -> Task:
    """Return a task for a folder of the user's own, of which nothing but its name is known.

    64 new tokens: room for a sentence or a line of code, short enough to score in bulk.

    >>> unknown_task("my-task").score
    'exact_match'
    """
    return Task(name, "und", score, max_new_tokens=64, description="A folder of prompts and answers.")


@functools.cache
def _registry() -> Mapping[str, Task]:
    tasks: dict[str, Task] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.ispkg:
            continue
        task = getattr(importlib.import_module(f"{__name__}.{module.name}"), "TASK", None)
        if task is None:
            continue
        if task.name in tasks:
            raise RuntimeError(f"Two files of {__name__} define the task {task.name!r}.")
        tasks[task.name] = task
    return tasks
