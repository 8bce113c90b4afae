import json
import os
import socket
from pathlib import Path

import pytest

from mcanalysis.errors import DataError, UnknownNameError
from mcanalysis.tasks import SPLITS, Example
from mcanalysis.tasks.trace_files import list_trace_tasks, load_examples, load_trace_task

GOOD = [{"prompt": "Text: ü 中\n", "answer": "A"}, {"prompt": "q", "answer": ""}]
REAL_FILES = Path(os.environ.get("MCANALYSIS_TRACE_DIR") or "nowhere")


def write_task(root, name="FOMC", **splits):
    (root / name).mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        content = splits.get(split, GOOD)
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(content)
            (root / name / f"{split}.json").write_text(text, encoding="utf-8")
    return root / name


def test_prompts_and_answers_come_back_unchanged(tmp_path):
    write_task(tmp_path, train=GOOD * 3, eval=GOOD[:1])
    data = load_trace_task(tmp_path, "FOMC")
    assert {split: len(examples) for split, examples in data.splits.items()} == {
        "train": 6,
        "eval": 1,
        "test": 2,
    }
    assert data.splits["test"] == (Example("Text: ü 中\n", "A"), Example("q", ""))
    assert (data.task.name, data.task.score) == ("FOMC", "accuracy")


def test_extra_and_repeated_keys_and_a_byte_order_mark_do_no_harm(tmp_path):
    write_task(tmp_path)
    plain = load_trace_task(tmp_path, "FOMC")
    odd = (
        '\ufeff[{"id": [1, {}], "prompt": "x", "prompt": "Text: ü 中\\n", "answer": "A"},{"answer": "", "prompt": "q"}]'
    )
    write_task(tmp_path, test=odd)
    assert load_trace_task(tmp_path, "FOMC") == plain


def test_an_unknown_folder_is_a_task_and_a_score_may_be_given(tmp_path):
    write_task(tmp_path, "Mine")
    assert load_trace_task(tmp_path, "Mine").task.score == "exact_match"
    assert load_trace_task(tmp_path, "Mine", score="rouge_l").task.score == "rouge_l"
    with pytest.raises(UnknownNameError, match=r"Unknown score 'rouge'\. Did you mean 'rouge_l'"):
        load_trace_task(tmp_path, "Mine", score="rouge")


def test_reading_writes_nothing_and_asks_no_network(tmp_path, monkeypatch):
    write_task(tmp_path / "data")
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in tmp_path.rglob("*")}
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))

    def refuse(*_):
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    load_trace_task(tmp_path / "data", "FOMC")
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in tmp_path.rglob("*")} == before


def test_nothing_is_printed(tmp_path, capfd):
    write_task(tmp_path)
    load_trace_task(tmp_path, "FOMC")
    assert capfd.readouterr() == ("", "")


BAD_FILES = {
    "object": (
        {"prompt": "p", "answer": "A"},
        'Expected a list of {"prompt": "...", "answer": "..."} in FILE, got an object with the keys '
        "'prompt', 'answer'; put the examples into a list.",
    ),
    "text": ('"hello"', "in FILE, got the text 'hello'; put the examples into a list."),
    "empty": ([], "Expected at least one example in FILE, got an empty list; add examples."),
    "no_file_content": (
        "",
        "Expected JSON in FILE, got: Expecting value at line 1, column 1; write a list",
    ),
    "cut_off": (
        '[{"prompt": "p",\n "answer": ',
        "in FILE, got: Expecting value at line 2, column 12; write a list of",
    ),
    "json_lines": (
        '{"prompt": "p", "answer": "A"}\n{"prompt": "q", "answer": "B"}\n',
        "Expected JSON in FILE, got: Extra data at line 2, column 1; write a list of",
    ),
    "not_an_object": ([*GOOD, "A"], "in FILE, got the text 'A' at index 2; rewrite or remove it."),
    "key_absent": (
        [*GOOD, {"question": "p", "answer": "A"}],
        "Expected the key \"prompt\" in FILE at index 2, got 'question', 'answer'; add it or rename",
    ),
    "no_keys": ([{}], 'Expected the key "prompt" in FILE at index 0, got no keys; add it'),
    "number": (
        [GOOD[0], {"prompt": "p", "answer": 17.5}],
        'Expected text at key "answer" in FILE at index 1, got the number 17.5; write it in quotes.',
    ),
    "null": (
        [{"prompt": None, "answer": "A"}],
        'Expected text at key "prompt" in FILE at index 0, got null;',
    ),
    "list": (
        [{"prompt": "p", "answer": ["A"]}],
        'Expected text at key "answer" in FILE at index 0, got a list;',
    ),
    "bool": (
        [{"prompt": "p", "answer": True}],
        'Expected text at key "answer" in FILE at index 0, got true;',
    ),
    "surrogate": (
        '[{"prompt": "p", "answer": "\\ud800"}]',
        'Expected Unicode text at key "answer" in FILE at index 0, got half of a surrogate pair;',
    ),
    "deep": ("[" * 200_000, "in FILE, got JSON nested too deeply; write prompts"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_named_with_the_place_in_it(tmp_path, case):
    content, message = BAD_FILES[case]
    file = write_task(tmp_path, eval=content) / "eval.json"
    for load in (lambda: load_trace_task(tmp_path, "FOMC"), lambda: load_examples(file)):
        with pytest.raises(DataError) as caught:
            load()
        assert message.replace("FILE", str(file)) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    file = write_task(tmp_path) / "test.json"
    file.write_bytes('[{"prompt": "ü"'.encode("latin-1"))
    with pytest.raises(DataError) as caught:
        load_trace_task(tmp_path, "FOMC")
    assert str(caught.value) == f"Expected UTF-8 text in {file}, got byte 0xfc at offset 13; save the file as UTF-8."


def test_absent_splits_are_named(tmp_path):
    folder = write_task(tmp_path, eval=None, test=None)
    with pytest.raises(DataError) as caught:
        load_trace_task(tmp_path, "FOMC")
    assert str(caught.value) == (
        f"Expected train.json, eval.json and test.json in {folder}, got no eval.json, no test.json; "
        "add what is missing."
    )


def test_an_absent_task_lists_the_folders_present(tmp_path):
    write_task(tmp_path, "FOMC")
    write_task(tmp_path, "Mine")
    with pytest.raises(DataError) as caught:
        load_trace_task(tmp_path, "FOMCC")
    assert str(caught.value) == (
        f"Expected a folder of task 'FOMCC' in {tmp_path}, got only FOMC, Mine. Did you mean 'FOMC'? "
        f"Name a folder that is there or add {tmp_path / 'FOMCC'} with train.json, eval.json and test.json."
    )


@pytest.mark.parametrize("name", ["", ".", "..", "../FOMC", "FOMC/", "fomc"])
def test_only_a_folders_own_name_is_a_task(tmp_path, name):
    write_task(tmp_path, "FOMC")
    with pytest.raises(DataError, match="Expected a folder of task"):
        load_trace_task(tmp_path, name)


def test_an_absent_or_wrong_data_directory_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for path, got in ((tmp_path / "absent", "nothing there"), (tmp_path / "file", "a file")):
        for call in (lambda p: load_trace_task(p, "FOMC"), list_trace_tasks):
            with pytest.raises(DataError) as caught:
                call(path)
            assert str(caught.value) == f"Expected a folder of tasks at {path}, got {got}; check --data-dir."


def test_folders_are_listed_in_the_order_given_and_then_by_name(tmp_path):
    for name in ("Zebra", "ScienceQA", "Apple", "C-STANCE", ".cache"):
        write_task(tmp_path, name)
    (tmp_path / "notes").mkdir()
    (tmp_path / "README.md").write_text("")
    order = ["C-STANCE", "FOMC", "ScienceQA"]
    assert list_trace_tasks(tmp_path, order) == ["C-STANCE", "ScienceQA", "Apple", "Zebra"]


def test_a_single_file_is_a_task_named_after_it(tmp_path):
    write_task(tmp_path, "20Minuten")
    data = load_examples(tmp_path / "20Minuten" / "train.json")
    assert (data.task.name, data.task.score, list(data.splits)) == ("20Minuten", "sari", ["test"])
    (tmp_path / "mine.json").write_text(json.dumps(GOOD))
    data = load_examples(tmp_path / "mine.json", score="rouge_l")
    assert (data.task.name, data.task.score, len(data.splits["test"])) == ("mine", "rouge_l", 2)


def test_answers_that_the_score_cannot_read_are_named_before_anything_runs(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps([{"prompt": "1 + 1 =", "answer": "B"}] * 2))
    load_examples(tmp_path / "mine.json", score="accuracy")
    (tmp_path / "mine.json").write_text(
        json.dumps([{"prompt": "1 + 1 =", "answer": "B"}, {"prompt": "1 + 1 =", "answer": "2"}])
    )
    with pytest.raises(DataError, match=r"^mine, test split, example 1: .* answer letter A–Z, got '2'"):
        load_examples(tmp_path / "mine.json", score="accuracy")


def test_a_single_file_that_is_not_there(tmp_path):
    with pytest.raises(
        DataError, match=r"Expected a JSON file at .*x\.json, got nothing there; name a file that holds"
    ):
        load_examples(tmp_path / "x.json")
    with pytest.raises(DataError, match=r"Expected a JSON file at .*, got a folder; name a file that holds a list of"):
        load_examples(tmp_path)


@pytest.mark.skipif(not REAL_FILES.is_dir(), reason="set MCANALYSIS_TRACE_DIR to a folder of TRACE's files")
def test_the_real_files_load_as_they_are():
    for name in list_trace_tasks(REAL_FILES):
        data = load_trace_task(REAL_FILES, name)
        for split in SPLITS:
            raw = json.loads((REAL_FILES / name / f"{split}.json").read_text(encoding="utf-8"))
            assert [(e.prompt, e.answer) for e in data.splits[split]] == [(r["prompt"], r["answer"]) for r in raw]
    if (REAL_FILES / "20Minuten").is_dir():
        data = load_trace_task(REAL_FILES, "20Minuten")
        for example in data.splits["test"]:
            source = data.task.source(example.prompt)
            assert source in example.prompt and not source.startswith("Provide") and "Simplification:" not in source
