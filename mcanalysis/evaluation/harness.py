"""Tasks of lm-evaluation-harness as an objective: its own prompts, model, filters and metrics, at any point.

All numbers are the harness's: scores are those of its log of samples, losses its log-likelihoods of the right answers.
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
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mcanalysis.errors import UnknownNameError, UserError, did_you_mean
from mcanalysis.evaluation.objective import Objective
from mcanalysis.models.encoding import EncodedExample
from mcanalysis.store.hashing import hash_json
from mcanalysis.store.measurements import Measurement
from mcanalysis.tasks.task import NO_SCORE, Example, Task, TaskData

if TYPE_CHECKING:
    from mcanalysis.evaluation.point_lm import PointLM

logger = logging.getLogger(__name__)

PREFIX = "lm_eval:"
"""Stands before the names of tasks where data files are named otherwise."""

_REQUESTS = {
    "multiple_choice": "loglikelihood",
    "loglikelihood": "loglikelihood",
    "loglikelihood_rolling": "loglikelihood_rolling",
    "generate_until": "generate_until",
}  # what a task of a kind asks of a model

Tasks = str | Mapping[str, Any] | Sequence[str | PathLike[str] | Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class HarnessMeasurement(Measurement):
    """The examples of all tasks together, `tasks` by themselves, and `results`: by task or group what lm-eval prints.

    `loss` is Σ nll / Σ targets, `score` the mean over all examples, NaN where a task has no scores per example. Of one
    task `score` is the harness's number to the last digit. `results[task]["acc,none"]`: every metric and filter.
    """

    tasks: Mapping[str, Measurement] = field(default_factory=dict)
    results: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @classmethod
    def together(cls, tasks: Mapping[str, Measurement], results: Mapping[str, Mapping[str, float]]) -> Any:
        """Put the tasks' measurements together."""
        parts = list(tasks.values())
        whole = Measurement.of(*(np.concatenate([getattr(p, n) for p in parts]) for n in ("nll", "targets", "scores")))
        values: dict[str, Any] = vars(whole) | ({"score": parts[0].score} if len(parts) == 1 else {})
        return cls(**values, tasks=tasks, results=results)


@dataclass(frozen=True, eq=False)
class HarnessTask(Objective):
    """One task of the harness as what is measured at a point; `owner` measures it, on all of its examples at once.

    `num_targets`: the tokens of each example's loss. `encoded` has what a pass of the base can read of them: of a text
    that the harness reads in several windows the first one alone, for curves.
    """

    is_divisible: ClassVar[bool] = False
    num_targets: tuple[int, ...] = ()
    owner: HarnessObjective | None = None


def lm_eval_objective(
    tasks: Tasks,
    model: str,
    adapters: Sequence[Mapping[str, Tensor]],
    *,
    metric: str | None = None,
    num_fewshot: int | None = None,
    limit: int | float | None = None,
    batch_size: int | str = 1,
    include_path: str | PathLike[str] | None = None,
    dtype: str = "auto",
    device: str | None = None,
    revision: str | None = None,
) -> HarnessObjective:
    """Return a function of a point that gives loss and score on tasks of lm-evaluation-harness, per example.

    The base is loaded once, for every point between the adapters. At an adapter's own point the values are those that
    `lm_eval --model hf --model_args pretrained=BASE,peft=ADAPTER` gives with the same settings (`PointLM`).

    The loss, in nats per token, is that of the right choice after the prompt (`multiple_choice`), of the continuation
    (`loglikelihood`), of the text (`loglikelihood_rolling`) or of the first reference (`generate_until`); lm-eval
    itself prints none of these.

    Args:
        tasks: names of tasks, groups or tags of lm-eval, paths of YAML files, or configurations as dicts.
        model: `embedded`, `smollm2`, a folder, a GGUF file or a hub id: the base that the adapters were trained on.
        adapters: the points that will be joined. Their ranks and modules may differ.
        metric: what becomes the score, as lm-eval calls it: `acc_norm`, or with its filter `exact_match,strict-match`;
            by default each task's first that is better when higher, after its first filter. One that is not a mean
            over examples (corpus BLEU, F1) is given without values per example, hence without an interval.
        num_fewshot: examples in the prompt; by default the task's own. A task that says 0 keeps it, as in lm-eval.
        limit: the first examples only: a number or, below 1, a share; by default all.
        batch_size: as in lm-eval, where it changes the last digits through padding.
        include_path: a folder with more YAML files.
        dtype: in which the base is loaded; by default as it was saved.
        device: by default a GPU where there is one.
        revision: branch, tag or commit of a model of the hub; None: its main branch.

    Raises:
        MissingPackageError: without the extra `lm-eval`.
        UserError: for a task that is unknown or cannot be loaded (its data are on a hub that is out of reach), runs
            code or shows pictures, a metric that a task does not have or that is better when lower, and as
            `adapter_objective` does.
    """
    from mcanalysis.evaluation.point_lm import PointLM

    harness = Harness(tasks, metric, num_fewshot, include_path)
    lm = PointLM.load(model, adapters, dtype=dtype, device=device, revision=revision, batch_size=batch_size)
    return HarnessObjective(harness, lm, limit)


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
        given = [tasks] if isinstance(tasks, str | Mapping) else list(tasks)
        with _as_it_starts():
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
        return _plain(said)

    @cached_property
    def data(self) -> list[TaskData]:
        """The tasks by name, with a hash of their settings and of all examples that they are measured on."""
        content = {n: [self.settings(n), [_plain(doc) for doc in t.eval_docs]] for n, t in self.tasks.items()}
        return [TaskData(_task(name), {}, hash_json(of)) for name, of in content.items()]


class HarnessObjective:
    """A function of a point: `HarnessMeasurement` of all tasks. `objectives`: the tasks, for a store and for curves."""

    def __init__(
        self, harness: Harness, lm: PointLM, limit: int | float | None = None, *, base_marker: str = ""
    ) -> None:
        self.harness, self.lm, self.limit, self._base_marker = harness, lm, limit, base_marker
        self._right: dict[str, list[int]] = {}  # by task, which of an example's requests is the right answer
        with _as_it_starts():
            self.objectives = [self._objective(name) for name in harness.names]

    def __call__(self, point: Mapping[str, Tensor]) -> HarnessMeasurement:
        """Measure all tasks at a point."""
        return self.measure(point)

    def measure(self, point: Mapping[str, Tensor], names: Sequence[str] | None = None) -> HarnessMeasurement:
        """Measure some of the tasks, or all, groups with them; NaN where the point is not finite."""
        from lm_eval.evaluator import evaluate

        chosen = [o for o in self.objectives if names is None or o.name in names]
        if not all(bool(tensor.isfinite().all()) for tensor in point.values()):
            # PyTorch's attention would make zeros of queries that are NaN, and choices of them.
            lost = {o.name: _lost(o) for o in chosen}
            return HarnessMeasurement.together(lost, {})
        network = self.lm.adapted.network
        training = network.training
        network.eval()
        loaded = self.harness.loaded if len(chosen) == len(self.objectives) else {}
        loaded = {**loaded, "tasks": {o.name: self.harness.tasks[o.name] for o in chosen}}
        try:
            with _as_it_starts(self.harness.tasks), _silent(), torch.no_grad():
                limit: Any = self.limit  # a share, too, whatever its annotation says
                found: Any = evaluate(self.lm.at(point), loaded, limit=limit, bootstrap_iters=0)
                measured = {o.name: self._measurement(o, found) for o in chosen}
        finally:
            network.train(training)
        kept = {name: {k: float(v) for k, v in row.items() if _is_value(k)} for name, row in found["results"].items()}
        return HarnessMeasurement.together(measured, kept)

    def _objective(self, name: str) -> HarnessTask:
        from lm_eval.evaluator_utils import get_sample_size

        task, lm = self.harness.tasks[name], self.lm
        task.set_fewshot_seed(seed=_seeds()[1])
        with _silent():
            task.build_all_requests(limit=get_sample_size(task, self.limit), rank=0, world_size=1)
        examples: dict[int, list[Any]] = {}
        for instance in task.instances:
            if instance.request_type != _REQUESTS[task.OUTPUT_TYPE]:
                raise UserError(
                    f"Expected requests of one kind in the task {name} of lm-eval, got {instance.request_type} in a "
                    f"task of {task.OUTPUT_TYPE}; choose another."
                )
            examples.setdefault(instance.doc_id, []).append(instance)
        in_order = [sorted(of, key=lambda i: i.idx) for _, of in sorted(examples.items())]
        self._right[name] = [_right(name, task, of[0].doc) for of in in_order]
        pairs = [_answer(task, of, right) for of, right in zip(in_order, self._right[name], strict=True)]
        read, num_cut = self._read(name, pairs, in_order)
        encoded = [_within(prompt, answer, lm.max_length) for prompt, answer in read]
        key = {
            "lm_eval": version("lm_eval"), "task": self.harness.settings(name), "metric": self.harness.metrics[name],
            "docs": [_plain(of[0].doc) for of in in_order], "asked": [[_plain(i.args) for i in of] for of in in_order],
            "ids": read,
            "batch_size": lm.batch_size, "max_length": lm.max_length, "base": self._base_marker,
        }  # fmt: skip
        return HarnessTask(
            _task(name),
            "test",
            tuple(Example(prompt, answer) for prompt, answer in pairs),
            tuple(encoded),
            num_cut,
            hash_json(key)[:16],
            num_targets=tuple(len(answer) for _, answer in read),
            owner=self,
        )

    def _read(
        self, name: str, pairs: Sequence[tuple[str, str]], asked: Sequence[Sequence[Any]]
    ) -> tuple[list[tuple[list[int], list[int]]], int]:
        """The tokens whose likelihood is the loss, and how many examples lose tokens on the way to the model."""
        lm, kind = self.lm, self.harness.tasks[name].OUTPUT_TYPE
        most = lm.max_length
        if kind == "loglikelihood_rolling":  # windows, of which a long text has several; nothing is lost
            read = [([lm.prefix_token_id], lm.tok_encode(text)) for _, text in pairs]
        else:
            read = lm.encode(pairs)
        for i, (_, answer) in enumerate(read):
            if not answer or (len(answer) > most and kind != "loglikelihood_rolling"):
                raise UserError(
                    f"Expected answers of 1 to {most} tokens, which this base can read, in the task {name} of "
                    f"lm-eval, got {len(answer)} in its example {i}; choose another task or base."
                )
        cut = set()
        if kind == "generate_until":
            for i, ((prompt, settings),) in enumerate([instance.args for instance in of[:1]] for of in asked):
                new = _max_new_tokens(settings, lm.max_gen_toks)
                if new >= most:
                    raise UserError(
                        f"Expected the task {name} of lm-eval to write fewer than {most} tokens, the positions of this "
                        f"base, got {new}; set max_gen_toks in its generation_kwargs."
                    )
                if len(lm.tok_encode(prompt)) > most - new:
                    cut.add(i)
        elif kind != "loglikelihood_rolling":
            rows = [i for i, of in enumerate(asked) for _ in of]
            tokens = lm.encode([instance.args for of in asked for instance in of])
            cut = {i for i, (prompt, rest) in zip(rows, tokens, strict=True) if len(prompt) + len(rest) > most + 1}
        if cut:
            logger.warning(
                "%d of %d prompts of the task %s are longer than the %d positions of this base: lm-eval cuts their "
                "beginnings",
                len(cut), len(pairs), name, most,
            )  # fmt: skip
        return read, len(cut)

    def _measurement(self, objective: HarnessTask, found: Mapping[str, Any]) -> Measurement:
        """The measurement of one task from what lm-eval logged of each sample."""
        name = objective.name
        task, key = self.harness.tasks[name], self.harness.metrics[name]
        metric, filter_name = key.split(",", 1) if key else ("", task._filters[0].name)
        samples = [s for s in found["samples"][name] if s["filter"] == filter_name]
        samples.sort(key=lambda s: s["doc_id"])
        if task.OUTPUT_TYPE == "generate_until":  # of which lm-eval asks no likelihood
            from mcanalysis.evaluation.point_lm import requests

            pairs = [(e.prompt, e.answer) for e in objective.examples]
            likelihoods = [found for found, _ in self.lm.loglikelihood(requests(pairs), disable_tqdm=True)]
        else:
            first = [s["resps"][i][0] for s, i in zip(samples, self._right[name], strict=True)]
            likelihoods = [r if task.OUTPUT_TYPE == "loglikelihood_rolling" else r[0] for r in first]
        nll = -np.array(likelihoods, dtype=np.float64)
        targets = np.array(objective.num_targets)
        scores, score = np.full(len(nll), np.nan), float("nan")
        if key:
            score = float(found["results"][name][key])
            values = [s.get(metric) for s in samples]
            if _is_mean(task, metric) and all(isinstance(v, bool | int | float | np.number) for v in values):
                scores = np.array(values, dtype=np.float64)
        return Measurement(float(nll.sum() / targets.sum()), score, len(nll), int(targets.sum()), nll, targets, scores)


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
    try:
        with _silent():
            manager = TaskManager(
                include_path=None if include_path is None else str(include_path), include_defaults=not own
            )
    except Exception as error:
        raise _not_loaded("tasks", error) from error
    for task, there in zip(tasks, is_file, strict=True):
        if isinstance(task, str) and not there and task not in manager.task_index:
            raise UserError(
                f"Expected a task of lm-eval or the path of its YAML file, got '{task}'."
                f"{did_you_mean(task, manager.all_tasks)} Check its name; lm_eval ls tasks lists them."
            )
    try:
        with _silent():
            return dict(manager.load(list(tasks)))
    except Exception as error:  # of YAML, templates, data sets, the hub, and functions that come with a task
        raise _not_loaded(", ".join(t if isinstance(t, str) else str(t.get("task")) for t in tasks), error) from error


def _not_loaded(what: str, error: Exception) -> UserError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    remedy = "correct its YAML file, or the data that it names"
    if isinstance(error, ConnectionError) or "offline" in str(error).lower() or "Hub" in str(error):
        remedy = "fetch its data where there is a network, or name a task whose data are files (dataset_path: json)"
    return UserError(f"Expected the task {what} of lm-eval with its data, got: {reason}; {remedy}.")


def _check(name: str, task: Any) -> None:
    """Raise `UserError` for a task that is no plain task of text."""
    from lm_eval.api.task import ConfigurableTask

    got = ""
    if not isinstance(task, ConfigurableTask) or task.OUTPUT_TYPE not in _REQUESTS:
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
    if not _is_mean(task, metric):
        logger.warning("%s of %s is not a mean over examples: its value is given, without an interval", metric, name)
    return f"{metric},{filter_name or filters[0]}"


def _is_mean(task: Any, metric: str) -> bool:
    from lm_eval.api.metrics import mean

    return task.aggregation().get(metric) is mean


def _right(name: str, task: Any, doc: Any) -> int:
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


def _answer(task: Any, asked: Sequence[Any], right: int) -> tuple[str, str]:
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


def _max_new_tokens(settings: Mapping[str, Any], default: int) -> int:
    from lm_eval.models.utils import normalize_gen_kwargs

    return int(normalize_gen_kwargs(dict(settings), default).get("max_gen_toks", default))


def _is_value(key: str) -> bool:
    return "," in key and "_stderr," not in key


def _task(name: str) -> Task:
    return Task(name, "und", NO_SCORE, 0)  # the harness scores it


def _within(prompt: list[int], answer: list[int], most: int) -> EncodedExample:
    """What a base of so many positions is given, as HFLM cuts it: the last token is read by nobody."""
    answer = answer[:most]
    return EncodedExample(tuple((prompt + answer)[-most - 1 :][: -len(answer)]), tuple(answer))


def _lost(objective: HarnessTask) -> Measurement:
    none = np.full(len(objective.encoded), np.nan)
    return Measurement.of(none, np.array(objective.num_targets), none)


def _plain(value: Any) -> str:
    """A task's settings or an example as text, the same in every process: of functions their source."""

    def text(other: Any) -> str:
        with contextlib.suppress(TypeError, OSError):
            return inspect.getsource(other)
        return getattr(other, "__qualname__", None) or str(other)

    return json.dumps(value, sort_keys=True, default=text)


def _seeds() -> tuple[int, int]:
    """The seeds of `lm_eval`: of Python, and of NumPy, torch and the examples of prompts."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    return DEFAULT_RANDOM_SEED, DEFAULT_OTHER_SEED


@contextmanager
def _as_it_starts(tasks: Mapping[str, Any] | None = None) -> Iterator[None]:
    """With the random numbers that `lm_eval` starts with, also those of the tasks' prompts; then go on as before."""
    first, other = _seeds()
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
def _silent() -> Iterator[None]:
    """Without lm-eval's bars and what it logs at every point."""
    from mcanalysis.evaluation.point_lm import quiet

    with quiet(), contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield
