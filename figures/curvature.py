"""The Hessian at the minima: spectral densities, extreme eigenvalues, and predicted against measured forgetting."""

from __future__ import annotations

from collections.abc import Sequence

from mcanalysis.cli.figures import comparable, having, main, together
from mcanalysis.plotting import curvature as plotting
from mcanalysis.plotting.picture import Picture
from mcanalysis.runs.finished import FinishedRun

ANALYSIS = "curvature"  # what measures the tables
TABLES = ("curvature", "spectrum", "predicted_forgetting", "forgetting_correlations")


def draw(runs: Sequence[FinishedRun]) -> list[Picture]:
    """Three pictures of all runs together."""
    runs = comparable(having(runs, *TABLES, by=ANALYSIS))
    curvature, spectrum, forgetting, correlations = (together(runs, name) for name in TABLES)
    eigenvalues, words = plotting.plot_eigenvalues(curvature), plotting.eigenvalues_caption(curvature)
    predicted = plotting.plot_predicted_forgetting(forgetting, correlations)
    told = plotting.predicted_forgetting_caption(forgetting, correlations)
    return [
        Picture("spectrum", plotting.plot_spectrum(spectrum), {"": spectrum}, plotting.spectrum_caption(spectrum)),
        Picture("eigenvalues", eigenvalues, {"": curvature}, words),
        Picture("predicted_forgetting", predicted, {"": forgetting, "correlations": correlations}, told),
    ]


if __name__ == "__main__":
    main(["curvature"], __doc__)
