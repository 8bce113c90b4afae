"""Every kind of file of a run × every kind of damage: found when it is used, named or left out, never a wrong number.

`CASES` is the table; `-m slow` has all of it, with more places that are flipped. What became of each case is recorded
as a property of the test (`outcome`), so that a JUnit report of this file has the counts.
"""

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import mcanalysis as mc
from mcanalysis.errors import UserError
from mcanalysis.runs.snapshots import read_snapshot
from mcanalysis.runs.verify import DAMAGED, MISSING, OK, verify
from mcanalysis.store.atomic import replace_directory_atomic, write_bytes_atomic, write_json_atomic
from mcanalysis.store.manifest import FORMAT, read_manifest, run_identity, write_manifest
from mcanalysis.store.measurements import Measurement, MeasurementKey, MeasurementStore
from mcanalysis.store.parts import write_parts
from mcanalysis.store.point_files import read_tensors, write_tensors
from mcanalysis.store.recorded import begin_record
from mcanalysis.store.results import JsonResult
from mcanalysis.training.checkpoint import read_checkpoint
from mcanalysis.training.processes import Processes

OLD = Path(__file__).parents[1] / "runs_of_version_0_1" / "finished"
CURVE = "curves/slow/1-FOMC--2-NumGLUE-cm-bezier-factor-fe955f79.safetensors"
ENSEMBLE = "ensembles/slow/1-FOMC--2-NumGLUE-cm-linear-factor-0123abcd.json"
LEFT_OUT = "left out, to be made again"


def keys_of(file):
    with sqlite3.connect(file) as connection:
        found = connection.execute("SELECT point_key, task, split, settings_key FROM measurements").fetchall()
    connection.close()
    return [MeasurementKey(*key) for key in found]


def write_run(folder: Path, of: Path = OLD, seed: int = 0) -> Path:
    """The run of version 0.1, every file of it written anew by what writes them today."""
    folder.mkdir()
    begin_record(folder)
    manifest = read_manifest(of)
    config = {**manifest["config"], "seed": manifest["config"]["seed"] + seed}
    write_manifest(folder, {**manifest, "format": FORMAT, "config": config})
    for file in sorted(of.rglob("*")):
        name = file.relative_to(of).as_posix()
        # Beside the measurements lie those of SQLite, while another test reads them.
        apart = ("manifest.json", "measurements.sqlite", "checkpoint", "minima")
        if file.is_file() and not name.startswith(apart):
            write_bytes_atomic(folder / name, file.read_bytes())
    for source in of.glob("minima/*/*"):
        with replace_directory_atomic(folder / source.relative_to(of)) as fresh:
            shutil.copytree(source, fresh, dirs_exist_ok=True)
    for file in of.rglob("trajectory/*/*/*.safetensors"):
        here = folder / file.relative_to(of)
        write_tensors(here, load_file(file), {"of": [run_identity(folder), *here.with_suffix("").parts[-3:]]})
    write_json_atomic(folder / ENSEMBLE, [{"task": "FOMC", "t": 0.5, "loss": 0.5 + seed}])
    with replace_directory_atomic(folder / "checkpoint") as fresh:
        shutil.copytree(of / "checkpoint", fresh, dirs_exist_ok=True)
        state = json.loads((fresh / "state.json").read_text())
        (fresh / "state.json").write_text(json.dumps({**state, "format": 2, "run": run_identity(folder)}))
        write_parts(fresh)
    shutil.copy(of / "measurements.sqlite", folder / "old.sqlite")
    with MeasurementStore(folder / "old.sqlite") as old, MeasurementStore(folder / "measurements.sqlite") as store:
        store.put_many((key, old.get(key)) for key in keys_of(folder / "old.sqlite"))
    for file in folder.glob("old.sqlite*"):
        file.unlink()
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two whole runs, of different seeds."""
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "one")
    write_run(folder / "another", seed=1)
    return folder


def measured(run: Path) -> dict[Any, Any]:
    with MeasurementStore(run / "measurements.sqlite") as store:
        return {key: store.get(key) for key in KEYS}


def position(run: Path) -> Any:
    """What training would go on from."""
    read = {}
    model = SimpleNamespace(load_raw=lambda tensors: read.update(trained=tensors))
    strategy = SimpleNamespace(
        name="ilora", load_state=lambda model, tensors, values: read.update(of=[tensors, values])
    )
    return read_checkpoint(run / "checkpoint", model, strategy, Processes("cpu")), read


KEYS = keys_of(OLD / "measurements.sqlite")


class Kind(NamedTuple):
    """A file of a run, how it is used, what else could be swapped with it there, and an edit that leaves it valid."""

    name: str
    use: Callable[[Path], Any]
    edit: Callable[[Path], None]
    twin: str = ""  # of the same run; the other run's file of that name without


def edit_json(change):
    def edit(file):
        file.write_text(json.dumps(change(json.loads(file.read_text()))))

    return edit


def edit_number(file):
    table = pd.read_csv(file)
    column = next(c for c in ("loss", "score", "chord_barrier", "FOMC") if c in table)
    table[column] = table[column] * 0.5 + 0.1
    table.to_csv(file, index=False)


def scale_tensors(file):
    save_file({name: 2 * tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})


def edit_store(file):
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE measurements SET loss = loss / 2")
    connection.close()


def add_line(file):
    file.write_bytes(file.read_bytes() + b"\n")


KINDS = {
    "manifest": Kind("manifest.json", lambda run: mc.load_run(run).config, edit_json(
        lambda m: m | {"config": m["config"] | {"dtype": "bfloat16"}})),
    "adapter": Kind("minima/2-NumGLUE-cm/fast/adapter_model.safetensors",
        lambda run: mc.load_run(run).minimum(2, "fast").point, scale_tensors,
        "minima/1-FOMC/fast/adapter_model.safetensors"),
    "adapter config": Kind("minima/2-NumGLUE-cm/slow/adapter_config.json",
        lambda run: mc.load_run(run).minimum(2).point, edit_json(lambda c: c | {"lora_alpha": 99})),
    "accuracy matrix": Kind("tables/accuracy_matrix.csv", lambda run: mc.load_run(run).accuracy_matrix, edit_number,
        "tables/accuracy_matrix_fast.csv"),
    "metrics": Kind("tables/metrics.json", lambda run: mc.load_run(run).metrics, edit_json(
        lambda m: m | {"average_accuracy": 0.99})),
    "profiles": Kind("tables/profiles.csv", lambda run: mc.load_run(run).table("profiles"), edit_number,
        "tables/barriers.csv"),
    "curve": Kind(CURVE, lambda run: mc.load_run(run).curve(1, 2).bends[0], scale_tensors),
    "ensemble": Kind(ENSEMBLE, lambda run: JsonResult(run / ENSEMBLE).find(), edit_json(
        lambda rows: [r | {"loss": 0.1} for r in rows])),
    "losses": Kind("losses/1-FOMC.json", lambda run: mc.load_run(run).losses, edit_json(
        lambda losses: [x / 2 for x in losses]), "losses/2-NumGLUE-cm.json"),
    "generations": Kind("generations/1-FOMC-slow.json", lambda run: mc.load_run(run).outputs("slow"), edit_json(
        lambda texts: {task: ["A" for _ in of] for task, of in texts.items()}), "generations/1-FOMC-fast.json"),
    "trajectory": Kind("trajectory/1-FOMC/fast/0.safetensors",
        lambda run: read_snapshot(run / "trajectory/1-FOMC/fast/0.safetensors"), scale_tensors,
        "trajectory/1-FOMC/fast/4.safetensors"),
    "measurements": Kind("measurements.sqlite", measured, edit_store),
    "checkpoint state": Kind("checkpoint/state.json", position, edit_json(lambda s: s | {"stage": 0})),
    "checkpoint tensors": Kind("checkpoint/trained.safetensors", position, scale_tensors),
    "checkpoint list": Kind("checkpoint/parts.json", position, edit_json(lambda p: p | {"parts": {}})),
    "hashes": Kind("hashes.json", lambda run: mc.load_run(run).accuracy_matrix, edit_json(
        lambda listed: listed | {"files": {n: ["0" * 64] for n in listed["files"]}})),
}  # fmt: skip


def flipped(share: float) -> Callable[[Path], None]:
    def flip(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[int(share * (len(content) - 1))] ^= 1
        file.write_bytes(content)

    return flip


DAMAGES: dict[str, Callable[[Path], None] | None] = {
    **{f"flip at {share:g}": flipped(share) for share in (0.0, 0.13, 0.31, 0.5, 0.73, 0.9, 1.0)},
    "halve": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "empty": lambda file: file.write_bytes(b""),
    "remove": Path.unlink,
    "longer": add_line,
    "swap": None,
    "edit": None,
}
FAST = ("flip at 0.5", "edit", "swap", "halve")
CASES = [
    pytest.param(
        kind, damage, id=f"{kind}-{damage}", marks=() if damage in FAST else pytest.mark.slow
    )
    for kind in KINDS
    for damage in DAMAGES
]  # fmt: skip


def damaged(run: Path, kind: Kind, damage: str, runs: Path) -> None:
    file = run / kind.name
    if damage == "edit":
        kind.edit(file)
    elif damage == "swap":
        other = runs / "one" / kind.twin if kind.twin else runs / "another" / kind.name
        content = other.read_bytes()
        if content == file.read_bytes():
            pytest.skip("the other one is the same")
        file.write_bytes(content)
    else:
        DAMAGES[damage](file)  # type: ignore[misc]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, pd.DataFrame):
        return one.equals(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def outcome(use: Callable[[Path], Any], run: Path, right: Any, name: str, caplog: Any) -> str:
    """What becomes of using a damaged run."""
    caplog.clear()
    try:
        got = use(run)
    except UserError as error:
        line = str(error)
        assert "\n" not in line and line.startswith("Expected ") and ";" in line
        place = Path(name)
        assert place.name in line or str(place.parent) in line or "1-FOMC--2-NumGLUE-cm-bezier-factor" in line
        return "refused"
    if isinstance(got, dict) and isinstance(next(iter(right.values())), Measurement):
        left_out = [key for key, value in got.items() if value is None]
        assert all(got[key] == right[key] for key in got if key not in left_out)
        return LEFT_OUT if left_out else "right"
    if got is None:
        assert "made again" in caplog.text or not (run / name).exists()
        return LEFT_OUT
    return "right" if same(got, right) else "WRONG"


@pytest.mark.parametrize(("which", "damage"), CASES)
def test_damage_is_found_when_the_file_is_used(which, damage, runs, tmp_path, caplog, request):
    kind = KINDS[which]
    run = shutil.copytree(runs / "one", tmp_path / "one")
    right = deepcopy(kind.use(run))  # tensors are of the file as it lies there
    damaged(run, kind, damage, runs)
    found = verify(run)
    became = outcome(kind.use, run, right, kind.name, caplog)
    request.node.user_properties.append(("outcome", became))
    may_be_right = which in ("measurements", "checkpoint list")  # free space of a page, of JSON
    assert became in ("refused", LEFT_OUT) or (became == "right" and may_be_right) or which == "hashes", became
    odd = {c.name: c for c in found if c.status in (DAMAGED, MISSING)}
    name = "checkpoint/" if kind.name.startswith("checkpoint/") else kind.name
    if became == "right" and name not in odd and (which == "measurements" or damage == "longer"):
        return  # a line more changes nothing in a list
    if damage == "remove" and which in ("losses", "generations"):
        assert odd[name].status == MISSING
    if (which, damage) == ("trajectory", "remove"):  # snapshots may be deleted
        assert odd == {}
        return
    if (which, damage) == ("hashes", "swap"):  # then nothing else is as is said there
        assert odd
        return
    assert name in odd and odd[name].repair, found
    assert len(odd) == 1 or which in ("hashes", "manifest")


def test_nothing_is_odd_of_a_whole_run(runs):
    for run in (runs / "one", runs / "another"):
        found = verify(run)
        assert {c.status for c in found} == {OK}, found
        by_hand = {
            f.relative_to(run).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest()
            for f in run.rglob("*")
            if f.is_file() and f.relative_to(run).parts[0] not in ("checkpoint", "trajectory", "hashes.json")
        }
        by_hand = {name: value for name, value in by_hand.items() if "sqlite" not in name}
        listed = json.loads((run / "hashes.json").read_text())["files"]
        assert {name: hashes[0] for name, hashes in listed.items()} == by_hand


def test_a_run_without_hashes_is_read_as_before(runs, tmp_path, caplog):
    run = shutil.copytree(runs / "one", tmp_path / "one")
    (run / "hashes.json").unlink()
    before, after = mc.load_run(runs / "one"), mc.load_run(run)
    assert before.accuracy_matrix.equals(after.accuracy_matrix)
    assert "has lost its hashes.json" in caplog.text
    by_status = {c.name: c.status for c in verify(run)}
    assert by_status["hashes.json"] == MISSING and by_status["tables/metrics.json"] == "no recorded hash"


def test_a_file_that_the_run_did_not_write_is_not_read(runs, tmp_path):
    """A curve of another run, under a name at which this run would look for one that it has not fitted."""
    run = shutil.copytree(runs / "one", tmp_path / "one")
    other = CURVE.replace("fe955f79", "00000000")
    shutil.copy(runs / "another" / CURVE, run / other)
    with pytest.raises(UserError, match="not written with this run"):
        mc.load_run(run).curve(1, 2, key="00000000")
    assert [c.name for c in verify(run) if c.status == DAMAGED] == [other]


def test_an_adapter_changed_after_it_was_measured_is_found_in_an_old_run_too(tmp_path):
    run = shutil.copytree(OLD, tmp_path / "run")
    assert {c.status for c in verify(run)} == {"no recorded hash"}
    scale_tensors(run / "minima/2-NumGLUE-cm/slow/adapter_model.safetensors")
    (odd,) = [c for c in verify(run) if c.status != "no recorded hash"]
    assert odd.name == "minima/2-NumGLUE-cm/slow/adapter_model.safetensors" and odd.status == DAMAGED


def test_a_kill_between_the_hash_and_the_file_leaves_the_file_as_it_was(runs, tmp_path, monkeypatch):
    run = shutil.copytree(runs / "one", tmp_path / "one")
    before = mc.load_run(run).metrics

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mcanalysis.store.one_file.Path.replace", killed)
        patch.setattr("mcanalysis.store.recorded.replace_file", record_only)
        with pytest.raises(KeyboardInterrupt):
            write_json_atomic(run / "tables/metrics.json", {**before, "average_accuracy": 0.9})
        assert len(json.loads((run / "hashes.json").read_text())["files"]["tables/metrics.json"]) == 2
        assert mc.load_run(run).metrics == before and {c.status for c in verify(run)} == {OK}
        with pytest.raises(KeyboardInterrupt):
            write_json_atomic(run / "tables/new.json", {})
    assert json.loads((run / "hashes.json").read_text())["files"]["tables/new.json"][1] is None
    assert mc.load_run(run).metrics == before and {c.status for c in verify(run)} == {OK}
    write_json_atomic(run / "tables/cost.json", {})  # which settles it
    listed = json.loads((run / "hashes.json").read_text())["files"]
    assert len(listed["tables/metrics.json"]) == 1 and "tables/new.json" not in listed


def record_only(file, content):
    file.write_bytes(content)


def test_values_without_a_checksum_are_those_of_their_examples(tmp_path, caplog):
    """A store of version 0.1: a stored loss that its own examples do not have is left out."""
    shutil.copy(OLD / "measurements.sqlite", tmp_path / "m.sqlite")
    edit_store(tmp_path / "m.sqlite")
    with MeasurementStore(tmp_path / "m.sqlite") as store:
        assert store.missing(KEYS) == KEYS and "another mean" in caplog.text
        assert len(store.check()[2]) == len(KEYS)


def test_a_curve_that_is_fitted_anew_to_other_bits_takes_its_values_with_it(runs, tmp_path, caplog):
    from mcanalysis.studies.connectivity.measuring import _CurveFile
    from mcanalysis.studies.points import Points

    run = shutil.copytree(runs / "one", tmp_path / "one")
    tensors, _ = read_tensors(run / CURVE)
    content = (run / CURVE).read_bytes()
    path_key = next(key.point_key for key in KEYS if "/" in key.point_key).partition("/")[0]
    on_it = [key for key in KEYS if key.point_key.startswith(f"{path_key}/")]
    kept = _CurveFile(run / CURVE, Points(mc.load_run(run)), f"{path_key}/", run / "ensembles/slow")
    (run / CURVE).unlink()
    kept.keep(content)  # the very same: nothing is lost
    with MeasurementStore(run / "measurements.sqlite") as store:
        assert store.missing(KEYS) == []
    (run / CURVE).unlink()
    write_tensors(tmp_path / "other", {name: 1.001 * tensor for name, tensor in tensors.items()})
    kept.keep((tmp_path / "other").read_bytes())
    with MeasurementStore(run / "measurements.sqlite") as store:
        assert store.missing(KEYS) == on_it and on_it
    assert f"{len(on_it)} values measured on the former one" in caplog.text


@pytest.mark.parametrize("which", ["checkpoint", "minima/1-FOMC/fast", "trajectory/1-FOMC/fast"])
def test_a_whole_folder_of_another_run_or_place_is_not_taken_for_ones_own(which, runs, tmp_path):
    """Each of its files is as it was written, elsewhere."""
    run = shutil.copytree(runs / "one", tmp_path / "one")
    shutil.rmtree(run / which)
    source = (
        runs / "another" / which if which == "checkpoint" else runs / "one" / which.replace("1-FOMC", "2-NumGLUE-cm")
    )
    shutil.copytree(source, run / which)
    if which.startswith("trajectory"):
        use = KINDS["trajectory"].use
    else:
        use = position if which == "checkpoint" else lambda run: mc.load_run(run).minimum(1, "fast").point
    with pytest.raises(UserError):
        use(run)
    assert any(c.name.startswith(which) for c in verify(run) if c.status == DAMAGED)


def edit_without_checksum(file):
    edit_store(file)
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE measurements SET checksum = NULL")
    connection.close()


SABOTEURS = {
    "no hash is compared": ("store.recorded.wrong", lambda *_: None, ["adapter", "adapter config", "accuracy matrix",
        "metrics", "profiles", "ensemble", "losses", "generations", "manifest"], "edit"),
    "the parts of a checkpoint are not compared": ("training.checkpoint.wrong_part", lambda _: None,
        ["checkpoint tensors", "checkpoint state"], "edit"),
    "a snapshot does not say of what it is": ("runs.snapshots.whose", lambda _: [None], ["trajectory"], "swap"),
    "values without a checksum are not compared with their examples": (
        "store.measurements._is_plausible", lambda _: True, ["measurements"], "edit"),
    "a store without checksums": ("store.measurements._measurement", None,
        ["measurements"], "edit"),
}  # fmt: skip


@pytest.mark.parametrize("name", SABOTEURS)
def test_the_table_catches_code_that_does_not_look(name, runs, tmp_path, caplog, monkeypatch):
    """The same cases with a check taken out: each has to come out wrong."""
    target, instead, kinds, damage = SABOTEURS[name]
    if target.endswith("_measurement"):

        def instead(row):
            nll, targets, scores = (np.frombuffer(b, d) for b, d in zip(row[8:11], ("<f8", "<i4", "<f4"), strict=True))
            of_nan = [float("nan") if value is None else value for value in row[4:6]]
            return Measurement(*of_nan, *row[6:8], nll, targets, scores)

    monkeypatch.setattr(f"mcanalysis.{target}", instead)
    for which in kinds:
        run, kind = shutil.copytree(runs / "one", tmp_path / which), KINDS[which]
        right = deepcopy(kind.use(run))  # tensors are of the file as it lies there
        if target.endswith("_is_plausible"):
            kind = kind._replace(edit=edit_without_checksum)
        damaged(run, kind, damage, runs)
        if which == "measurements":
            with pytest.raises(AssertionError):
                outcome(kind.use, run, right, kind.name, caplog)
        else:
            assert outcome(kind.use, run, right, kind.name, caplog) == "WRONG", which
