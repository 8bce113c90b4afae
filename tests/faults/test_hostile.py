"""Files that somebody else made: nothing in them is run, followed out of the run, or computed by a spreadsheet."""

import ast
import json
import os
import pickle
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from functools import cache
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import mcanalysis as mc
from mcanalysis.errors import DataError, RunDirectoryError, UserError
from mcanalysis.models.loading import load_base
from mcanalysis.recipes.files import read_tree
from mcanalysis.store.atomic import replace_directory_atomic, write_text_atomic
from mcanalysis.store.lock import lock_measurements, lock_training
from mcanalysis.store.manifest import claim_run_directory
from mcanalysis.store.measurements import MeasurementStore
from mcanalysis.store.small_files import read_json, read_table, table_text
from mcanalysis.tasks.names import check_distinct, check_name
from mcanalysis.training.continual_trainer import train

REPOSITORY = Path(__file__).parents[2]
SOURCES = sorted((REPOSITORY / "mcanalysis").rglob("*.py"))
OLD = REPOSITORY / "tests" / "runs_of_version_0_1" / "finished"


def line_of(action, kind=UserError):
    with pytest.raises(kind) as refused:
        action()
    line = str(refused.value)
    assert "\n" not in line and line.startswith("Expected ") and ";" in line
    return line


# What stands where a file is to be written.


@pytest.fixture
def victim(tmp_path):
    file = tmp_path / "victim.txt"
    file.write_text("precious")
    yield file
    assert file.read_text() == "precious"


PLACES = {
    "link": lambda place, victim: place.symlink_to(victim),
    "link to nothing": lambda place, victim: place.symlink_to(victim.with_name("none")),
    "pipe": lambda place, victim: os.mkfifo(place),
    "socket": lambda place, victim: bound(place),
}


def bound(place):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(place))


@pytest.mark.parametrize("what", PLACES)
def test_no_file_is_written_through_or_in_place_of_what_is_no_file(what, victim, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the address of a socket is short
    place = Path("place")
    PLACES[what](place, victim)
    before = place.lstat()
    for write in (
        lambda: write_text_atomic(place, "text"),
        lambda: replace_directory_atomic(place).__enter__(),
        lambda: MeasurementStore(place),
    ):
        assert "'place'" in line_of(write)
    assert place.lstat() == before and sorted(p.name for p in Path().iterdir()) == ["place", "victim.txt"]


@pytest.mark.parametrize("what", [*PLACES, "device"])
def test_a_report_replaces_no_link_device_or_pipe(what, victim, tmp_path, script, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = Path("/dev/null") if what == "device" else Path("report.html")
    if what != "device":
        PLACES[what](place, victim)
    before = stat.S_IFMT(place.lstat().st_mode)
    code, _, err = script("report", OLD, "--output", place)
    assert code == 2 and err.startswith("error: Expected a file or nothing at") and len(err.splitlines()) == 1
    assert stat.S_IFMT(place.lstat().st_mode) == before


@pytest.mark.parametrize("name", ["measurements.lock", "training.lock"])
@pytest.mark.parametrize("how", ["link", "hard link", "link to nothing", "pipe"])
def test_a_lock_is_no_other_file(name, how, victim, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    if how == "hard link":
        (run / name).hardlink_to(victim)
    else:
        PLACES[how](run / name, victim)
    lock = lock_measurements if name.startswith("measurements") else lock_training
    assert f"'{run / name}'" in line_of(lambda: lock(run).__enter__(), RunDirectoryError)
    assert not victim.with_name("none").exists()
    (run / name).unlink()
    with lock(run):  # the remedy
        pass


def test_nothing_is_written_through_a_folder_that_leads_out_of_the_run(tmp_path):
    claim_run_directory(tmp_path / "run", {}, resume=False)
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "run" / "tables").symlink_to(outside)
    (tmp_path / "run" / "minima").symlink_to(outside)
    assert "within the run" in line_of(lambda: write_text_atomic(tmp_path / "run/tables/profiles.csv", "t\n"))

    def minimum():
        with replace_directory_atomic(tmp_path / "run/minima/1-A/fast") as folder:
            (folder / "adapter_config.json").write_text("{}")

    assert "within the run" in line_of(minimum)
    assert not any(p.is_file() for p in outside.rglob("*"))
    (tmp_path / "linked").symlink_to(tmp_path / "run")  # a run that is itself found by a link is one
    write_text_atomic(tmp_path / "linked/losses/1-A.json", "[]\n")
    assert read_json(tmp_path / "run/losses/1-A.json") == []


@pytest.mark.parametrize("end", ["", "-wal", "-shm", "-journal"])
def test_the_store_writes_into_no_link(end, victim, tmp_path):
    (tmp_path / f"m.sqlite{end}").symlink_to(victim)
    line_of(lambda: MeasurementStore(tmp_path / "m.sqlite"))


# What is read.

DEEP = "[" * 100_000
JSON = {
    "deep": DEEP.encode(),
    "digits": b"1" * 5000,
    "utf-16": '{"config": {}}'.encode("utf-16"),
    "nul": b"\0" * 100,
    "latin-1": '{"config": {"model": "Zürich"}}'.encode("latin-1"),
}


@pytest.mark.parametrize("what", JSON)
@pytest.mark.parametrize(
    "name", ["manifest.json", "tables/metrics.json", "losses/1-FOMC.json", "minima/1-FOMC/slow/adapter_config.json"]
)
def test_json_that_is_none(name, what, tmp_path):
    run = shutil.copytree(OLD, tmp_path / "run")
    (run / name).write_bytes(JSON[what])

    def use():
        found = mc.load_run(run)
        return found.losses, found.metrics, found.minima[0].point

    line = line_of(use)
    assert Path(name).name in line or str(Path(name).parent) in line
    assert len(line) < 1000


@pytest.mark.parametrize(
    ("name", "value"),
    [("dtype", 3), ("tasks", ["A", 3]), ("tasks", "FOMC"), ("tasks", ["../../A", "B"]), ("tasks", ["A\0", "B"]),
     ("strategy", None), ("seed", "0"), ("seed", True), ("model", {}), ("training", []), ("lora_rank", "8"),
     ("lora_alpha", [16]), ("training", {"max_length": "many"}), ("sizes", 3), ("data_dir", 7)],
)  # fmt: skip
def test_a_manifest_with_values_of_another_type(name, value, tmp_path):
    run = shutil.copytree(OLD, tmp_path / "run")
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["config"][name] = value
    (run / "manifest.json").write_text(json.dumps(manifest))
    line_of(lambda: mc.load_run(run))


@pytest.mark.parametrize(
    "gone",
    ["config", "hashes", "status", *(f"config.{n}" for n in ("tasks", "model", "benchmark", "training", "dtype"))],
)
def test_a_manifest_with_fields_gone(gone, tmp_path):
    run = shutil.copytree(OLD, tmp_path / "run")
    manifest = json.loads((run / "manifest.json").read_text())
    *outer, last = gone.split(".")
    (manifest[outer[0]] if outer else manifest).pop(last)
    (run / "manifest.json").write_text(json.dumps(manifest))

    def use():
        found = mc.load_run(run)
        return found.tasks, found.task_objective("FOMC"), found.model

    assert "manifest" in line_of(use)


@pytest.mark.parametrize("found", [0, 3, "2", None, [1]])
def test_a_run_of_another_format(found, tmp_path):
    run = shutil.copytree(OLD, tmp_path / "run")
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "format": found}))
    assert "format 1 to 2" in line_of(lambda: mc.load_run(run))


LAUGHS = [f"{c}: &{c} [{', '.join([f'*{b}'] * 9)}]" for b, c in pairwise("abcdefghi")]
YAML = {
    "laughs": "\n".join(["a: &a [x, x, x]", *LAUGHS]),
    "endless": "seed: &one [*one]\n",
    "tag": "seed: !!python/object/apply:os.system ['touch PWNED']\n",
    "deep": "seed: " + "[" * 20_000,
    "long": "model: " + "x" * 2_000_000,
    "utf-16": "seed: 1\n".encode("utf-16"),
    "no text": bytes(range(256)),
}  # fmt: skip


@pytest.mark.parametrize("what", YAML)
def test_yaml_that_is_more_than_it_says(what, script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = YAML[what]
    (tmp_path / "c.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    started = time.monotonic()
    code, out, err = script("connectivity", "--config", "c.yaml")
    assert code == 2 and out == "" and len(err.splitlines()) == 1 and "'c.yaml'" in err, err
    assert time.monotonic() - started < 20 and [p.name for p in tmp_path.iterdir()] == ["c.yaml"]


@pytest.mark.parametrize("what", YAML)
def test_a_recipe_that_is_more_than_it_says(what, tmp_path):
    content = YAML[what]
    (file := tmp_path / "recipe.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert f"a recipe in YAML or JSON at '{file}'" in line_of(lambda: read_tree(file))


# Bases.


@pytest.fixture
def base(base_folder, tmp_path):
    return shutil.copytree(base_folder, tmp_path / "base")


def edit_config(base, **values):
    file = base / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def without(*parts):
    def edit(base):
        weights = load_file(base / "model.safetensors")
        kept = {k: v for k, v in weights.items() if not any(part in k for part in parts)}
        assert len(kept) < len(weights)
        save_file(kept, base / "model.safetensors", metadata={"format": "pt"})

    return edit


class Touch:
    """Pickled, a call of `os.system`."""

    def __reduce__(self):
        return os.system, (f"touch {PWNED}",)


PWNED = Path("/nonexistent")


BASES = {
    "a layer lacks": without(".layers.1."),
    "the embedding lacks": without("embed_tokens"),
    "deeper than its weights": lambda base: edit_config(base, num_hidden_layers=3),
    "shallower than its weights": lambda base: edit_config(base, num_hidden_layers=1),
    "of another width": lambda base: edit_config(base, intermediate_size=32),
    "a text for a number": lambda base: edit_config(base, hidden_size="32"),
    "a list for a number": lambda base: edit_config(base, num_attention_heads=[2]),
    "none for a number": lambda base: edit_config(base, vocab_size=None),
    "zero heads": lambda base: edit_config(base, num_attention_heads=0),
    "deep": lambda base: (base / "config.json").write_text(DEEP),
    "utf-16": lambda base: (base / "config.json").write_bytes("{}".encode("utf-16")),
    "its own code": lambda base: edit_config(
        base, model_type="mine", auto_map={"AutoConfig": "m.C", "AutoModelForCausalLM": "m.M"}
    ),
}


@pytest.mark.parametrize("what", BASES)
def test_a_base_that_is_not_what_it_says_is_refused(what, base, monkeypatch):
    load_base(str(base))
    (base / "m.py").write_text("raise SystemExit('ran')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    BASES[what](base)
    assert str(base) in line_of(lambda: load_base(str(base)))


def test_a_pickled_base_calls_nothing(base, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PWNED", tmp_path / "PWNED")
    (base / "model.safetensors").unlink()
    for content in (pickle.dumps({"w": Touch()}), None):
        if content is None:
            torch.save({"w": Touch()}, base / "pytorch_model.bin")
        else:
            (base / "pytorch_model.bin").write_bytes(content)
        line = line_of(lambda: load_base(str(base)))
        assert str(base) in line and "weights_only" not in line
    assert not (tmp_path / "PWNED").exists()
    pickle.loads(pickle.dumps(Touch()))  # it would have
    assert (tmp_path / "PWNED").exists()


@cache
def every_call():
    """By name, each call in the package: (file, node)."""
    found = {}
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                found.setdefault(name, []).append((file.relative_to(REPOSITORY / "mcanalysis").as_posix(), node))
    return found


def calls(name):
    return every_call().get(name, [])


def test_no_call_lets_a_models_own_code_run():
    number = 0
    for name in ("from_pretrained", "from_config"):
        for file, node in calls(name):
            source = ast.unparse(node)
            if source.startswith(("PeftModel", "GenerationConfig.from_model_config")):
                continue  # models made here
            if file in ("models/check_merge.py", "models/weighted_adapter.py"):
                continue  # PEFT's adapters on layers made here
            number += 1
            assert "trust_remote_code=False" in source or "_source_settings(" in source, (file, source)
    assert number >= 8


def test_nothing_that_is_read_is_unpickled_or_evaluated():
    own = {
        "studies/executors/worker.py",
        "studies/executors/processes.py",
        "studies/executors/on_cluster.py",
        "studies/executors/cluster.py",
    }  # pieces, from the process that started them
    for name in ("loads", "load", "Unpickler"):
        for file, node in calls(name):
            source = ast.unparse(node.func)
            assert not source.startswith(("pickle", "dill", "joblib", "marshal", "yaml.load")) or file in own, file
            assert source != "torch.load" or "weights_only=True" in ast.unparse(node), file
    for name in ("eval", "exec"):
        assert [file for file, node in calls(name) if isinstance(node.func, ast.Name)] == []


# Names, and what is written of them.


@pytest.mark.parametrize(
    "name", ["../up", "/etc/passwd", "a/b", "a\\b", "nul\0", "two\nlines", "bell\a", "mean", "after"]
)
def test_a_name_cannot_leave_its_folder(name):
    line_of(lambda: check_name(name), DataError)


def test_names_that_look_alike_are_not_told_apart():
    check_distinct(["Café", "Cafe"])
    with pytest.raises(UserError, match="look different"):
        check_distinct(["Caf\u00e9", "Cafe\u0301"])


FORMULAS = ("=1+1", "+1+1", "@SUM(A1)", "-1+cmd|' /C calc'!A0", "\t=1", "'=1", "''+x")


def test_no_cell_of_a_table_is_a_formula(tmp_path):
    table = pd.DataFrame({"task": [*FORMULAS, "plain", "-0.5", ""], "loss": -1.5, FORMULAS[0]: 0.5})
    text = table_text(table)
    (tmp_path / "a.csv").write_bytes(text.encode())
    raw = pd.read_csv(tmp_path / "a.csv", dtype=str, keep_default_na=False)
    cells = [*raw.columns, *raw.task]
    for cell in cells:
        assert cell[:1] not in ("=", "+", "@", "\t", "\r") and (cell[:1] != "-" or float(cell)), cell
    assert set(raw.loss) == {"-1.5"}
    assert len(raw) == len(table)
    assert table_text(pd.DataFrame({"output": ["a\r=1+1\r\nb"]})) == 'output\n"a\n=1+1\nb"\n'  # one cell
    back = read_table(tmp_path / "a.csv")
    assert back.task.fillna("").tolist() == table.task.tolist() and list(back) == list(table)


def test_every_table_is_written_so():
    assert {file for file, _ in calls("to_csv")} == {"store/small_files.py"}


def test_a_run_of_a_task_whose_name_is_a_formula(run_config, make_tasks, tmp_path):
    train(run_config("er", num_steps=1), tmp_path / "run", device="cpu", tasks=make_tasks(("=1+1", "<b>"), 4, 2))
    first = (tmp_path / "run/tables/accuracy_matrix.csv").read_text().splitlines()[0]
    assert first == "after,'=1+1,<b>"
    run = mc.load_run(tmp_path / "run")
    assert list(run.accuracy_matrix) == ["after", "=1+1", "<b>"] and run.minimum("1-=1+1").point
    assert "<b>" not in run._repr_html_() and "&lt;b&gt;" in run._repr_html_()


# The network.


@pytest.fixture
def no_network(monkeypatch):
    """Every attempt to look up or to reach another machine, none of which succeeds."""
    from huggingface_hub import constants

    tried = []

    def refuse(*address, **_):
        tried.append(address)
        raise OSError("the network is closed")

    connect = socket.socket.connect
    monkeypatch.setattr(
        socket.socket, "connect",
        lambda self, address: connect(self, address) if self.family == socket.AF_UNIX else refuse(address),
    )  # fmt: skip
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "0")  # restored afterwards
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tried


def test_without_a_name_of_the_hub_nothing_is_asked(no_network, script, tmp_path):
    run = shutil.copytree(OLD, tmp_path / "run")
    flags = ("--num-points", 3, "--num-examples", 4, "--paths", "linear-factor", "--workers", 1)
    code, _, err = script("connectivity", "--run", run, *flags, "--output-dir", tmp_path)
    assert code == 0, err
    load_base(mc.load_run(run).config["model"])
    assert no_network == []


def test_offline_nothing_is_asked_with_a_name_either(no_network, script, tmp_path):
    code, out, err = script(
        "train", "--model", "nobody/nothing", "--offline", "--output-dir", tmp_path / "run", "--tasks", "FOMC"
    )
    assert code == 2 and out == "" and "nobody/nothing" in err and len(err.splitlines()) == 1, err
    assert no_network == [] and not (tmp_path / "run").exists()
    assert os.environ["HF_HUB_OFFLINE"] == "1"  # for processes that are started


def test_no_test_reaches_another_machine():
    with socket.socket() as stream, pytest.raises(OSError, match="no test may need"):
        stream.connect(("203.0.113.1", 80))  # of a block that is kept for documentation
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as stream:
        assert stream.getpeername() == server.getsockname()


def test_the_commands_for_a_cluster_stay_on_this_machine():
    for line in (REPOSITORY / "docs/cluster.md").read_text("utf-8").splitlines():
        if line.startswith("dask scheduler"):
            assert "--host 127.0.0.1" in line and "--dashboard-address 127.0.0.1:" in line
        if line.startswith("dask worker"):
            assert "--host 127.0.0.1" in line and "--no-dashboard" in line


@pytest.mark.slow
def test_their_sockets_are_of_this_machine_alone(tmp_path):
    """The commands of `docs/cluster.md`, and the addresses at which they then listen, by /proc."""
    pytest.importorskip("distributed")
    text = (REPOSITORY / "docs/cluster.md").read_text("utf-8")
    commands = [
        next(row for row in text.splitlines() if row.startswith(f"dask {what}")) for what in ("scheduler", "worker")
    ]
    commands = [
        c.replace("--dashboard-address 127.0.0.1:8787", "--dashboard-address 127.0.0.1:0 --port 0") for c in commands
    ]
    started = []
    try:
        for command in commands:
            line = [sys.executable, "-m", "distributed.cli.dask_" + command.split()[1], *command.split()[2:]]
            started.append(subprocess.Popen(line, cwd=tmp_path, stderr=subprocess.DEVNULL, start_new_session=True))
            time.sleep(1)
        deadline = time.monotonic() + 60
        found: set[str] = set()
        while time.monotonic() < deadline and len(found) < 3:
            found = listening([p.pid for p in started])
            time.sleep(1)
        assert len(found) >= 3 and {address.split(":")[0] for address in found} == {"0100007F"}, found
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=30)


def listening(pids):
    """Addresses, in hexadecimal, at which processes and their children listen for TCP."""
    inodes = set()
    for pid in [*pids, *(int(c) for p in pids for c in Path(f"/proc/{p}/task/{p}/children").read_text().split())]:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = str(link.readlink())
            except OSError:
                continue
            inodes |= {target[8:-1]} if target.startswith("socket:[") else set()
    rows = [r.split() for f in ("tcp", "tcp6") for r in Path(f"/proc/net/{f}").read_text().splitlines()[1:]]
    return {row[1] for row in rows if row[3] == "0A" and row[9] in inodes}
