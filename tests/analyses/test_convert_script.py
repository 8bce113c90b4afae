"""`convert.py` writes a TRACE folder and says what it kept and left out; bad input ends with exit code 2."""

import json

import pytest


@pytest.fixture
def source(tmp_path):
    """A folder of raw MedMCQA: 3 train rows, one of them with several answers, and 5 dev rows."""
    options = {"opa": "a", "opb": "b", "opc": "c", "opd": "d"}
    folder = tmp_path / "raw"
    folder.mkdir()
    for split, number in (("train", 3), ("dev", 5)):
        rows = [
            {"question": f"{split} {i}", "cop": i % 4 + 1, "choice_type": "single", **options} for i in range(number)
        ]
        if split == "train":
            rows[0]["choice_type"] = "multi"
        (folder / f"{split}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_what_was_written_and_left_out_is_printed(script, source, tmp_path):
    code, out, err = script("convert", "--task", "MedMCQA", "--source", source, "--output-dir", "data")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "MedMCQA is in data/MedMCQA; the labels (cop) count from 1",
        "       2  train",
        "       1  eval",
        "       4  test",
        "       1  left out: choice_type is not 'single'",
        "    0.25  of test has the most common answer: A",
        "",
        "next: python analyses/benchmark.py --benchmark trace --data-dir data",
    ]
    files = {"train.json", "eval.json", "test.json", "conversion.json"}
    assert {file.name for file in (tmp_path / "data" / "MedMCQA").iterdir()} == files


def test_a_file_of_columns_is_converted_and_then_a_benchmark(script, tmp_path):
    (tmp_path / "x.csv").write_text("q,a\n" + "".join(f"what {i},that\n" for i in range(15)))
    flags = ("--source", "x.csv", "--output-dir", "data", "--prompt", "{q}?\\nAnswer:", "--answer", "a")
    code, out, err = script("convert", "--task", "Mine", *flags)
    assert (code, err) == (0, "") and "    1.00  of test has the most common answer: that" in out
    code, out, _ = script("train", "--benchmark", "trace", "--data-dir", "data", "--dry-run", "--steps", "1")
    assert code == 0 and "Mine" in out


@pytest.mark.parametrize(
    ("arguments", "piece"),
    [
        ((), "expected --task, --source and --output-dir"),
        (("--task", "MedMCQ", "--source", "raw", "--output-dir", "data"), "Did you mean 'MedMCQA'?"),
        (("--task", "MedMCQA", "--source", "absent", "--output-dir", "data"), "no such folder; check --source"),
        (("--task", "JEC-QA", "--source", "raw", "--output-dir", "data"), "got no 0_train.json, no 1_train.json"),
        (("--task", "MedMCQA", "--source", "raw", "--output-dir", "data", "--seed", "x"), "--seed"),
    ],
)
def test_bad_input(script, source, tmp_path, arguments, piece):
    code, out, err = script("convert", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and piece in err
    assert not (tmp_path / "data").exists()


def test_settings_may_come_from_a_file(script, source, tmp_path):
    (tmp_path / "settings.yaml").write_text("task: MedMCQA\nsource: raw\noutput-dir: data\n")
    assert script("convert", "--config", "settings.yaml")[0] == 0
