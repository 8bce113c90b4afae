"""(b) Is there something to gain between the minima, and where?"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from mcanalysis.metrics.clustered_ranks import clustered_spearman
from mcanalysis.metrics.comparisons import holm
from mcanalysis.studies.claims.evidence import Answer, Question, interval, over_pairs, records, rows
from mcanalysis.studies.claims.pieces import Found


def answer(found: Sequence[Found]) -> Answer:
    """The gain of S̄ at a t* chosen on eval over the better end; which signals without old data rank t*."""
    table = rows(found, "barriers")
    table = table[(table.quantity == "score") & (table.task == "mean")].assign(kind=lambda t: t.path + "-" + t.space)
    table = table.assign(
        above=(table.interpolation_gain_low > 0) * 1.0, below=(table.interpolation_gain_high < 0) * 1.0
    )
    gains = over_pairs(table, "interpolation_gain", ["strategy", "kind"])
    for column in ("t_star", "above", "below"):
        means = table.groupby(["strategy", "kind"], sort=False)[column].mean().rename(column)
        gains = gains.merge(means.reset_index(), on=["strategy", "kind"])
    words = [
        f"{row['strategy']}, straight in ΔW: gain {interval(row)}, above 0 in {row['above']:.0%} and below 0 in "
        f"{row['below']:.0%} of the transitions; t* {row['t_star']:.2f} in the mean"
        for row in records(gains[gains.kind == "linear-delta"])
    ]
    return Answer({"gain": gains, "gain_t_star": predicted(found, table)}, "gain of S̄ over the better end", words)


def predicted(found: Sequence[Found], gains: pd.DataFrame) -> pd.DataFrame:
    """Spearman's ρ of each signal that needs no old data with t* on the straight line in ΔW, over runs."""
    from mcanalysis.studies.predictors import needs_old_data

    signals = rows(found, "signals")
    own = gains[gains.kind == "linear-delta"][["strategy", "pair", "start", "end", "t_star"]]
    both = signals.merge(own, on=["strategy", "pair", "start", "end"]) if len(signals) else signals
    runs = both.groupby(["strategy", "pair"], sort=False).ngroup().to_numpy() if len(both) else []
    found_rows = [
        {"signal": column} | clustered_spearman(both[column], both.t_star, runs)._asdict()
        for column, old in needs_old_data().items()
        if not old and len(both) and column in both and both[column].notna().any()
    ]
    table = pd.DataFrame(found_rows)
    return table.assign(p_holm=holm(table.p.to_numpy(float))) if len(table) else table


QUESTION = Question("b", "gain", "Is a point between two minima better than both, where, and can it be told without "
                    "old data?", answer)  # fmt: skip
