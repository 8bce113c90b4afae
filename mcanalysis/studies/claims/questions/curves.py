"""(c) Is a curve better than the straight line, and aligned factors than factors as they are?"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from mcanalysis.studies.claims.evidence import Answer, Question, interval, over_pairs, records, rows
from mcanalysis.studies.claims.pieces import Found

PAIRS = (
    ("bezier-factor", "linear-factor"), ("linear-aligned", "linear-factor"), ("linear-delta", "linear-factor"),
)  # fmt: skip


def answer(found: Sequence[Found]) -> Answer:
    """Differences between two paths at the same transition: chord barrier of the old tasks' loss, and gain."""
    table = rows(found, "barriers").assign(kind=lambda t: t.path + "-" + t.space)
    wanted = {
        "chord_barrier": table[(table.quantity == "loss") & (table.task == "mean_old")],
        "interpolation_gain": table[(table.quantity == "score") & (table.task == "mean")],
    }
    parts = []
    for quantity, of in wanted.items():
        wide = of.pivot_table(index=["strategy", "pair", "start", "end"], columns="kind", values=quantity)
        for one, other in PAIRS:
            if one in wide and other in wide:
                gap = (wide[one] - wide[other]).rename("difference").reset_index()
                parts.append(gap.assign(quantity=quantity, paths=f"{one} − {other}"))
    table = over_pairs(pd.concat(parts), "difference", ["quantity", "paths", "strategy"])
    words = [
        f"{row['strategy']}, {row['paths']}: {row['quantity'].replace('_', ' ')} {interval(row)}"
        for row in records(table)
        if row["paths"] == "bezier-factor − linear-factor"
    ]
    return Answer(
        {"curves": table},
        "difference at the same transition (nats, or S̄)",
        words,
        "The Bezier curve is fitted on train examples of old and new tasks; straight paths see none.",
    )


QUESTION = Question("c", "curves", "Is a fitted curve better than the straight line, and are aligned factors better "
                    "than factors as they are?", answer)  # fmt: skip
