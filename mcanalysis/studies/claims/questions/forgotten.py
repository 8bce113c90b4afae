"""(g) How often is there no barrier and yet something is forgotten?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mcanalysis.studies.claims.evidence import BARRIER, Answer, Question, interval, records, rows, shares_over_pairs
from mcanalysis.studies.claims.pieces import Found


def answer(found: Sequence[Found]) -> Answer:
    """Transitions by chord barrier and rise of the old tasks' mean loss; where along the line the rise is."""
    keys = ["strategy", "pair", "start", "end"]
    barriers = rows(found, "barriers")
    barriers = barriers[(barriers.quantity == "loss") & (barriers.task == "mean_old")]
    profiles = rows(found, "profiles")
    profiles = profiles[(profiles.task == "mean_old") & (profiles.split == "test")]
    both = profiles.merge(barriers[[*keys, "space", "path", "chord_barrier"]], on=[*keys, "space", "path"])
    both = both[(both.path == "linear") & (both.space == "delta")]
    losses, ts = (np.array(both[name].tolist(), dtype=float) for name in ("loss", "t"))
    rise = losses[:, -1] - losses[:, 0]
    half = np.array([np.interp(0.5, t, loss) for t, loss in zip(ts, losses, strict=True)]) - losses[:, 0]
    lost = np.isfinite(rise) & (rise >= BARRIER)
    barrier = both.chord_barrier.to_numpy(float)
    count = {  # part and whole of each share, of every transition
        "forgotten": (lost, np.isfinite(rise)),
        "without_barrier": (lost & (barrier < BARRIER), lost & ~np.isnan(barrier)),
        "falls_first": (lost & (losses.min(axis=1) < losses[:, 0] - 0.01), lost & np.isfinite(losses).all(axis=1)),
        "half": (np.where(lost, half, 0.0), np.where(lost, rise, 0.0)),
    }
    long = pd.concat(
        both[["strategy", "pair"]].assign(what=WHAT[name], part=np.asarray(part, float), whole=np.asarray(whole, float))
        for name, (part, whole) in count.items()
    )
    table = shares_over_pairs(long, "part", "whole", ["what", "strategy"])
    words = [f"{row['strategy']}, {row['what']}: {interval(row)}" for row in records(table)]
    return Answer({"forgotten": table}, "share", words, NOTE)


WHAT = {
    "forgotten": f"old loss rises by {BARRIER} nats, share of transitions",
    "without_barrier": f"no barrier of {BARRIER} nats, share of those",
    "falls_first": "loss falls first, share of those",
    "half": "rise by t = 1/2, share of the whole rise",
}
NOTE = (
    "Shares of all transitions of all pairs together, `of`: how many (of the rise: nats); intervals leave out one pair "
    "at a time. Barriers are the highest of several noisy points and so are high rather than low."
)

QUESTION = Question("g", "forgotten", "How often is there no barrier and yet something is forgotten, and what does the "
                    "loss along the way say?", answer)  # fmt: skip
