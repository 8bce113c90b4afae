"""Tasks of lm-evaluation-harness as it loads them, without a model: what they ask, and what of them becomes a score.

What imports lm-eval is imported where it is used.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mcanalysis.errors import UnknownNameError, UserError, did_you_mean
from mcanalysis.store.hashing import hash_json
from mcanalysis.tasks.task import NO_SCORE, Task, TaskData

logger = logging.getLogger(__name__)

PREFIX = "lm_eval:"
"""Stands before the names of tasks where data files are named otherwise."""

REQUESTS = {
    "multiple_choice": "loglikelihood",
    "loglikelihood": "loglikelihood",
    "loglikelihood_rolling": "loglikelihood_rolling",
    "generate_until": "generate_until",
}
"""What a task of a kind asks of a model."""

Tasks = str | Mapping[str, Any] | Sequence[str | PathLike[str] | Mapping[str, Any]]


class Harness:
    """Tasks of lm-eval that are loaded, without a model; arguments and errors as for `lm_eval_objective`.

    `names`: the tasks, those of a group each. `metrics`: of each the key of its score in lm-eval's results, or None.
    """

    def __init__(
        self,
        tasks: Tasks,
        metric: str | None = None,
        num_fewshot: int | None = None,
        include_path: str | PathLike[str] | None = None,
    ) -> None:
        from mcanalysis.evaluation.point_lm import check_installed

        check_installed()
        if num_fewshot is not None and num_fewshot < 0:
            raise UserError(f"Expected a number of examples in the prompt of at least 0, got {num_fewshot}; raise it.")
        given = [tasks] if isinstance(tasks, str | Mapping) else list(tasks)
        with as_it_starts():
            self.loaded: dict[str, Any] = _load([str(t) if isinstance(t, PathLike) else t for t in given], include_path)
        self.tasks: dict[str, Any] = self.loaded["tasks"]
        self.names = list(self.tasks)
        for name, task in self.tasks.items():
            _check(name, task)
            own = task.get_config("num_fewshot")
            if own != 0:
                task.set_config("num_fewshot", num_fewshot if num_fewshot is not None else own or 0)
        self.metrics = {name: _metric(name, task, metric) for name, task in self.tasks.items()}

    def settings(self, name: str) -> str:
        """A task's settings as text, its version and the number of examples in the prompt among them.

        Where its file and its data lie is left out: the examples themselves say what they are.
        """
        said = {k: v for k, v in self.tasks[name].dump_config().items() if k != "dataset_kwargs"}
        said["metadata"] = {k: v for k, v in (said.get("metadata") or {}).items() if k != "config_source"}
        return plain(said)

    @cached_property
    def data(self) -> list[TaskData]:
        """The tasks by name, with a hash of their settings and of all examples that they are measured on."""
        content = {n: [self.settings(n), [plain(doc) for doc in t.eval_docs]] for n, t in self.tasks.items()}
        return [TaskData(task_of(name), {}, hash_json(of)) for name, of in content.items()]


def harness_tasks(data: Sequence[str]) -> list[str]:
    """The tasks that `lm_eval:TASK,…` names, in place of data files; none where files are named.

    Raises `UserError` where both are.

    >>> harness_tasks(["lm_eval:arc_easy", "piqa"]), harness_tasks(["questions.json"])
    (['arc_easy', 'piqa'], [])
    """
    named = [d.startswith(PREFIX) for d in data]
    if any(named) and not named[0]:
        raise UserError(
            f"Expected data files or, after {PREFIX}, tasks of lm-eval, got both: {', '.join(data)}; choose one."
        )
    return [d.removeprefix(PREFIX) for d in data] if any(named) else []


def _load(tasks: Sequence[Any], include_path: str | PathLike[str] | None) -> dict[str, Any]:
    """What lm-eval's task manager gives; raises `UserError` in one line, whatever went wrong."""
    from lm_eval.tasks import TaskManager

    is_file = [isinstance(t, str) and Path(t).is_file() for t in tasks]
    own = all(is_file) or all(isinstance(t, Mapping) for t in tasks)  # its 14,000 others take seconds to index
    with in_one_line("tasks"), silent():
        more = None if include_path is None else str(include_path)
        manager = TaskManager(include_path=more, include_defaults=not own)
    for task, there in zip(tasks, is_file, strict=True):
        if isinstance(task, str) and not there and task not in manager.task_index:
            raise UserError(
                f"Expected a task of lm-eval or the path of its YAML file, got '{task}'."
                f"{did_you_mean(task, manager.all_tasks)} Check its name; lm_eval ls tasks lists them."
            )
    with in_one_line(", ".join(t if isinstance(t, str) else str(t.get("task")) for t in tasks)), silent():
        return dict(manager.load(list(tasks)))


@contextmanager
def in_one_line(what: str) -> Iterator[None]:
    """What goes wrong with a task as a `UserError`: its YAML, templates, functions and data, or the hub."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        remedy = "correct its YAML file, or the data that it names"
        if isinstance(error, ConnectionError) or "offline" in str(error).lower() or "Hub" in str(error):
            remedy = "fetch its data where there is a network, or name a task whose data are files (dataset_path: json)"
        raise UserError(f"Expected the task {what} of lm-eval with its data, got: {reason}; {remedy}.") from error


def _check(name: str, task: Any) -> None:
    """Raise `UserError` for a task that is no plain task of text."""
    from lm_eval.api.task import ConfigurableTask

    got = ""
    if not isinstance(task, ConfigurableTask) or task.OUTPUT_TYPE not in REQUESTS:
        got = "one of another kind"
    elif getattr(task, "MULTIMODAL", False):
        got = "one with pictures or sound"
    elif getattr(task, "UNSAFE_CODE", False):
        got = "one that runs what the model writes as code"
    if got:
        raise UserError(f"Expected tasks of text alone, got {name} of lm-eval, {got}; choose another.")


def _metric(name: str, task: Any, asked: str | None) -> str | None:
    """The key, `metric,filter`, of the score; what has no interval or no score is said."""
    better, filters = task.higher_is_better(), [f.name for f in task._filters]
    known = list(task.aggregation())
    metric, _, filter_name = (asked or "").partition(",")
    if asked and (metric not in known or (filter_name or filters[0]) not in filters):
        raise UnknownNameError(f"metric of {name}", asked, [f"{m},{f}" for m in known for f in filters])
    if asked and not better.get(metric, True):
        raise UserError(
            f"Expected a metric that is better when it is higher as the score of {name}, got {metric}; choose another: "
            "losses are measured anyway, and every metric is in results."
        )
    metric = metric or next((m for m in known if better.get(m, True)), "")
    if not metric:
        logger.warning("no metric of %s is better when it is higher (%s): losses alone", name, ", ".join(known))
        return None
    if not is_mean(task, metric):
        logger.warning("%s of %s is not a mean over examples: its value is given, without an interval", metric, name)
    return f"{metric},{filter_name or filters[0]}"


def is_mean(task: Any, metric: str) -> bool:
    """Whether a metric is the mean of what each example has of it."""
    from lm_eval.api.metrics import mean

    return task.aggregation().get(metric) is mean


def right_answer(name: str, task: Any, doc: Any) -> int:
    """Which request of an example is the right answer: the choice that the task names, the first of several."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return 0
    choices = task.doc_to_choice(doc)
    right = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    right = right[0] if isinstance(right, list) and right else right
    if isinstance(right, str) and right in choices:
        right = choices.index(right)
    if not (isinstance(right, int) and 0 <= right < len(choices)):
        raise UserError(
            f"Expected a right choice, from 0 to {len(choices) - 1}, in every example of the task {name} of lm-eval, "
            f"got {right!r}; correct its doc_to_target."
        )
    return right


def prompt_and_answer(task: Any, asked: Sequence[Any], right: int) -> tuple[str, str]:
    """The prompt of an example and the text whose likelihood is its loss."""
    from lm_eval.api.utils import maybe_delimit

    arguments, doc = asked[right].args, asked[0].doc
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return "", arguments[0]
    if task.OUTPUT_TYPE != "generate_until":
        return arguments
    reference = task.doc_to_target(doc)
    if task.config.doc_to_choice is not None and isinstance(reference, int):
        reference = task.doc_to_choice(doc)[reference]
    reference = str((reference or [""])[0] if isinstance(reference, list) else reference)
    prefix = task.doc_to_prefix(doc)
    if prefix:  # as the harness joins them in examples of a prompt
        return arguments[0], maybe_delimit(prefix, reference)[len(prefix) :]
    return arguments[0], task.config.target_delimiter + reference


def task_of(name: str) -> Task:
    """The task by name, without a score of ours: the harness scores it."""
    return Task(name, "und", NO_SCORE, 0)


def plain(value: Any) -> str:
    """A task's settings or an example as text, the same in every process: of functions their source."""

    def text(other: Any) -> str:
        with contextlib.suppress(TypeError, OSError):
            return inspect.getsource(other)
        return getattr(other, "__qualname__", None) or str(other)

    return json.dumps(value, sort_keys=True, default=text)


def seeds() -> tuple[int, int]:
    """The seeds of `lm_eval`: of Python, and of NumPy, torch and the examples of prompts."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    return DEFAULT_RANDOM_SEED, DEFAULT_OTHER_SEED


@contextmanager
def as_it_starts(tasks: Mapping[str, Any] | None = None) -> Iterator[None]:
    """With the random numbers that `lm_eval` starts with, also those of the tasks' prompts; then go on as before."""
    first, other = seeds()
    states: list[tuple[Callable[[Any], Any], Any]] = [
        (random.setstate, random.getstate()), (np.random.set_state, np.random.get_state())
    ]  # fmt: skip
    with torch.random.fork_rng():
        random.seed(first)
        np.random.seed(other)
        torch.manual_seed(other)
        for task in (tasks or {}).values():
            task.set_fewshot_seed(seed=other)
        try:
            yield
        finally:
            for put_back, state in states:
                put_back(state)


@contextmanager
def silent() -> Iterator[None]:
    """Without lm-eval's bars and what it logs at every point."""
    from mcanalysis.evaluation.point_lm import quiet

    with quiet(), contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield
