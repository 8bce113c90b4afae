"""Tasks of lm-evaluation-harness as an objective: its own prompts, model, filters and metrics, at any point.

All numbers are the harness's: scores are those of its log of samples, losses its log-likelihoods of the right answers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.evaluation.harness_tasks import (
    REQUESTS,
    Harness,
    Tasks,
    as_it_starts,
    in_one_line,
    is_mean,
    plain,
    prompt_and_answer,
    right_answer,
    seeds,
    silent,
    task_of,
)
from mcanalysis.evaluation.objective import Objective
from mcanalysis.models.encoding import EncodedExample
from mcanalysis.models.modes import evaluating
from mcanalysis.store.hashing import hash_json
from mcanalysis.store.measurements import Measurement
from mcanalysis.tasks.task import Example

if TYPE_CHECKING:
    from mcanalysis.evaluation.point_lm import PointLM

logger = logging.getLogger(__name__)


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


class HarnessObjective:
    """A function of a point: `HarnessMeasurement` of all tasks. `objectives`: the tasks, for a store and for curves."""

    def __init__(
        self, harness: Harness, lm: PointLM, limit: int | float | None = None, *, base_marker: str = ""
    ) -> None:
        self.harness, self.lm, self.limit, self._base_marker = harness, lm, limit, base_marker
        if limit is not None and limit <= 0:  # of which lm-eval would make all
            raise UserError(f"Expected a limit above 0, got {limit}; leave it out to measure all examples.")
        self._right: dict[str, list[int]] = {}  # by task, which of an example's requests is the right answer
        with as_it_starts():
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
        loaded = self.harness.loaded if len(chosen) == len(self.objectives) else {}
        loaded = {**loaded, "tasks": {o.name: self.harness.tasks[o.name] for o in chosen}}
        with evaluating(self.lm.adapted.network), as_it_starts(self.harness.tasks), silent(), torch.no_grad():
            limit: Any = self.limit  # a share, too, whatever its annotation says
            found: Any = evaluate(self.lm.at(point), loaded, limit=limit, bootstrap_iters=0)
            measured = {o.name: self._measurement(o, found) for o in chosen}
        kept = {name: {k: float(v) for k, v in row.items() if _is_value(k)} for name, row in found["results"].items()}
        return HarnessMeasurement.together(measured, kept)

    def _objective(self, name: str) -> HarnessTask:
        from lm_eval.evaluator_utils import get_sample_size

        task, lm = self.harness.tasks[name], self.lm
        task.set_fewshot_seed(seed=seeds()[1])
        with in_one_line(name), silent():
            task.build_all_requests(limit=get_sample_size(task, self.limit), rank=0, world_size=1)
        examples: dict[int, list[Any]] = {}
        for instance in task.instances:
            if instance.request_type != REQUESTS[task.OUTPUT_TYPE]:
                raise UserError(
                    f"Expected requests of one kind in the task {name} of lm-eval, got {instance.request_type} in a "
                    f"task of {task.OUTPUT_TYPE}; choose another."
                )
            examples.setdefault(instance.doc_id, []).append(instance)
        in_order = [sorted(of, key=lambda i: i.idx) for _, of in sorted(examples.items())]
        with in_one_line(name):
            self._right[name] = [right_answer(name, task, of[0].doc) for of in in_order]
            pairs = [prompt_and_answer(task, of, right) for of, right in zip(in_order, self._right[name], strict=True)]
        read, num_cut = self._read(name, pairs, in_order)
        encoded = [_within(prompt, answer, lm.max_length) for prompt, answer in read]
        key = {
            "lm_eval": version("lm_eval"), "task": self.harness.settings(name), "metric": self.harness.metrics[name],
            "docs": [plain(of[0].doc) for of in in_order], "asked": [[plain(i.args) for i in of] for of in in_order],
            "ids": read,
            "batch_size": lm.batch_size, "max_length": lm.max_length, "base": self._base_marker,
        }  # fmt: skip
        return HarnessTask(
            task_of(name),
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
            if is_mean(task, metric) and all(isinstance(v, bool | int | float | np.number) for v in values):
                scores = np.array(values, dtype=np.float64)
        return Measurement(float(nll.sum() / targets.sum()), score, len(nll), int(targets.sum()), nll, targets, scores)


def _max_new_tokens(settings: Mapping[str, Any], default: int) -> int:
    from lm_eval.models.utils import normalize_gen_kwargs

    return int(normalize_gen_kwargs(dict(settings), default).get("max_gen_toks", default))


def _is_value(key: str) -> bool:
    return "," in key and "_stderr," not in key


def _within(prompt: list[int], answer: list[int], most: int) -> EncodedExample:
    """What a base of so many positions is given, as HFLM cuts it: the last token is read by nobody."""
    answer = answer[:most]
    return EncodedExample(tuple((prompt + answer)[-most - 1 :][: -len(answer)]), tuple(answer))


def _lost(objective: HarnessTask) -> Measurement:
    none = np.full(len(objective.encoded), np.nan)
    return Measurement.of(none, np.array(objective.num_targets), none)
