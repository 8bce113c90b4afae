"""The tables that the analysis of paths writes, filled path by path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import pandas as pd

from mcanalysis.metrics.task_means import MEANS
from mcanalysis.studies.connectivity.certified import COLUMNS
from mcanalysis.studies.connectivity.flip_tables import flip_rows
from mcanalysis.studies.connectivity.gauges import gauge_columns
from mcanalysis.studies.connectivity.general_tables import general_barriers, general_rows
from mcanalysis.studies.connectivity.measuring import Measured
from mcanalysis.studies.connectivity.path_tables import front_rows, summary_rows
from mcanalysis.studies.connectivity.tables import rows_beyond, transition_rows, without_barriers

Rows = list[dict[str, Any]]


@dataclass
class ResultTables:
    """Rows of `profiles.csv`, `barriers.csv`, `paths.csv`, `front.csv`, of `flips.csv` and `kept_questions.csv` where
    scores are exact, and of `ensemble.csv`, `simplex.csv`, `certificates.csv` and `gauges.csv` where these were asked
    for."""

    profiles: Rows = field(default_factory=list)
    barriers: Rows = field(default_factory=list)
    paths: Rows = field(default_factory=list)
    front: Rows = field(default_factory=list)
    flips: Rows = field(default_factory=list)
    kept_questions: Rows = field(default_factory=list)
    ensemble: Rows = field(default_factory=list)
    simplex: Rows = field(default_factory=list)
    certificates: Rows = field(default_factory=list)
    gauges: Rows = field(default_factory=list)

    def add(self, measured: Measured, labels: Mapping[str, Any]) -> None:
        """Add the rows of one path; `labels` say whose it is. They are made once, however often a figure grows."""
        if measured not in _made:
            made = ResultTables()
            made._make(measured)
            _made[measured] = made
        for name, rows in vars(_made[measured]).items():
            getattr(self, name).extend({**labels, **row} for row in rows)

    def _make(self, measured: Measured) -> None:
        path = measured.path
        t = path.transition
        labels = {"space": path.kind.space, "path": path.kind.path, "start": t.start, "end": t.end}
        ts = next(iter(measured.profiles["test"].values())).ts
        deviation = path.deviation(ts)
        judged = "mean" if t.old or t.is_from_base else t.new  # of two adapters on one file
        profiles, barriers = transition_rows(
            measured.profiles, t.old, t.new, labels, deviation, measured.num_cut, judged
        )
        if measured.general is not None:
            profiles += general_rows(measured.general, labels, deviation, measured.num_cut["test"])
            barriers += general_barriers(measured.general, labels)
        if not path.kind.path_class.joins_minima:
            barriers = [without_barriers(row) for row in barriers]
        if measured.beyond:
            away = path.deviation(path.ts_beyond)
            profiles += rows_beyond(measured.beyond, t.old, t.new, labels, away, measured.num_cut)
            if measured.general_beyond is not None:
                profiles += general_rows(measured.general_beyond, labels, away, measured.num_cut["test"])
            order = {of_task: i for i, of_task in enumerate(dict.fromkeys(map(_of_task, profiles)))}
            profiles.sort(key=lambda row: (order[_of_task(row)], row["t"]))
        if any(measured.templates.values()):  # no column where there is none, as in tables of before
            tasks = {**measured.templates, **dict.fromkeys(MEANS, "")}
            profiles = [{**row, "chat_template": tasks[row["task"]]} for row in profiles]
        for row in barriers:  # no columns without a search, as in tables of before
            if measured.certified.columns:
                known = measured.certified.columns.get(row["task"], {}) if row["quantity"] == "loss" else {}
                row |= {name: known.get(name, float("nan")) for name in COLUMNS}
            if path.settings.gauges:
                row |= gauge_columns(measured.gauges, row["task"], row["quantity"])
        self.gauges += [{**labels, **row} for row in measured.gauges]
        self.certificates += [{**labels, **row} for row in measured.certified.rows]
        self.profiles += profiles
        self.barriers += barriers
        self.paths += summary_rows(
            measured.profiles, t.old, t.new, labels, path.lengths(ts), deviation, measured.certified.remaining
        )
        axis = None if measured.general is None else measured.general.axis
        self.front += front_rows(measured.profiles, t.old, t.new, labels, axis)
        tested = {**measured.profiles["test"], **({} if measured.general is None else measured.general.profiles)}
        if path.kind.path_class.joins_minima:  # else its start is the base, against which nothing was lost
            self.flips, self.kept_questions = flip_rows(tested, measured.tested, t.old, t.new, labels)
        self.ensemble += [{**labels, **row} for row in measured.ensemble]

    def frames(self) -> dict[str, pd.DataFrame]:
        """The tables by name; those without rows are left out, `profiles` and `barriers` never are."""
        named = {name: pd.DataFrame(rows) for name, rows in vars(self).items()}
        return {name: table for name, table in named.items() if len(table) or name in ("profiles", "barriers")}


_made: WeakKeyDictionary[Measured, ResultTables] = WeakKeyDictionary()


def _of_task(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["split"], row["task"]
