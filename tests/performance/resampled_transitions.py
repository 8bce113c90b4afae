"""How often certificates hold on real transitions: examples of measured runs drawn anew, with a curve each.

    python tests/performance/resampled_transitions.py runs/embedded-*-seed*

Of every transition that was measured at 21 points in factor space, the test losses of the new task, and of the old
ones, are drawn with replacement until there are 1000 examples; a cubic spline goes through the 21 values of each. The
truth is the barrier of their mean. Nothing is evaluated.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from scipy.interpolate import CubicSpline

from mcanalysis.connectivity.certificate import barrier_certificate
from mcanalysis.coverage.certificates import line
from mcanalysis.evaluation.measuring import measurement_key
from mcanalysis.metrics.barriers import chord_barrier
from mcanalysis.runs.run import load_run
from mcanalysis.studies.connectivity.measuring import paths_of
from mcanalysis.studies.connectivity.study import Connectivity
from mcanalysis.studies.points import Points

TS, DENSE = np.linspace(0, 1, 21), np.linspace(0, 1, 1001)
NUM_EXAMPLES = 1000
TOLERANCE = 0.04  # ± 0.02


def curves(directory: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What each example adds to the loss at 21 points (21, n), and its share of the targets (n,), curve by curve."""
    run = load_run(directory)
    study = Connectivity()
    paths = paths_of(run, run.answering_learner, study)
    for name in paths.names("linear-factor"):
        path = paths.path(name)
        tested = [o for o in paths.objectives(path) if o.split == "test"]
        with Points(run).store() as store:
            found = {o.name: [store.get(measurement_key(path.point_key(t), o)) for t in TS] for o in tested}
        for tasks in ((path.transition.new,), path.transition.old):
            chosen: list[list[Any]] = [found[task] for task in tasks]
            if chosen and all(m is not None for of_task in chosen for m in of_task):
                scales = [of_task[0].num_targets * len(tasks) for of_task in chosen]
                parts = [np.stack([m.nll for m in of]) / scale for of, scale in zip(chosen, scales, strict=True)]
                shares = [of[0].targets / scale for of, scale in zip(chosen, scales, strict=True)]
                yield np.concatenate(parts, axis=1), np.concatenate(shares)


def trial(values: np.ndarray, shares: np.ndarray, seed: int) -> tuple[bool, float, float]:
    """Whether a certificate of examples drawn anew holds, its cost, and the barrier."""
    drawn = np.random.default_rng(seed).integers(values.shape[1], size=NUM_EXAMPLES)
    total = shares[drawn].sum()
    along = CubicSpline(TS, values[:, drawn] / total, axis=0)

    def losses(point: Any, rows: Sequence[int]) -> SimpleNamespace:
        return SimpleNamespace(nll=along(float(point["t"]))[rows], targets=shares[drawn][rows] / total)

    losses.num_examples = NUM_EXAMPLES  # type: ignore[attr-defined]
    truth = float(chord_barrier(DENSE, along(DENSE).sum(axis=1)))
    found = barrier_certificate(line, losses, TOLERANCE, seed=seed)
    return found.low - 1e-9 <= truth <= found.high + 1e-9, found.cost, truth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="finished runs that connectivity.py has measured")
    parser.add_argument("--draws", type=int, default=2, help="per transition and curve (2)")
    args = parser.parse_args()
    trials = [trial(*curve, seed) for run in args.runs for curve in curves(run) for seed in range(args.draws)]
    held, cost, barrier = (np.array(column) for column in zip(*trials, strict=True))
    sys.stdout.write(
        f"{len(trials)} populations of {NUM_EXAMPLES} examples, {(barrier > TOLERANCE).sum()} with a barrier above "
        f"{TOLERANCE:g} nats: {held.mean():.3f} of the certificates hold; evaluations: median {np.median(cost):.2f}, "
        f"most {cost.max():.2f}, at most 4.2 in {(cost <= 4.2).mean():.2f}\n"
    )


if __name__ == "__main__":
    main()
