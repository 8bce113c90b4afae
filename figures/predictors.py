"""What predicts forgetting, barrier and gain: rank correlations of signals, pooled and within strategies."""

from __future__ import annotations

from collections.abc import Sequence

from mcanalysis.cli.figures import comparable, having, main, together
from mcanalysis.plotting.picture import Picture
from mcanalysis.plotting.predictors import predictors_picture
from mcanalysis.runs.finished import FinishedRun
from mcanalysis.studies.predictors import tables_of


def draw(runs: Sequence[FinishedRun]) -> list[Picture]:
    """One picture of all runs together."""
    signals = together(comparable(having(runs, "signals")), "signals")
    found = tables_of(signals)
    return [predictors_picture(found["predictor_correlations"], found["predictor_out_of_run"], signals)]


if __name__ == "__main__":
    main(["predictors"], __doc__)
