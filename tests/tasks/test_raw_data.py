"""Raw MedMCQA and JEC-QA become TRACE folders: nothing guessed, nothing lost unseen, no test question trained on."""

import json

import pytest

from mcanalysis.benchmarks import load_benchmark
from mcanalysis.errors import DataError, UserError
from mcanalysis.metrics.scores import get_score
from mcanalysis.tasks.raw import convert, medmcqa, questions, raw_names
from mcanalysis.tasks.raw.jec_qa import PROMPT as JEC_PROMPT
from mcanalysis.tasks.raw.questions import split_seeded
from mcanalysis.tasks.trace_files import load_trace_task

SPLITS = ("train", "eval", "test")
OPTIONS = {"A": "盗窃罪", "B": "诈骗罪", "C": "抢劫罪", "D": "受贿罪"}


def medical(text, cop, **changes):
    row = {"id": "x", "question": text, "opa": "Heart", "opb": "Lung", "opc": "Liver", "opd": "Kidney", "exp": None}
    row |= {"choice_type": "single", "cop": cop, **changes}
    return {key: value for key, value in row.items() if value is not ...}


def legal(statement, answer, **changes):
    return {"statement": statement, "option_list": OPTIONS, "answer": answer, "id": "3_1", **changes}


def write_lines(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def medical_folder(tmp_path):
    """medical_folder(first=1, train=extra rows, dev=…, test=…) -> the folder of 8 train and 10 dev questions."""

    def make(first=1, train=(), dev=(), test=None):
        source = tmp_path / "medical"
        write_lines(source / "train.json", [*(medical(f"Train {i}?", first + i % 4) for i in range(8)), *train])
        write_lines(source / "dev.json", [*(medical(f"Dev {i}?", first + i % 4) for i in range(10)), *dev])
        if test is not None:
            write_lines(source / "test.json", test)
        return source

    return make


@pytest.fixture
def legal_folder(tmp_path):
    """legal_folder(extra rows) -> the folder of 30 questions in two files, and the extra rows in the second."""

    def make(*rows):
        source = tmp_path / "legal"
        for k in (0, 1):
            own = [legal(f"第{k}{i}题？", ["ABCD"[i % 4]]) for i in range(15)]
            write_lines(source / f"{k}_train.json", [*own, *(rows if k else ())])
        return source

    return make


def prompts(folder):
    return {s: [r["prompt"] for r in json.loads((folder / f"{s}.json").read_text("utf-8"))] for s in SPLITS}


def refused(error, *arguments, **settings):
    with pytest.raises(error) as caught:
        convert(*arguments, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# MedMCQA: labels


@pytest.mark.parametrize("first", [0, 1])
def test_labels_that_count_from_0_and_from_1_give_the_same_data(medical_folder, tmp_path, first):
    done = convert("MedMCQA", medical_folder(first), tmp_path / "data")
    assert done.remark == f"the labels (cop) count from {first}"
    assert done.kept == {"train": 8, "eval": 2, "test": 8} and not done.left_out
    data = load_trace_task(tmp_path / "data", "MedMCQA")
    for examples in data.splits.values():
        for example in examples:
            number = int(example.prompt.split("?")[0].split()[-1])
            assert example.answer == "ABCD"[number % 4]
            assert get_score(data.task.score).per_example(example.answer, example.answer) == 1


def test_the_prompt_gives_instruction_question_and_options_and_asks_for_a_letter(medical_folder, tmp_path):
    done = convert("MedMCQA", medical_folder(), tmp_path / "data")
    (prompt,) = [p for p in prompts(done.folder)["train"] if "Train 3?" in p]
    instruction, question, choices, answer = prompt.split("\n\n")
    assert instruction.endswith("Choose one from A, B, C and D.")
    assert question == "Question:\nTrain 3?"
    assert choices == "Choices:\nA. Heart\nB. Lung\nC. Liver\nD. Kidney"
    assert answer == "Answer:"


def test_one_telling_label_in_any_file_is_enough(medical_folder, tmp_path):
    source = medical_folder()
    write_lines(source / "train.json", [medical("Train?", 2)])
    write_lines(
        source / "dev.json", [medical("Dev 1?", 1), medical("Dev 2?", 4, choice_type="multi"), medical("3?", 3)]
    )
    done = convert("MedMCQA", source, tmp_path / "data")
    assert json.loads((done.folder / "train.json").read_text())[0]["answer"] == "B"
    assert done.left_out == {medmcqa.SEVERAL: 1}


def test_labels_that_do_not_tell_where_they_count_from_are_refused(medical_folder, tmp_path):
    source = medical_folder()
    write_lines(source / "train.json", [medical("Train?", 2)])
    write_lines(source / "dev.json", [medical("Dev 1?", 1), medical("Dev 2?", 3), medical("Dev 3?", -1)])
    message = refused(DataError, "MedMCQA", source, tmp_path / "data")
    assert "tells whether labels count from 0 or from 1, got only 1, 2, 3; use the whole data set." in message
    write_lines(source / "train.json", [medical("Train?", -1)])
    write_lines(source / "dev.json", [medical("Dev?", ...)])
    assert "got no label at all" in refused(DataError, "MedMCQA", source, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_labels_of_both_kinds_are_refused_with_their_places(medical_folder, tmp_path):
    source = medical_folder(first=1, dev=[medical("Odd?", 0)])
    message = refused(DataError, "MedMCQA", source, tmp_path / "data")
    assert f"got 0 in {source}/dev.json, line 11 and 4 in {source}/train.json, line 4;" in message


@pytest.mark.parametrize("label", [5, -2, "1", True, 1.5, [1]])
def test_a_label_that_is_none_is_refused_with_its_place(medical_folder, tmp_path, label):
    source = medical_folder(train=[medical("Odd?", label)])
    message = refused(DataError, "MedMCQA", source, tmp_path / "data")
    assert f'at "cop" in {source}/train.json, line 9, got {label!r};' in message


# MedMCQA: what is left out


def test_what_is_left_out_is_counted_by_reason(medical_folder, tmp_path):
    train = [
        medical("Several?", 1, choice_type="multi"),
        medical("No label?", None),
        medical("No label?", -1),
        medical(" ", 1),
        medical("No option?", 1, opd=None),
        medical("Train 0?", 1),
        medical("Dev 0?", 1),
        medical("Dev 1?", 1, opa="Lung", opb="Heart"),
        medical("Dev 1?", 1, opa="Brain"),
    ]
    done = convert("MedMCQA", medical_folder(train=train), tmp_path / "data")
    assert done.left_out == {medmcqa.SEVERAL: 1, medmcqa.UNLABELLED: 2, medmcqa.INCOMPLETE: 2, questions.REPEATED: 3}
    assert done.kept == {"train": 9, "eval": 2, "test": 8}
    assert sum(done.kept.values()) + sum(done.left_out.values()) == 8 + 10 + len(train)


def test_a_question_of_dev_is_tested_and_never_trained_on(medical_folder, tmp_path):
    done = convert("MedMCQA", medical_folder(train=[medical("Dev 0?", 2)]), tmp_path / "data")
    written = prompts(done.folder)
    assert not [p for p in written["train"] if "Dev" in p]
    assert sum("Dev 0?" in p for p in written["eval"] + written["test"]) == 1


@pytest.mark.parametrize("label", [..., -1, None])
def test_the_unlabelled_test_file_is_counted_and_not_used(medical_folder, tmp_path, label):
    rows = [medical(f"Test {i}?", label) for i in range(5)]
    done = convert("MedMCQA", medical_folder(test=rows), tmp_path / "data")
    assert done.left_out == {medmcqa.UNLABELLED: 5}
    assert not [p for part in prompts(done.folder).values() for p in part if "Test" in p]


def test_labels_in_the_test_file_are_not_trusted_and_say_so(medical_folder, tmp_path):
    done = convert("MedMCQA", medical_folder(test=[medical("Test?", 1), medical("Test 2?", -1)]), tmp_path / "data")
    assert done.left_out == {medmcqa.UNUSED_LABEL: 1, medmcqa.UNLABELLED: 1}


# JEC-QA


def test_chinese_text_comes_through_unchanged(legal_folder, tmp_path):
    text = "甲（十七岁）盗窃𠮷野家，“数额较大”……\u2028应如何\x85处理？{question}"
    done = convert("JEC-QA", legal_folder(legal(text, ["C"])), tmp_path / "data")
    assert done.kept == {"train": 21, "eval": 2, "test": 8} and not done.left_out
    expected = JEC_PROMPT.replace("{options}", "A. 盗窃罪\nB. 诈骗罪\nC. 抢劫罪\nD. 受贿罪").replace(
        "{question}", text, 1
    )
    data = load_trace_task(tmp_path / "data", "JEC-QA")
    (example,) = [e for part in data.splits.values() for e in part if "𠮷" in e.prompt]
    assert (example.prompt, example.answer) == (expected, "C")
    raw = b"".join((done.folder / f"{split}.json").read_bytes() for split in SPLITS)
    assert "盗窃𠮷野家".encode() in raw  # written as characters, not as escapes


def test_only_single_answers_are_kept_and_the_rest_is_counted(legal_folder, tmp_path):
    rows = [
        legal("多选", ["A", "C"]),
        legal("无答案", []),
        legal("无选项", ["A"], option_list={"A": "甲", "B": "乙", "C": "", "D": "丁"}),
        legal("", ["A"]),
        legal("五项", ["A"], option_list={**OPTIONS, "E": "戊"}),
        legal("答案", ["E"]),
        legal("第00题？", ["A"]),
    ]
    done = convert("JEC-QA", legal_folder(*rows), tmp_path / "data")
    assert list(done.left_out.values()) == [1, 1, 2, 1, 1, 1]
    assert done.left_out["several answers"] == 1 and done.left_out[questions.REPEATED] == 1
    assert sum(done.kept.values()) + sum(done.left_out.values()) == 37


def test_splits_are_disjoint_complete_and_mix_both_files(legal_folder, tmp_path):
    written = prompts(convert("JEC-QA", legal_folder(), tmp_path / "data").folder)
    everything = [prompt for part in written.values() for prompt in part]
    assert len(everything) == len(set(everything)) == 30
    assert {prompt.split("第")[1][0] for prompt in written["train"]} == {"0", "1"}


@pytest.mark.parametrize("name", ["MedMCQA", "JEC-QA"])
def test_the_same_seed_gives_the_same_files_and_another_gives_others(medical_folder, legal_folder, tmp_path, name):
    source = {"MedMCQA": medical_folder, "JEC-QA": legal_folder}[name]()
    folders = [convert(name, source, tmp_path / label, seed).folder for label, seed in [("a", 3), ("b", 3), ("c", 4)]]
    first, again, other = ([(folder / f"{s}.json").read_bytes() for s in SPLITS] for folder in folders)
    assert first == again
    assert all(x != y for x, y in zip(first, other, strict=True))


def test_the_split_is_the_same_on_every_machine():
    golden = [14, 0, 5, 9, 13, 2, 6, 12, 8, 10, 7, 4, 1, 11, 3]  # a change here changes every published number
    split = split_seeded(range(15), {"train": 10, "eval": 1, "test": 4}, 0, "JEC-QA")
    assert split == {"train": golden[:10], "eval": golden[10:11], "test": golden[11:]}


@pytest.mark.parametrize(
    ("number", "sizes"), [(3, [1, 1, 1]), (4, [2, 1, 1]), (15, [10, 1, 4]), (7500, [5000, 500, 2000])]
)
def test_shares_are_those_of_trace_and_no_split_is_empty(number, sizes):
    split = split_seeded(range(number), {"train": 10, "eval": 1, "test": 4}, 0, "x")
    assert [len(part) for part in split.values()] == sizes
    assert sorted(i for part in split.values() for i in part) == list(range(number))


# Bad input


BAD_LINES = {
    "cut off": ('{"statement": "甲"', "line 16, got: Expecting ',' delimiter at column 18; correct that line."),
    "text": ("oops", "line 16, got: Expecting value at column 1;"),
    "list": ('[{"statement": "甲"}]', "line 16, got '[{\"statement\": \"甲\"}]'; write one object per line"),
    "two": ('{"a": 1} {"b": 2}', "line 16, got: Extra data at column 10;"),
    "deep": ("[" * 200_000, "line 16, got: "),
    "long number": ('{"id": ' + "1" * 5000 + "}", "line 16, got: "),
    "no statement": ('{"option_list": {}, "answer": []}', "in FILE, line 16, got 'option_list', 'answer'; add"),
    "a number": ('{"statement": 5, "option_list": {}, "answer": []}', 'text at "statement" in FILE, line 16, got 5;'),
    "letters": ('{"statement": "甲", "option_list": {}, "answer": "A"}', 'at "answer" in FILE, line 16, got \'A\';'),
    "options": ('{"statement": "甲", "option_list": [], "answer": []}', '"option_list" in FILE, line 16, got \'[]\';'),
    "surrogate": ('{"statement": "\\ud800", "option_list": {}, "answer": []}', "half of a surrogate pair;"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_named_with_file_and_line_and_nothing_is_written(legal_folder, tmp_path, case):
    line, message = BAD_LINES[case]
    source = legal_folder(line)
    got = refused(DataError, "JEC-QA", source, tmp_path / "data")
    assert message.replace("FILE", str(source / "1_train.json")) in got and str(source / "1_train.json") in got
    assert not (tmp_path / "data").exists()


def test_bytes_that_are_not_utf8_are_named(legal_folder, tmp_path):
    source = legal_folder()
    good = (source / "1_train.json").read_bytes()
    (source / "1_train.json").write_bytes(good + '{"statement": "甲"}'.encode("gbk"))
    message = refused(DataError, "JEC-QA", source, tmp_path / "data")
    assert f"UTF-8 text in {source / '1_train.json'}, line 16, got byte 0xbc at offset 15" in message


def test_a_byte_order_mark_blank_lines_and_windows_line_ends_do_no_harm(legal_folder, tmp_path):
    source = legal_folder()
    plain = convert("JEC-QA", source, tmp_path / "a")
    text = (source / "0_train.json").read_bytes()
    (source / "0_train.json").write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n\r\n"))
    assert prompts(convert("JEC-QA", source, tmp_path / "b").folder) == prompts(plain.folder)


def test_absent_files_are_named(tmp_path, medical_folder):
    assert "no such folder; check --source." in refused(DataError, "JEC-QA", tmp_path / "absent", tmp_path / "data")
    source = medical_folder()
    (source / "dev.json").unlink()
    message = refused(DataError, "MedMCQA", source, tmp_path / "data")
    assert message == f"Expected train.json and dev.json in {source}, got no dev.json; add what is missing."


def test_too_few_questions_are_refused(medical_folder, legal_folder, tmp_path):
    source = medical_folder()
    write_lines(source / "dev.json", [medical("Dev?", 4)])
    message = refused(DataError, "MedMCQA", source, tmp_path / "data")
    assert "at least 2 usable examples of MedMCQA in dev.json for eval and test, got 1;" in message
    write_lines(source / "train.json", [])
    write_lines(source / "dev.json", [medical("Dev?", 4), medical("Dev 2?", 4)])
    message = refused(DataError, "MedMCQA", source, tmp_path / "data")
    assert "at least 1 usable example of MedMCQA in train.json for train, got 0;" in message


def test_an_unknown_data_set_suggests_the_nearest(tmp_path):
    assert raw_names() == ["JEC-QA", "MedMCQA"]
    assert refused(DataError, "MedMCQ", tmp_path, tmp_path / "data").endswith("Did you mean 'MedMCQA'?")


def test_a_folder_that_holds_something_is_left_alone(legal_folder, tmp_path):
    source, target = legal_folder(), tmp_path / "data" / "JEC-QA"
    target.mkdir(parents=True)
    convert("JEC-QA", source, tmp_path / "data")
    before = {file.name: file.read_bytes() for file in target.iterdir()}
    assert f"Expected no folder at {target}, got a folder with files in it; remove it" in refused(
        UserError, "JEC-QA", source, tmp_path / "data", seed=9
    )
    assert {file.name: file.read_bytes() for file in target.iterdir()} == before
    assert sorted(p.name for p in target.parent.iterdir()) == ["JEC-QA"]  # nor half-written folders beside it


def test_a_file_where_the_folder_should_be(legal_folder, tmp_path):
    (tmp_path / "data").write_text("mine")
    assert f"can be written at {tmp_path / 'data' / 'JEC-QA'}, got: " in refused(
        UserError, "JEC-QA", legal_folder(), tmp_path / "data"
    )
    assert (tmp_path / "data").read_text() == "mine"


def test_both_may_stand_in_one_folder_and_be_learned(medical_folder, legal_folder, tmp_path):
    convert("MedMCQA", medical_folder(), tmp_path / "data")
    convert("JEC-QA", legal_folder(), tmp_path / "data")
    loaded = load_benchmark("ilora", tmp_path / "data", ["MedMCQA", "JEC-QA"], sizes={"train": 5})
    assert [(d.task.name, d.task.score, len(d.splits["train"])) for d in loaded] == [
        ("MedMCQA", "accuracy", 5),
        ("JEC-QA", "accuracy", 5),
    ]
