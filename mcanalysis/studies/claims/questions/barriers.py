"""(a) How high are the barriers?"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from mcanalysis.studies.claims.evidence import (
    BARRIER,
    Answer,
    Question,
    interval,
    over_pairs,
    records,
    rows,
    shares_over_pairs,
)
from mcanalysis.studies.claims.measures import NUMBER
from mcanalysis.studies.claims.pieces import Found

NOTE = (
    "`barriers_by_strategy` has main strategies at 15 pairs and others at four of them: its rows are not paired. An "
    "order comes with a seed of its own: rows of `barriers_by_order` differ by both, and none has an interval. "
    "`barriers_by_tasks` is of the loss of the start's own task, where it came right before the other one in at least "
    "{fewest} pairs ({left_out} moves came in fewer). `barriers_by_gauge`: the same few random gauges for every "
    "transition, whose least and most say less than those of all. A barrier is the highest of the points measured, on "
    "examples that vary: high rather than low."
)
DEFINITIONS = ("chord_barrier", "mean_barrier", "max_barrier")
FEWEST = 3
"""Pairs of a move from one task to another: below, the row says nothing."""


def answer(found: Sequence[Found]) -> Answer:
    """Barriers of the loss of the old tasks' mean, by definition, space, strategy, order, rank and pair of tasks."""
    all_tasks = loss_barriers(found, "main", "others", "scale")
    old = all_tasks[all_tasks.task == "mean_old"]
    main = old[old.part == "main"]
    long = main.melt(id_vars=["strategy", "kind", "pair"], value_vars=DEFINITIONS, var_name="definition")
    by_path = over_pairs(long, "value", ["strategy", "kind", "definition"], tested=False)
    line = old[(old.kind == "linear-delta") & (old.label == "") & old.part.isin(["main", "others"])]
    by_strategy = over_pairs(line, "chord_barrier", ["strategy"], tested=False)
    by_order = over_pairs(line[line.part == "main"], "chord_barrier", ["strategy", "order"], tested=False)
    ranks = old[(old.kind == "linear-delta") & (old.label.str.startswith("rank") | (old.part == "main"))]
    ranks = ranks[ranks.label.isin(["", "rank2", "rank32"]) & ranks.strategy.isin(["sequential", "er", "ilora"])]
    ranks = ranks[ranks.pair.isin(ranks[ranks.label != ""].pair)].assign(rank=ranks.label.replace("", "rank8"))
    by_rank = over_pairs(ranks, "chord_barrier", ["strategy", "rank"], tested=False)
    start, end = (all_tasks[name].str.replace(NUMBER, "", regex=True) for name in ("start", "end"))
    own = all_tasks[(all_tasks.part == "main") & (all_tasks.kind == "linear-delta") & (all_tasks.task == start)]
    own = own.assign(tasks=own.task + " → " + end[own.index])
    by_tasks = over_pairs(own, "chord_barrier", ["strategy", "tasks"], tested=False)
    few = by_tasks.pairs < FEWEST
    factor = main[main.kind == "linear-factor"]
    gauges = factor.melt(
        id_vars=["strategy", "pair"],
        value_vars=["chord_barrier", *(c for c in factor if "gauge" in str(c))],
        var_name="barrier",
    )
    high = line[line.part == "main"].assign(high=lambda t: (t.chord_barrier >= BARRIER) * 1.0)
    high = high.assign(known=high.chord_barrier.notna() * 1.0)
    shares = {row["strategy"]: row for row in records(shares_over_pairs(high, "high", "known", ["strategy"]))}
    heights = {row["strategy"]: row for row in records(by_strategy)}
    words = [
        f"{name}: of {of.known.sum():.0f} transitions on the straight line in ΔW a share of "
        f"{interval(shares[name], 2)} have a chord barrier of {BARRIER} nats or more"
        + (f" ({(1 - of.known).sum():.0f} more have none that is finite)" if not of.known.all() else "")
        + f"; mean {interval(heights[name])} nats"
        for name, of in high.groupby("strategy", sort=False)
    ]
    tables = {
        "barriers": by_path, "barriers_by_strategy": by_strategy, "barriers_by_order": by_order,
        "barriers_by_rank": by_rank, "barriers_by_tasks": by_tasks[~few].sort_values(["strategy", "tasks"]),
        "barriers_by_gauge": over_pairs(gauges, "value", ["strategy", "barrier"], tested=False),
    }  # fmt: skip
    note = NOTE.format(fewest=FEWEST, left_out=by_tasks[few].tasks.nunique())
    return Answer(tables, "barrier of the old tasks' mean loss, nats per target", words, note)


def loss_barriers(found: Sequence[Found], *parts: str) -> pd.DataFrame:
    """Rows of losses, with the kind of path."""
    table = rows(found, "barriers", *parts)
    return table[table.quantity == "loss"].assign(kind=lambda t: t.path + "-" + t.space)


QUESTION = Question("a", "barriers", "How high are the barriers, by definition, space, strategy, order, rank and pair "
                    "of tasks, and how much of them is the parametrisation?", answer)  # fmt: skip
