"""General tasks along a path: rows of role `general` in `profiles.csv` and `barriers.csv`, and the third axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mcanalysis.connectivity.profile import Profile, Quantity
from mcanalysis.metrics.bootstrap import Sample
from mcanalysis.metrics.intervals import Estimate, Interval, mean_interval
from mcanalysis.metrics.retention import mean_retention, retention_estimate, retention_interval
from mcanalysis.store.measurements import Measurement
from mcanalysis.studies.connectivity.tables import NO_GAIN, barrier_columns


@dataclass(frozen=True, eq=False)
class GeneralTasks:
    """What was measured of each general task: `profiles` along a path, and the `base` on the same examples."""

    profiles: Mapping[str, Profile]
    base: Mapping[str, Measurement]

    def has_score(self, name: str) -> bool:
        """Whether a task's outputs are scored."""
        return self.profiles[name].example_scores is not None

    def quantities(self, name: str) -> tuple[Quantity, ...]:
        """What is measured of a task."""
        return ("loss", "score") if self.has_score(name) else ("loss",)

    @cached_property
    def retentions(self) -> dict[str, Estimate]:
        """What each task keeps of the base at each point: of its score where it has one, else of its loss."""
        found = {}
        for seed, (name, profile) in enumerate(self.profiles.items()):
            quantity: Quantity = "score" if self.has_score(name) else "loss"
            values, sizes = profile.sample(quantity)
            of_base = self.base[name].scores if quantity == "score" else self.base[name].nll
            along = Estimate.of(Sample(np.vstack([values, of_base]), sizes), is_score=quantity == "score", seed=seed)
            found[name] = retention_estimate(along, is_score=quantity == "score")
        return found

    @cached_property
    def axis(self) -> Estimate | None:
        """The mean retention over the tasks that have one; None where none has."""
        return mean_retention(list(self.retentions.values()))


def general_rows(
    general: GeneralTasks, labels: Mapping[str, Any], deviation: np.ndarray, num_cut: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Rows of `profiles.csv`, with `retention` and its interval; of the test split. Text without a score has NaN."""
    rows: list[dict[str, Any]] = []
    for seed, (name, profile) in enumerate(general.profiles.items()):
        intervals: dict[str, Interval] = {"score": _unknown(len(profile.ts))}
        intervals |= {q: mean_interval(profile.estimate(q, seed), least=0.0) for q in general.quantities(name)}
        kept = general.retentions[name]
        intervals["retention"] = retention_interval(kept)
        values = {"loss": profile.losses, "score": profile.values("score"), "retention": kept.point}
        base = general.base[name]
        sizes = {"num_examples": base.num_examples, "num_targets": base.num_targets, "num_cut": num_cut[name]}
        for i, t in enumerate(profile.ts):
            row = {**labels, "split": "test", "role": "general", "t": float(t), "task": name}
            row |= {q: float(v[i]) for q, v in values.items()} | sizes
            for column, interval in intervals.items():
                row |= interval.at(i).columns(column)
                if column != "retention":
                    row[f"{column}_few_events"] = bool(interval.few_events[i])
            rows.append({**row, "factor_delta_deviation": float(deviation[i])})
    return rows


def general_barriers(general: GeneralTasks, labels: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of `barriers.csv`, of the test split; none of the score of text, which has none."""
    rows: list[dict[str, Any]] = []
    for seed, (name, profile) in enumerate(general.profiles.items()):
        for quantity in general.quantities(name):
            values, estimate = profile.values(quantity), profile.estimate(quantity, seed)
            found = barrier_columns(profile.ts, values, estimate, quantity == "score")
            few_events = found.pop("few_events")
            row = {**labels, "split": "test", "role": "general", "task": name, "quantity": quantity}
            rows.append({**row, **found, **NO_GAIN, "few_events": few_events})
    return rows


def _unknown(number: int) -> Interval:
    lost = np.full(number, np.nan)
    return Interval(lost, lost, np.zeros(number, dtype=bool))
