"""Barriers to a tolerance: how many evaluations a search takes beside a grid, along transitions of embedded runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from torch import Tensor
from workload import Aim, Options, Section, Table

import mcanalysis as mc
from mcanalysis.runs.run import Run
from mcanalysis.store.measurements import Measurement
from mcanalysis.training.config import RunConfig, TrainingConfig

TITLE = "Chord barriers to ± 0.02 nats along the transitions of the embedded benchmark"
TOLERANCES = (0.08, 0.04)  # from the lower end to the upper: ± 0.04 and ± 0.02
GRID = np.linspace(0, 1, 21)


class Counted:
    """Losses of a task on some examples, evaluated once per t and counted as often as they are asked for."""

    def __init__(self, run: Run, task: str, num_examples: int) -> None:
        self._measure = run.sampled_objective(task, num_examples=num_examples)
        self.num_examples = self._measure.num_examples
        self._known: dict[float, Measurement] = {}
        self.t = 0.0

    def whole(self, point: Mapping[str, Tensor]) -> Measurement:
        """On all examples, at the t that the path was last asked for."""
        if self.t not in self._known:
            self._known[self.t] = self._measure(point, range(self.num_examples))
        return self._known[self.t]

    def __call__(self, point: Mapping[str, Tensor], rows: Sequence[int]) -> Measurement:
        """On some."""
        found = self.whole(point)
        return Measurement.of(found.nll[rows], found.targets[rows])

    def along(self, path: Any) -> Any:
        """The path, which tells where it is."""

        def at(t: float) -> Any:
            self.t = float(t)
            return path(t)

        return at


def measure(options: Options) -> Section:
    num_examples, num_tasks, steps = (80, 2, 2) if options.quick else (1000, 8, 120)
    with TemporaryDirectory() as folder:
        names = _tasks()[:num_tasks]
        config = RunConfig(
            strategy="sequential",
            tasks=tuple(names),
            training=TrainingConfig(num_steps=steps),
            num_test=4,
            sizes={"test": num_examples},
        )
        mc.train(config, Path(folder) / "run")
        rows = _rows(mc.load_run(Path(folder) / "run"), num_examples)
    head = ["transition, task", "chord barrier of the grid"]
    head += [f"{way}, ± {t / 2:g}" for t in TOLERANCES for way in ("points alone", "samples too", "off the grid's")]
    cheap = np.mean([row["cost"] <= 21 / 5 for row in rows])
    aims = [
        Aim("share of transitions with at most 1/5 of the grid's evaluations", 0.8, float(cheap), at_most=False),
        Aim("the most evaluations / the grid's", 1.1, max(row["cost"] for row in rows) / 21),
        Aim(
            "share of certificates that hold the grid's barrier",
            0.95,
            float(np.mean([r["holds"] for r in rows])),
            False,
        ),
    ]
    return Section(
        aims,
        [
            Table(
                f"{num_examples} examples a task; evaluations in points on all examples.",
                [head, *(r["cells"] for r in rows)],
            )
        ],
        ["Counted, not timed: each example costs what it costs at any t. Ends are among them."],
    )


def _tasks() -> list[str]:
    from mcanalysis.benchmarks import load_benchmark

    return [data.task.name for data in load_benchmark("embedded", sizes={"train": 1, "eval": 1, "test": 1})]


def _rows(run: Run, num_examples: int) -> list[dict[str, Any]]:
    """One per transition and task: the new one, and the first of the old ones."""
    rows = []
    for k in range(1, len(run.minima)):
        path = run.path(k, k + 1)
        for task in (run.task_names[0], run.task_names[k]):
            losses = Counted(run, task, num_examples)
            at = losses.along(path)
            truth = mc.profile(at, losses.whole, GRID).chord_barrier()
            cells = [f"{k} → {k + 1}, {task}", f"{truth:.3f}"]
            row: dict[str, Any] = {}
            for tolerance in TOLERANCES:
                alone = mc.barrier_certificate(at, losses.whole, tolerance)
                found = mc.barrier_certificate(at, losses, tolerance)
                middle = (found.low + found.high) / 2
                cells += [f"{alone.cost:.1f}", f"{found.cost:.1f}", f"{abs(middle - truth):.3f}"]
                row = {"cost": found.cost, "holds": truth <= found.high + 1e-6 and middle - truth <= tolerance}
            rows.append(row | {"cells": cells})
    return rows
