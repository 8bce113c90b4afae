"""(a) How high are the barriers?"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from mcanalysis.studies.claims.evidence import BARRIER, Answer, Question, interval, over_pairs, records, rows
from mcanalysis.studies.claims.pieces import Found

NOTE = (
    "`barriers_by_strategy` has main strategies at 15 pairs and others at four of them: its rows are not paired. The "
    "gauges are the same few random ones for every transition: `barriers_by_gauge` speaks of these, not of all."
)
DEFINITIONS = ("chord_barrier", "mean_barrier", "max_barrier")


def answer(found: Sequence[Found]) -> Answer:
    """Barriers of the loss of the old tasks' mean, by definition, space, strategy, order, rank and pair of tasks."""
    old = loss_barriers(found, "main", "others", "scale")
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
    named = main[main.kind == "linear-delta"].assign(
        tasks=lambda t: t.start.str.partition("-")[2] + " → " + t.end.str.partition("-")[2]
    )
    by_tasks = over_pairs(named, "chord_barrier", ["strategy", "tasks"], tested=False).sort_values(
        "mean", ascending=False
    )
    factor = main[main.kind == "linear-factor"]
    gauges = factor.melt(
        id_vars=["strategy", "pair"],
        value_vars=["chord_barrier", *(c for c in factor if "gauge" in str(c))],
        var_name="barrier",
    )
    words = [
        f"{name}: of {len(of)} transitions on the straight line in ΔW {(of.chord_barrier >= BARRIER).mean():.0%} have "
        f"a chord barrier of {BARRIER} nats or more; mean "
        f"{interval(records(by_strategy[by_strategy.strategy == name])[0])} nats"
        for name, of in line[line.part == "main"].groupby("strategy", sort=False)
    ]
    tables = {
        "barriers": by_path, "barriers_by_strategy": by_strategy, "barriers_by_order": by_order,
        "barriers_by_rank": by_rank, "barriers_by_tasks": by_tasks,
        "barriers_by_gauge": over_pairs(gauges, "value", ["strategy", "barrier"], tested=False),
    }  # fmt: skip
    return Answer(tables, "barrier of the old tasks' mean loss, nats per target", words, NOTE)


def loss_barriers(found: Sequence[Found], *parts: str) -> pd.DataFrame:
    """Rows of the old tasks' mean loss, with the kind of path."""
    table = rows(found, "barriers", *parts)
    table = table[(table.quantity == "loss") & (table.task == "mean_old")]
    return table.assign(kind=table.path + "-" + table.space)


QUESTION = Question("a", "barriers", "How high are the barriers, by definition, space, strategy, order, rank and pair "
                    "of tasks, and how much of them is the parametrisation?", answer)  # fmt: skip
