import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import mcanalysis.tasks as tasks
from mcanalysis.errors import UnknownNameError
from mcanalysis.metrics.scores import get_score
from mcanalysis.registry import Registry
from mcanalysis.tasks import Example, Task, TaskData, get_task, task_names, unknown_task

KNOWN = {
    "C-STANCE": ("zh", "accuracy"),
    "FOMC": ("en", "accuracy"),
    "MeetingBank": ("en", "rouge_l"),
    "ScienceQA": ("en", "accuracy"),
    "NumGLUE-cm": ("en", "number_accuracy"),
    "NumGLUE-ds": ("en", "number_accuracy"),
    "20Minuten": ("de", "sari"),
    "MedMCQA": ("en", "accuracy"),
    "JEC-QA": ("zh", "accuracy"),
}


def test_every_dataset_has_its_language_and_a_score_that_exists():
    for name, (language, score) in KNOWN.items():
        task = get_task(name)
        assert (task.name, task.language, task.score) == (name, language, score)
        assert get_score(task.score).name == score
        assert task.max_new_tokens >= 4 and task.description
    assert set(KNOWN) <= set(task_names())


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match=r"^Unknown task 'fomcc'\. Did you mean 'FOMC'\? Expected one of: 20M"):
        get_task("fomcc")


def test_a_task_is_added_by_adding_a_file(tmp_path, monkeypatch):
    (tmp_path / "added_task_file.py").write_text(
        "from mcanalysis.tasks.task import Task\nTASK = Task('Added', 'fr', 'exact_match', 9)\n"
    )
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    monkeypatch.setattr(tasks, "_TASKS", Registry("task", "mcanalysis.tasks", "TASK"))
    assert get_task("Added").language == "fr"
    (tmp_path / "added_task_twice.py").write_text(
        "from mcanalysis.tasks.task import Task\nTASK = Task('FOMC', 'fr', 'exact_match', 9)\n"
    )
    monkeypatch.setattr(tasks, "_TASKS", Registry("task", "mcanalysis.tasks", "TASK"))
    with pytest.raises(RuntimeError, match=r"Two files of mcanalysis\.tasks define the task 'FOMC'"):
        get_task("Added")


def test_a_folder_of_the_users_own_is_scored_by_exact_match_or_as_told():
    assert unknown_task("mine").score == "exact_match"
    assert unknown_task("mine", score="rouge_l").score == "rouge_l"


def test_the_source_is_the_prompt_except_where_an_instruction_surrounds_it():
    for name in set(KNOWN) - {"20Minuten"}:
        assert get_task(name).source("a prompt") == "a prompt"
    source = get_task("20Minuten").source
    body = "Es regnet.\n\nParagraph:\nEs schneit."
    assert source(f"Vereinfache.\n\nParagraph:\n{body}\n\nSimplification:") == body
    assert source("Vereinfache: Es regnet.") == "Vereinfache: Es regnet."
    assert source("Paragraph:\nEs regnet.") == "Paragraph:\nEs regnet."
    assert source("\n\nSimplification:") == "\n\nSimplification:"


def test_tasks_and_examples_survive_pickling():
    data = TaskData.of(get_task("20Minuten"), {"test": [Example("p", "a")]})
    assert pickle.loads(pickle.dumps(data)) == data


def test_impossible_tasks_are_refused():
    with pytest.raises(ValueError, match=r"max_new_tokens of at least 1, got 'T' and 0"):
        Task("T", "en", "accuracy", 0)
    with pytest.raises(ValueError, match="a task with a name"):
        Task("", "en", "accuracy", 1)


def test_the_content_hash_sees_prompts_answers_splits_and_order_only():
    task, p, q = get_task("FOMC"), Example("p", "A"), Example("q", "B")
    same = TaskData.of(task, {"test": [p, q], "train": [p]})
    assert same.content_hash == TaskData.of(unknown_task("x"), {"train": (p,), "test": (p, q)}).content_hash
    others = [
        TaskData.of(task, {"test": [q, p], "train": [p]}),
        TaskData.of(task, {"test": [p, q], "eval": [p]}),
        TaskData.of(task, {"test": [p, Example("q", "C")], "train": [p]}),
        TaskData.of(task, {"test": [p], "train": [p]}),
    ]
    assert len({same.content_hash, *(other.content_hash for other in others)}) == 5


def test_first_keeps_the_beginning_and_its_hash_follows():
    examples = [Example(str(i), "A") for i in range(5)]
    data = TaskData.of(get_task("FOMC"), {"train": examples, "test": examples})
    cut = data.first({"train": 2, "eval": 1})
    assert [len(cut.splits[s]) for s in ("train", "test")] == [2, 5]
    assert cut.splits["train"] == tuple(examples[:2])
    assert cut.content_hash != data.content_hash
    assert data.first({"train": 99}) == data


def test_importing_tasks_brings_in_no_heavy_library():
    code = "import mcanalysis.tasks as t, sys, json; t.task_names(); print(json.dumps(sorted(sys.modules)))"
    root = Path(tasks.__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "datasets", "peft"} & set(json.loads(run.stdout))
