"""Evaluating points: every objective at one setting of the weights, loss and greedy answers in few batches.

- The examples of all objectives asked for are planned once per set of objectives and not once per point: pooled, sorted
  by length, batched by a token budget, padded on the right, where no mask is needed (`batch_plan`).
- What the prompts of a task begin with alike is computed once per point (`shared_prefix`).
- LoRA is merged in float32 and float64, unmerged where merging would round it away.
- Logits are computed only where a token of an answer is predicted; prompts are read once for the loss and for
  generation, which begins where greedy decoding leaves the reference (`batch_pass`), and where scores alone are wanted
  ends as soon as the score can no longer change.
- The decoder is compiled where that is asked for (`compiled`).

None of it changes a number: losses per example are those of one unpadded example at a time, to rounding.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from mcanalysis.errors import UserError, shortened
from mcanalysis.evaluation.batch_pass import Enough, run_batch, to_the_end
from mcanalysis.evaluation.batch_plan import Reading, longest, plan_readings
from mcanalysis.evaluation.compiled import Compiled, check_can_compile
from mcanalysis.evaluation.engine_settings import AUTO, EngineSettings
from mcanalysis.evaluation.objective import Objective
from mcanalysis.evaluation.shared_prefix import SharedPrefix, can_share
from mcanalysis.metrics.scores import get_score, never
from mcanalysis.models.adapted_model import AdaptedModel
from mcanalysis.models.causal_lm import causal_lm
from mcanalysis.models.encoding import pad_id
from mcanalysis.models.end_tokens import stops_at, text_until
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.models.modes import evaluating
from mcanalysis.models.positions import check_positions
from mcanalysis.models.settled_text import only_appends, settled_text
from mcanalysis.models.whole_model import WholeModel
from mcanalysis.progress import Progress, silent
from mcanalysis.store.measurements import Measurement

logger = logging.getLogger(__name__)

TOKEN_BUDGET = 2048
MOST_PLANS = 64  # sets of objectives whose batches are kept


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One objective at one point: the numbers, and all that the model wrote."""

    measurement: Measurement
    outputs: tuple[str, ...]


class Engine:
    """Evaluates points of one model; keeps tokenised batches between points.

    Raises `UserError` for settings the model does not allow: a forced merge into weights that would round it away, a
    shared prefix where keys and values cannot be shared, compiling without a compiler.
    """

    def __init__(self, model: AdaptedModel, settings: EngineSettings = AUTO) -> None:
        self.model = model
        self.settings = settings
        # Generation stops, and its text is cut, where `generate` of the model itself would stop.
        self._ends = stops_at(model.tokenizer, getattr(causal_lm(model.network), "generation_config", None))
        self._appends = only_appends(model.tokenizer)
        self._repeats: bool | None = None
        self._lowered: int | None = None  # the budget, once memory has run out
        self._plans: OrderedDict[tuple[Objective, ...], list[Reading]] = OrderedDict()
        self._scored: WeakKeyDictionary[Objective, dict[tuple[int, str], float]] = WeakKeyDictionary()
        is_whole = isinstance(model, WholeModel)
        self._merges = is_whole or (isinstance(model, LoraModel) and model.can_merge())
        self._shares = isinstance(model, (LoraModel, WholeModel)) and can_share(model.network)
        if settings.adapter == "merged" and not self._merges:
            raise UserError(
                "Expected whole float32 or float64 weights to merge adapters into, got others; leave the choice to the "
                "engine (adapter 'auto')."
            )
        if settings.prefix == "shared" and not self._shares:
            raise UserError(
                "Expected a model that keeps keys and values only, whose positions do not depend on the length, to "
                "share prefixes, got another; leave the choice to the engine (prefix 'auto')."
            )
        if settings.adapter == "unmerged":
            if is_whole:
                raise UserError("Expected adapters for --engine unmerged, got whole models; leave it out.")
            self._merges = False
        self._compiled = Compiled() if settings.compile else None
        if self._compiled:
            check_can_compile(model.network, model.device)

    def evaluate(
        self,
        point: Mapping[str, Tensor],
        objectives: Sequence[Objective],
        progress: Progress = silent,
        desc: str = "evaluation",
    ) -> list[Evaluation]:
        """Loss (nats per target token) and score (in [0, 1]) of every objective at a point, in the order given.

        Outputs are written to their end: for those who look at them. `measure` gives the numbers for less. Text without
        a score is read, and nothing is written for it. `progress` shows how far it is, batch by batch, in units of
        `work`; `desc` is what it calls this.
        """
        return [Evaluation(*found) for found in self._measured(point, objectives, False, progress, desc)]

    def _measured(
        self,
        point: Mapping[str, Tensor],
        objectives: Sequence[Objective],
        until_decided: bool,
        progress: Progress,
        desc: str,
    ) -> list[tuple[Measurement, tuple[str, ...]]]:
        """Each measurement with what was written for it: all of it, or as far as it decides the score."""
        own = [o for o in objectives if o.own]
        texts = [o for o in objectives if not o.task.has_score and not o.own]
        scored = [o for o in objectives if o.task.has_score]
        losses = self.losses(point, texts, progress, desc) if texts else []
        found: dict[Objective, tuple[Measurement, tuple[str, ...]]] = {
            o: (m, ()) for o, m in zip(texts, losses, strict=True)
        }
        if own:
            with evaluating(self.model.network), torch.no_grad(), self._in_place(point) as network:
                found |= {o: (o.own(network, self.model.tokenizer), ()) for o in own if o.own}
        if scored:
            enough = self._score_is_decided(scored) if until_decided else to_the_end
            nll, targets, outputs = self._read(point, scored, True, enough, progress, desc)
            for o, part in zip(scored, self._parts(scored), strict=True):
                written = outputs[part]
                found[o] = Measurement.of(nll[part], targets[part], self._scores(o, written)), tuple(written)
        return [found[o] for o in objectives]

    def measure(
        self,
        point: Mapping[str, Tensor],
        objectives: Sequence[Objective],
        progress: Progress = silent,
        desc: str = "evaluation",
    ) -> list[Measurement]:
        """The measurements of `evaluate`, without its outputs: each is written until its score is decided, no further.

        What was written is not given away, since it may be cut.
        """
        return [measurement for measurement, _ in self._measured(point, objectives, True, progress, desc)]

    def losses(
        self,
        point: Mapping[str, Tensor],
        objectives: Sequence[Objective],
        progress: Progress = silent,
        desc: str = "evaluation",
    ) -> list[Measurement]:
        """The losses alone, without generation: scores are NaN, the values per example are there."""
        nll, targets, _ = self._read(point, objectives, generate=False, progress=progress, desc=desc)
        return [Measurement.of(nll[part], targets[part]) for part in self._parts(objectives)]

    def repeats(self, point: Mapping[str, Tensor], objective: Objective) -> bool:
        """Whether an objective's losses at a point, computed twice, are the same to the last bit; computed once."""
        if self._repeats is None:
            once, again = (self.losses(point, [objective])[0] for _ in range(2))
            self._repeats = once == again
        return self._repeats

    def choices(self, objectives: Sequence[Objective]) -> dict[str, Any]:
        """How these objectives are evaluated, for the manifest: what was chosen where the settings say `auto`.

        `cut_prompts`, where there are any: how many lost their middle, by `<task>/<split>`.
        """
        cut = {f"{o.name}/{o.split}": o.num_cut for o in objectives if o.num_cut}
        shared = {o.name: 0 for o in objectives}
        owner = [o.name for o in objectives for _ in o.encoded]
        for reading in self._readings(objectives):
            if reading.prefix_ids is not None:
                shared[owner[reading.batches[0].rows[0]]] = reading.prefix_ids.shape[1]
        return {
            "token_budget": self._token_budget(objectives),
            "adapter": "merged" if self._merges else "unmerged",
            "shared_prefix_tokens": shared,
            "compile": self.settings.compile,
            **({"cut_prompts": cut} if cut else {}),
        }

    @staticmethod
    def _parts(objectives: Sequence[Objective]) -> list[slice]:
        """Where each objective's examples are in the pool."""
        ends = np.cumsum([len(o.encoded) for o in objectives]).tolist()
        return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]

    def _score_is_decided(self, objectives: Sequence[Objective]) -> Enough:
        """Whether the score of a pooled example is the same whatever follows what is written."""
        rules = [(get_score(o.task.score).decided, e.answer) for o in objectives for e in o.examples]
        tokenizer = self.model.tokenizer
        if not self._appends:
            return to_the_end

        def decided(row: int, ids: Sequence[int]) -> bool:
            rule, answer = rules[row]
            return rule is not never and rule(settled_text(tokenizer, ids), answer)

        return decided

    def work(self, objectives: Sequence[Objective]) -> int:
        """About how much it is to evaluate objectives once, in tokens read; see `EvaluationBatch`."""
        return sum(batch.work for reading in self._readings(objectives) for batch in reading.batches)

    def _read(
        self,
        point: Mapping[str, Tensor],
        objectives: Sequence[Objective],
        generate: bool,
        enough: Enough = to_the_end,
        progress: Progress = silent,
        desc: str = "",
    ) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Per pooled example: negative log-likelihood, target tokens, the text written (or nothing)."""
        total = sum(len(o.encoded) for o in objectives)
        nll, targets = np.empty(total), np.empty(total, dtype=np.int64)
        outputs: list[str] = [""] * total
        tokenizer = self.model.tokenizer
        self._check_positions(objectives, generate, self.model.num_prompts(point))
        if not all(bool(tensor.isfinite().all()) for tensor in point.values()):
            nll.fill(np.nan)  # PyTorch's attention would make zeros of queries that are NaN, and a loss of them
            targets[:] = [len(e.answer_ids) for o in objectives for e in o.encoded]
            return nll, targets, outputs
        with evaluating(self.model.network), torch.no_grad(), self._in_place(point) as network:
            while True:
                bar = progress(total=self.work(objectives), desc=f"{desc} (tokens)")
                try:
                    for batch, result in self._results(network, objectives, generate, enough):
                        rows = list(batch.rows)
                        nll[rows] = result.nll.cpu().numpy()
                        targets[rows] = result.num_targets.cpu().numpy()
                        for row, ids in zip(rows, result.outputs, strict=generate):
                            outputs[row] = text_until(tokenizer, ids, self._ends)
                        bar.update(batch.work)
                    return nll, targets, outputs
                except (torch.OutOfMemoryError, RuntimeError) as error:
                    if not _is_out_of_memory(error):
                        raise
                    self._halve_budget(objectives, error)
                finally:
                    bar.close()

    def _results(
        self, network: nn.Module, objectives: Sequence[Objective], generate: bool, enough: Enough
    ) -> Iterator[Any]:
        for reading in self._readings(objectives):
            prefix = None if reading.prefix_ids is None else SharedPrefix(network, reading.prefix_ids)
            for batch in reading.batches:
                extra = self.model.beside_tokens(batch.prompt_lengths, batch.input_ids.shape[1])
                yield (
                    batch,
                    run_batch(network, batch, self._ends, prefix, generate, extra, self._call(network), enough),
                )

    def _call(self, network: nn.Module) -> Any:
        """The first pass over a batch, compiled if that was asked for; decoding, token by token, is not."""
        if self._compiled is None:
            return None

        def call(**inputs: Any) -> Any:
            with self._compiled.within(network):  # type: ignore[union-attr]
                return network(**inputs)

        return call

    def _in_place(self, point: Mapping[str, Tensor]) -> AbstractContextManager[nn.Module]:
        if isinstance(self.model, LoraModel) and not self._merges:
            return self.model.unmerged(point)
        return self.model.in_place(point)

    def _readings(self, objectives: Sequence[Objective]) -> list[Reading]:
        key = tuple(objectives)
        if key not in self._plans:
            share = {"shared": True, "whole": False, "auto": None}[self.settings.prefix] if self._shares else False
            budget, padding = self._token_budget(objectives), pad_id(self.model.tokenizer)
            self._plans[key] = plan_readings(objectives, budget, share, padding, self.model.device)
            if len(self._plans) > MOST_PLANS:
                self._plans.popitem(last=False)
        return self._plans[key]

    def check_room(self, objectives: Sequence[Objective]) -> None:
        """Raise `UserError` where one of the examples alone exceeds the token budget or the model's positions."""
        self._token_budget(objectives)
        self._check_positions(objectives, True, self.model.num_prompts())

    def _check_positions(self, objectives: Sequence[Objective], generate: bool, num_prompts: int) -> None:
        check_positions(self.model.network, [o.texts(generate) for o in objectives], num_prompts)

    def _token_budget(self, objectives: Sequence[Objective]) -> int:
        needed = longest(objectives)
        asked = self.settings.token_budget
        if asked is not None and asked < needed:
            raise UserError(
                f"Expected a token budget of at least {needed}, the longest example, got {asked}; raise it, or lower "
                "--max-length."
            )
        return max(self._lowered or asked or TOKEN_BUDGET, needed)

    def _halve_budget(self, objectives: Sequence[Objective], error: Exception) -> None:
        budget, needed = self._token_budget(objectives), longest(objectives)
        if budget == needed:
            raise UserError(
                f"Expected memory for one example of {needed} tokens, got none left; choose a device with more, a "
                "smaller model, or a lower --max-length."
            ) from error
        self._lowered = max(budget // 2, needed)
        self._plans.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        logger.warning("Out of memory with %d tokens at once: going on with %d.", budget, self._lowered)

    def _scores(self, objective: Objective, outputs: Sequence[str]) -> np.ndarray:
        score = get_score(objective.task.score)
        known = self._scored.setdefault(objective, {})
        for row, output in enumerate(outputs):
            if (row, output) not in known:  # along a path outputs repeat
                example = objective.examples[row]
                value = score.per_example(output, example.answer, objective.task.source(example.prompt))
                if not -_ROUNDING <= value <= 1 + _ROUNDING:
                    raise UserError(
                        f"Expected scores in [0, 1] of {objective.task.score}, got {value} for {shortened(output)!r}; "
                        "divide it by its largest value, or choose another score."
                    )
                known[row, output] = value
        return np.array([known[row, output] for row, output in enumerate(outputs)])


_ROUNDING = 1e-9  # of a score that is a quotient


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
