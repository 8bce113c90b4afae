"""(b) Is there something to gain between the minima, and where?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mcanalysis.metrics.clustered_ranks import clustered_spearman
from mcanalysis.metrics.comparisons import holm
from mcanalysis.studies.claims.evidence import Answer, Question, interval, over_pairs, records, rows
from mcanalysis.studies.claims.pieces import Found

NOTE = (
    "S̄ is half the mean score of the old tasks and half that of the new one. `interpolation_gain`, over the better end "
    "on test, is what connectivity.py prints: it is below 0 where nothing differs, as the better end is chosen by the "
    "very examples that judge it. The Bezier curve is fitted on train examples of old and new tasks: its gain is of "
    "more training, too. `above` and `below` count intervals over examples, one by one. `gain_at`: what a t that is "
    "told without old data gains, predicted for each pair from the others, and beside it eval's own choice."
)

TRANSITION = ("part", "label", "strategy", "pair", "start", "end", "space", "path")
"""What tells one path of one piece from all others."""


def answer(found: Sequence[Found]) -> Answer:
    """What the point of the best eval score S̄ gains on test over the end that eval prefers; what ranks t*."""
    table = rows(found, "barriers")
    table = table[(table.quantity == "score") & (table.task == "mean")].assign(kind=lambda t: t.path + "-" + t.space)
    of_paths = over_the_end_of_eval(found)
    table = table.merge(of_paths, on=list(TRANSITION))
    known = table.interpolation_gain_low.notna()
    table = table.assign(
        above=((table.interpolation_gain_low > 0) * 1.0).where(known),
        below=((table.interpolation_gain_high < 0) * 1.0).where(known),
    )
    gains = over_pairs(table, "gain", ["strategy", "kind"])
    for column in ("interpolation_gain", "t_star", "above", "below"):
        means = over_pairs(table, column, ["strategy", "kind"], tested=False)[["strategy", "kind", "mean"]]
        gains = gains.merge(means.rename(columns={"mean": column}), on=["strategy", "kind"])
    words = [
        f"{row['strategy']}, straight in ΔW: gain {interval(row)} over the end that eval prefers; the interval over "
        f"examples lies above 0 in {row['above']:.0%} and below 0 in {row['below']:.0%} of the transitions; t* "
        f"{row['t_star']:.2f} in the mean"
        for row in records(gains[gains.kind == "linear-delta"])
    ]
    tables = {"gain": gains, "gain_at": foretold(found, of_paths), "gain_t_star": predicted(found, table)}
    words += [
        f"{row['strategy']}, t told by {row['rule']}: {interval(row)}"
        for row in records(tables["gain_at"])
        if row["rule"].startswith("signals without")
    ]
    return Answer(tables, "gain of S̄ on test over the end that eval prefers", words, NOTE)


def over_the_end_of_eval(found: Sequence[Found], *parts: str) -> pd.DataFrame:
    """`gain` of each path of some parts (default: main): S̄ on test at the inner t with the best S̄ on eval, minus that
    of the end with the better one; `at`: that t. `ts` and `above_end`: S̄ on test over that end's at every t measured.

    Point and end are both chosen on eval, so that equal truth has a gain of 0 in the mean; of equal ends the mean is
    taken, of equal points the one nearest to the middle.
    """
    table = rows(found, "profiles", *parts)
    keys = list(TRANSITION)
    table = table[table.task == "mean"].set_index([*keys, "split"])
    found_rows = []
    for key, of in table.groupby(level=keys, sort=False):
        of = of.reset_index(keys, drop=True)
        if not {"eval", "test"} <= set(of.index):
            continue
        ts = np.array(of.loc["eval", "t"], dtype=float)
        chosen, judged = (np.array(of.loc[split, "score"], dtype=float) for split in ("eval", "test"))
        inner = np.where((ts > 0) & (ts < 1), chosen, -np.inf)
        best = np.flatnonzero(inner >= np.nanmax(inner) - 1e-9)
        at = best[np.argmin(np.abs(ts[best] - 0.5))]
        ends = [i for i in (0, len(ts) - 1) if chosen[i] >= max(chosen[0], chosen[-1]) - 1e-9]
        above = judged - judged[ends].mean()
        found_rows.append((*key, float(above[at]), float(ts[at]), ts, above))
    return pd.DataFrame(found_rows, columns=[*keys, "gain", "at", "ts", "above_end"])


def foretold(found: Sequence[Found], gains: pd.DataFrame) -> pd.DataFrame:
    """What S̄ on test gains over the end that eval prefers at a t that is told without old data, by rule.

    On the straight line in ΔW, within a strategy: the t that signals without old data predict (`leave_one_run_out`, the
    t* of eval as outcome), the mean t* of the other pairs, the middle, and, for comparison, the t that eval itself
    prefers; each the nearest one measured. And what the signals' has over the other pairs' mean.
    """
    from mcanalysis.metrics.clustered_ranks import leave_one_run_out
    from mcanalysis.studies.predictors import needs_old_data

    signals = rows(found, "signals")
    if signals.empty:
        return signals
    line = gains[(gains.path == "linear") & (gains.space == "delta")]
    both = line.merge(signals, on=["strategy", "pair", "start", "end"], suffixes=("", "_of_signals"))
    columns = [name for name, old in needs_old_data().items() if not old and name in both and both[name].notna().any()]
    parts = []
    for strategy, of in both.groupby("strategy", sort=False):
        if of.pair.nunique() < 2 or not columns:
            continue
        told, mean = leave_one_run_out(of[columns].to_numpy(float), of["at"].to_numpy(float), of.pair.to_numpy())
        rules = {"signals without old data": told, "mean t* of other pairs": mean, "t = 1/2": np.full(len(of), 0.5)}
        rules["eval's best t"] = of["at"].to_numpy(float)
        reached = {
            rule: np.array(
                [above[np.argmin(np.abs(ts - t))] for t, ts, above in zip(at, of.ts, of.above_end, strict=True)]
            )
            for rule, at in rules.items()
        }
        reached["signals − mean t*"] = reached["signals without old data"] - reached["mean t* of other pairs"]
        parts += [
            pd.DataFrame({"rule": rule, "strategy": strategy, "pair": of.pair, "gain": values})
            for rule, values in reached.items()
        ]
    return over_pairs(pd.concat(parts), "gain", ["rule", "strategy"]) if parts else pd.DataFrame()


def predicted(found: Sequence[Found], gains: pd.DataFrame) -> pd.DataFrame:
    """Spearman's ρ of signals that need no old data with t* on the straight line in ΔW, within strategies, by pair."""
    from mcanalysis.studies.predictors import needs_old_data

    signals = rows(found, "signals")
    own = gains[gains.kind == "linear-delta"][["strategy", "pair", "start", "end", "t_star"]]
    both = signals.merge(own, on=["strategy", "pair", "start", "end"]) if len(signals) else signals
    strategy = both.strategy.astype("category").cat.codes if len(both) else []  # strategies may differ as they like
    found_rows = [
        {"signal": column} | clustered_spearman(both[column], both.t_star, both.pair, strategy)._asdict()
        for column, old in needs_old_data().items()
        if not old and len(both) and column in both and both[column].notna().any()
    ]
    table = pd.DataFrame(found_rows)
    return table.assign(p_holm=holm(table.p.to_numpy(float))) if len(table) else table


QUESTION = Question("b", "gain", "Is a point between two minima better than both, where, and can it be told without "
                    "old data?", answer)  # fmt: skip
