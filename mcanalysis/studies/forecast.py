"""What a study of finished runs would take, told by the pieces that it wants and the time of a few; nothing is kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd

from mcanalysis.errors import UserError
from mcanalysis.progress import silent
from mcanalysis.runs.run import Run
from mcanalysis.studies.connectivity.forecast import Forecast, threads_of_one_of
from mcanalysis.studies.engine import Engine, Here, Piece
from mcanalysis.studies.study import Setting, Study

SAMPLES = 3  # pieces of each kind that are timed, the first of which loads the model
ENOUGH = 20.0  # seconds after which no more are


class _NotComputed(Exception):  # noqa: N818  (no error: what a study is told of a piece that is only counted)
    """A piece was counted."""


class _Counting:
    """Workers that compute nothing, and remember what they were given."""

    count = 1 << 30
    apart = False

    def __init__(self) -> None:
        self.pieces: list[Piece] = []

    def submit(self, piece: Piece) -> Future[Any]:
        self.pieces.append(piece)
        future: Future[Any] = Future()
        future.set_exception(_NotComputed())
        return future

    def stop(self) -> None:
        """Nothing runs."""


def forecast_pieces(study: Study, runs: Sequence[Run], num_workers: int = 1) -> Forecast:
    """Count the pieces that a study lacks and time a few of each kind: about what it takes on so many workers.

    Told is what can be asked for at once: what follows from a piece, as measuring a curve from its fit, is not. Raises
    `UserError` as the study would. `rows`: `run`, `work` (the kind), `to_do`, `seconds` of one worker.
    """
    rows, times = [], {}
    with threads_of_one_of(num_workers):
        for run in runs:
            by_kind: dict[str, list[Piece]] = {}
            for piece in _wanted(study, run, num_workers):
                by_kind.setdefault(piece.function.__name__.strip("_").replace("_", " "), []).append(piece)
            for kind, pieces in by_kind.items():
                if kind not in times:
                    times[kind] = _seconds(pieces)
                seconds = times[kind] * len(pieces)
                rows.append({"run": run.directory.name, "work": kind, "to_do": len(pieces), "seconds": seconds})
    table = pd.DataFrame(rows, columns=["run", "work", "to_do", "seconds"])
    return Forecast(table, float(table.seconds.sum()) / num_workers, num_workers, None, None)


def _wanted(study: Study, run: Run, num_workers: int) -> list[Piece]:
    counting = _Counting()
    with suppress(_NotComputed):
        Engine(counting).run([study.measure(run, Setting(run.strategy, lambda: num_workers))])
    return counting.pieces


def _seconds(pieces: Sequence[Piece]) -> float:
    """Of one piece: the mean of some, evenly among them, without the first of these where there are more."""
    if any(piece.trains for piece in pieces):
        raise UserError("Expected pieces that can be timed and write nothing, got trainings; leave --dry-run out.")
    took: list[float] = []
    for i in sorted(set(np.linspace(0, len(pieces) - 1, SAMPLES).round().astype(int))):
        if sum(took) > ENOUGH:
            break
        began = time.perf_counter()
        Here(silent).submit(pieces[i]).result()
        took.append(time.perf_counter() - began)
    return float(np.mean(took[1:] or took))
