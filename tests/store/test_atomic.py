import json
import math
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mcanalysis.store import (
    plain_json,
    recover_directory,
    replace_directory_atomic,
    write_json_atomic,
    write_text_atomic,
)


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_text_replaces_text_and_leaves_nothing_beside_it(tmp_path):
    write_text_atomic(tmp_path / "deep" / "a.txt", "Zürich\n中\n")
    write_text_atomic(tmp_path / "deep" / "a.txt", "Bern\r\n")
    assert (tmp_path / "deep" / "a.txt").read_bytes() == b"Bern\r\n"
    assert names(tmp_path / "deep") == ["a.txt"]


def test_text_that_cannot_be_encoded_leaves_the_old_text(tmp_path):
    write_text_atomic(tmp_path / "a.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text_atomic(tmp_path / "a.txt", "new \ud800")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_json_holds_no_nan_and_takes_numpy(tmp_path):
    write_json_atomic(
        tmp_path / "a.json",
        {
            "nan": math.nan,
            "inf": np.inf,
            "f": np.float32(0.5),
            "i": np.int64(3),
            "a": np.eye(2),
            "ok": np.True_,
        },
    )
    text = (tmp_path / "a.json").read_text()

    def refuse(constant):
        raise AssertionError(constant)

    assert json.loads(text, parse_constant=refuse) == {
        "nan": None,
        "inf": None,
        "f": 0.5,
        "i": 3,
        "a": [[1.0, 0.0], [0.0, 1.0]],
        "ok": True,
    }


def test_json_refuses_other_objects_before_it_writes(tmp_path):
    write_json_atomic(tmp_path / "a.json", 1)
    with pytest.raises(TypeError, match="Expected a value that JSON can hold, got object"):
        write_json_atomic(tmp_path / "a.json", {"a": object()})
    assert (tmp_path / "a.json").read_text() == "1\n"
    assert plain_json({1: ("a", None)}) == {"1": ["a", None]}


def fill(folder, value):
    for i in range(3):
        (folder / f"{i}.txt").write_text(value)
    (folder / "deep").mkdir()
    (folder / "deep" / "3.txt").write_text(value)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "checkpoint"
    for value in ("old", "new"):
        with replace_directory_atomic(target) as fresh:
            assert names(fresh) == []
            fill(fresh, value)
    assert contents(target) == {"0.txt": "new", "1.txt": "new", "2.txt": "new", "deep/3.txt": "new"}
    assert names(tmp_path) == ["checkpoint"]


def test_an_error_while_filling_leaves_the_old_folder(tmp_path):
    target = tmp_path / "checkpoint"
    with replace_directory_atomic(target) as fresh:
        fill(fresh, "old")
    with pytest.raises(RuntimeError), replace_directory_atomic(target) as fresh:
        (fresh / "0.txt").write_text("new")
        raise RuntimeError
    assert set(contents(target).values()) == {"old"}
    assert names(tmp_path) == ["checkpoint"]


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "checkpoint").write_text("a file")
    with pytest.raises(NotADirectoryError), replace_directory_atomic(tmp_path / "checkpoint"):
        pass
    assert (tmp_path / "checkpoint").read_text() == "a file"


@pytest.mark.parametrize(
    ("there", "after"),
    [
        ({}, None),
        ({"checkpoint": "old"}, "old"),
        ({".checkpoint.partial": "half"}, None),
        ({"checkpoint": "old", ".checkpoint.partial": "half"}, "old"),
        ({".checkpoint.replaced": "old", ".checkpoint.partial": "new"}, "new"),
        ({"checkpoint": "new", ".checkpoint.replaced": "old"}, "new"),
        ({".checkpoint.replaced": "old"}, "old"),
    ],
)
def test_recovery_after_a_kill_at_each_step(tmp_path, there, after):
    for name, value in there.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(value)
    assert recover_directory(tmp_path / "checkpoint") is (after is not None)
    assert names(tmp_path) == ([] if after is None else ["checkpoint"])
    if after is not None:
        assert (tmp_path / "checkpoint" / "a.txt").read_text() == after


WRITER = """
import sys
from pathlib import Path
from mcanalysis.store import replace_directory_atomic, write_text_atomic

root = Path(sys.argv[1])
for i in range(10**9):
    with replace_directory_atomic(root / "checkpoint") as fresh:
        for part in range(4):
            (fresh / str(part)).write_text(f"{i} " * 20000)
    write_text_atomic(root / "table.csv", f"{i} " * 100000)
    print(i, flush=True)
"""


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.011, 0.024, 0.05])
def test_a_killed_writer_leaves_one_whole_version(tmp_path, delay):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    writer.stdout.readline()
    time.sleep(delay)
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    assert writer.returncode == -signal.SIGKILL

    assert recover_directory(tmp_path / "checkpoint")
    texts = contents(tmp_path / "checkpoint")
    assert sorted(texts) == ["0", "1", "2", "3"]
    (version,) = {text for whole in texts.values() for text in whole.split()}
    assert {len(whole) for whole in texts.values()} == {20000 * (len(version) + 1)}
    table = (tmp_path / "table.csv").read_text()
    (version,) = set(table.split())
    assert len(table) == 100000 * (len(version) + 1)
