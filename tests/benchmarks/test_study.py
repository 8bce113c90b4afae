"""The study's benchmark: tasks of the embedded one, test examples that it does not have."""

from __future__ import annotations

import pytest

from mcanalysis.benchmarks import load_benchmark
from mcanalysis.errors import UserError


@pytest.fixture(scope="module")
def both():
    usual, study = load_benchmark("embedded"), load_benchmark("study")
    assert [data.task for data in study] == [data.task for data in usual]
    return list(zip(usual, study, strict=True))


def test_train_and_eval_are_those_of_the_embedded_benchmark(both):
    for usual, study in both:
        assert study.splits["train"] == usual.splits["train"] and study.splits["eval"] == usual.splits["eval"]


def test_no_test_prompt_stands_in_any_split_of_the_embedded_benchmark(both):
    for usual, study in both:
        prompts = {example.prompt for example in study.splits["test"]}
        assert len(prompts) == len(study.splits["test"]) == 200
        assert not prompts & {example.prompt for split in usual.splits.values() for example in split}


def test_the_test_split_is_the_same_each_time_and_as_balanced_as_the_usual_one(both):
    again = {data.task.name: data.splits["test"] for data in load_benchmark("study")}
    for usual, study in both:
        assert study.splits["test"] == again[study.task.name]
        answers = [[example.answer for example in data.splits["test"]] for data in (usual, study)]
        if study.task.score == "accuracy" and len(set(answers[0])) < 6:
            most = [max(of.count(a) for a in set(of)) for of in answers]
            assert set(answers[0]) == set(answers[1]) and abs(most[0] - most[1]) <= 2


def test_a_data_directory_is_refused_by_its_name(tmp_path):
    with pytest.raises(UserError, match="benchmark 'study', which is generated"):
        load_benchmark("study", tmp_path)
