"""Line search: after each task the answer moves from where it was towards the adapter that was trained, as far as the
memory says.

Tried in the study (STUDY.md) and no part of the package:
`MCANALYSIS_STRATEGY_PATH=analyses/strategies python analyses/train.py --strategy line_search`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.models.encoding import EncodedExample, collate, pad_id
from mcanalysis.models.forward import forward
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.params.groups import by_layer, by_module
from mcanalysis.params.point import Point
from mcanalysis.replay.random_state import random_state, set_random_state
from mcanalysis.replay.reservoir import ReplayItem
from mcanalysis.strategies.er import Er, ErConfig

ALONG = tuple(i / 20 for i in range(21))
"""t that are tried of the whole adapter."""
APART = (0.0, 0.25, 0.5, 0.75, 1.0)
"""t that are tried of one layer or module, where the others stand."""
_BATCH = 32


@dataclass(frozen=True)
class LineSearchConfig(ErConfig):
    """Settings of the line search, beside those of `er`.

    `by`: one t for the whole adapter, or one for each layer or each module. `held_out`: the
    share of the memory that is never replayed and alone judges, by a draw for each example (of a task of which none is
    held out all that is remembered judges); 0: all of it does both. `go_on_from`: where the next task's training
    starts, the trained adapter or the chosen point.
    """

    by: Literal["adapter", "layer", "module"] = "adapter"
    held_out: float = 0.0
    go_on_from: Literal["trained", "chosen"] = "trained"

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise UserError(f"Expected a share held_out in [0, 1), got {self.held_out}; try 0.25.")


@lru_cache(maxsize=100_000)  # asked of all that is remembered in every step
def _drawn(seed: int, item: ReplayItem) -> float:
    """By what the example is, so that it is held out, or not, as long as it is remembered."""
    return Random(f"{seed}/{item.task_index}/{item.example.prompt_ids}/{item.example.answer_ids}").random()


class LineSearch(Er):
    """Experience replay trains the adapter `trained`; after task k `chosen` ← chosen + t·(trained − chosen), factor by
    factor, with the t of least loss: of each task the mean in nats per target token over what is remembered of it, and
    of these the mean over the tasks. With several t, one sweep, each over a coarse grid from the best single t on.

    After the first task it is the trained adapter.
    """

    name = "line_search"
    reference = "ours"
    config_class = LineSearchConfig
    searched: ClassVar = {
        "by": ("adapter", "layer", "module"),
        "held_out": (0.0, 0.25),
        "go_on_from": ("trained", "chosen"),
    }
    learners = ("trained", "chosen")
    resting_learners = ("chosen",)

    def __init__(self, config: LineSearchConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.chosen: Point = {}
        self._rng = Random(f"line_search/{seed}")

    @property
    def answering_learner(self) -> str:
        return "chosen"

    def _is_held_out(self, item: ReplayItem) -> bool:
        return self.config.held_out > 0 and _drawn(self.seed, item) < self.config.held_out

    def _replayed(self) -> list[ReplayItem]:
        return [item for item in self.rehearsal.buffer.items if not self._is_held_out(item)]

    def _judges(self) -> dict[int, list[EncodedExample]]:
        """What judges, by task."""
        found: dict[int, list[EncodedExample]] = {}
        items = self.rehearsal.buffer.items
        held_out = {item.task_index for item in items if self._is_held_out(item)}
        for item in items:
            if item.task_index not in held_out or self._is_held_out(item):
                found.setdefault(item.task_index, []).append(item.example)
        return found

    def begin(self, model: LoraModel, num_tasks: int) -> None:
        self.chosen = model.point()

    def begin_task(self, model: LoraModel, task_index: int, examples: Sequence[EncodedExample]) -> None:
        super().begin_task(model, task_index, examples)
        if task_index and self.config.go_on_from == "chosen":
            model.load_point(self.chosen)

    def draw_replay(self, number: int) -> list[EncodedExample]:
        if not self.config.held_out:
            return super().draw_replay(number)
        replayed = self._replayed()
        if not replayed or not (self.task_index or self.config.replay_from_first_step):
            return []
        draw = self._rng.sample if number <= len(replayed) else lambda items, k: self._rng.choices(items, k=k)
        return [item.example for item in draw(replayed, number)]

    def end_task(self, model: LoraModel, examples: Sequence[EncodedExample]) -> None:
        trained, judges = model.point(), self._judges()
        ts = dict.fromkeys(trained, 1.0)
        if self.task_index and judges:
            ts = self._search(model, trained, judges)
        self.report.setdefault("t", []).append(sum(ts.values()) / len(ts))
        self.chosen = self._at(trained, ts)

    def _at(self, trained: Mapping[str, Tensor], ts: Mapping[str, float]) -> Point:
        return {k: self.chosen[k].lerp(v, ts[k]) if ts[k] < 1 else v.clone() for k, v in trained.items()}

    def _search(self, model: LoraModel, trained: Point, judges: Mapping[int, list[EncodedExample]]) -> dict[str, float]:
        def best(names: Iterable[str], grid: Sequence[float], ts: dict[str, float]) -> dict[str, float]:
            tried = [ts | dict.fromkeys(names, t) for t in grid]
            losses = [self._loss(model, self._at(trained, one), judges) for one in tried]
            return tried[min(range(len(tried)), key=losses.__getitem__)]

        ts = best(trained, ALONG, dict.fromkeys(trained, 1.0))
        groups = {"adapter": {}, "layer": by_layer(trained), "module": by_module(trained)}[self.config.by]
        for names in groups.values():
            ts = best(names, sorted({*APART, ts[names[0]]}), ts)
        return ts

    @torch.no_grad()
    def _loss(self, model: LoraModel, point: Point, judges: Mapping[int, list[EncodedExample]]) -> float:
        means = []
        with model.without_dropout(), model.in_place(point) as network:
            for of_task in judges.values():
                nll = 0.0
                for first in range(0, len(of_task), _BATCH):
                    batch = collate(of_task[first : first + _BATCH], pad_id(model.tokenizer)).to(model.device)
                    nll += float(forward(network, batch).nll.sum())
                means.append(nll / sum(len(e.answer_ids) for e in of_task))
        return sum(means) / len(means)

    def save_learner(self, model: LoraModel, learner: str, directory: Any) -> None:
        model.save(directory, self.chosen if learner == "chosen" else None)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        _, values = super().state()
        return dict(self.chosen), {**values, "rng": random_state(self._rng), "report": self.report}

    def load_state(self, model: LoraModel, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        super().load_state(model, tensors, values)
        self.chosen = {k: v.to(model.device) for k, v in tensors.items()}
        set_random_state(self._rng, values["rng"])
        self.report = dict(values["report"])
