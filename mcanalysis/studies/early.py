"""A first look at a transition of a run: losses along its straight path to a tolerance, from few examples.

What loads torch is imported where it is used: the settings are read for `--help`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from mcanalysis.errors import UnknownNameError
from mcanalysis.numbers_as_text import cell
from mcanalysis.progress import Progress
from mcanalysis.settings import BASIC, MOST_POINTS, Bounds, check_bounds
from mcanalysis.studies.engine import Piece, Steps
from mcanalysis.studies.study import Rows, Setting, Study, Tables, check_transition
from mcanalysis.tasks.task import SPLITS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from mcanalysis.connectivity.early import EarlyProfile
    from mcanalysis.connectivity.profile import PerExample
    from mcanalysis.paths import Linear
    from mcanalysis.runs.run import Opening, Run
    from mcanalysis.runs.transitions import Transition

_WHOSE = ["strategy", "learner", "seed", "space", "start", "end", "split"]


@dataclass(frozen=True)
class Early(Study):
    """A first look at a path: its losses to a stated tolerance, from as few examples as that takes.

    The straight path of the `transition` from the minimum of that number, in a `space`; losses of its tasks to a
    `tolerance` in nats per target token, with `confidence` that no loss of any task is farther off, as estimated from
    the examples measured: it is shared out over the tasks (Bonferroni). Nothing is taken from a run's stored
    measurements or added to them, since these are of all examples.

    Tables: `early`, a row per task and t; `early_tasks`, a row per task with what it took. `unseen`: the share of
    examples that may be unlike all that were measured; half-widths are estimates without them.
    """

    transition: Annotated[int, "number of the minimum that the path starts from", BASIC] = 1
    space: Annotated[str, "factor, delta or aligned"] = "factor"
    num_points: Annotated[int, "points on the path, both ends included", Bounds(2, MOST_POINTS)] = 11
    split: Annotated[str, "train, eval or test"] = "test"
    tolerance: Annotated[float, "nats per target token", BASIC] = 0.05
    confidence: Annotated[float, "that no loss of any task is farther off"] = 0.95

    strategies: ClassVar = ("sequential",)
    leads_to: ClassVar = "connectivity"

    def __post_init__(self) -> None:
        from mcanalysis.connectivity.early import check_precision
        from mcanalysis.params.spaces import get_space

        if self.split not in SPLITS:
            raise UnknownNameError("split", self.split, SPLITS)
        check_bounds(self)
        get_space(self.space)
        check_precision(self.tolerance, self.confidence)

    def check(self, num_minima: int) -> None:
        check_transition(self.transition, num_minima)

    def measure(self, run: Run, setting: Setting) -> Steps[Tables]:
        """A piece per task; raises `UserError` for a transition that the run lacks, and a split without examples."""
        import pandas as pd

        from mcanalysis.metrics.barriers import chord_barrier

        transition, _ = self._path(run)
        for task in transition.tasks:
            run.task_objective(task, self.split)
        name = f"first look at {run.directory.name}"
        found: list[EarlyProfile] = yield [
            Piece(f"{run.directory}|{task}|{self}", _look, (run.opening, self, task), name=f"{name}, {task}")
            for task in transition.tasks
        ]
        labels = {"strategy": run.strategy, "learner": run.answering_learner, "seed": run.seed, "space": self.space}
        labels |= {"start": transition.start, "end": transition.end, "split": self.split}
        losses, tasks = [], []
        for task, look in zip(transition.tasks, found, strict=True):
            ts, values = look.profile.ts, look.profile.losses
            for t, loss, half_width in zip(ts, values, look.half_widths, strict=True):
                losses.append({**labels, "task": task, "t": t, "loss": loss, "half_width": half_width})
            row: dict[str, Any] = {"task": task, "is_new": task == transition.new, "examples": len(look.examples)}
            row |= {"of": look.num_full // len(ts), "saving": look.saving, "unseen": look.unseen}
            row |= {"half_width": look.half_widths.max(), "start_loss": values[0], "end_loss": values[-1]}
            tasks.append(labels | row | {"chord_barrier": float(chord_barrier(ts, values))})
        return {"early": pd.DataFrame(losses), "early_tasks": pd.DataFrame(tasks)}

    def words(self, tables: Tables) -> Iterator[str | Rows]:
        """Per run and task, how many examples a first look took and what it saw."""
        for _, of_run in tables["early_tasks"].groupby(_WHOSE, sort=False):
            first = of_run.iloc[0]
            rows = [["task", "loss at the start", "at the end", "chord barrier", "losses ±", "examples", "saved"]]
            for row in of_run.to_dict("records"):
                numbers = [cell(row[name], 3) for name in ("start_loss", "end_loss", "chord_barrier", "half_width")]
                name = f"{row['task']} (new)" if row["is_new"] else row["task"]
                rows.append([name, *numbers, f"{row['examples']} of {row['of']}", f"{row['saving']:.0%}"])
            whose = f"{first.strategy} / {first.learner} / seed {first.seed}, {first.space} space"
            yield f"\n{whose}, {first.start} → {first.end}, {first.split} split; loss in nats per target token"
            yield rows
            if (of_run.saving > 0).any():
                yield (
                    f"An estimate at {self.confidence:.0%} confidence: no loss of these tasks along the path differs "
                    "by more than ± from that on all"
                )
                yield (
                    "examples, and no barrier by more than twice that, if the others are like those measured; a share "
                    f"of up to {of_run.unseen.max():.2g} may not be."
                )
            else:
                yield "All examples were measured: this tolerance needs them, and nothing is estimated."
            if of_run.half_width.isna().any():
                yield "Where ± is a dash, a loss on the path is not a finite number."

    def _path(self, run: Run) -> tuple[Transition, Linear]:
        from mcanalysis.paths import Linear
        from mcanalysis.runs.run import check_space
        from mcanalysis.runs.transitions import nth_transition

        check_space(run.strategy, self.space)
        transition = nth_transition(run, run.answering_learner, self.transition)
        return transition, Linear(*transition.points, space=self.space)


def _look(opening: Opening, study: Early, task: str, progress: Progress) -> EarlyProfile:
    from mcanalysis.connectivity.early import early_profile
    from mcanalysis.connectivity.profile import grid

    run = opening.run
    transition, path = study._path(run)
    number = len(run.task_objective(task, study.split).examples)
    objective = run.sampled_objective(task, study.split)
    bar = progress(total=number * study.num_points, desc=f"{run.strategy} {task}")

    def counted(point: Mapping[str, Tensor], rows: NDArray[np.int64]) -> PerExample:
        measured = objective(point, rows.tolist())
        bar.update(len(rows))
        return measured

    confidence = 1 - (1 - study.confidence) / len(transition.tasks)
    try:
        found = early_profile(path, counted, grid(study.num_points), number, study.tolerance, confidence)
        bar.update(found.num_full - found.num_evaluations)  # what need not be measured is done with
        return found
    finally:
        bar.close()
