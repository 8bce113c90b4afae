"""Py150, and that every task of the two published sequences is known."""

import json

from mcanalysis.benchmarks import get_benchmark, load_benchmark
from mcanalysis.metrics.scores import get_score
from mcanalysis.tasks import SPLITS, get_task, task_names

TEN = {
    "C-STANCE",
    "FOMC",
    "MeetingBank",
    "Py150",
    "ScienceQA",
    "NumGLUE-cm",
    "NumGLUE-ds",
    "20Minuten",
    "MedMCQA",
    "JEC-QA",
}


def test_the_published_sequences_have_ten_tasks_between_them_and_all_are_known():
    assert {*get_benchmark("trace").tasks, *get_benchmark("ilora").tasks} == TEN
    assert set(task_names()) >= TEN
    for name in TEN:
        assert get_score(get_task(name).score) and get_task(name).description


def test_py150_is_scored_by_edit_similarity_and_has_room_for_a_line():
    task = get_task("Py150")
    assert (task.score, task.source("a prompt")) == ("edit_similarity", "a prompt")
    assert 64 <= task.max_new_tokens <= 128


def test_a_py150_folder_is_a_task_of_trace(tmp_path):
    (tmp_path / "Py150").mkdir()
    rows = [{"prompt": "<s> import os <EOL>", "answer": 'os . chdir ( "<STR_LIT:..>" )'}]
    for split in SPLITS:
        (tmp_path / "Py150" / f"{split}.json").write_text(json.dumps(rows))
    (data,) = load_benchmark("trace", tmp_path)
    (example,) = data.splits["test"]
    assert get_score(data.task.score).per_example('os . chdir ( ".." )', example.answer) == 1
