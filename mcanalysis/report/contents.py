"""Everything a page shows of one run: what came out of it, what the model wrote, how it was made."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from mcanalysis.errors import UserError
from mcanalysis.numbers_as_text import shown_number
from mcanalysis.plotting.selection import are_from_base, where
from mcanalysis.plotting.style import path_lines
from mcanalysis.report.paths_and_planes import BARRIERS, barrier_rows, measured, planes, transition_curves
from mcanalysis.report.scores import METRICS, matrix_rows, metric_rows, metric_text
from mcanalysis.runs.finished import FinishedRun
from mcanalysis.tasks.task import TaskData

_BARRIER_TITLES = {"interpolation_gain": "gain", "t_star": "t*"}


def run_contents(run: FinishedRun, number: int, num_samples: int) -> dict[str, Any]:
    """What the template needs of a run; `data` is what the charts draw, plain JSON.

    `number` tells the runs of a page apart. Raises `DataError` for a file of the run that is missing or damaged.
    """
    values = run.metrics_by_learner
    by_learner = {learner: run.accuracy_matrix_of(learner) for learner in values}
    paths = measured(run)
    curves = [] if paths is None else transition_curves(*paths)
    surfaces = planes(run)
    examples, note = samples(run, num_samples)
    matrix = by_learner[run.answering_learner]
    return {
        "id": f"run-{number}",
        "name": run.directory.resolve().name,
        "strategy": run.strategy,
        "seed": run.seed,
        "order": run.order,
        "learner": run.answering_learner,
        "cards": cards(run, values[run.answering_learner]),
        "sentences": sentences(run, matrix, None if paths is None else paths[1]),
        "tasks": run.task_names,
        "matrices": [{"learner": name, "rows": matrix_rows(run, table)} for name, table in by_learner.items()],
        "learners": list(values),
        "metrics": metric_rows(values),
        "general": general_rows(run.table("general", ["task"])) if run.has("general") else None,
        "barrier_names": [_BARRIER_TITLES.get(name, name.replace("_", " ")) for name in BARRIERS],
        "barriers": [] if paths is None else barrier_rows(paths[1]),
        "samples": examples,
        "samples_note": note,
        "settings": list(_flat(run.config | ({"chat_template": run.chat_template} if run.chat_template else {}))),
        "versions": _versions(run),
        "has_transitions": run.has_paths and run.is_sequential,
        "analyses": _analyses(run),
        "connectivity_command": _command(run, "connectivity"),
        "landscape_command": _command(run, "landscape"),
        "data": {"id": f"run-{number}", "paths": curves, "planes": surfaces},
    }


_CARDS = ("average_accuracy", "backward_transfer", "learning_accuracy", "forgetting")


def cards(run: FinishedRun, values: Mapping[str, float | None]) -> list[dict[str, str]]:
    """The numbers that stand at the top: four metrics of the answering learner, and what the run cost."""
    found = [
        {"title": METRICS[name].title, "value": metric_text(name, values.get(name)), "says": METRICS[name].says}
        for name in _CARDS
    ]
    seconds, memory = run.cost.get("train_seconds"), run.cost.get("peak_memory_bytes")
    if seconds is not None:
        found.append({"title": "Training", "value": _duration(seconds), "says": "Time of training alone."})
    if memory is not None:
        found.append(
            {
                "title": "Peak memory",
                "value": f"{memory / 1e6:,.0f} MB",
                "says": "Of the whole process, which may have trained other runs before.",
            }
        )
    return found


def sentences(run: FinishedRun, matrix: pd.DataFrame, barriers: pd.DataFrame | None) -> list[str]:
    """What was done, which task lost most, and what lies between the minima."""
    names = run.task_names
    many = f"{len(names)} tasks" if len(names) != 1 else "one task"
    said = [f"{run.strategy} on {many}: {', '.join(names)}. The {run.answering_learner} learner answers."]
    said += _most_forgotten(matrix, names) if run.is_sequential else []
    if barriers is not None:
        said += _paths(barriers)
    return said


def _most_forgotten(matrix: pd.DataFrame, names: Sequence[str]) -> list[str]:
    by_stage = matrix.set_index("after")
    last = by_stage.index.max()
    falls: dict[str, tuple[float, float]] = {}
    for k, name in enumerate(names, start=1):
        if k in by_stage.index and k < last:
            own, end = float(by_stage.loc[k, name]), float(by_stage.loc[last, name])  # type: ignore[arg-type]
            if math.isfinite(own) and math.isfinite(end):
                falls[name] = (own, end)
    if not falls:
        return []
    name = max(falls, key=lambda n: falls[n][0] - falls[n][1])
    own, end = falls[name]
    if own <= end:
        return ["No earlier task scored lower at the end than right after it was learned."]
    return [f"{name} lost most: {shown_number(own)} right after it was learned, {shown_number(end)} at the end."]


def _paths(barriers: pd.DataFrame) -> list[str]:
    said = []
    from_base = barriers[are_from_base(barriers)]
    barriers = barriers[~are_from_base(barriers)]
    for (path, space), line in path_lines(zip(barriers.path, barriers.space, strict=True)).items():
        rows = where(barriers, path=path, space=space)
        losses = where(rows, quantity="loss", task="mean_old").dropna(subset="chord_barrier")
        gains = where(rows, quantity="score", task="mean").dropna(subset="interpolation_gain")
        parts = []
        if len(losses):
            worst: Any = losses.iloc[int(losses.chord_barrier.to_numpy().argmax())]
            height = shown_number(worst.chord_barrier)
            parts.append(
                f"highest chord barrier of the old tasks' loss {height} nats per token ({worst.start} → {worst.end})"
                if worst.chord_barrier >= 0.005
                else "no chord barrier of the old tasks' loss as high as 0.005 nats per token"
            )
        if len(gains):
            above = int((gains.interpolation_gain_low > 0).sum())
            parts.append(
                f"a point between the ends is better for old and new tasks together in {above} of {len(gains)} "
                "transitions (95 % interval above 0)"
            )
        if parts:
            said.append(f"{line.label[0].upper()}{line.label[1:]}: {'; '.join(parts)}.")
    gains = where(from_base, quantity="score", task="mean").dropna(subset="interpolation_gain")
    if len(gains):
        above = int((gains.interpolation_gain_low > 0).sum())
        said.append(
            "Rewinding (from the base to a minimum): a point between the ends is better for old and new tasks together "
            f"on {above} of {len(gains)} paths (95 % interval above 0)."
        )
    return said


def general_rows(general: pd.DataFrame) -> list[list[str]]:
    """The table of general tasks, heads first: per task and learner its score (or loss) and retention at each stage.

    That of version 0.1, which has the scores of the base and of the end, is shown as it is.

    >>> row = {"after": 0, "learner": "fast", "task": "A", "loss": 1.0, "score": float("nan"), "retention": 1.0}
    >>> general_rows(pd.DataFrame([row, row | {"after": 1, "retention": 0.5}]))[2]
    ['A', 'fast', 'retention', '1.00', '0.50']
    """
    if "retention" not in general:
        return [list(general.columns), *general.round(3).astype(str).to_numpy().tolist()]
    stages = sorted(set(general.after))
    shown = [["task", "learner", "what", *("base" if k == 0 else f"after {k}" for k in stages)]]
    for (task, learner), rows in general.groupby(["task", "learner"], sort=False):
        by_stage = rows.set_index("after").reindex(stages)
        value = ("score", "score") if by_stage.score.notna().any() else ("loss", "loss, nats per token")
        for column, words in (value, ("retention", "retention")):
            shown.append([str(task), str(learner), words, *map(shown_number, by_stage[column])])
    return shown


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def samples(run: FinishedRun, number: int) -> tuple[list[dict[str, Any]], str]:
    """The first `number` test examples of each task with the answering learner's outputs; and what is not shown.

    Prompts and expected answers come from the run's data; where these have changed or gone, outputs are shown alone.
    """
    stages = run.outputs(run.answering_learner)
    data: Mapping[str, TaskData] = {}
    note = ""
    if stages and number:
        try:
            data = run.tasks
        except (UserError, OSError) as error:
            note = f"Prompts and expected answers are not shown. {error}"
    found = []
    for position, name in enumerate(run.task_names, start=1):
        columns = _columns(stages, position, name)
        shown = min(number, max((len(outputs) for _, outputs in columns), default=0))
        task = data.get(name)
        examples = task.splits.get("test", ()) if task else ()
        rows = []
        for i in range(shown):
            example = examples[i] if i < len(examples) else None
            expected = None if example is None else example.answer
            answers = [_answer(outputs, i, expected) for _, outputs in columns]
            rows.append({"prompt": example and example.prompt, "expected": expected, "answers": answers})
        if rows:
            language = task.task.language if task else "und"
            heads = [title for title, _ in columns]
            found.append({"name": name, "language": language, "heads": heads, "rows": rows})
    return found, note


def _columns(
    stages: Mapping[int, tuple[str, Mapping[str, list[str]]]], position: int, task: str
) -> list[tuple[str, list[str]]]:
    """The base, the stage that learned the task, and the last one, where they have outputs for it."""
    last = max(stages, default=0)
    titles = {0: "base model", last: "at the end"}
    if position in stages and stages[position][0] == task:
        titles[position] = "right after learning it" + (" (the end)" if position == last else "")
    numbers = sorted(titles)
    return [(titles[k], stages[k][1][task]) for k in numbers if k in stages and task in stages[k][1]]


def _answer(outputs: list[str], i: int, expected: str | None) -> dict[str, Any]:
    if i >= len(outputs):
        return {"text": None, "same": False}
    return {"text": outputs[i], "same": expected is not None and outputs[i].strip() == expected.strip()}


_ANALYSES = (  # name, what it says, script, tables
    ("Paths", "loss and score along paths, and their barriers", "connectivity", ("profiles", "barriers")),
    (
        "Landscape", "loss on a plane through three minima, slices, sharpness", "landscape",
        ("landscape", "trajectory", "sharpness"),
    ),
    (
        "Curvature", "eigenvalues and spectrum of the Hessian; predicted forgetting", "curvature",
        ("curvature", "spectrum", "predicted_forgetting"),
    ),
    (
        "Similarity", "distance of the minima in weights, hidden states and answers", "similarity",
        ("weight_distance", "subspace_overlap", "cka", "prediction_similarity"),
    ),
    ("Attribution", "which layers and modules make a barrier", "attribution", ("attribution", "attribution_barriers")),
    (
        "Basins", "when a task leaves its basin, how far its score holds, how much of a simplex is good", "basin",
        ("basin_forks", "basin_radius", "basin_volume"),
    ),
    ("Path finders", "which curve connects the minima, at what cost", "finders", ("finders",)),
)  # fmt: skip


def _analyses(run: FinishedRun) -> list[dict[str, Any]]:
    """Every analysis a run may have, with the tables it has written; none for a strategy without paths."""
    if not (run.has_paths and run.is_sequential):
        return []
    found = []
    for name, says, script, tables in _ANALYSES:
        there = [f"tables/{table}.csv" for table in tables if run.has(table)]
        found.append({"name": name, "says": says, "tables": there, "command": _command(run, script)})
    return found


def _command(run: FinishedRun, script: str) -> str:
    """The command that measures something of this run."""
    return f"python analyses/{script}.py --run {shlex.quote(str(run.directory))}"


def _versions(run: FinishedRun) -> list[tuple[str, str]]:
    """Versions, commit, hashes, times and how the run was carried out."""
    manifest = run.manifest
    rows = [("trained", f"{manifest.get('created')} to {manifest.get('finished')} (UTC)")]
    rows += [(name, "not installed" if v is None else str(v)) for name, v in manifest.get("versions", {}).items()]
    rows.append(("git commit", str(manifest.get("git_commit") or "installed package")))
    rows += [(f"run on: {name}", str(value)) for name, value in manifest.get("execution", {}).items()]
    hashes = manifest.get("hashes", {})
    rows.append(("content hash, base", str(hashes.get("base"))))
    rows += [(f"content hash, {task}", str(value)) for task, value in hashes.get("data", {}).items()]
    return rows


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """A configuration as dotted names and values in text; what was left at None is "default"."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        elif value is None or value == {}:
            yield f"{prefix}{name}", "default"
        elif isinstance(value, list):
            yield f"{prefix}{name}", ", ".join(map(str, value))
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
