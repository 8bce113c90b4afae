"""Published data sets from small copies of the same schema: O-LoRA's, SAPT's, and the hub's columns."""

import csv
import json
import logging

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from mcanalysis.benchmarks import get_benchmark, load_benchmark
from mcanalysis.errors import DataError, UnknownNameError
from mcanalysis.metrics.scores import get_score
from mcanalysis.tasks.published.classification import TASKS
from mcanalysis.tasks.published.natural_instructions import TASKS as INSTRUCTED

AGNEWS = ["World", "Sports", "Business", "Science or Technology"]
HUB_AGNEWS = ["World", "Sports", "Business", "Sci/Tech"]


def write(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(rows))


def olora(folder, sizes, labels=AGNEWS, text="Title: {0}\nText: item {0}\n"):
    """O-LoRA's files: sizes of train, dev and test, whose dev and test rows are the same."""
    write(folder / "labels.json", labels)
    for split, size in zip(("train", "dev", "test"), sizes, strict=True):
        name = "test" if split == "dev" else split
        rows = [{"label": labels[i % len(labels)], "sentence": text.format(f"{name} {i}")} for i in range(size)]
        write(folder / f"{split}.json", rows)


def of_hub(folder, sizes, kind="parquet"):
    """AG News as on the hub: the columns text and label, a number whose class's name only Parquet knows."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, size in zip(("train", "test"), sizes, strict=True):
        columns = {"text": [f"{split} {i}" for i in range(size)], "label": [i % 4 for i in range(size)]}
        if kind == "parquet":
            features = Features(text=Value("string"), label=ClassLabel(names=HUB_AGNEWS))
            Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
        elif kind == "csv":
            with (folder / f"{split}.csv").open("w", newline="") as stream:
                writer = csv.writer(stream)
                writer.writerows([list(columns), *zip(*columns.values(), strict=True)])
        else:
            rows = [json.dumps(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
            (folder / f"{split}.jsonl").write_text("\n".join(rows))


def load_one(name, root, benchmark="long"):
    (data,) = load_benchmark(benchmark, root, [name])
    return data


def prompts(data, split):
    return [e.prompt for e in data.splits[split]]


# O-LoRA's files


def test_a_prompt_is_that_of_olora_and_train_is_its_train_split(tmp_path):
    olora(tmp_path / "TC" / "agnews", (12, 20, 20))
    data = load_one("agnews", tmp_path)
    assert data.splits["train"][3].prompt == (
        "What is the topic of the following paragraph? Choose one from the option.\n"
        "Option: World, Sports, Business, Science or Technology \n"
        "Title: train 3\nText: item train 3\n\nAnswer:"
    )
    assert [e.answer for e in data.splits["train"]] == AGNEWS * 3


@pytest.mark.parametrize(("number", "num_eval"), [(40, 20), (200, 50), (700, 70)])
def test_eval_is_drawn_of_test_where_dev_and_test_are_the_same(tmp_path, number, num_eval):
    olora(tmp_path / "agnews", (8, number, number))
    data = load_one("agnews", tmp_path)
    sizes = {"train": 8, "eval": num_eval, "test": number - num_eval}
    assert {split: len(examples) for split, examples in data.splits.items()} == sizes
    assert not set(prompts(data, "eval")) & set(prompts(data, "test"))
    assert load_one("agnews", tmp_path).content_hash == data.content_hash


def test_folders_are_found_as_olora_and_sapt_name_them(tmp_path):
    for place, name, labels in (
        ("SC/SST-2", "sst2", ["Good", "Bad"]),
        ("BoolQA/BoolQA", "boolq", ["True", "False"]),
        ("NLI/CB", "cb", ["entailment", "contradiction", "neutral"]),
        ("Long_Sequence/imdb", "imdb", ["Good", "Bad"]),
    ):
        olora(tmp_path / place, (4, 10, 10), labels)
        assert load_one(name, tmp_path).task.name == name


def test_rows_without_a_label_are_left_out_and_strange_labels_refused(tmp_path):
    folder = tmp_path / "NLI" / "MNLI"
    olora(folder, (6, 20, 20), ["neutral", "entailment", "contradiction"])
    rows = json.loads((folder / "train.json").read_text())
    write(folder / "train.json", [*rows, {"label": "-", "sentence": "nobody agreed"}])
    assert len(load_one("mnli", tmp_path).splits["train"]) == 6
    write(folder / "train.json", [*rows, {"label": "entails", "sentence": "x"}])
    with pytest.raises(DataError, match=r"a label of mnli \(entailment, .*train\.json at index 6, got 'entails'"):
        load_one("mnli", tmp_path)


def test_what_is_tested_is_not_trained_on(tmp_path, caplog):
    folder = tmp_path / "agnews"
    olora(folder, (8, 40, 40))
    train, test = (json.loads((folder / f"{split}.json").read_text()) for split in ("train", "test"))
    write(folder / "train.json", [*train, *test[:5]])
    with caplog.at_level(logging.WARNING):
        data = load_one("agnews", tmp_path)
    assert len(data.splits["train"]) == 8
    assert "agnews: 5 train examples are left out, whose prompts are also in eval or test" in caplog.text


# The hub's columns


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_the_hubs_columns_give_the_same_data_in_every_kind_of_file(tmp_path, kind):
    of_hub(tmp_path / "ag_news", (80, 12), kind)
    data = load_one("agnews", tmp_path, "standard")
    assert {split: len(examples) for split, examples in data.splits.items()} == {"train": 72, "eval": 8, "test": 12}
    for split, examples in data.splits.items():
        for example in examples:
            text = example.prompt.split("Text: ")[1].split("\n")[0]
            assert text.split()[0] == ("test" if split == "test" else "train")
            assert example.answer == AGNEWS[int(text.split()[1]) % 4]
    of_hub(tmp_path / "again" / "agnews", (80, 12), "parquet")
    assert load_one("agnews", tmp_path / "again").content_hash == data.content_hash


def test_a_thousand_of_each_class_train_500_are_eval_and_7600_test(tmp_path):
    of_hub(tmp_path / "agnews", (4 * 1700, 7700))
    data = load_one("agnews", tmp_path)
    for split, per_class in (("train", 1000), ("eval", 500)):
        answers = [e.answer for e in data.splits[split]]
        assert {answer: answers.count(answer) for answer in answers} == dict.fromkeys(AGNEWS, per_class)
        assert answers[:8] != sorted(answers)[:8]  # the first ones are a mixture
    assert len(data.splits["test"]) == 7600
    assert not set(prompts(data, "train")) & set(prompts(data, "eval"))
    assert len(load_benchmark("long", tmp_path, ["agnews"], sizes={"train": 50})[0].splits["train"]) == 50


def test_classes_are_those_of_the_hub_by_name(tmp_path):
    """The right text for every class of every task, checked against O-LoRA's labels.json."""
    by_name = {name: dict(data.classes) for name, data in TASKS.items()}
    assert by_name["rte"] == {"entailment": "entailment", "not_entailment": "contradiction"}
    assert by_name["imdb"] == {"neg": "Bad", "pos": "Good"} and by_name["sst2"]["positive"] == "Good"
    assert by_name["qqp"] == {"not_duplicate": "False", "duplicate": "True"}
    assert by_name["yelp"]["1 star"] == "very negative" and by_name["yelp"]["5 stars"] == "very positive"
    for data in TASKS.values():
        assert not data.options or sorted(set(data.classes.values())) == sorted(data.options)
    amazon = TASKS["amazon"]  # numbered from 1
    assert [amazon.answer(n, "x") for n in (1, 5)] == ["very negative", "very positive"]
    with pytest.raises(DataError, match="numbers from 1 on at 'class_index' in x, got 0"):
        amazon.answer(0, "x")


def test_other_columns_and_classes_are_refused(tmp_path):
    (tmp_path / "agnews").mkdir()
    for split in ("train", "test"):
        (tmp_path / "agnews" / f"{split}.csv").write_text("content,label\nx,1\n")
    with pytest.raises(DataError, match=r"the column 'text' in .*agnews, got 'content', 'label'.*fancyzhx/ag_news"):
        load_one("agnews", tmp_path)
    (tmp_path / "agnews" / "train.csv").write_text("text,label\nx,4\n")
    with pytest.raises(DataError, match=r"one of World, Sports, .* at 'label' in train rows of .*, got '4'"):
        load_one("agnews", tmp_path)


def test_labels_of_a_hidden_test_split_are_not_guessed(tmp_path):
    """GLUE's test labels are -1: the hub's validation split is tested."""
    for split, labels in (("train", [0, 1] * 6), ("validation", [0, 1]), ("test", [-1, -1])):
        rows = [{"sentence1": f"{split} {i}", "sentence2": "b", "label": k} for i, k in enumerate(labels)]
        write(tmp_path / "rte" / f"{split}.json", rows)
    data = load_one("rte", tmp_path)
    assert {e.prompt.split("sentence 1: ")[1].split()[0] for e in data.splits["test"]} == {"validation"}


def test_of_mnlis_two_validation_splits_the_matched_one_is_tested(tmp_path):
    splits = (("train", 12), ("validation_matched", 3), ("validation_mismatched", 3), ("test_matched", 3))
    for split, number in splits:
        rows = [{"premise": f"{split} {i}", "hypothesis": "b", "label": i % 3} for i in range(number)]
        write(tmp_path / "mnli" / f"{split}.json", rows)
    tested = [e.prompt.split("sentence 1: ")[1].split()[0] for e in load_one("mnli", tmp_path).splits["test"]]
    assert tested == ["validation_matched"] * 3


# Super-NaturalInstructions


def test_super_natural_instructions_in_its_own_form(tmp_path):
    name = "task875_emotion_classification"
    for split in ("train", "dev", "test"):
        rows = [{"id": "1", "input": f"{split} text ", "output": ["joy", "love"]}]
        rows.append({"input": f"{split} b", "output": "sadness"})
        write(tmp_path / "SuperNI" / name / f"{split}.json", {"Definition": ["Name the emotion. "], "Instances": rows})
    data = load_one(name, tmp_path, "superni")
    assert data.splits["eval"][0].prompt == (
        "Definition: Name the emotion.\n\nNow complete the following example -\nInput: dev text\nOutput:"
    )
    assert [e.answer for e in data.splits["test"]] == ["joy", "sadness"]
    (tmp_path / "SuperNI" / name / "dev.json").write_bytes((tmp_path / "SuperNI" / name / "test.json").read_bytes())
    again = load_one(name, tmp_path, "superni")  # as SAPT's
    assert sorted(prompts(again, "eval") + prompts(again, "test")) == sorted(prompts(data, "test"))
    hub = (
        "Definition: Name the emotion.\n\nPositive Example 1 -\nInput: a\nOutput: joy\n\n"
        "Now complete the following example -\nInput: dev text\nOutput:"
    )
    assert INSTRUCTED[name]._prompt("", hub) == data.splits["eval"][0].prompt


# Folders


def test_folders_in_traces_form_are_read_as_they_are(tmp_path):
    for split in ("train", "eval", "test"):
        write(tmp_path / "yelp" / f"{split}.json", [{"prompt": f"{split}:", "answer": "good"}])
    data = load_one("yelp", tmp_path, "standard")
    assert prompts(data, "train") == ["train:"] and data.task == TASKS["yelp"].task


def test_a_folder_with_missing_tasks_names_them_and_what_is_there(tmp_path):
    olora(tmp_path / "TC" / "agnews", (8, 10, 10))
    with pytest.raises(DataError) as caught:
        load_benchmark("standard", tmp_path)
    message = str(caught.value)
    assert "got none for dbpedia, amazon, yahoo; add them or pass --tasks with some of agnews." in message
    with pytest.raises(UnknownNameError, match=r"task of the benchmark 'standard' 'mnli'"):
        load_benchmark("standard", tmp_path, ["mnli"])
    with pytest.raises(DataError, match=r"got none; check --data-dir"):
        load_benchmark("standard", tmp_path / "nowhere")


def test_a_missing_split_is_named(tmp_path):
    olora(tmp_path / "agnews", (8, 10, 10))
    (tmp_path / "agnews" / "train.json").unlink()
    with pytest.raises(DataError, match=r"a file of train examples in .*agnews, such as train\.json"):
        load_one("agnews", tmp_path)


def test_a_label_is_scored_whatever_its_case():
    for data in TASKS.values():
        score = get_score(data.task.score)
        for answer in data.classes.values():
            assert score.per_example(f" {answer.lower()}\n", answer) == 1
            assert score.per_example(f"{answer} x", answer) == 0
    assert all(get_benchmark(b).load_from_hub for b in ("standard", "long", "superni"))
