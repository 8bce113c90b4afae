"""Strategies against each other: differences of average accuracy paired by run, and ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mcanalysis.errors import UserError
from mcanalysis.metrics.comparisons import crossed_mean, holm, mean_ranks, rank_sets, student_intervals, student_p
from mcanalysis.studies.strategy_tables import summary_table

CONFIDENCE = 0.95
DEFAULT_REFERENCES = ("er", "sequential")  # the first that was run is what others are compared with


def reference_of(strategies: Sequence[str], against: str | None = None) -> str:
    """The strategy that others are compared with: the one asked for, else `er`, else `sequential`, else the first.

    Raises `UserError` for one that is not among them.

    >>> reference_of(["sequential", "er", "ilora"]), reference_of(["ilora", "gem"])
    ('er', 'ilora')
    """
    if against is not None and against not in strategies:
        raise UserError(
            f"Expected --against with a strategy that has an average accuracy here, {', '.join(strategies)}, got "
            f"'{against}'; name one of these."
        )
    return against or next((name for name in DEFAULT_REFERENCES if name in strategies), strategies[0])


def comparisons(metrics: pd.DataFrame, against: str | None = None) -> pd.DataFrame:
    """Differences of average accuracy between the answering learners of a `metrics_table`, paired by seed and order.

    First the family of all strategies against the reference (`family` is its name), then that of all pairs ("all").
    Per pair: `seeds`, `orders` and `pairs` that both have, the mean `difference` (`strategy` minus `against`), its
    standard `error` and `degrees` of freedom (`crossed_mean`), `low` and `high` of its 95 % interval by itself and,
    `…_together`, so that the intervals of the family hold at once; `p`, and `p_holm`, corrected for the family. What
    cannot be told is NaN. Strategies without an average accuracy (`individual`) are left out; with fewer than two
    there are no rows.
    """
    names, scores = _scores(metrics)
    families: dict[str, tuple[np.ndarray, ...]] = {}
    if len(names) > 1:
        reference = names.index(reference_of(names, against))
        rest = np.delete(np.arange(len(names)), reference)
        families = {names[reference]: (rest, np.full(len(rest), reference)), "all": np.triu_indices(len(names), k=1)}
    found = []
    for family, (a, b) in families.items():
        gaps = scores[a] - scores[b]
        there = ~np.isnan(gaps)
        mean, error, degrees = crossed_mean(gaps)
        p = student_p(mean, error, degrees)
        columns = {
            "family": family,
            "strategy": [names[i] for i in a],
            "against": [names[i] for i in b],
            "seeds": there.any(axis=2).sum(axis=1),
            "orders": there.any(axis=1).sum(axis=1),
            "pairs": there.sum(axis=(1, 2)),
            "difference": mean,
            "error": error,
            "degrees": degrees,
            "p": p,
            "p_holm": holm(p),
        }
        for end, together in (("", 1), ("_together", len(a))):
            low, high = student_intervals(mean, error, degrees, CONFIDENCE, together=together)
            columns |= {f"low{end}": low, f"high{end}": high}
        found.append(pd.DataFrame(columns))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame({"family": []})


def compared_summary(metrics: pd.DataFrame, against: str | None = None) -> pd.DataFrame:
    """`summary_table` with what `comparisons` found: in the row over all runs of each answering learner.

    `against`, `difference`, `difference_low` and `difference_high` (together), `alone_low` and `alone_high` (each by
    itself), `p_holm`; `mean_rank` over the runs that
    all strategies have, and `rank_low`, `rank_high`, the ranks that it may have (`rank_sets`). With fewer than two
    strategies nothing is added.
    """
    summary = summary_table(metrics)
    names, scores = _scores(metrics)
    if len(names) < 2:
        return summary
    mean, error, degrees = crossed_mean(scores[:, None] - scores[None])
    low, high = rank_sets(mean, error, degrees, CONFIDENCE)
    tested = np.isfinite(error).any(axis=1)  # not with one run of each
    ranks = {
        "mean_rank": mean_ranks(scores.reshape(len(names), -1)),
        "rank_low": np.where(tested, low, np.nan),
        "rank_high": np.where(tested, high, np.nan),
    }
    found = comparisons(metrics, against)
    named = {"low_together": "difference_low", "high_together": "difference_high"}
    named |= {"low": "alone_low", "high": "alone_high"}
    own = found[found.family != "all"].set_index("strategy").rename(columns=named)
    own = own[["against", "difference", *named.values(), "p_holm"]]
    added = own.reindex(names).assign(**ranks).reindex(summary.strategy).set_axis(summary.index)
    return summary.join(added[over_all_runs(summary)])


def over_all_runs(summary: pd.DataFrame) -> pd.Series:
    """Which rows are of an answering learner, and of all orders where there are several."""
    return summary.answers.astype(bool) & ~summary.duplicated(["strategy", "learner"], keep="last")


def _scores(metrics: pd.DataFrame) -> tuple[list[str], np.ndarray]:
    """Strategies with an average accuracy, and those of their answering learners, shape (strategies, seeds, orders)."""
    answering = metrics[metrics.answers.astype(bool)].dropna(subset=["average_accuracy"])
    answering = answering.assign(order=answering.get("order", ""))
    names, seeds, orders = (list(dict.fromkeys(answering[column])) for column in ("strategy", "seed", "order"))
    values = answering.set_index(["strategy", "seed", "order"]).average_accuracy
    grid = pd.MultiIndex.from_product([names, seeds, orders])
    return names, values.reindex(grid).to_numpy(dtype=float).reshape(len(names), len(seeds), len(orders))
