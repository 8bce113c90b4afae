"""No stored value is served for another base, adapter, data set or setting than it was measured with."""

import hashlib
import json
import logging
import os
import shutil
import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from mcanalysis.errors import UserError
from mcanalysis.evaluation.engine import Engine
from mcanalysis.explore.walk import start_walk
from mcanalysis.models import base_identity as identity_module
from mcanalysis.models.adapter_files import save_adapter
from mcanalysis.models.base_identity import _former_hash, base_identity
from mcanalysis.models.loading import load_base
from mcanalysis.runs.run import load_run
from mcanalysis.store import hashing
from mcanalysis.store.manifest import write_manifest
from mcanalysis.studies.adapters import AdapterConnectivity, AdaptersOpening, connect_adapters
from mcanalysis.studies.attribution import Attribution
from mcanalysis.studies.connectivity.study import Connectivity
from mcanalysis.studies.curvature import Curvature
from mcanalysis.studies.early import Early
from mcanalysis.studies.landscape.study import Landscape
from mcanalysis.studies.similarity import Similarity
from mcanalysis.studies.study import carry_out
from mcanalysis.studies.trajectory import Trajectory
from mcanalysis.tasks import trace_files
from mcanalysis.training.config import RunConfig, TrainingConfig
from mcanalysis.training.continual_trainer import is_finished, train

OLD_RUNS = Path(__file__).parents[1] / "runs_of_version_0_1"
STUDY = Connectivity(num_points=3, num_examples=3, paths=("linear-factor",), curve_steps=1)
PAIR = AdapterConnectivity(**vars(STUDY))


@pytest.fixture(autouse=True, scope="module")
def undrawn():
    """Nothing is drawn here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connectivity, "pictures", lambda *_: ())
        patch.setattr(Connectivity, "pictures_of_all", lambda *_: ())
        yield


@pytest.fixture(autouse=True)
def warned_anew():
    identity_module._warn_once.cache_clear()


@pytest.fixture
def base(base_folder, tmp_path):
    return Path(shutil.copytree(base_folder, tmp_path / "base"))


def change_weights(folder, name="model.safetensors"):
    tensors = load_file(folder / name)
    save_file({k: -v if "layers.0" in k else v for k, v in tensors.items()}, folder / name, {"format": "pt"})


def change_json(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


# --- what counts


def test_the_identity_of_a_folder_is_the_sha256_of_its_names_and_contents(base):
    (base / "README.md").write_text("about")
    pairs = sorted([f.name, hashlib.sha256(f.read_bytes()).hexdigest()] for f in base.iterdir() if f.suffix != ".md")
    text = json.dumps(pairs, separators=(",", ":"))
    assert base_identity(str(base)) == "files-2:" + hashlib.sha256(text.encode()).hexdigest()


COUNTED = (
    "pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.gguf", "vocab.txt", "merges.txt", "spiece.model",
    "chat_template.jinja", "qwen.tiktoken", "config.json", "generation_config.json", "tokenizer.json",
    "model.safetensors", "additional_chat_templates/tool.jinja", "part/model-1.safetensors", "unknown.type",
)  # fmt: skip


@pytest.mark.parametrize("name", COUNTED)
def test_a_file_that_loading_may_read_counts(base, name):
    before = base_identity(str(base))
    (base / name).parent.mkdir(exist_ok=True)
    (base / name).write_bytes(b"one")
    one = base_identity(str(base))
    (base / name).write_bytes(b"two")
    assert len({before, one, base_identity(str(base))}) == 3
    (base / name).rename(base / "renamed.x")
    assert base_identity(str(base)) not in (before, one)


@pytest.mark.parametrize(
    "name",
    ("README.md", "LICENSE", "LICENSE.txt", "figure.png", ".gitattributes", ".cache/huggingface/x.metadata",
     "optimizer.pt", "rng_state_0.pth", "trainer_state.json", "training_args.bin", "checkpoint-10/model.safetensors",
     "runs/a/manifest.json", "out/manifest.json", "out/minima/adapter_model.safetensors"),
)  # fmt: skip
def test_texts_and_what_training_leaves_do_not_count(base, name):
    (base / "out").mkdir()
    (base / "out" / "manifest.json").write_text("{}")
    before = base_identity(str(base))
    (base / name).parent.mkdir(parents=True, exist_ok=True)
    (base / name).write_bytes(b"one")
    assert base_identity(str(base)) == before


def test_a_shard_that_an_index_names_counts_wherever_it_lies(base):
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "checkpoint-3/a.safetensors"}}))
    (base / "checkpoint-3").mkdir()
    found = set()
    for content in (b"one", b"two"):
        (base / "checkpoint-3" / "a.safetensors").write_bytes(content)
        found.add(base_identity(str(base)))
    assert len(found) == 2


def test_files_are_hashed_once_and_a_change_with_size_and_time_kept_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(hashing, "_SETTLED_SECONDS", -1.0)
    file, reads = tmp_path / "weights.bin", []
    file.write_bytes(b"one")
    plain = hashing.hash_file
    monkeypatch.setattr(hashing, "hash_file", lambda path: reads.append(path) or plain(path))
    assert hashing.hash_file_once(file) == hashing.hash_file_once(file) == hashlib.sha256(b"one").hexdigest()
    assert len(reads) == 1
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    time.sleep(0.05)
    file.write_bytes(b"two")
    os.utime(file, ns=times)
    assert hashing.hash_file_once(file) == hashlib.sha256(b"two").hexdigest()


def test_asking_again_for_the_identities_of_a_base_reads_no_file_again(tmp_path, monkeypatch):
    monkeypatch.setattr(hashing, "_SETTLED_SECONDS", -1.0)
    reads, plain = [], hashing.hash_file
    monkeypatch.setattr(hashing, "hash_file", lambda path: reads.append(path) or plain(path))
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_text(f"{name} of {tmp_path}")
    first = identity_module.accepted_identities(str(tmp_path), None)
    assert len(reads) == 3
    assert identity_module.accepted_identities(str(tmp_path), None) == first
    identity_module.check_identity(first[0], str(tmp_path), "a run")
    assert len(reads) == 3


def test_a_file_changed_a_moment_ago_is_read_each_time(tmp_path, monkeypatch):
    file, reads = tmp_path / "weights.bin", []
    plain = hashing.hash_file
    monkeypatch.setattr(hashing, "hash_file", lambda path: reads.append(path) or plain(path))
    for content in (b"one", b"two"):
        file.write_bytes(content)
        assert hashing.hash_file_once(file) == hashlib.sha256(content).hexdigest()
    assert len(reads) == 2


# --- two adapters from elsewhere: every ingredient


@pytest.fixture
def two_adapters(base, tmp_path, make_model, random_point):
    model = make_model()
    for seed in (1, 2):
        save_adapter(random_point(model, seed), tmp_path / f"a{seed}", str(base))
    examples = [{"prompt": f"{i} river stone:", "answer": "green Haus"} for i in range(3)]
    (tmp_path / "data.json").write_text(json.dumps(examples))

    def measure(out, settings=PAIR, **given):
        folders, files = (str(tmp_path / "a1"), str(tmp_path / "a2")), (str(tmp_path / "data.json"),)
        opening = AdaptersOpening(folders, str(base), files, tmp_path / out, device="cpu", **given)
        columns = ["path", "space", "t", "task", "loss", "score", "num_examples", "num_targets"]
        return connect_adapters(opening, settings).tables["profiles"][columns]

    return measure


def _change_adapter(root):
    tensors = load_file(root / "a1" / "adapter_model.safetensors")
    save_file({k: 2 * v for k, v in tensors.items()}, root / "a1" / "adapter_model.safetensors")


def _change_tokenizer(root):
    tree = json.loads((root / "base" / "tokenizer.json").read_text())
    vocabulary = tree["model"]["vocab"]
    tree["model"]["vocab"] = vocabulary | {":": vocabulary["!"], "!": vocabulary[":"]}
    (root / "base" / "tokenizer.json").write_text(json.dumps(tree))


FILES = {
    "base weights": lambda root: change_weights(root / "base"),
    "a shard beside them": lambda root: (root / "base" / "model-00002-of-00002.safetensors").write_bytes(b"x"),
    "tokenizer": _change_tokenizer,
    "config.json": lambda root: change_json(root / "base" / "config.json", rms_norm_eps=0.1),
    "generation_config.json": lambda root: change_json(root / "base" / "generation_config.json", top_k=3),
    "adapter weights": _change_adapter,
    "lora_alpha": lambda root: change_json(root / "a1" / "adapter_config.json", lora_alpha=64),
    "data": lambda root: (root / "data.json").write_text(json.dumps([{"prompt": "x:", "answer": "seven"}] * 3)),
}
SETTINGS = {
    "score": {"score": "rouge_l"},
    "max_length": {"max_length": 5},
    "dtype": {"dtype": "float64"},
    "num_examples": {"settings": replace(PAIR, num_examples=2)},
    "number of points": {"settings": replace(PAIR, num_points=5)},
    "space": {"settings": replace(PAIR, paths=("linear-delta",))},
}


def _fast(names, fast):
    """All of them, one in `make test`."""
    return [name if name == fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


def _again(measure, name, **given):
    """What a second call into the first one's folder gives: the values of a fresh folder, or a refusal."""
    try:
        found = measure("out", **given)
    except UserError as error:
        assert "another configuration" in str(error), name
        return
    pd.testing.assert_frame_equal(found, measure("fresh", **given))


@pytest.mark.parametrize("name", _fast(FILES, "base weights"))
def test_a_changed_file_gets_no_stored_value(two_adapters, tmp_path, name):
    first = two_adapters("out")
    FILES[name](tmp_path)
    fresh = None
    if name not in ("a shard beside them",):
        fresh = two_adapters("fresh")
        if name != "generation_config.json":
            assert not np.allclose(fresh.loss, first.loss), "the change must matter, else nothing is tested"
    with pytest.raises(UserError, match="another configuration"):
        two_adapters("out")


@pytest.mark.parametrize("name", _fast(SETTINGS, "max_length"))
def test_a_changed_setting_gets_no_stored_value(two_adapters, name):
    two_adapters("out")
    _again(two_adapters, name, **SETTINGS[name])


@pytest.mark.slow
def test_a_changed_limit_of_generation_gets_no_stored_value(two_adapters, monkeypatch):
    two_adapters("out")
    monkeypatch.setattr(trace_files, "unknown_task", lambda name: replace(_UNKNOWN(name), max_new_tokens=1))
    _again(two_adapters, "max_new_tokens")


_UNKNOWN = trace_files.unknown_task


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"curve_steps": 2}, {"curve_learning_rate": 0.3}, {"num_bends": 2}])
def test_a_changed_setting_of_a_curve_gets_no_stored_curve(two_adapters, change):
    curve = replace(PAIR, paths=("bezier-factor",), curve_steps=1)
    two_adapters("out", settings=curve)
    found, fresh = (two_adapters(out, settings=replace(curve, **change)) for out in ("out", "fresh"))
    pd.testing.assert_frame_equal(found, fresh)


# --- runs


def _train(base, folder, root):
    for task in ("one", "two", "three"):
        (root / "data" / task).mkdir(parents=True, exist_ok=True)
        for split, number in (("train", 4), ("eval", 2), ("test", 6)):
            examples = [{"prompt": f"{i} {split} {task} river:", "answer": "green stone"} for i in range(number)]
            (root / "data" / task / f"{split}.json").write_text(json.dumps(examples))
    training = TrainingConfig(num_steps=2, batch_size=2, max_length=64)
    config = RunConfig(
        strategy="sequential", model=str(base), benchmark="trace", data_dir=str(root / "data"), lora_rank=2,
        tasks=("one", "two", "three"),
        target_modules=("q_proj",), training=training,
    )  # fmt: skip
    train(config, folder, device="cpu")
    return config


@pytest.fixture(scope="module")
def trained(base_folder, tmp_path_factory):
    """A finished run on a copy of the tiny base, with values stored along its path."""
    root = tmp_path_factory.mktemp("run")
    base = Path(shutil.copytree(base_folder, root / "base"))
    config = _train(base, root / "runs" / "a", root)
    start_walk(load_run(root / "runs" / "a", "cpu")).read(0.5)
    return root, base, config


ANALYSES = {
    "connectivity": lambda run, root: carry_out(STUDY, [run], root),
    "curvature": lambda run, root: carry_out(Curvature(num_examples=2), [run], root),
    "landscape": lambda run, root: carry_out(Landscape(1, grid=(2,), num_examples=2), [run], root),
    "similarity": lambda run, root: carry_out(Similarity(num_examples=6), [run], root),
    "attribution": lambda run, root: carry_out(Attribution(num_points=3), [run], root),
    "trajectory": lambda run, root: carry_out(Trajectory(num_examples=2), [run], root),
    "early": lambda run, root: carry_out(Early(num_points=3), [run], root),
    "explore": lambda run, root: start_walk(run),
    "objective": lambda run, root: run.objective("one"),
    "model": lambda run, root: run.model,
    "tokenizer": lambda run, root: run.tokenizer,
}


@pytest.mark.parametrize("name", ANALYSES)
def test_nothing_of_a_run_is_measured_or_served_on_another_base(trained, name):
    root, base, _ = trained
    before = (base / "model.safetensors").read_bytes()
    try:
        change_weights(base)
        with pytest.raises(UserError, match=r"Expected the base model .* with content .*, on which .* was trained"):
            ANALYSES[name](load_run(root / "runs" / "a", "cpu"), root / "runs")
    finally:
        (base / "model.safetensors").write_bytes(before)


def test_training_does_not_go_on_with_another_base(trained):
    root, base, config = trained
    (base / "vocab.txt").write_text("new")
    try:
        for call in (
            lambda: train(config, root / "runs" / "a", resume=True, device="cpu"),
            lambda: is_finished(config, root / "runs" / "a", load_run(root / "runs" / "a").tasks.values(), True),
        ):
            with pytest.raises(UserError, match=r"expected base model with content hash [0-9a-f]+…, got"):
                call()
    finally:
        (base / "vocab.txt").unlink()
    assert is_finished(config, root / "runs" / "a", list(load_run(root / "runs" / "a").tasks.values()), False)


@pytest.mark.slow
def test_general_tasks_are_measured_again_when_their_data_change(trained, tmp_path):
    root, _, config = trained
    folder = shutil.copytree(root / "runs" / "a", tmp_path / "a")
    scores = []
    for answer in ("green stone", "something else"):
        (tmp_path / "held").mkdir(exist_ok=True)
        (tmp_path / "held" / "test.json").write_text(json.dumps([{"prompt": "2 test one river:", "answer": answer}]))
        data = [trace_files.load_examples(tmp_path / "held" / "test.json", "rouge_l")]
        train(config, folder, device="cpu", general=data)
        scores.append(json.loads((folder / "manifest.json").read_text())["hashes"]["general"]["held"])
        generated = len(list(folder.glob("generations/0-base-general.json")))
        assert generated == 1
    assert scores[0] != scores[1]


# --- runs of version 0.1


def _no_evaluation(monkeypatch):
    def measure(*_):
        raise AssertionError("a stored value was measured again")

    monkeypatch.setattr(Engine, "measure", measure)


def test_a_run_of_version_0_1_is_read_without_a_word_and_its_values_are_found(tmp_path, monkeypatch, caplog):
    folder = Path(shutil.copytree(OLD_RUNS / "finished", tmp_path / "old"))
    stored = pd.read_csv(folder / "tables" / "profiles.csv")
    _no_evaluation(monkeypatch)
    run = load_run(folder, "cpu")
    assert run.base_marker == "" and run.base_id == base_identity("embedded")
    paths = ("linear-factor", "bezier-factor")
    study = Connectivity(num_points=3, num_examples=4, paths=paths, curve_steps=2)
    with caplog.at_level(logging.WARNING):
        result = carry_out(study, [run], tmp_path).tables["profiles"]
    assert not caplog.records
    assert result.loss.to_numpy() == pytest.approx(stored.loss.to_numpy(), abs=1e-12)


def test_a_base_that_version_0_1_did_not_see_whole_is_measured_anew_with_one_warning(trained, tmp_path, caplog):
    """As if the base had had a vocabulary in .txt: the old hash is the same whatever is in it."""
    root, base, config = trained
    folder = Path(shutil.copytree(root / "runs" / "a", tmp_path / "a"))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["hashes"]["base"] = _former_hash(str(base))
    write_manifest(folder, manifest)
    with sqlite3.connect(folder / "measurements.sqlite") as connection:
        connection.execute("DELETE FROM about")  # version 0.1 did not say whose measurements they are
    connection.close()
    assert load_run(folder).base_marker == ""  # so far nothing but what it saw
    (base / "vocab.txt").write_text("one")
    try:
        evaluated = []
        plain = Engine.measure
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Engine, "measure", lambda *a: evaluated.append(1) or plain(*a))
            for content, anew in (("one", True), ("one", False), ("two", True)):
                (base / "vocab.txt").write_text(content)
                evaluated.clear(), caplog.clear(), identity_module._warn_once.cache_clear()
                start_walk(load_run(folder, "cpu")).read(0.5)
                assert bool(evaluated) == anew
                told = [r for r in caplog.records if "does not tell which contents the base" in r.getMessage()]
                assert len(told) == 1
            assert is_finished(config, folder, list(load_run(folder).tasks.values()), False)  # nor is it refused
            table = {"t": [0.5], "task": ["two"], "learner": ["fast"], "space": ["factor"], "path": ["linear"]}
            table |= {"start": ["1-one"], "end": ["2-two"], "split": ["test"], "num_examples": [3]}
            pd.DataFrame(table | {"loss": 1.0, "score": 1.0}).to_csv(folder / "tables" / "profiles.csv", index=False)
            assert start_walk(load_run(folder, "cpu")).known_ts == []
    finally:
        (base / "vocab.txt").unlink()


# --- models of the hub: their commit, from the local cache


@pytest.fixture
def hub(base_folder, tmp_path, monkeypatch):
    """A cache with two commits of org/tiny; `hub("a")` makes one of them `main`."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--org--tiny"
    for letter in "ab":
        shutil.copytree(base_folder, repository / "snapshots" / (letter * 40))
    change_weights(repository / "snapshots" / ("b" * 40))
    (repository / "refs").mkdir()

    def main(letter):
        (repository / "refs" / "main").write_text(letter * 40)

    main("a")
    return main


def test_a_model_of_the_hub_is_its_commit(hub):
    assert base_identity("org/tiny") == "commit-2:" + "a" * 40
    hub("b")
    assert base_identity("org/tiny") == "commit-2:" + "b" * 40
    assert base_identity("org/other") is None


def test_a_run_stays_with_its_commit_when_the_branch_moves(hub, tmp_path):
    config = _train("org/tiny", tmp_path / "runs" / "a", tmp_path)
    assert json.loads((tmp_path / "runs/a/manifest.json").read_text())["hashes"]["base"] == "commit-2:" + "a" * 40
    run = load_run(tmp_path / "runs" / "a", "cpu")
    loss = run.objective("one")(run.minima[0].point).loss
    hub("b")
    run = load_run(tmp_path / "runs" / "a", "cpu")
    assert run.objective("one")(run.minima[0].point).loss == loss
    assert not train(config, tmp_path / "runs" / "a", resume=True, device="cpu")
    now, _ = load_base("org/tiny")  # what a new run takes
    name = "model.layers.0.mlp.up_proj"
    assert torch.equal(run.model.base.get_submodule(name).weight, -now.get_submodule(name).weight)


def test_two_adapters_on_a_branch_that_moved_are_refused(hub, tmp_path, two_adapters):
    folders, files = (str(tmp_path / "a1"), str(tmp_path / "a2")), (str(tmp_path / "data.json"),)
    opening = AdaptersOpening(folders, "org/tiny", files, tmp_path / "out", device="cpu")
    connect_adapters(opening, PAIR)
    hub("b")
    with pytest.raises(UserError, match="expected base model with content hash aaaaaaaaaaaa…, got bbbbbbbbbbbb…"):
        connect_adapters(opening, PAIR)
