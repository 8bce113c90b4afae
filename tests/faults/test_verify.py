"""`python -m mcanalysis verify RUN`: what it says of whole and damaged runs, and that the repairs it names repair."""

import json
import shutil
import sqlite3
import subprocess
import sys

import pytest
import torch

from mcanalysis.evaluation.engine import Engine
from mcanalysis.runs.verify import DAMAGED, MISSING, OK, is_well, verify
from mcanalysis.store.manifest import claim_run_directory
from mcanalysis.store.point_files import read_tensors, write_tensors

TRAIN = ("--strategy", "er", "--tasks", "FOMC,NumGLUE-cm", "--num-train", 8, "--num-test", 4, "--steps", 2,
         "--batch-size", 4, "--lora-rank", 1, "--target-modules", "q_proj", "--save-trajectory", 1)  # fmt: skip
STUDY = ("--num-points", 3, "--num-examples", 4, "--paths", "linear-factor,bezier-factor", "--curve-steps", 2,
         "--workers", 1)  # fmt: skip


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A run of the embedded base, trained and measured by the scripts."""
    from mcanalysis.runs.run import load_run
    from mcanalysis.studies.connectivity.study import Connectivity
    from mcanalysis.studies.study import carry_out
    from mcanalysis.training.config import Execution, RunConfig, TrainingConfig
    from mcanalysis.training.continual_trainer import train

    folder = tmp_path_factory.mktemp("measured") / "run"
    config = RunConfig(
        strategy="er", tasks=("FOMC", "NumGLUE-cm"), sizes={"train": 8}, num_test=4, lora_rank=1,
        target_modules=("q_proj",), training=TrainingConfig(num_steps=2, batch_size=4),
    )  # fmt: skip
    train(config, folder, execution=Execution(save_trajectory=1))

    class Undrawn(Connectivity):
        def pictures(self, *_):
            return ()

    study = Undrawn(num_points=3, num_examples=4, paths=("linear-factor", "bezier-factor"), curve_steps=2)
    carry_out(study, [load_run(folder)], folder.parent / "all")
    return folder


@pytest.fixture
def run(measured, tmp_path):
    return shutil.copytree(measured, tmp_path / "run")


@pytest.fixture
def evaluations(monkeypatch):
    calls, evaluate, measure = [], Engine.evaluate, Engine.measure
    monkeypatch.setattr(Engine, "evaluate", lambda self, *of: calls.append(of) or evaluate(self, *of))
    monkeypatch.setattr(Engine, "measure", lambda self, *of: calls.append(of) or measure(self, *of))
    return calls


def everything(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def halve(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def odd(run):
    return {c.name: (c.status, c.repair) for c in verify(run) if c.status != OK}


def test_all_that_training_and_a_study_wrote_has_its_hash(run, script):
    found = verify(run)
    assert is_well(found) and {c.status for c in found} == {OK}, odd(run)
    names = {c.name for c in found}
    expected = ["manifest.json", "hashes.json", "measurements.sqlite", "checkpoint/", "losses/1-FOMC.json"]
    expected += ["tables/profiles.csv", "tables/accuracy_matrix.csv", "generations/0-base.json"]
    expected += ["minima/2-NumGLUE-cm/fast/adapter_model.safetensors", "trajectory/1-FOMC/fast/1.safetensors"]
    assert set(expected) < names
    assert any(name.startswith("curves/fast/") for name in names)
    before = everything(run)
    code, out, err = script("verify", run)
    lines = [line for line in out.splitlines() if line and not line.startswith("next: ")]
    assert code == 0 and err == "" and lines[-1] == f"{run}: {len(found)} ok, 0 damaged, 0 missing, 0 no recorded hash"
    assert [line.split()[1].removeprefix(f"{run}/") for line in lines[:-1]] == [c.name for c in found]
    assert everything(run) == before  # it only looks


def test_the_command_ends_with_1_where_something_is_damaged_and_with_2_for_no_run(run, script, tmp_path):
    halve(run / "losses/1-FOMC.json")
    (run / "minima/1-FOMC/fast/adapter_config.json").unlink()
    code, out, _ = script("verify", run)
    assert code == 1
    assert f"damaged           {run}/losses/1-FOMC.json (other content); restore it from a copy" in out
    assert f"missing           {run}/minima/1-FOMC/fast/adapter_config.json; restore it from a copy, or train" in out
    code, out, err = script("verify", run, "--json")
    (checked,) = json.loads(out)["runs"].values()
    assert code == 1 and {c["name"] for c in checked if c["status"] in (DAMAGED, MISSING)} == {
        "losses/1-FOMC.json", "minima/1-FOMC/fast/adapter_config.json"
    }  # fmt: skip
    for place in (tmp_path / "none", tmp_path):
        code, out, err = script("verify", place)
        assert code == 2 and out == "" and err.startswith("error: Expected a run directory") and err.count("\n") == 1


@pytest.mark.slow
def test_the_dispatcher_knows_it(run):
    halve(run / "tables/metrics.json")
    done = subprocess.run([sys.executable, "-m", "mcanalysis", "verify", run], capture_output=True, text=True)
    assert done.returncode == 1 and "tables/metrics.json (other content)" in done.stdout and done.stderr == ""


@pytest.mark.parametrize("how", ["edit", "remove"])
def test_tables_of_training_are_written_again_from_what_was_measured(how, run, script, evaluations):
    names = ("accuracy_matrix.csv", "metrics.json")
    before = {name: (run / "tables" / name).read_bytes() for name in names}
    for name in names:
        file = run / "tables" / name
        file.unlink() if how == "remove" else file.write_bytes(file.read_bytes().replace(b"0.", b"1."))
    assert odd(run).keys() == {f"tables/{name}" for name in names}
    code, _, err = script("train", *TRAIN, "--output-dir", run)
    assert code == 0, err
    assert {name: (run / "tables" / name).read_bytes() for name in names} == before
    assert evaluations == [] and odd(run) == {}


def test_tables_of_a_study_and_a_changed_value_are_made_again(run, script, evaluations):
    table = run / "tables/profiles.csv"
    before = table.read_bytes()
    halve(table)
    with sqlite3.connect(run / "measurements.sqlite") as connection:
        key = "/0.5' AND split = 'test' AND task = 'FOMC'"
        changed = connection.execute(f"UPDATE measurements SET loss = 0.01 WHERE point_key LIKE '%{key}").rowcount
    connection.close()
    assert changed == 2  # half-way, of two paths
    assert odd(run).keys() == {"tables/profiles.csv", "measurements.sqlite"}
    assert "2 of" in next(c.what for c in verify(run) if c.name == "measurements.sqlite")
    code, _, err = script("connectivity", "--run", run, *STUDY, "--output-dir", run.parent / "all")
    assert code == 0, err
    assert table.read_bytes() == before and odd(run) == {}
    assert len(evaluations) == 2


@pytest.mark.slow
def test_a_damaged_curve_is_refused_and_when_removed_fitted_again_to_the_same_bits(run, script):
    (curve,) = (run / "curves/fast").iterdir()
    before = everything(run / "tables")
    content = bytearray(curve.read_bytes())
    content[-5] ^= 4
    whole = curve.read_bytes()
    curve.write_bytes(content)
    (name,) = odd(run)
    assert name == f"curves/fast/{curve.name}" and "remove it" in odd(run)[name][1]
    again = ("connectivity", "--run", run, *STUDY[:-2], "--workers", 1, "--output-dir", run.parent)
    finer = tuple(5 if value == 3 else value for value in again)
    code, _, err = script(*finer)
    assert code == 2 and curve.name in err and len([row for row in err.splitlines() if row.startswith("error")]) == 1
    curve.unlink()
    assert script(*finer)[0] == 0
    assert curve.read_bytes() == whole and odd(run) == {}
    assert script(*again)[0] == 0 and everything(run / "tables") == before


def test_a_manifest_that_was_changed_is_refused_by_every_script(run, script):
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["config"]["lora_alpha"] = 99.0
    (run / "manifest.json").write_text(json.dumps(manifest))
    for command in (("connectivity", "--run", run), ("report", run), ("train", *TRAIN, "--output-dir", run)):
        code, _, err = script(*command)
        assert code == 2 and "manifest.json' as it was written" in err and err.count("\n") == 1, err


def test_the_checkpoint_of_a_fit_may_go_when_the_fit_has_ended(tmp_path):
    run = tmp_path / "run"
    claim_run_directory(run, {"strategy": "er"}, resume=False)
    for name in ("a.checkpoint", "a.safetensors"):
        write_tensors(run / "curves" / name, {"w": torch.ones(2)})
    assert read_tensors(run / "curves" / "a.checkpoint")[0]["w"].tolist() == [1, 1]
    (run / "curves" / "a.checkpoint").unlink()
    assert [c.name for c in verify(run) if c.name.startswith("curves/")] == ["curves/a.safetensors"]
    (run / "curves" / "a.safetensors").unlink()
    assert [c.status for c in verify(run) if c.name.startswith("curves/")] == ["missing"]
