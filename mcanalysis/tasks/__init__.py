"""Tasks, one file per dataset: a module of this folder with a `TASK` is a task, found by itself.

So is one that an installed package declares under the entry point group `mcanalysis.tasks`.
"""

from __future__ import annotations

from mcanalysis.registry import Registry
from mcanalysis.tasks.task import SPLITS, Example, Task, TaskData, whole_prompt

__all__ = ["SPLITS", "Example", "Task", "TaskData", "get_task", "task_names", "unknown_task", "whole_prompt"]

_TASKS: Registry[Task] = Registry("task", __name__, "TASK", group="mcanalysis.tasks")


def get_task(name: str) -> Task:
    """Return a known task by name; raises `UnknownNameError` that suggests the nearest name.

    >>> get_task("FOMC").score
    'accuracy'
    """
    return _TASKS.get(name)


def task_names() -> list[str]:
    """Return the names of all known tasks, sorted.

    >>> "C-STANCE" in task_names()
    True
    """
    return _TASKS.names()


def unknown_task(name: str, score: str = "exact_match") -> Task:
    """Return a task for a folder of the user's own, of which nothing but its name is known.

    64 new tokens: room for a sentence or a line of code, short enough to score in bulk.

    >>> unknown_task("my-task").score
    'exact_match'
    """
    return Task(name, "und", score, max_new_tokens=64, description="A folder of prompts and answers.")
