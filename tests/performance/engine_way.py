"""This project's way along a path: the engine, the loss alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from points import Case, Way

from mcanalysis.evaluation.engine import Engine, EngineSettings


def make_engine(case: Case, **choices: Any) -> Engine:
    """An engine with some of its choices forced; see `EngineSettings`."""
    return Engine(case.model, EngineSettings(**choices))


def engine_way(case: Case, **choices: Any) -> Way:
    """The losses along a case's path, by such an engine."""
    engine = make_engine(case, **choices)

    def losses(ts: Sequence[float]) -> np.ndarray:
        return np.array([[m.loss for m in engine.losses(case.point(t), case.objectives)] for t in ts])

    return losses
