"""A few kills of one command, as `make faults` does many of all; and that what looks for faults sees them."""

import os
import subprocess
import sys
from pathlib import Path

import crashes
import saboteurs

HERE = Path(__file__).parent


def test_a_training_that_is_killed(tmp_path):
    """At a moment, where there are no locks, and by a signal: a process of its own, which may fork (17 s)."""
    command = [sys.executable, str(HERE), "--only", "crash", "--commands", "er", "--number", "2", "--folder", tmp_path]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "| crash: er | 2 | 2 | 0 | 0 | 0 | 0 | 0 | 0 |" in ran.stdout


def test_what_is_half_written_is_seen(tmp_path):
    import numpy as np
    from safetensors.numpy import save_file

    (tmp_path / "a.json").write_text('{"a": 1')
    (tmp_path / "b.csv").write_text("a,b\n1,")
    save_file({"w": np.ones(3)}, tmp_path / "c.safetensors")
    (tmp_path / "d.safetensors").write_bytes((tmp_path / "c.safetensors").read_bytes()[:-1])
    (tmp_path / ".e.json.partial").write_text("{")
    assert [line.split(":")[0] for line in crashes.half_written(tmp_path)] == ["a.json", "b.csv", "d.safetensors"]


def test_what_a_kill_left_of_the_list_of_hashes_goes_when_it_is_written_again(tmp_path):
    from mcanalysis.store.atomic import write_text_atomic
    from mcanalysis.store.recorded import begin_record

    begin_record(tmp_path)
    leftover, other = tmp_path / ".hashes.json.0123abcd.partial", tmp_path / ".manifest.json.0123abcd.partial"
    for file in (leftover, other):
        file.write_text("{")
    write_text_atomic(tmp_path / "tables" / "a.csv", "a\n1\n")
    assert not leftover.exists() and other.exists()


def test_what_a_log_tells(tmp_path):
    """A log by hand: a rename whose content, and one whose folder, was never forced to disk; a value kept twice."""
    (tmp_path / "a").touch()
    folder = f"sync {crashes.fault_hook._identity(tmp_path)}"
    moved = f"rename\t{tmp_path}/.a.partial\t{tmp_path}/a\t1:2"
    assert crashes.not_synced(["sync 1:2", moved, folder]) == []
    assert crashes.not_synced([moved, folder]) == [f"{tmp_path}/a: content"]
    assert crashes.not_synced(["sync 1:2", folder, moved]) == [f"{tmp_path}/a: folder"]
    assert crashes.in_place_without_a_rename(tmp_path, set(), [[moved]]) == []
    assert crashes.in_place_without_a_rename(tmp_path, set(), [[]]) == ["a"]
    assert crashes.lost(["put\tx", "kept\tx", "put\ty"], ["put\tx", "put\ty"]) == ["x"]


def test_moments_are_drawn_from_all_parts_of_a_command():
    whole = crashes.Whole({}, set(), 100, 1.0)
    moments = crashes.drawn_moments(whole, 10, seed=0)
    assert [(m - 1) // 10 for m in moments] == list(range(10))
    assert moments == crashes.drawn_moments(whole, 10, seed=0) != crashes.drawn_moments(whole, 10, seed=1)
    assert crashes.drawn_moments(crashes.Whole({}, set(), 3, 1.0), 10, seed=0) == [1, 2, 3]


def test_there_are_enough_kills_and_saboteurs_and_each_finds_its_place():
    import importlib

    assert sum(crashes.NUMBERS.values()) >= 60 and set(crashes.NUMBERS) == set(crashes.COMMANDS)
    assert f"has {sum(crashes.NUMBERS.values())} kills" in (HERE.parents[1] / "docs" / "faults.md").read_text()
    assert len(saboteurs.SABOTEURS) >= 20
    for name, saboteur in saboteurs.SABOTEURS.items():
        module, _, path = saboteur.place.partition(":")
        owner = importlib.import_module(module)
        for part in path.split("."):
            assert hasattr(owner, part), name
            owner = getattr(owner, part)
        assert bool(saboteur.by) != bool(saboteur.command)
