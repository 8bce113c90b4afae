"""The barriers between every two of several minima as a matrix, and the clusters that it shows.

As Juneja et al. (arXiv 2205.12411) draw theirs; of the straight path's chord barrier, by hierarchical clustering, where
they take a convexity gap and spectral clustering.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mcanalysis.metrics.clusters import clusters
from mcanalysis.metrics.task_means import MEAN
from mcanalysis.numbers_as_text import cell
from mcanalysis.store import base_minimum
from mcanalysis.studies.study import Rows

if TYPE_CHECKING:
    from mcanalysis.plotting.picture import Picture

ROUNDING = 1e-6
"""Barriers up to it, of a function that returns one number, are rounding of float32."""
_KEYS = ["space", "path", "task", "quantity"]


def barrier_matrix(barriers: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """One row per kind of path, task, quantity and minimum: its `cluster`, its `place` in the order that puts clusters
    together, and a column per minimum with the chord barrier between the two.

    `barriers` as in `barriers.csv`. Clusters are of the barriers that are told from 0: whose interval, widened as the
    number of pairs asks for (Bonferroni, of normal quantiles) and not flagged `few_events`, excludes it; without
    intervals those above rounding. Others count as 0, so that all are one cluster where none is told from it; no
    cluster (0) where a barrier is no number. Quantities without any number are left out.
    """
    rows = []
    between = barriers[barriers.start != base_minimum.LABEL]
    for keys, group in between.groupby(_KEYS, sort=False):
        if group.chord_barrier.isna().all():
            continue
        matrix, told = np.zeros((2, len(labels), len(labels)))
        numbers = {name: k for k, name in enumerate(labels)}
        apart = _told_from_zero(group)
        for start, end, barrier, is_told in zip(group.start, group.end, group.chord_barrier, apart, strict=True):
            i, j = numbers[start], numbers[end]
            matrix[i, j] = matrix[j, i] = barrier
            told[i, j] = told[j, i] = barrier if is_told or np.isnan(barrier) else 0.0
        found = clusters(told, are_apart=bool(apart.any()))
        place = np.argsort(found.order)
        for k, name in enumerate(labels):
            head = {**dict(zip(_KEYS, keys, strict=True)), "minimum": name}  # type: ignore[arg-type]
            head |= {"cluster": int(found.numbers[k]), "place": int(place[k]) + 1}
            rows.append(head | dict(zip(labels, matrix[k], strict=True)))
    return pd.DataFrame(rows)


def _told_from_zero(pairs: pd.DataFrame) -> np.ndarray:
    """Which barriers are told from 0, all pairs considered."""
    from scipy.special import ndtri

    barrier, low = pairs.chord_barrier.to_numpy(float), pairs.chord_barrier_low.to_numpy(float)
    if (np.isnan(low) | (low == barrier)).all():  # one number each, without examples
        return barrier > ROUNDING
    wider = ndtri(1 - 0.025 / len(pairs)) / ndtri(1 - 0.025)
    few = pairs.few_events.fillna(True).to_numpy(bool) if "few_events" in pairs else np.zeros(len(pairs), bool)
    return (barrier - wider * (barrier - low) > 0) & ~few


def matrix_pictures(table: pd.DataFrame) -> Iterator[Picture]:
    """One picture per kind of path: the barriers of the loss, of the mean over the tasks where there are two."""
    from mcanalysis.plotting.barrier_matrix import caption, plot_barrier_matrix
    from mcanalysis.plotting.picture import Picture

    for (space, path), _, of_kind in _of_loss(table):
        yield Picture(f"barrier_matrix_{path}_{space}", plot_barrier_matrix(of_kind), {}, caption(of_kind))


def matrix_words(table: pd.DataFrame) -> Iterator[str | Rows]:
    """The matrix of each kind of path, its rows in the order that puts clusters together, and the clusters."""
    for (space, path), task, of_kind in _of_loss(table):
        ordered = of_kind.sort_values("place")
        names = list(ordered.minimum)
        yield f"\nChord barriers of the loss (nats per target token) on {task}, {path} {space}:"
        yield [["minimum", "cluster", *names]] + [
            [row["minimum"], str(row["cluster"]), *(cell(row[name]) for name in names)]
            for row in ordered.to_dict("records")
        ]
        members = {number: list(of.minimum) for number, of in of_kind.groupby("cluster")}
        if 0 in members:
            yield "No clusters: not all barriers are numbers."
        elif len(members) == 1:
            yield "One cluster: no barrier is told from 0."
        else:
            yield "Clusters: " + "; ".join(f"{number}: {', '.join(of)}" for number, of in members.items()) + "."


def _of_loss(table: pd.DataFrame) -> Iterator[tuple[tuple[str, str], str, pd.DataFrame]]:
    """By kind of path: the task that is shown, and its rows of the loss."""
    for kind, of_kind in table[table.quantity == "loss"].groupby(["space", "path"], sort=False):
        task = MEAN if (of_kind.task == MEAN).any() else of_kind.task.iloc[-1]
        yield kind, str(task), of_kind[of_kind.task == task]  # type: ignore[misc]
