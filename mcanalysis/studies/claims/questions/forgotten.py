"""(g) How often is there no barrier and yet something is forgotten?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mcanalysis.studies.claims.evidence import BARRIER, Answer, Question, over_pairs, rows
from mcanalysis.studies.claims.pieces import Found


def answer(found: Sequence[Found]) -> Answer:
    """Transitions by chord barrier and rise of the old tasks' mean loss; where along the line the rise is."""
    keys = ["strategy", "pair", "start", "end"]
    barriers = rows(found, "barriers")
    barriers = barriers[(barriers.quantity == "loss") & (barriers.task == "mean_old")]
    profiles = rows(found, "profiles")
    profiles = profiles[profiles.task == "mean_old"]
    both = profiles.merge(
        barriers[[*keys, "space", "path", "chord_barrier", "chord_barrier_high"]], on=[*keys, "space", "path"]
    )
    both = both[(both.path == "linear") & (both.space == "delta")]
    losses, ts = np.array(both.loss.tolist()), np.array(both.t.tolist())
    rise = losses[:, -1] - losses[:, 0]
    half = np.array([np.interp(0.5, t, loss) for t, loss in zip(ts, losses, strict=True)]) - losses[:, 0]
    lost = rise >= BARRIER
    both = both.assign(
        forgotten=lost * 1.0,
        without_barrier=(lost & (both.chord_barrier.to_numpy() < BARRIER)) * 1.0,
        share_at_half=np.where(lost, half / np.where(lost, rise, 1.0), np.nan),
        falls_first=np.where(lost, (losses.min(axis=1) < losses[:, 0] - 0.01) * 1.0, np.nan),
    )
    long = both.melt(
        id_vars=["strategy", "pair"],
        value_vars=["forgotten", "without_barrier", "share_at_half", "falls_first"],
        var_name="what",
    )
    table = over_pairs(long, "value", ["what", "strategy"])
    words = [
        f"{name}: {of.forgotten.mean():.0%} of {len(of)} transitions raise the old tasks' loss by {BARRIER} nats or "
        f"more, {of.without_barrier.mean():.0%} without a barrier of {BARRIER}; at t = ½ there is "
        f"{of.share_at_half.mean():.0%} of the rise"
        for name, of in both.groupby("strategy", sort=False)
    ]
    return Answer({"forgotten": table}, "share of transitions, or of the rise", words)


QUESTION = Question("g", "forgotten", "How often is there no barrier and yet something is forgotten, and what does the "
                    "loss along the way say?", answer)  # fmt: skip
