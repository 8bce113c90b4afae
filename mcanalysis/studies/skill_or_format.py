"""Is it skill that a transition costs, or the format of the answers? Loss and score at a few points, each in two parts.

Outputs and the losses of single tokens are not stored along paths, so that this writes and reads anew: at the ends of
each transition and at the t that are asked for. What loads torch is imported where it is used: the settings are read
for `--help`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from mcanalysis.errors import UserError
from mcanalysis.numbers_as_text import cell
from mcanalysis.progress import Progress
from mcanalysis.settings import OR_ALL, Bounds, Flag, check_bounds
from mcanalysis.studies.engine import Piece, Steps
from mcanalysis.studies.study import Rows, Setting, Study, Tables

if TYPE_CHECKING:
    from mcanalysis.evaluation.objective import Objective
    from mcanalysis.runs.run import Opening, Run
    from mcanalysis.studies.connectivity.measuring import OnPath

FEWEST_READ = 10  # outputs, below which a share of right ones says next to nothing
SPLIT = "test"
_VERSION = 1  # counts up when what is computed changes, so that results of before are not used


@dataclass(frozen=True)
class SkillOrFormat(Study):
    """Loss by first token and rest, score by outputs that can be read and right ones, on straight paths in a `space`.

    Of the answering learner, at both ends of every transition and at `ts` between them, on the first `num_examples` of
    the test split (None: all).

    Table `skill_or_format`, a row per t and task: `loss` (nats per target token) and the losses `loss_first` of the
    first token of the answers and `loss_rest` of all others (NaN where there are none); `score`, the share `parsable`
    of outputs that the score can read, and `skill`, the mean score of these: score = parsable · skill. Against the
    start, `loss_change_first` + `loss_change_rest` and `score_change_format` + `score_change_skill` are the changes of
    loss and score.
    """

    ts: Annotated[tuple[float, ...], "t between the ends that are measured, too", Flag(metavar="T,…")] = (0.5,)
    space: Annotated[str, "factor, delta or aligned"] = "delta"
    num_examples: Annotated[int | None, "test examples per task, or 'all'", OR_ALL, Bounds(1)] = 50

    strategies: ClassVar = ("sequential", "ilora")

    def __post_init__(self) -> None:
        from mcanalysis.params.spaces import get_space

        get_space(self.space)
        outside = [t for t in self.ts if not 0 <= t <= 1]
        if outside:
            raise UserError(f"Expected t from 0 to 1, got {outside[0]:g}; change --ts.")
        check_bounds(self)

    def check(self, num_minima: int) -> None:
        if num_minima < 2:
            raise UserError(f"Expected a run with at least two minima, got {num_minima}: train on more --tasks.")

    def measure(self, run: Run, setting: Setting) -> Steps[Tables]:
        """A piece per transition and t."""
        import pandas as pd

        from mcanalysis.store.hashing import hash_json
        from mcanalysis.store.results import JsonResult
        from mcanalysis.studies.connectivity.measuring import OnPath, paths_of
        from mcanalysis.studies.connectivity.study import Connectivity

        self.check(len(run.minima_of(run.answering_learner)))
        study = Connectivity(paths=(f"linear-{self.space}",))
        paths = paths_of(run, run.answering_learner, study)
        pieces, labels = [], []
        for name in paths.names(study.paths[0]):
            path = paths.path(name)
            tasks = path.transition.tasks
            objectives = [run.task_objective(task, SPLIT, self.num_examples) for task in tasks]
            for t in sorted({0.0, *self.ts, 1.0}):
                key = hash_json([_VERSION, path.point_key(t), [(o.name, o.settings_key) for o in objectives]])
                kept = JsonResult(run.directory / "skill_or_format" / f"{key[:16]}.json")
                words = f"outputs at t = {t:g} of {path.transition.start} → {path.transition.end}"
                arguments = (run.opening, OnPath(name, study, t), tuple(tasks), self.num_examples)
                pieces.append(Piece(str(kept.file), split_point, arguments, kept, name=words))
                labels.append({"start": path.transition.start, "end": path.transition.end, "t": t, "tasks": tasks})
        found = yield pieces
        own = {"strategy": run.strategy, "learner": run.answering_learner, "seed": run.seed, "space": self.space}
        rows = [
            {**own, **{k: label[k] for k in ("start", "end", "t")}, "task": task, "split": SPLIT,
             "role": "new" if task == label["tasks"][-1] else "old",
             **{name: float("nan") if value is None else value for name, value in values.items()}}
            for label, of_point in zip(labels, found, strict=True)
            for task, values in zip(label["tasks"], of_point, strict=True)
        ]  # fmt: skip
        return {"skill_or_format": changes(pd.DataFrame(rows))}

    def words(self, tables: Tables) -> Iterator[str | Rows]:
        """What each transition changes, in old tasks and the new one, at its end."""
        table = tables["skill_or_format"]
        keys = ["strategy", "learner", "seed", "start", "end", "task"]
        ends = table[table.t.isin([0.0, 1.0])]
        read = (ends.parsable * ends.num_examples).groupby([ends[key] for key in keys]).min()
        at_end = table[table.t == 1.0].join(read.rename("num_read"), on=keys)
        names = ["loss_change_first", "loss_change_rest", "score_change_format", "score_change_skill"]
        for (strategy, learner, seed), of_run in at_end.groupby(["strategy", "learner", "seed"], sort=False):
            yield f"\n{strategy} / {learner} / seed {seed}, {SPLIT} split: change from start to end, mean over tasks;"
            yield "of the loss (nats per target token) and of the score (format: outputs that cannot be read)"
            shown = [["transition", "tasks", "loss: first token", "rest", "score: format", "skill"]]
            for (start, end, role), one in of_run.groupby(["start", "end", "role"], sort=False):
                star = "*" if (one.num_read < FEWEST_READ).any() else ""
                cells = [cell(one[name].mean(), 3) for name in names]
                shown.append([f"{start} → {end}", str(role), *cells[:-1], cells[-1] + star])
            yield shown
            if any(row[-1].endswith("*") for row in shown):
                yield f"* skill is of fewer than {FEWEST_READ} outputs that can be read, of a task at one of the ends"


def changes(table: Any) -> Any:
    """The table with what changed against the row of t = 0 of the same transition and task, in parts."""
    import numpy as np

    from mcanalysis.metrics.format_share import score_change

    keys = ["start", "end", "task"]
    start = table[table.t == 0].set_index(keys).loc[[tuple(row) for row in table[keys].to_numpy()]]
    before = start.set_axis(table.index)
    share = table.num_examples / table.num_targets  # of the tokens that are first ones
    parts = score_change(table.parsable, table.skill, before.parsable, before.skill)
    is_scored = (table.score.notna() & before.score.notna()).to_numpy()  # not where logits are no numbers
    by_format, by_skill = (np.where(is_scored, part, np.nan) for part in parts)
    return table.assign(
        loss_change_first=share * (table.loss_first - before.loss_first),
        loss_change_rest=((1 - share) * (table.loss_rest - before.loss_rest)).where(share < 1, 0.0),
        score_change_format=by_format,
        score_change_skill=by_skill,
    )


def split_point(
    opening: Opening, where: OnPath, tasks: Sequence[str], num_examples: int | None, progress: Progress
) -> list[dict[str, Any]]:
    """What a piece does: per task the losses and scores of a point, in parts."""
    import numpy as np

    from mcanalysis.metrics.scores import get_score

    run = opening.run
    objectives = [run.task_objective(task, SPLIT, num_examples) for task in tasks]
    point = where.point(run)
    whole = run.engine.evaluate(point, objectives, progress, f"outputs of {run.directory.name}")
    first = run.engine.losses(point, [first_token(o) for o in objectives], progress, "first tokens")
    rows = []
    for objective, evaluation, of_first in zip(objectives, whole, first, strict=True):
        m = evaluation.measurement
        reads = get_score(objective.task.score).parses
        can_read = np.array([reads(output) for output in evaluation.outputs])
        num_rest = m.num_targets - of_first.num_targets
        rest = float(m.nll.sum() - of_first.nll.sum()) / num_rest if num_rest else float("nan")
        row = {"num_examples": m.num_examples, "num_targets": m.num_targets, "loss": m.loss}
        row |= {"loss_first": of_first.loss, "loss_rest": rest, "score": m.score, "parsable": float(can_read.mean())}
        rows.append(row | {"skill": float(m.scores[can_read].mean()) if can_read.any() else float("nan")})
    return rows


@lru_cache(maxsize=64)  # the same object at all points, whose batches are made once
def first_token(objective: Objective) -> Objective:
    """The objective whose answers end after their first token: of causal models the loss of that token is the same."""
    encoded = tuple(replace(e, answer_ids=e.answer_ids[:1]) for e in objective.encoded)
    return replace(objective, encoded=encoded, settings_key=f"{objective.settings_key}/first token")
