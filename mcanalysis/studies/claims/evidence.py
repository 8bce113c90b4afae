"""From finished pieces to means with intervals: what all questions share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from mcanalysis.metrics.clustered_ranks import clustered_ratio
from mcanalysis.metrics.comparisons import crossed_mean, holm, student_intervals, student_p
from mcanalysis.studies.claims.pieces import Found

BARRIER = 0.05
"""Nats per target below which a barrier counts as none, as in the benchmark of path finders."""


@dataclass(frozen=True)
class Answer:
    """A question's tables by name, the first of them drawn; `value` says what its `mean` is, `words` what was found.

    `note`: what else is to be known of the tables.
    """

    tables: dict[str, pd.DataFrame]
    value: str
    words: list[str] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True)
class Question:
    """One of the study: its letter, what is asked, how it is answered from the pieces, and of which table of theirs."""

    letter: str
    name: str
    asked: str
    answer: Callable[[Sequence[Found]], Answer]
    needs: str | None = "barriers"

    def answered(self, found: Sequence[Found]) -> Answer:
        """The answer; without tables where no piece of the main part has what it takes."""
        main = [piece for piece in found if piece.planned.part == "main"]
        if not any(self.needs is None or self.needs in piece.tables for piece in main):
            return Answer({}, "")
        return self.answer(found)


def rows(found: Sequence[Found], table: str, *parts: str) -> pd.DataFrame:
    """A measured table of all pieces of some parts (default: main), with what tells the pieces apart as columns."""
    tables = [
        piece.tables[table].assign(**piece.labels)
        for piece in found
        if piece.planned.part in (parts or ("main",)) and table in piece.tables
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def over_pairs(frame: pd.DataFrame, value: str, by: Sequence[str], *, tested: bool = True) -> pd.DataFrame:
    """The mean over pairs of what each pair has in the mean, with a 95 % interval of Student's t.

    What is repeated is the pair: a seed with an order of its own, so that pairs are independent. Columns: `by`,
    `pairs`, `mean`, `low`, `high`, and, `tested`, two-sided `p` for a mean of 0 and `p_holm`, corrected for all rows:
    for differences, gains and slopes; of what is never below 0 it says nothing. With one pair there is no interval.
    `undefined`, where there are any: rows without a value (a loss that is not finite, say), which no mean has; a row of
    nothing else stays, without a mean, and counts among those that are corrected for.

    >>> frame = pd.DataFrame({"path": "line", "pair": [0, 0, 1, 2], "gain": [0.0, 0.2, 0.2, 0.3]})
    >>> over_pairs(frame, "gain", ["path"]).round(3).to_dict("records")[0]["mean"]
    0.2
    """
    found = []
    for labels, group in frame.groupby(list(by), sort=False):
        values = group.dropna(subset=[value]).groupby("pair")[value].mean().to_numpy(dtype=float)
        mean, error, degrees = crossed_mean(values[:, None])
        low, high = student_intervals(mean, error, degrees, 0.95)
        numbers = {"pairs": len(values), "mean": float(mean), "low": float(low), "high": float(high)}
        numbers["undefined"] = int(group[value].isna().sum())
        found.append(dict(zip(by, labels, strict=True)) | numbers | {"p": float(student_p(mean, error, degrees))})
    table = pd.DataFrame(found, columns=[*by, "pairs", "mean", "low", "high", "undefined", "p"])
    table = table if table.undefined.any() else table.drop(columns="undefined")
    if not tested:
        return table.drop(columns="p")
    return table.assign(p_holm=holm(table.p.to_numpy(dtype=float)) if len(table) else [])


def shares_over_pairs(frame: pd.DataFrame, part: str, whole: str, by: Sequence[str]) -> pd.DataFrame:
    """The sum of `part` over all rows of all pairs divided by that of `whole`, with an interval over pairs.

    Each row counts as much as its `whole`, so that a pair with one event has not the weight of one with seven. `of`:
    the sum of `whole`. The interval is that of `clustered_ratio`.

    >>> frame = pd.DataFrame({"path": "line", "pair": [0, 1, 1, 2], "lost": [1, 0, 0, 1], "all": [1, 1, 1, 1]})
    >>> shares_over_pairs(frame, "lost", "all", ["path"])[["pairs", "of", "mean"]].to_dict("records")
    [{'pairs': 3, 'of': 4.0, 'mean': 0.5}]
    """
    found = []
    for labels, group in frame.groupby(list(by), sort=False):
        ratio = clustered_ratio(group[part], group[whole], group.pair)
        numbers = {"pairs": ratio.num_runs, "of": float(group[whole].sum()), "mean": ratio.value}
        found.append(dict(zip(by, labels, strict=True)) | numbers | {"low": ratio.low, "high": ratio.high})
    return pd.DataFrame(found, columns=[*by, "pairs", "of", "mean", "low", "high"])


def slopes(frame: pd.DataFrame, value: str, x: str, by: Sequence[str], num_levels: int) -> pd.DataFrame:
    """The slope of a value per doubling of `x`, by least squares, of each pair: columns `by`, `pair`, `slope`.

    NaN for a pair without a value at each of `num_levels` different `x`: a slope over fewer is of another curve.

    >>> frame = pd.DataFrame({"of": "rank", "pair": [0, 0, 1], "rank": [2, 8, 2], "gain": [0.0, 2.0, 0.0]})
    >>> slopes(frame, "gain", "rank", ["of"], 2).slope.round(6).tolist()
    [1.0, nan]
    """
    found = []
    for labels, group in frame.groupby([*by, "pair"], sort=False):
        known = group.dropna(subset=[value])
        slope = math.nan
        if known[x].nunique() == num_levels > 1:
            slope = float(np.polyfit(np.log2(known[x].to_numpy(float)), known[value].to_numpy(float), 1)[0])
        found.append(dict(zip([*by, "pair"], labels, strict=True)) | {"slope": slope})
    return pd.DataFrame(found, columns=[*by, "pair", "slope"])


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table by column.

    >>> records(pd.DataFrame({"path": ["line"], "mean": [0.5]}))
    [{'path': 'line', 'mean': 0.5}]
    """
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def interval(row: Mapping[Any, Any], digits: int = 3) -> str:
    """A mean with its interval, in words; without one where pairs are too few or all the same.

    >>> interval({"mean": 0.1234, "low": -0.5, "high": 0.75})
    '+0.123 [−0.500, +0.750]'
    """
    if math.isnan(row["mean"]):
        return "undefined"
    mean, low, high = (f"{row[n]:+.{digits}f}".replace("-", "−") for n in ("mean", "low", "high"))
    return mean if "nan" in low else f"{mean} [{low}, {high}]"
