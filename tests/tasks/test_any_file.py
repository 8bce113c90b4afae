"""`convert` on files of others, in small copies of their forms: BIG-bench, chats, columns; splits; what is left out."""

import json

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from mcanalysis.errors import DataError, UserError
from mcanalysis.tasks.raw import any_file, big_bench, chat, convert
from mcanalysis.tasks.trace_files import load_trace_task

SPLITS = ("train", "eval", "test")
CANARY = "DO NOT TRAIN ON THIS. canary GUID 0000-invented"
ABOUT = {"canary": CANARY, "name": "mine", "description": "invented", "keywords": [], "metrics": []}


def write(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def converted(tmp_path, source, name="Mine", **options):
    done = convert(name, source, tmp_path / "data", **options)
    return done, load_trace_task(tmp_path / "data", name).splits


def everything(splits):
    return {e.prompt: e.answer for examples in splits.values() for e in examples}


# BIG-bench


def test_labels_that_all_rows_share_are_the_answers(tmp_path):
    about = ABOUT | {
        "task_prefix": "Which mood?\n",
        "append_choices_to_input": False,
        "example_input_prefix": "\nText: ",
    }
    about |= {"example_output_prefix": "\nMood: "}
    rows = [{"input": f"text {i}", "target_scores": {"good": i % 2, "bad": 1 - i % 2}} for i in range(15)]
    done, splits = converted(tmp_path, write(tmp_path / "task.json", about | {"examples": rows}))
    assert done.kept == {"train": 10, "eval": 1, "test": 4}
    assert everything(splits)["Which mood?\n\nText: text 3\nMood:"] == "good"
    assert everything(splits)["Which mood?\n\nText: text 4\nMood:"] == "bad"
    assert done.remark == "answers are the options as they stand"


def test_labels_are_listed_each_on_a_line_even_where_the_prefix_is_empty(tmp_path):
    rows = [{"input": f"text {i}", "target_scores": {"good": i % 2, "bad": 1 - i % 2}} for i in range(15)]
    for name, prefix, listed in (("One", "", "\n  choice: good\n  choice: bad"), ("Two", "\n- ", "\n- good\n- bad")):
        source = write(tmp_path / "task.json", ABOUT | {"choice_prefix": prefix, "examples": rows})
        _, splits = converted(tmp_path, source, name)
        assert f"Q: text 3{listed}\nA:" in everything(splits)


def test_options_that_differ_get_letters_in_an_order_that_gives_nothing_away(tmp_path):
    rows = [
        {"input": f"Question {i}", "target_scores": {f"right {i}": 1, f"wrong {i}": 0, f"worse {i}": 0}}
        for i in range(60)
    ]
    done, splits = converted(tmp_path, write(tmp_path / "task.json", ABOUT | {"examples": rows}))
    found = everything(splits)
    for prompt, answer in found.items():
        first, *options, last = prompt.split("\n")
        assert first.startswith("Q: Question") and last == "A:"
        (right,) = [line for line in options if "right" in line]
        assert right.startswith(f"{answer}. ")
    assert {answer: list(found.values()).count(answer) >= 10 for answer in "ABC"} == dict.fromkeys("ABC", True)
    assert done.remark == "answers are letters of the options"


def test_targets_may_be_a_text_or_a_list(tmp_path):
    rows = [{"input": f"{i} + 1", "target": str(i + 1)} for i in range(12)]
    rows += [{"input": f"{i} + 1", "target": [str(i + 1), "many"]} for i in range(12, 15)]
    done, splits = converted(tmp_path, write(tmp_path / "task.json", ABOUT | {"examples": rows}))
    assert everything(splits)["Q: 13 + 1\nA:"] == "14"
    assert done.remark == "of 3 rows with several right answers the first is taken"


def test_what_has_no_one_answer_is_left_out_and_counted(tmp_path):
    rows = [{"input": f"{i}", "target_scores": {"a": 1, "b": 0, f"c{i}": 0}} for i in range(15)]
    rows.append({"input": "two", "target_scores": {"a": 1, "b": 1}})
    rows.append({"input": "none", "target_scores": {}})
    rows.append({"input": "many", "target_scores": {str(n): int(n == 3) for n in range(27)}})
    rows.append({"input": "nothing", "target": []})
    rows.append({"input": "blank", "target": " "})
    rows.append(rows[0])
    done, _ = converted(tmp_path, write(tmp_path / "task.json", ABOUT | {"examples": rows}))
    assert done.left_out == {
        big_bench.SEVERAL_BEST: 1, big_bench.NO_TARGET: 2, big_bench.TOO_MANY: 1, any_file.NO_ANSWER: 1,
        any_file.REPEATED: 1,
    }  # fmt: skip
    assert sum(done.kept.values()) + sum(done.left_out.values()) == len(rows)


def test_the_canary_goes_with_every_file(tmp_path):
    rows = [{"input": f"{i}", "target": "x"} for i in range(15)]
    done, _ = converted(tmp_path, write(tmp_path / "task.json", ABOUT | {"examples": rows}).parent)
    files = sorted(done.folder.iterdir())
    assert [f.name for f in files] == ["conversion.json", "eval.json", "test.json", "train.json"]
    assert all(CANARY in f.read_text() for f in files)


@pytest.mark.parametrize(
    ("row", "piece"),
    [
        ({"input": 3, "target": "x"}, "text at \"input\" in .* at index 0, got '3'"),
        ({"input": "x", "target": 3}, 'a list of texts at "target" in .* at index 0'),
        ({"input": "x", "target_scores": ["a"]}, 'numbers by option at "target_scores"'),
    ],
)
def test_another_form_is_refused_with_its_place(tmp_path, row, piece):
    with pytest.raises(DataError, match=piece):
        convert("Mine", write(tmp_path / "task.json", {"examples": [row]}), tmp_path / "data")
    assert not (tmp_path / "data").exists()


# Chats


def turn(role, content):
    return {"role": role, "content": content}


def test_the_assistants_last_message_is_the_answer(tmp_path):
    rows = [{"messages": [turn("user", f"q{i}"), turn("assistant", f" a{i}")]} for i in range(14)]
    rows.append({"messages": [turn("system", "Be short."), turn("user", "q"), turn("assistant", "a")]})
    rows.append({"messages": [turn("user", [{"type": "text", "text": "parts"}]), turn("assistant", "a")]})
    rows.append({"messages": [turn("user", [{"type": "image"}]), turn("assistant", "a")]})
    rows.append({"messages": [turn("user", "q"), turn("assistant", "a"), turn("user", "r"), turn("assistant", "b")]})
    rows.append({"messages": [turn("user", "q")]})
    rows.append({"messages": []})
    lines = "\n".join(map(json.dumps, rows))
    done, splits = converted(tmp_path, write(tmp_path / "chat.jsonl", lines))
    found = everything(splits)
    assert found["q3"] == " a3" and found["Be short.\n\nq"] == "a" and found["parts"] == "a"
    assert done.left_out == {chat.NO_TEXT: 1, chat.SEVERAL_TURNS: 1, chat.NO_ANSWER: 2}


# Columns and splits


def test_columns_are_named_or_put_into_a_text(tmp_path):
    text = "id,question,context,gold\n" + "".join(f'{i},why {i}?,"a, {{b}}",g{i}\n' for i in range(15))
    _, splits = converted(tmp_path, write(tmp_path / "x.csv", text), prompt="question", answer="gold")
    assert everything(splits)["why 3?"] == "g3"
    _, splits = converted(
        tmp_path, tmp_path / "x.csv", "Other", prompt="{context}\\nQ: {question}\\nA:", answer="{gold}!"
    )
    assert everything(splits)["a, {b}\nQ: why 3?\nA:"] == "g3!"


def test_white_space_at_the_ends_of_a_text_is_kept_and_white_space_alone_is_no_answer(tmp_path):
    """With byte-level tokens ' yes' is another label than 'yes', and adapters are trained on the one or the other."""
    prompt, answer = "\tfirst line\n\n  ", " line one – „ä“\n  line two\n\nend "
    rows = [{"prompt": f"{i}{prompt}", "answer": answer} for i in range(15)] + [{"prompt": "q", "answer": " \n"}]
    done, splits = converted(tmp_path, write(tmp_path / "x.json", rows))
    assert everything(splits) == {f"{i}{prompt}": answer for i in range(15)}
    assert done.left_out == {any_file.NO_ANSWER: 1} and done.most_common == answer
    chats = [{"messages": [turn("user", f"{i}{prompt}"), turn("assistant", answer)]} for i in range(15)]
    _, splits = converted(tmp_path, write(tmp_path / "chats.jsonl", "\n".join(map(json.dumps, chats))), "Chats")
    assert everything(splits) == {f"{i}{prompt}": answer for i in range(15)}


def test_every_kind_of_file_gives_the_same(tmp_path):
    columns = {"prompt": [f"p{i}" for i in range(15)], "answer": [["no", "yes"][i % 2] for i in range(15)]}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    features = Features(prompt=Value("string"), answer=ClassLabel(names=["no", "yes"]))
    numbered = columns | {"answer": [i % 2 for i in range(15)]}
    Dataset.from_dict(numbered, features=features).to_parquet(tmp_path / "x.parquet")
    write(tmp_path / "x.json", rows)
    write(tmp_path / "x.jsonl", "\n".join(map(json.dumps, rows)))
    write(tmp_path / "x.csv", "prompt,answer\n" + "".join(f"{r['prompt']},{r['answer']}\n" for r in rows))
    found = [convert("Mine", f, tmp_path / f.suffix) for f in sorted(tmp_path.glob("x.*"))]
    texts = [[(done.folder / f"{split}.json").read_text() for split in SPLITS] for done in found]
    assert len(found) == 4 and all(text == texts[0] for text in texts)


def test_gaps_are_no_answers_and_whole_numbers_stay_whole(tmp_path):
    """Of pandas: a gap is NaN, and makes floating-point numbers of the others in its column."""
    rows = [{"prompt": f"p{i}", "answer": float("nan") if i % 3 == 0 else float(i)} for i in range(30)]
    frame = Dataset.from_list(rows)
    frame.to_parquet(tmp_path / "x.parquet")
    write(tmp_path / "x.json", json.dumps(rows))  # NaN, as Python writes it
    quoted = 'prompt,answer\n"He said ""yes"", she\nno",a\n' + "".join(f"q{i},b\n" for i in range(14))
    for file in (tmp_path / "x.parquet", tmp_path / "x.json"):
        done, splits = converted(tmp_path, file, file.suffix[1:])
        found = everything(splits)
        assert done.left_out == {any_file.NO_ANSWER: 10} and found["p4"] == "4" and len(found) == 20
    write(tmp_path / "y.json", [{"prompt": f"p{i}", "answer": i + 0.5 * (i == 3)} for i in range(15)])
    assert everything(converted(tmp_path, tmp_path / "y.json", "Halves")[1])["p3"] == "3.5"
    assert (
        everything(converted(tmp_path, write(tmp_path / "z.csv", quoted), "Quoted")[1])['He said "yes", she\nno'] == "a"
    )


def test_splits_that_are_there_stay_and_no_prompt_is_in_two(tmp_path):
    def rows(*numbers):
        return [{"prompt": f"p{i}", "answer": f"a{i}"} for i in numbers]

    source = tmp_path / "source"
    write(source / "train.json", rows(*range(10), 100, 50))
    write(source / "validation.json", rows(50, 51, 100))
    write(source / "test.json", rows(100, 101))
    done, splits = converted(tmp_path, source)
    assert [e.prompt for e in splits["test"]] == ["p100", "p101"]
    assert [e.prompt for e in splits["eval"]] == ["p50", "p51"]
    assert [e.prompt for e in splits["train"]] == [f"p{i}" for i in range(10)]
    assert done.left_out == {any_file.IN_TWO_SPLITS: 3}


@pytest.mark.parametrize(
    ("there", "kept"),
    [
        ({"train": 22, "test": 5}, {"train": 20, "eval": 2, "test": 5}),
        ({"train": 8, "dev": 10}, {"train": 8, "eval": 2, "test": 8}),
        ({"test": 15}, {"train": 10, "eval": 1, "test": 4}),
    ],
)
def test_splits_that_are_missing_are_dealt_by_seed(tmp_path, there, kept):
    for split, number in there.items():
        rows = [{"prompt": f"{split} {i}", "answer": "a"} for i in range(number)]
        write(tmp_path / "source" / f"{split}.json", rows)
    done, again, other = (
        convert("Mine", tmp_path / "source", tmp_path / str(n), seed) for n, seed in enumerate((0, 0, 1))
    )
    assert done.kept == again.kept == other.kept == kept
    texts = [[(d.folder / f"{s}.json").read_text() for s in SPLITS] for d in (done, again, other)]
    assert texts[0] == texts[1] != texts[2]


def test_the_note_says_what_was_done(tmp_path):
    rows = [{"prompt": f"p{i}", "answer": "yes" if i % 3 else "no"} for i in range(15)] + [
        {"prompt": "", "answer": "a"}
    ]
    done, splits = converted(tmp_path, write(tmp_path / "x.json", rows), seed=3)
    note = json.loads((done.folder / "conversion.json").read_text())
    assert (note["source"], note["seed"], note["kept"]) == (str(tmp_path / "x.json"), 3, done.kept)
    assert note["left_out"] == {any_file.NO_PROMPT: 1} and note["canary"] is None
    answers = [e.answer for e in splits["test"]]
    assert done.most_common_share == answers.count(done.most_common) / 4 >= 0.5


@pytest.mark.parametrize(
    ("name", "content", "piece"),
    [
        ("x.csv", "question,answer\nq,a\n", r"the column 'prompt' in .*x\.csv at row 0, got 'question', .*--prompt"),
        ("x.json", "[]", "rows in .*, got none"),
        ("x.json", '{"a": 1}', "Instances or examples or data, got an object with the keys 'a'"),
        ("x.json", "[1, 2]", "a list of objects"),
        ("x.json", "{", "Expected JSON in"),
        ("x.csv", "prompt,answer\na,b\nc, d, e\n", r"2 columns in .*x\.csv at line 3, got another number; quote"),
        ("x.csv", "prompt,answer\na\n", r"2 columns in .*x\.csv at line 2"),
        ("x.csv", 'prompt,answer\n"Titanic" is "great",yes\n', r"begin with a quotation mark to be quoted as a whole"),
        ("x.tsv", 'prompt\tanswer\n"He said\tyes\n"So did she\tno\n', r"begin with a quotation mark to be quoted"),
        ("x.csv", "prompt,answer,answer\na,b,c\n", r"columns of different names in .*x\.csv, got 'answer' twice"),
        ("x.txt", "text", r"ends in \.json, .*, got .*x\.txt"),
        ("x.parquet", "text", "a Parquet file at"),
        ("x.json", '[{"prompt": ["a"], "answer": "b"}]', "text in the column 'prompt'"),
    ],
)  # fmt: skip
def test_bad_files(tmp_path, name, content, piece):
    with pytest.raises(DataError, match=piece) as caught:
        convert("Mine", write(tmp_path / name, content), tmp_path / "data")
    assert "\n" not in str(caught.value) and not (tmp_path / "data").exists()


def test_names_that_no_task_can_have_are_refused(tmp_path):
    with pytest.raises(UserError, match="names a mean in the tables"):
        convert("mean", tmp_path, tmp_path / "data")
