"""Ablations of I-LoRA: EMA decay, consistency weight and buffer size, from runs that differ in one of them."""

from __future__ import annotations

from collections.abc import Sequence

from mcanalysis.cli.figures import main
from mcanalysis.plotting.ablation import ablation_caption, plot_ablation
from mcanalysis.plotting.picture import Picture
from mcanalysis.runs.finished import FinishedRun
from mcanalysis.studies.ablation_table import AblationRun, ablation_table

ANALYSIS = "ablations --resume"  # what trains such runs
FOLDER = "ablations"  # in runs/: where such runs are looked for, besides runs/ itself


def draw(runs: Sequence[FinishedRun]) -> list[Picture]:
    """One picture: a panel per setting, the learners as lines."""
    ablation = ablation_table([AblationRun(r.strategy, r.seed, r.config, r.metrics["learners"]) for r in runs])
    return [Picture("ablations", plot_ablation(ablation), {"": ablation}, ablation_caption(ablation))]


if __name__ == "__main__":
    main(["ablations"], __doc__)
