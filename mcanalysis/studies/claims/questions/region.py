"""(d) Is there one region that is good for all tasks?"""

from __future__ import annotations

from collections.abc import Sequence

from mcanalysis.studies.claims.evidence import Answer, Question, interval, over_pairs, records, rows
from mcanalysis.studies.claims.pieces import Found


def answer(found: Sequence[Found]) -> Answer:
    """The share of the simplex of the first T minima that keeps nine tenths of the best corner's mean score."""
    table = rows(found, "basin_volume")
    volumes = over_pairs(table, "volume", ["strategy", "num_minima"], tested=False)
    corners = over_pairs(table, "best_corner", ["strategy", "num_minima"], tested=False)
    last = volumes[volumes.num_minima == volumes.num_minima.max()]
    words = [
        f"{row['strategy']}, {row['num_minima']:g} minima: {interval(row)} of the simplex" for row in records(last)
    ]
    note = (
        "Good is at least nine tenths of the mean score over the tasks that the best minimum of the run itself has "
        "(`region_corners`; which one is best is told by the eval split): where that forgot much, much is as good."
    )
    return Answer({"region": volumes, "region_corners": corners}, "good share of the simplex", words, note)


QUESTION = Question("d", "region", "Is there one region that is good for all tasks?", answer, "basin_volume")
