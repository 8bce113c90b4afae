"""What the model wrote: a few test examples of each task, before, right after and long after it was learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mcanalysis.errors import UserError
from mcanalysis.runs.finished import FinishedRun
from mcanalysis.tasks.task import TaskData

Outputs = Mapping[str, list[str]]  # by task


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


def _columns(stages: Mapping[int, tuple[str, Outputs]], position: int, task: str) -> list[tuple[str, list[str]]]:
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
