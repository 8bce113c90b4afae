"""A first look at a transition of a run: losses along its straight path to a tolerance, from few examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from mcanalysis.errors import UnknownNameError
from mcanalysis.progress import Progress, silent

if TYPE_CHECKING:  # loaded below where they are needed, so that `--help` has the settings without them
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray
    from torch import Tensor

    from mcanalysis.connectivity.early import EarlyProfile
    from mcanalysis.connectivity.profile import PerExample
    from mcanalysis.paths import Linear
    from mcanalysis.runs.run import Run


@dataclass(frozen=True)
class EarlySettings:
    """Which path, and how closely its losses are wanted, as estimated from the examples measured."""

    transition: Annotated[int, "number of the minimum that the path starts from"] = 1
    space: Annotated[str, "factor, delta or aligned"] = "factor"
    num_points: Annotated[int, "points on the path, both ends included"] = 11
    split: Annotated[str, "train, eval or test"] = "test"
    tolerance: Annotated[float, "nats per target token"] = 0.05
    confidence: Annotated[float, "that no loss of any task is farther off"] = 0.95

    def __post_init__(self) -> None:
        from mcanalysis.connectivity.profile import grid
        from mcanalysis.params.spaces import get_space
        from mcanalysis.tasks.task import SPLITS

        if self.split not in SPLITS:
            raise UnknownNameError("split", self.split, SPLITS)
        grid(self.num_points)
        get_space(self.space)


@dataclass(frozen=True)
class EarlyResult:
    """`losses`: a row per task and t; `tasks`: a row per task, with what it took.

    `unseen`: the share of examples that may be unlike all that were measured; half-widths are estimates without them.
    """

    losses: pd.DataFrame
    tasks: pd.DataFrame


def look_early(run: Run, settings: EarlySettings, *, progress: Progress = silent) -> EarlyResult:
    """Measure the losses of a transition's tasks along its straight path; writes the run's `tables/early.csv`.

    The confidence is shared out over the tasks (Bonferroni), so that it is that of the whole table. Nothing is taken
    from the run's stored measurements or added to them, since these are of all examples.

    Raises `UserError` for a transition that the run does not have, a split without examples, and as `early_profile`.
    """
    import pandas as pd

    from mcanalysis.metrics.barriers import chord_barrier
    from mcanalysis.paths import Linear
    from mcanalysis.store.atomic import write_text_atomic
    from mcanalysis.studies.connectivity.transitions import nth_transition

    transition = nth_transition(run, run.answering_learner, settings.transition)
    path = Linear(*transition.points, space=settings.space)
    confidence = 1 - (1 - settings.confidence) / len(transition.tasks)
    labels = {"strategy": run.strategy, "learner": run.answering_learner, "seed": run.config["seed"]}
    labels |= {"space": settings.space, "start": transition.start, "end": transition.end, "split": settings.split}
    losses, tasks = [], []
    for task in transition.tasks:
        found = _one_task(run, path, task, settings, confidence, progress)
        profile = found.profile
        for t, loss, half_width in zip(profile.ts, profile.losses, found.half_widths, strict=True):
            losses.append({**labels, "task": task, "t": t, "loss": loss, "half_width": half_width})
        told = {"task": task, "is_new": task == transition.new, "examples": len(found.examples)}
        told |= {"of": found.num_full // len(profile.ts), "saving": found.saving}
        told |= {
            "unseen": found.unseen,
            "half_width": found.half_widths.max(),
            "start_loss": profile.losses[0],
            "end_loss": profile.losses[-1],
        }
        told["chord_barrier"] = float(chord_barrier(profile.ts, profile.losses))
        tasks.append(labels | told)
    result = EarlyResult(pd.DataFrame(losses), pd.DataFrame(tasks))
    write_text_atomic(run.directory / "tables" / "early.csv", result.losses.to_csv(index=False))
    return result


def _one_task(
    run: Run, path: Linear, task: str, settings: EarlySettings, confidence: float, progress: Progress
) -> EarlyProfile:
    from mcanalysis.connectivity.early import early_profile
    from mcanalysis.connectivity.profile import grid

    number = len(run.task_objective(task, settings.split).examples)
    objective = run.sampled_objective(task, settings.split)
    bar = progress(total=number * settings.num_points, desc=f"{run.strategy} {task}")

    def counted(point: Mapping[str, Tensor], rows: NDArray[np.int64]) -> PerExample:
        measured = objective(point, rows.tolist())
        bar.update(len(rows))
        return measured

    try:
        found = early_profile(path, counted, grid(settings.num_points), number, settings.tolerance, confidence)
        bar.update(found.num_full - found.num_evaluations)  # what need not be measured is done with
        return found
    finally:
        bar.close()
