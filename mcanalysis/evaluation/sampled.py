"""An objective on some of its examples: what a first look and a certificate measure between the ends of a path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from torch import Tensor

from mcanalysis.evaluation.engine import Engine
from mcanalysis.evaluation.objective import Objective
from mcanalysis.store.hashing import hash_json
from mcanalysis.store.measurements import Measurement


class SampledObjective:
    """A function of a point and of numbers of examples, from 0, that returns their measurement.

    `num_examples`: how many there are. Losses alone unless `scores`, which take writing answers.
    """

    def __init__(self, engine: Engine, objective: Objective, scores: bool = False) -> None:
        self.num_examples = len(objective.examples)
        self._objective = objective
        self._measure: Any = engine.measure if scores else engine.losses

    def __call__(self, point: Mapping[str, Tensor], rows: Sequence[int]) -> Measurement:
        """Measure these examples at a point."""
        return self._measure(point, [some_of(self._objective, tuple(int(row) for row in rows))])[0]


@lru_cache(maxsize=64)  # the same examples at several points of a path: they are batched once
def some_of(objective: Objective, rows: tuple[int, ...]) -> Objective:
    """The objective on the examples of these numbers, with a key of its own in the store, for losses alone."""
    examples, encoded = (tuple(of[i] for i in rows) for of in (objective.examples, objective.encoded))
    key = f"{objective.settings_key}/losses of {hash_json(rows)[:16]}"
    return replace(objective, examples=examples, encoded=encoded, settings_key=key)
