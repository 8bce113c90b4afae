"""A number is what it says: a key for each thing that it depends on, a checksum, and a word where it does not repeat.

That studies serve nothing of before when one of them changes is held by `tests/strangers/test_base_identity.py`.
"""

import json
import logging
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import mcanalysis as mc
from mcanalysis.cli.running import run_script
from mcanalysis.evaluation import objective as objective_module
from mcanalysis.evaluation.engine import Engine
from mcanalysis.evaluation.objective import make_objective
from mcanalysis.params.point import content_hash
from mcanalysis.store.manifest import read_manifest, run_identity, write_manifest
from mcanalysis.store.measurements import Measurement, MeasurementKey, MeasurementStore
from mcanalysis.studies.points import Points, Share, _num_shares, evaluate
from mcanalysis.surroundings import DETERMINISTIC, be_deterministic
from mcanalysis.tasks.task import Example, TaskData

OLD = Path(__file__).parents[1] / "runs_of_version_0_1" / "finished"


@pytest.fixture
def data(make_tasks):
    return make_tasks(("zeta",), num_train=2, num_test=3)[0]


def with_test(data, change):
    first, *rest = data.splits["test"]
    return TaskData.of(data.task, {**data.splits, "test": [change(first), *rest]})


def with_task(data, **values):
    return TaskData.of(replace(data.task, **values), data.splits)


INGREDIENTS = {
    "prompt": lambda data, make: make(with_test(data, lambda e: Example(e.prompt + " ", e.answer))),
    "answer": lambda data, make: make(with_test(data, lambda e: Example(e.prompt, e.answer + "s"))),
    "order of the examples": lambda data, make: make(
        TaskData.of(data.task, {**data.splits, "test": data.splits["test"][::-1]})
    ),
    "number of examples": lambda data, make: make(data, num_examples=2),
    "split": lambda data, make: make(data, split="eval"),
    "score": lambda data, make: make(with_task(data, score="rouge_l")),
    "length of generation": lambda data, make: make(with_task(data, max_new_tokens=5)),
    "longest text": lambda data, make: make(data, max_length=8),
    "base that the manifest does not establish": lambda data, make: make(data, base_marker="other"),
}


@pytest.mark.parametrize("what", [*INGREDIENTS, "tokenizer", "version of the code"])
def test_each_thing_that_a_value_depends_on_is_in_its_key(what, data, tokenizer, monkeypatch):
    def make(of, split="test", max_length=128, tokenizer=tokenizer, **more):
        return make_objective(of, split, tokenizer, max_length, **more).settings_key

    before = make(data)
    assert make(data) == before
    if what == "tokenizer":
        from copy import deepcopy

        other = deepcopy(tokenizer)
        other.add_tokens([data.splits["test"][0].prompt.split()[0]])
        changed = make(data, tokenizer=other)
    elif what == "version of the code":
        monkeypatch.setattr(objective_module, "VERSION", 2)
        changed = make(data)
    else:
        changed = INGREDIENTS[what](data, make)
    assert changed != before


def test_one_bit_of_a_point_makes_another_key():
    point = {"a": torch.arange(6.0), "b": torch.ones(2, 2)}
    keys = {content_hash(point)}
    for place in range(6):
        other = {name: tensor.clone() for name, tensor in point.items()}
        other["a"].view(torch.int32)[place] ^= 1
        keys.add(content_hash(other))
    assert len(keys) == 7


@pytest.mark.parametrize("change", ["seed", "config", "base", "data"])
def test_each_thing_that_makes_a_run_is_in_its_identity(change, tmp_path):
    manifest = read_manifest(OLD)
    write_manifest(tmp_path, manifest)
    before = run_identity(tmp_path)
    for harmless in ({"status": "running"}, {"evaluation": {"x": 1}}):
        write_manifest(tmp_path, manifest | harmless)
        assert run_identity(tmp_path) == before
    hashes = manifest["hashes"]
    changed = {
        "seed": {"seed": 7},
        "config": {"config": manifest["config"] | {"lora_alpha": 1.0}},
        "base": {"hashes": hashes | {"base": "other"}},
        "data": {"hashes": hashes | {"data": {"FOMC": "other"}}},
    }[change]
    write_manifest(tmp_path, manifest | changed)
    assert run_identity(tmp_path) != before


COLUMNS = {
    "point_key": "'other'", "task": "'other'", "split": "'train'", "settings_key": "'other'", "loss": "loss + 1e-15",
    "score": "NULL", "num_examples": "3", "num_targets": "num_targets + 1",
    "nll": "x'0000000000000000000000000000f03f'", "targets": "x'0100000002000000'", "scores": "x'0000803f0000003f'",
}  # fmt: skip


@pytest.mark.parametrize("column", COLUMNS)
def test_each_column_of_a_row_is_in_its_checksum(column, tmp_path, caplog):
    file, key = tmp_path / "m.sqlite", MeasurementKey("p", "A", "test", "s")
    value = Measurement.of(np.array([0.5, 0.25]), np.array([2, 1]), np.array([1.0, 0.0]))
    with MeasurementStore(file) as store:
        store.put(key, value)
        assert store.get(key) == value and store.check() == (1, 0, [])
    with sqlite3.connect(file) as connection:
        connection.execute(f"UPDATE measurements SET {column} = {COLUMNS[column]}")
    connection.close()
    others = {"point_key": "other", "task": "other", "split": "train", "settings_key": "other"}
    moved = key._replace(**{column: others[column]}) if column in others else key
    with MeasurementStore(file) as store:
        assert store.missing([moved]) == [moved] and store.get(moved) is None
        assert [len(part) if isinstance(part, list) else part for part in store.check()] == [0, 0, 1]
        assert caplog.text.count("is damaged") == 1  # once
        store.put(moved, value)
        assert store.get(moved) == value and store.check() == (1, 0, [])


def test_measurements_of_another_run_are_refused(tmp_path):
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        write_manifest(tmp_path / str(seed), {**read_manifest(OLD), "seed": seed})
        MeasurementStore(tmp_path / str(seed) / "measurements.sqlite").close()
    shutil.copy(tmp_path / "1" / "measurements.sqlite", tmp_path / "0" / "measurements.sqlite")
    with pytest.raises(mc.UserError, match="got those of another run; restore"):
        MeasurementStore(tmp_path / "0" / "measurements.sqlite")
    (tmp_path / "1").rename(tmp_path / "elsewhere")  # its own it is wherever it lies
    MeasurementStore(tmp_path / "elsewhere" / "measurements.sqlite").close()


class Minimum:
    """The second minimum, as a piece knows it."""

    def point(self, run):
        return run.minima[1].point


def test_a_point_that_evaluated_twice_is_another_is_told(tmp_path, monkeypatch, caplog):
    run = mc.load_run(shutil.copytree(OLD, tmp_path / "run"), "cpu")
    share = Share("FOMC", "test", 4)
    arguments = (Minimum(), (share,), lambda **_: mc.progress.silent(total=0, desc=""))
    repeated = evaluate(run.opening, *arguments)
    assert "repeatable" not in repeated.choices
    monkeypatch.setattr(run.engine, "_repeats", None)
    read, calls = Engine._read, []

    def noisy(self, *of, **how):
        calls.append(1)
        nll, *rest = read(self, *of, **how)
        return nll * (1 + 1e-7 * len(calls)), *rest

    monkeypatch.setattr(Engine, "_read", noisy)
    for _ in range(2):
        found = evaluate(run.opening, *arguments)
        assert found.choices["repeatable"] is False
    assert len(calls) == 4  # two for the point, each time; two to see
    with caplog.at_level(logging.WARNING, logger="mcanalysis"):
        points = Points(run)
        for key in ("a", "b"):
            points.put(key, [(share.of(run), found.measurements[0])], found.choices)
    assert caplog.text.count("--deterministic asks") == 1
    assert read_manifest(run.directory)["evaluation"]["repeatable"] is False


@pytest.fixture
def settled(monkeypatch):
    """What `--deterministic` sets is as it was afterwards."""
    for name in (DETERMINISTIC, "CUBLAS_WORKSPACE_CONFIG"):
        monkeypatch.setenv(name, "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    benchmark = torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = benchmark


@pytest.mark.slow
def test_deterministic_runs_are_bit_equal(settled, script, tmp_path):
    flags = ("--strategy", "er", "--tasks", "FOMC,NumGLUE-cm", "--num-train", 8, "--num-test", 2, "--steps", 2,
             "--batch-size", 4, "--lora-rank", 1, "--target-modules", "q_proj", "--lora-dropout", 0.5)  # fmt: skip
    for name in ("one", "two"):
        code, _, err = script("train", *flags, "--deterministic", "--output-dir", tmp_path / name)
        assert code == 0, err
        assert torch.are_deterministic_algorithms_enabled()
    one, two = (
        {f.relative_to(tmp_path / name): f.read_bytes() for f in (tmp_path / name).rglob("*") if f.is_file()}
        for name in ("one", "two")
    )
    same = [f for f in one if f.suffix in (".safetensors", ".csv", ".json") and "checkpoint" not in f.parts]
    same = [f for f in same if f.name not in ("manifest.json", "hashes.json", "cost.json")]  # times
    assert len(same) > 8 and {f: one[f] for f in same} == {f: two[f] for f in same}
    assert json.loads(one[Path("manifest.json")])["execution"]["deterministic"] is True


def test_deterministic_examples_are_not_shared_out_and_operations_that_do_not_repeat_are_named(
    settled, capsys, data, tokenizer
):
    objectives = [make_objective(data, "test", tokenizer)] * 40
    assert _num_shares(objectives, 4, 1) > 1
    be_deterministic()
    assert _num_shares(objectives, 4, 1) == 1
    torch.use_deterministic_algorithms(True)
    with pytest.raises(SystemExit) as ended:
        run_script(lambda: torch.zeros(2).put_(torch.tensor([0, 0]), torch.ones(2)))
    err = capsys.readouterr().err
    assert ended.value.code == 2 and err.startswith("error: Expected operations that repeat") and err.count("\n") == 1
