import json

import pytest

import mcanalysis.benchmarks as benchmarks
from mcanalysis.benchmarks import benchmark_names, get_benchmark, load_benchmark
from mcanalysis.errors import DataError, UnknownNameError, UserError
from mcanalysis.registry import Registry
from mcanalysis.tasks import SPLITS

PAPER = ("C-STANCE", "FOMC", "MeetingBank", "ScienceQA", "NumGLUE-cm", "20Minuten", "MedMCQA", "JEC-QA")
TRACE = ("C-STANCE", "FOMC", "MeetingBank", "Py150", "ScienceQA", "NumGLUE-cm", "NumGLUE-ds", "20Minuten")
SMALL = {"train": 6, "eval": 3, "test": 4}


def write_tasks(root, *names, size=5):
    for name in names:
        (root / name).mkdir(parents=True)
        for split in SPLITS:
            rows = [{"prompt": f"{name} {split} {i}", "answer": "A"} for i in range(size)]
            (root / name / f"{split}.json").write_text(json.dumps(rows))
    return root


def names(loaded):
    return [data.task.name for data in loaded]


def test_the_sequences_are_those_of_the_papers():
    assert get_benchmark("ilora").tasks == PAPER
    assert get_benchmark("embedded").tasks == PAPER
    assert get_benchmark("trace").tasks == TRACE


def test_an_unknown_benchmark_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match=r"Unknown benchmark 'trcae'\. Did you mean 'trace'\?"):
        load_benchmark("trcae")


def test_a_benchmark_is_added_by_adding_a_file(tmp_path, monkeypatch):
    (tmp_path / "added_benchmark_file.py").write_text(
        "from mcanalysis.benchmarks.benchmark import Benchmark\n"
        "BENCHMARK = Benchmark('added', (), lambda names, data_dir, sizes: [])\n"
    )
    monkeypatch.setattr(benchmarks, "__path__", [*benchmarks.__path__, str(tmp_path)])
    monkeypatch.setattr(benchmarks, "_BENCHMARKS", Registry("benchmark", "mcanalysis.benchmarks", "BENCHMARK"))
    assert "added" in benchmark_names()
    assert load_benchmark("added") == []


def test_trace_takes_the_folders_present_its_own_first(tmp_path):
    write_tasks(tmp_path, "Zebra", "20Minuten", "MedMCQA", "C-STANCE", "Py150")
    loaded = load_benchmark("trace", tmp_path)
    assert names(loaded) == ["C-STANCE", "Py150", "20Minuten", "MedMCQA", "Zebra"]
    assert [d.task.score for d in loaded][2:] == ["sari", "accuracy", "exact_match"]


def test_named_tasks_set_the_order(tmp_path):
    write_tasks(tmp_path, "Zebra", "FOMC", "C-STANCE")
    for benchmark in ("trace", "ilora"):
        assert names(load_benchmark(benchmark, str(tmp_path), ["Zebra", "C-STANCE"])) == ["Zebra", "C-STANCE"]


@pytest.mark.parametrize("benchmark", ["trace", "ilora"])
def test_a_named_task_without_a_folder_lists_the_folders(tmp_path, benchmark):
    write_tasks(tmp_path, "FOMC", "C-STANCE")
    with pytest.raises(DataError, match=r"got only C-STANCE, FOMC\. Did you mean 'FOMC'\? Name a folder"):
        load_benchmark(benchmark, tmp_path, ["C-STANCE", "FOMCC"])


@pytest.mark.parametrize("benchmark", ["trace", "ilora"])
def test_a_data_directory_is_needed(tmp_path, benchmark):
    with pytest.raises(UserError, match=rf"Expected a data directory for the benchmark '{benchmark}', got none;"):
        load_benchmark(benchmark)
    with pytest.raises(DataError, match=r"Expected a folder of tasks at .*absent, got nothing there"):
        load_benchmark(benchmark, tmp_path / "absent")


def test_a_data_directory_without_tasks(tmp_path):
    with pytest.raises(DataError, match=r"Expected at least one task folder in .*, got none; add a folder"):
        load_benchmark("trace", tmp_path)
    with pytest.raises(DataError, match="got no task folders at all"):
        load_benchmark("trace", tmp_path, ["FOMC"])


def test_ilora_is_all_eight_or_those_named(tmp_path):
    write_tasks(tmp_path, *PAPER[:5], "Zebra")
    with pytest.raises(DataError) as caught:
        load_benchmark("ilora", tmp_path)
    assert str(caught.value) == (
        f"Expected the eight tasks of 'ilora' in {tmp_path}, got no 20Minuten, no MedMCQA, no JEC-QA; add "
        "these folders "
        "or pass --tasks C-STANCE,FOMC,MeetingBank,ScienceQA,NumGLUE-cm for those that are there."
    )
    write_tasks(tmp_path, *PAPER[5:])
    assert tuple(names(load_benchmark("ilora", tmp_path))) == PAPER


@pytest.mark.parametrize("benchmark", ["embedded", "trace", "ilora"])
def test_tasks_named_twice_or_none_are_refused(tmp_path, benchmark):
    with pytest.raises(UserError, match=r"Expected each task once, got FOMC 2 times; name it once\."):
        load_benchmark(benchmark, tmp_path, ["FOMC", "C-STANCE", "FOMC"])
    with pytest.raises(UserError, match="Expected at least one task, got an empty list"):
        load_benchmark(benchmark, tmp_path, [])


def test_scores_are_overridden_only_for_loaded_tasks_and_by_known_scores(tmp_path):
    write_tasks(tmp_path, "Zebra", "FOMC")
    loaded = load_benchmark("trace", tmp_path, score_overrides={"Zebra": "rouge_l"})
    assert {d.task.name: d.task.score for d in loaded} == {"FOMC": "accuracy", "Zebra": "rouge_l"}
    with pytest.raises(UnknownNameError, match=r"Unknown task 'Zebar'\. Did you mean 'Zebra'\?"):
        load_benchmark("trace", tmp_path, score_overrides={"Zebar": "rouge_l"})
    with pytest.raises(UnknownNameError, match=r"Unknown score 'rouge'\. Did you mean 'rouge_l'\?"):
        load_benchmark("trace", tmp_path, score_overrides={"Zebra": "rouge"})


def test_sizes_keep_the_first_examples(tmp_path):
    write_tasks(tmp_path, "FOMC")
    (data,) = load_benchmark("trace", tmp_path, sizes={"train": 2, "test": 99})
    assert {split: len(examples) for split, examples in data.splits.items()} == {
        "train": 2,
        "eval": 5,
        "test": 5,
    }
    assert [e.prompt for e in data.splits["train"]] == ["FOMC train 0", "FOMC train 1"]
    with pytest.raises(UserError, match="Expected at least 1 example for the split test, got 0"):
        load_benchmark("trace", tmp_path, sizes={"test": 0})
    with pytest.raises(UnknownNameError, match=r"Unknown split 'tset'\. Did you mean 'test'\?"):
        load_benchmark("trace", tmp_path, sizes={"tset": 1})


def test_embedded_generates_the_papers_tasks_the_same_each_time():
    loaded = load_benchmark("embedded", sizes=SMALL)
    assert tuple(names(loaded)) == PAPER
    assert all({s: len(e) for s, e in data.splits.items()} == SMALL for data in loaded)
    assert [d.content_hash for d in load_benchmark("embedded", sizes=SMALL)] == [d.content_hash for d in loaded]


def test_embedded_tasks_may_be_chosen_and_ordered():
    assert names(load_benchmark("embedded", tasks=["JEC-QA", "FOMC"], sizes=SMALL)) == ["JEC-QA", "FOMC"]


def test_embedded_refuses_other_tasks_and_a_data_directory(tmp_path):
    with pytest.raises(UnknownNameError, match=r"Unknown task 'FOMCC'\. Did you mean 'FOMC'\?") as caught:
        load_benchmark("embedded", tasks=["FOMCC"])
    assert "Py150" not in str(caught.value)
    with pytest.raises(UserError, match=r"Expected no data directory for the benchmark 'embedded'.*drop --data-dir"):
        load_benchmark("embedded", tmp_path)


def test_the_source_of_the_embedded_simplification_is_without_the_instruction():
    (data,) = load_benchmark("embedded", tasks=["20Minuten"], sizes=SMALL)
    for example in data.splits["test"]:
        source = data.task.source(example.prompt)
        assert source in example.prompt and ":" not in source
