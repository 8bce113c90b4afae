import json
import subprocess

import numpy as np
import pytest

from mcanalysis.errors import RunDirectoryError
from mcanalysis.store import manifest as manifest_module
from mcanalysis.store.manifest import claim_run_directory, mark_finished, new_manifest, read_manifest

CONFIG = {"strategy": {"name": "ilora", "ema_decay": 0.95}, "tasks": ("FOMC", "C-STANCE"), "num_epochs": 1}


def snapshot(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("exists", [False, True])
def test_an_absent_or_empty_directory_starts_afresh(tmp_path, exists, resume):
    run = tmp_path / "runs" / "a"
    if exists:
        run.mkdir(parents=True)
    claimed = claim_run_directory(run, CONFIG, resume, seed=3, base_hash="b" * 64, data_hashes={"FOMC": "f" * 64})
    assert claimed == "new"
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["config"] == {**CONFIG, "tasks": ["FOMC", "C-STANCE"]}
    assert manifest["seed"] == 3
    assert manifest["hashes"] == {"base": "b" * 64, "data": {"FOMC": "f" * 64}}
    assert manifest["status"] == "running"
    assert manifest["versions"]["numpy"] == np.__version__
    assert manifest["versions"]["python"].startswith("3.")
    assert {"torch", "transformers", "peft", "mcanalysis"} <= manifest["versions"].keys()


def test_the_same_configuration_goes_on_only_with_resume_and_is_finished_when_marked(tmp_path):
    claim_run_directory(tmp_path, CONFIG, resume=False)
    before = snapshot(tmp_path)
    with pytest.raises(RunDirectoryError) as caught:
        claim_run_directory(tmp_path, CONFIG, resume=False)
    assert str(caught.value) == (
        f"Expected a new or finished run directory, got an unfinished run in {tmp_path}; "
        "pass --resume to go on with it, or choose another --output-dir."
    )
    assert claim_run_directory(tmp_path, CONFIG, resume=True) == "resume"
    assert snapshot(tmp_path) == before
    mark_finished(tmp_path)
    assert read_manifest(tmp_path)["finished"] is not None
    assert claim_run_directory(tmp_path, CONFIG, resume=False) == "finished"
    assert claim_run_directory(tmp_path, CONFIG, resume=True) == "finished"


@pytest.mark.parametrize("resume", [False, True])
def test_another_configuration_is_refused_field_by_field(tmp_path, resume):
    claim_run_directory(tmp_path, {**CONFIG, "old": 1}, resume=False)
    before = snapshot(tmp_path)
    other = {"strategy": {"name": "ilora", "ema_decay": 0.5}, "tasks": ["FOMC"], "num_epochs": 1, "new": "x"}
    with pytest.raises(RunDirectoryError) as caught:
        claim_run_directory(tmp_path, other, resume)
    assert str(caught.value) == (
        f"Run directory {tmp_path} belongs to another configuration: "
        "expected strategy.ema_decay 0.95, got 0.5; "
        'expected tasks ["FOMC", "C-STANCE"], got ["FOMC"]; '
        "expected old 1, got none; "
        'expected no new, got "x"; '
        "give the recorded values and data, or choose another --output-dir."
    )
    assert snapshot(tmp_path) == before


def test_values_that_json_changes_still_compare_equal(tmp_path):
    config = {"a": (1, 2), "b": np.float64(0.1), "c": float("nan"), "d": {}, "e": {1: 2}}
    claim_run_directory(tmp_path, config, resume=False)
    assert claim_run_directory(tmp_path, config, resume=True) == "resume"


def test_other_seed_or_contents_are_refused(tmp_path):
    claim_run_directory(tmp_path, CONFIG, False, seed=0, base_hash="aa", data_hashes={"FOMC": "bb"})
    with pytest.raises(RunDirectoryError) as caught:
        claim_run_directory(tmp_path, CONFIG, True, seed=1, base_hash="ab", data_hashes={"FOMC": "bc"})
    assert (
        "expected seed 0, got 1; expected base model with content hash aa, got ab; "
        "expected FOMC with content hash bb, got bc; give" in str(caught.value)
    )
    assert claim_run_directory(tmp_path, CONFIG, True) == "resume"


def test_a_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(RunDirectoryError) as caught:
        claim_run_directory(tmp_path, CONFIG, resume=True)
    assert str(caught.value) == (
        f"Expected an empty directory or a run at {tmp_path}, got files such as thesis.tex and no "
        "manifest.json; choose another --output-dir."
    )
    assert list(snapshot(tmp_path)) == [(tmp_path / "thesis.tex").relative_to(tmp_path)]


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(RunDirectoryError, match=r"Expected a directory that can be created at .*run, got: "):
        claim_run_directory(tmp_path / "run", CONFIG, resume=False)


def test_leftovers_of_a_killed_first_write_do_not_block_the_run(tmp_path):
    for name in (".manifest.json.0a1b2c3d.partial", ".hashes.json.0a1b2c3d.partial"):
        (tmp_path / name).write_text('{"sta')
    (tmp_path / "hashes.json").write_text("{}")  # written before there is a manifest
    assert claim_run_directory(tmp_path, CONFIG, resume=False) == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hashes.json", "manifest.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"config": ', r"Expected JSON in .*manifest\.json, got: Expecting value: line 1 column 12"),
        ("[]", r'Expected an object with a "config" object in .*manifest\.json'),
        ('{"config": 3}', r'Expected an object with a "config" object in .*manifest\.json'),
    ],
)
def test_a_malformed_manifest_is_refused(tmp_path, text, message):
    (tmp_path / "manifest.json").write_text(text)
    for call in (lambda: read_manifest(tmp_path), lambda: claim_run_directory(tmp_path, CONFIG, True)):
        with pytest.raises(RunDirectoryError, match=message):
            call()
    assert (tmp_path / "manifest.json").read_text() == text


def test_reading_where_no_run_is(tmp_path):
    with pytest.raises(RunDirectoryError, match=r"got no manifest\.json there; give a directory"):
        read_manifest(tmp_path / "absent")


def test_a_configuration_that_json_cannot_hold_makes_no_directory(tmp_path):
    with pytest.raises(TypeError):
        claim_run_directory(tmp_path / "run", {"a": object()}, resume=False)
    assert not (tmp_path / "run").exists()


def test_the_commit_is_that_of_the_checkout_or_null(tmp_path, monkeypatch):
    file = tmp_path / "package" / "manifest.py"
    file.parent.mkdir()
    file.write_text("")
    monkeypatch.setattr(manifest_module, "__file__", str(file))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert new_manifest({})["git_commit"] is None  # no repository

    def git(*arguments):
        who = ["-c", "user.name=n", "-c", "user.email=e@e", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *who, *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init")
    assert new_manifest({})["git_commit"] is None  # a repository that does not hold the file
    git("add", ".")
    assert new_manifest({})["git_commit"] is None  # a repository without a commit
    git("commit", "-m", "first")
    assert new_manifest({})["git_commit"] == git("rev-parse", "HEAD")
    monkeypatch.setenv("PATH", "")
    assert new_manifest({})["git_commit"] is None  # no git
