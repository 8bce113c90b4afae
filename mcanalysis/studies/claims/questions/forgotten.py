"""(g) How often is there no barrier and yet something is forgotten?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mcanalysis.studies.claims.evidence import BARRIER, Answer, Question, interval, over_pairs, records, rows
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
    lost = rise >= BARRIER
    both = both.assign(
        forgotten=np.where(np.isfinite(rise), lost * 1.0, np.nan),
        without_barrier=np.where(lost, (both.chord_barrier.to_numpy(float) < BARRIER) * 1.0, np.nan),
        falls_first=np.where(lost, (losses.min(axis=1) < losses[:, 0] - 0.01) * 1.0, np.nan),
        rise=np.where(lost, rise, 0.0),
        half=np.where(lost, half, 0.0),
    )
    shares = both.groupby(["strategy", "pair"], sort=False)[["half", "rise"]].sum().reset_index()
    shares = shares.assign(what="rise by t = 1/2, share", value=shares.half / shares.rise.where(shares.rise > 0))
    long = both.melt(
        id_vars=["strategy", "pair"], value_vars=["forgotten", "without_barrier", "falls_first"], var_name="what"
    ).replace({"what": WHAT})
    long = pd.concat([long, shares[["strategy", "pair", "what", "value"]]]).dropna(subset=["value"])
    table = over_pairs(long, "value", ["what", "strategy"], tested=False)
    words = [f"{row['strategy']}, {row['what']}: {interval(row)}" for row in records(table)]
    return Answer({"forgotten": table}, "share", words)


WHAT = {
    "forgotten": f"old loss rises by {BARRIER} nats, share of transitions",
    "without_barrier": f"no barrier of {BARRIER} nats, share of those",
    "falls_first": "loss falls first, share of those",
}

QUESTION = Question("g", "forgotten", "How often is there no barrier and yet something is forgotten, and what does the "
                    "loss along the way say?", answer)  # fmt: skip
