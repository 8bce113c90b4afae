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
    table = table[table.start.str.startswith("0-")]
    number = table.end.str.partition("-")[0].astype(int)
    table = table[number == number.max()]
    found_rows = []
    for row in records(table):
        at = int(np.argmin(np.abs(np.array(row["t"]) - TO)))
        changes = {}
        if row["task"] == "mean":
            changes = {"score of all tasks": row["score"][at] - row["score"][-1]}
            changes["loss of all tasks"] = row["loss"][at] - row["loss"][-1]
        elif row["task"] == PRETRAINING_TASK:
            changes = {"loss of general text": row["loss"][at] - row["loss"][-1]}
            changes[AT_THE_BASE] = row["loss"][0] - row["loss"][-1]
        whose = {"strategy": row["strategy"], "pair": row["pair"]}
        found_rows += [whose | {"what": what, "value": value} for what, value in changes.items()]
    changes = over_pairs(pd.DataFrame(found_rows), "value", ["what", "strategy"])
    words = [
        f"{row['strategy']}, {row['what']}, t = {TO:g} − t = 1: {interval(row)}"
        for row in records(changes)
        if row["what"] != AT_THE_BASE
    ]
    return Answer({"rewinding": changes}, f"change from t = 1 to t = {TO:g}", words)


QUESTION = Question("i", "rewinding", "What does rewinding towards the base bring, to the tasks and to general "
                    "ability?", answer, "rewinding_profiles")  # fmt: skip
