"""(i) What does it bring to rewind towards the base?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mcanalysis.runs.general import PRETRAINING_TASK
from mcanalysis.studies.claims.evidence import Answer, Question, interval, over_pairs, records, rows
from mcanalysis.studies.claims.pieces import Found

TO = 0.8  # t, of which the nearest measured point is taken
AT_THE_BASE = "loss of general text, the base's − t = 1"


def answer(found: Sequence[Found]) -> Answer:
    """On t·ΔW of the last minimum: what t = 0.8 changes against t = 1, in scores and in the loss of general text."""
    table = rows(found, "rewinding_profiles")
    table = table[table.start.str.startswith("0-") & (table.split == "test")]
    number = table.end.str.partition("-")[0].astype(int)
    table = table[number == number.max()]
    num_tasks, found_rows, reached = int(number.max()), [], TO
    for (strategy, pair), of in table.groupby(["strategy", "pair"], sort=False):
        of_task = {row["task"]: row for row in records(of)}
        new = of_task[str(of.end.iloc[0]).partition("-")[2]]
        ts = np.array(new["t"], dtype=float)
        at = int(np.argmin(np.abs(ts - TO)))
        reached = float(ts[at])
        changes = {}
        for quantity in ("score", "loss"):
            old, last = (np.array(row[quantity], dtype=float) for row in (of_task["mean_old"], new))
            mean = ((num_tasks - 1) * old + last) / num_tasks
            changes[f"{quantity}, mean of all tasks"] = mean[at] - mean[-1]
        if PRETRAINING_TASK in of_task:
            loss = np.array(of_task[PRETRAINING_TASK]["loss"], dtype=float)
            changes |= {"loss of general text": loss[at] - loss[-1], AT_THE_BASE: loss[0] - loss[-1]}
        found_rows += [{"strategy": strategy, "pair": pair, "what": w, "value": float(v)} for w, v in changes.items()]
    changes = over_pairs(pd.DataFrame(found_rows), "value", ["what", "strategy"])
    words = [
        f"{row['strategy']}, {row['what']}, t = {reached:g} − t = 1: {interval(row)}"
        for row in records(changes)
        if row["what"] != AT_THE_BASE
    ]
    return Answer({"rewinding": changes}, f"change from t = 1 to t = {reached:g}", words)


QUESTION = Question("i", "rewinding", "What does rewinding towards the base bring, to the tasks and to general "
                    "ability?", answer, "rewinding_profiles")  # fmt: skip
