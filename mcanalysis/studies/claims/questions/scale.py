"""(h) How do barrier, gain and score change with the base's size, the rank and the learning rate?"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from mcanalysis.studies.claims.evidence import Answer, Question, interval, over_pairs, records, rows, slopes
from mcanalysis.studies.claims.pieces import Found
from mcanalysis.studies.claims.questions.gain import over_the_end_of_eval
from mcanalysis.studies.claims.questions.methods import scores

SIZES = {
    "rank": {"rank2": 2.0, "": 8.0, "rank32": 32.0},
    "learning rate": {"rate-third": 1 / 3, "": 1.0, "rate-triple": 3.0},
    "width of the base (depth 2, 3, 4)": {"small": 64.0, "": 128.0, "large": 192.0},
}
"""What is varied, with the values by the name of the change; "" is the main run."""


def answer(found: Sequence[Found]) -> Answer:
    """Means by value, and the slope per doubling, of chord barrier, average accuracy and gain (over the end that eval
    prefers)."""
    parts = ("main", "scale", "bases", "real")
    barriers, gains = rows(found, "barriers", *parts), over_the_end_of_eval(found, *parts)
    line, gains = (t[(t.space == "delta") & (t.path == "linear")] for t in (barriers, gains))
    quantities = {
        "chord_barrier": line[(line.quantity == "loss") & (line.task == "mean_old")],
        "gain": gains,
        "accuracy": scores(found).query("learner == 'answers'"),
    }
    long = []
    for name, of in quantities.items():
        of = of.assign(value=of[name], quantity=name)
        long.append(of[["part", "strategy", "label", "pair", "quantity", "value"]])
    table = pd.concat(long)
    parts = []
    for what, values in SIZES.items():
        changed = table[table.label.isin(set(values) - {""}) & table.part.isin(["scale", "bases"])]
        usual = table[(table.part == "main") & table.strategy.isin(changed.strategy) & table.pair.isin(changed.pair)]
        if len(changed):
            both = pd.concat([changed, usual])
            parts.append(both.assign(varied=what, at=both.label.map(values)))
    of_all = pd.concat(parts) if parts else table[:0].assign(varied="", at=0.0)
    by = ["varied", "quantity", "strategy"]
    of_pairs = [
        slopes(of, "value", "at", by, len(SIZES[str(what)])) for what, of in of_all.groupby("varied", sort=False)
    ]
    steep = over_pairs(pd.concat(of_pairs), "slope", by) if of_pairs else over_pairs(of_all, "value", by)
    steep = steep.rename(columns={"undefined": "without_slope"})
    means = of_all.groupby([*by, "pair", "label"], sort=False).value.mean().reset_index()  # of transitions
    usual = means[means.label == ""].drop(columns="label")
    changed = means[means.label != ""].merge(usual, on=[*by, "pair"], suffixes=("", "_usual"))
    changed = changed.assign(change=changed.value - changed.value_usual)
    tables = {
        "scale": steep,
        "scale_changes": over_pairs(changed, "change", ["varied", "label", "quantity", "strategy"]),
        "scale_means": over_pairs(of_all, "value", ["varied", "at", "quantity", "strategy"], tested=False),
    }
    real = table[table.part == "real"]
    if len(real):
        tables["scale_real"] = over_pairs(real, "value", ["quantity", "strategy"], tested=False)
        tables["scale_real_gain"] = over_pairs(real[real.quantity == "gain"], "value", ["strategy"])
    words = [
        f"{row['strategy']}, {row['quantity'].replace('_', ' ')} per doubling of the {row['varied']}: {interval(row)}"
        for row in records(steep)
        if row["strategy"] == "sequential"
    ]
    return Answer(tables, "slope per doubling", words, NOTE)


NOTE = (
    "A slope is that of a straight line through all values of what is varied: where the middle one is best, as of a "
    "learning rate that was searched, it says little; `without_slope`: pairs that lack one of the values. "
    "`scale_changes`: each value minus the main run's of its pair."
)

QUESTION = Question("h", "scale", "How do barrier and gain change with the size of the base, the rank and the learning "
                    "rate?", answer)  # fmt: skip
