"""One process at a time writes a run's measurements; a lock that nobody holds any more counts for nothing."""

import fcntl
import json
import os
import socket
import subprocess
import sys

import pytest

from mcanalysis.errors import RunDirectoryError
from mcanalysis.store import lock
from mcanalysis.store.lock import LOCK_NAME, lock_measurements


def test_another_process_is_refused_and_told_who_has_it(tmp_path):
    ask = f"from mcanalysis.store.lock import lock_measurements\nwith lock_measurements({str(tmp_path)!r}): pass"
    with lock_measurements(tmp_path):
        done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert f"process {os.getpid()} on {socket.gethostname()} has had since" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_same_process_may_ask_again_and_the_last_to_leave_frees_it(tmp_path):
    with lock_measurements(tmp_path):
        with lock_measurements(tmp_path / "." / ""):
            pass
        assert (tmp_path / LOCK_NAME).exists()
        with (tmp_path / LOCK_NAME).open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not (tmp_path / LOCK_NAME).exists()


def test_one_of_several_that_is_taken_frees_the_others(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    with (tmp_path / "b" / LOCK_NAME).open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(RunDirectoryError, match="which one has"), lock_measurements(tmp_path / "a", tmp_path / "b"):
            pass
    assert not (tmp_path / "a" / LOCK_NAME).exists()


def test_what_a_killed_process_left_is_taken_over(tmp_path):
    (tmp_path / LOCK_NAME).write_text(json.dumps({"pid": 1, "host": "elsewhere", "since": "yesterday"}))
    with lock_measurements(tmp_path):
        assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize(
    ("owner", "is_free"),
    [
        ({"pid": os.getpid(), "host": socket.gethostname()}, False),
        ({"pid": 2**22 + 1, "host": socket.gethostname()}, True),  # above the largest there is
        ({"pid": 1, "host": "elsewhere"}, False),
        ({}, True),
    ],
)
def test_without_locks_of_the_file_system_the_file_says_who_has_it(tmp_path, monkeypatch, owner, is_free):
    monkeypatch.setattr(lock, "_lock_file", lambda *_: None)
    (tmp_path / LOCK_NAME).write_text(json.dumps(owner))
    if is_free:
        with lock_measurements(tmp_path):
            pass
        assert not (tmp_path / LOCK_NAME).exists()
    else:
        with pytest.raises(RunDirectoryError, match=f"remove {LOCK_NAME} there"), lock_measurements(tmp_path):
            pass
        assert (tmp_path / LOCK_NAME).exists()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(RunDirectoryError, match="can be written"), lock_measurements(tmp_path / "absent"):
        pass
