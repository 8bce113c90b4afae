"""A checkpoint of which a part is missing, cut or changed is refused by name; the remedy that is said works."""

import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mcanalysis.errors import RunDirectoryError
from mcanalysis.evaluation.engine import Engine
from mcanalysis.strategies import make_strategy
from mcanalysis.training.checkpoint import read_checkpoint, write_checkpoint
from mcanalysis.training.config import Execution
from mcanalysis.training.continual_trainer import ContinualTrainer, train
from mcanalysis.training.processes import Processes
from mcanalysis.training.stopping import Stopped

REPOSITORY = Path(__file__).parents[2]
OURS = ("parts.json", "state.json", "strategy.safetensors", "trained.safetensors")
OF_TRAINER = ("optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json")
WITHIN = tuple(sorted([*OURS, *OF_TRAINER]))
OLD = "version 0.1, which listed no hashes"


@pytest.fixture(scope="module")
def tasks(make_tasks):
    return make_tasks(("zeta", "alpha"), num_train=10, num_test=2)


@pytest.fixture(scope="module")
def config(run_config):
    return run_config("er", num_steps=4, lora_dropout=0.5)  # dropout, so that random states count


@pytest.fixture(scope="module")
def whole(config, tasks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(config, folder, device="cpu", tasks=tasks)
    return folder


@pytest.fixture(scope="module")
def interrupted(config, tasks, tmp_path_factory, stop_after):
    """Two stopped runs: `within` the second task, and `between` the first and the second."""
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(Stopped):
        train(config, folder / "within", device="cpu", tasks=tasks, progress=stop_after(6))
    with pytest.MonkeyPatch.context() as patched:
        score = ContinualTrainer._score

        def stopping(self, store, row, label):
            if row == 1:
                raise KeyboardInterrupt
            score(self, store, row, label)

        patched.setattr(ContinualTrainer, "_score", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(config, folder / "between", device="cpu", tasks=tasks)
    return folder


@pytest.fixture(scope="module")
def trained(make_model, config):
    """A model and a strategy to read checkpoints into."""
    model, strategy = make_model(dropout=0.5), make_strategy("er", 0)
    strategy.begin(model, 2)
    return model, strategy


@pytest.fixture
def run(interrupted, tmp_path):
    """run("within") -> a copy of a stopped run; `unlisted`: as version 0.1 would have left it."""

    def copy(which, unlisted=False):
        folder = shutil.copytree(interrupted / which, tmp_path / which)
        if unlisted:
            (folder / "checkpoint" / "parts.json").unlink()
            state = json.loads((folder / "checkpoint" / "state.json").read_text())
            del state["format"]
            (folder / "checkpoint" / "state.json").write_text(json.dumps(state))
        return folder

    return copy


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def flip(file, where=0.5):
    content = bytearray(file.read_bytes())
    content[int(where * (len(content) - 1))] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "missing": Path.unlink,
    "empty": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "flipped": flip,
    "first byte": lambda file: flip(file, 0.0),
    "last byte": lambda file: flip(file, 1.0),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\n"),
    "garbage": lambda file: file.write_bytes(bytes(range(256))),
}


def refusal(folder, trained):
    """The one line with which a checkpoint is refused; model, strategy and files are as they were."""
    model, strategy = trained
    before = files(folder), {k: v.clone() for k, v in model.raw().items()}, strategy.state()[1]
    with pytest.raises(RunDirectoryError) as refused:
        read_checkpoint(folder / "checkpoint", model, strategy, Processes("cpu"))
    assert files(folder) == before[0] and strategy.state()[1] == before[2]
    assert all(torch.equal(value, before[1][name]) for name, value in model.raw().items())
    line = str(refused.value)
    assert "\n" not in line and f"'{folder / 'checkpoint'}'" in line and "--resume" in line
    return line


def test_what_a_checkpoint_holds(interrupted):
    for which, expected in (("within", WITHIN), ("between", OURS)):
        folder = interrupted / which / "checkpoint"
        assert sorted(p.name for p in folder.iterdir()) == list(expected)
        parts = json.loads((folder / "parts.json").read_text())["parts"]
        by_hand = subprocess.run(["sha256sum", *parts], cwd=folder, capture_output=True, text=True, check=True).stdout
        assert {name: digest for digest, name in map(str.split, by_hand.splitlines())} == parts
        assert [*parts] == [n for n in expected if n != "parts.json"]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    ("which", "name"), [("within", name) for name in WITHIN] + [("between", name) for name in OURS]
)
def test_a_part_that_is_missing_or_changed_is_named(which, name, damage, run, trained):
    folder = run(which)
    if damage == "last byte" and name == "parts.json":
        (folder / "checkpoint" / name).write_text((folder / "checkpoint" / name).read_text().replace("a", "b"))
    elif damage == "longer" and name == "parts.json":
        (folder / "checkpoint" / name).write_bytes((folder / "checkpoint" / name).read_bytes() + b"}")
    else:
        DAMAGES[damage](folder / "checkpoint" / name)
    assert name in refusal(folder, trained)


@pytest.mark.parametrize("name", [n for n in WITHIN if n != "parts.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "garbage"])
def test_a_checkpoint_of_version_0_1_that_lacks_a_part_is_refused_by_name(name, damage, run, trained):
    folder = run("within", unlisted=True)
    DAMAGES[damage](folder / "checkpoint" / name)
    assert name in refusal(folder, trained)


@pytest.mark.parametrize("which", ["within", "between"])
def test_a_checkpoint_of_version_0_1_is_read_with_one_warning(
    which, run, config, tasks, whole, adapter_bytes, caplog, interrupted
):
    with caplog.at_level(logging.WARNING, logger="mcanalysis"):
        folder = run(which, unlisted=True)
        assert train(config, folder, device="cpu", tasks=tasks, resume=True)
    assert [r.getMessage() for r in caplog.records if OLD in r.getMessage()] == [r.getMessage() for r in caplog.records]
    assert len(caplog.records) == 1
    assert adapter_bytes(folder) == adapter_bytes(whole)
    assert "parts.json" in {p.name for p in (folder / "checkpoint").iterdir()}


@pytest.mark.parametrize("which", ["within", "between"])
def test_a_whole_checkpoint_is_read_without_a_word(which, run, config, tasks, whole, adapter_bytes, caplog):
    folder = run(which)
    (folder / "checkpoint" / "notes.txt").write_text("mine")  # nobody's business
    with caplog.at_level(logging.WARNING, logger="mcanalysis"):
        train(config, folder, device="cpu", tasks=tasks, resume=True)
    assert not caplog.records
    assert adapter_bytes(folder) == adapter_bytes(whole) != {}


def test_the_remedy_trains_the_same_run_again_and_measures_nothing_twice(
    run, config, tasks, whole, adapter_bytes, monkeypatch, caplog
):
    folder = run("within")
    (folder / "checkpoint" / "optimizer.pt").unlink()
    before = files(folder)
    with pytest.raises(RunDirectoryError, match=r"no optimizer\.pt; restore it from a copy, or remove"):
        train(config, folder, device="cpu", tasks=tasks, resume=True)
    assert files(folder) == before
    shutil.rmtree(folder / "checkpoint")
    measured, evaluate = [], Engine.evaluate

    def counting(self, point, objectives, *shown):
        measured.extend(o.name for o in objectives)
        return evaluate(self, point, objectives, *shown)

    monkeypatch.setattr(Engine, "evaluate", counting)
    with caplog.at_level(logging.WARNING, logger="mcanalysis"):
        train(config, folder, device="cpu", tasks=tasks, resume=True)
    assert [r.getMessage() for r in caplog.records] == [
        f"no checkpoint in '{folder}': training starts again from the first task"
    ]
    assert adapter_bytes(folder) == adapter_bytes(whole)
    table = "tables/accuracy_matrix.csv"
    assert (folder / table).read_text() == (whole / table).read_text()
    assert len(measured) == 2  # both tasks after the second one; base and first minimum were measured before


def test_something_else_in_the_place_of_a_checkpoint(run, trained, tmp_path):
    folder = run("between")
    shutil.rmtree(folder / "checkpoint")
    (folder / "checkpoint").mkdir()
    assert "no state.json" in refusal(folder, trained)
    (folder / "checkpoint").rmdir()
    (folder / "checkpoint").write_text("mine")
    assert "no folder" in refusal(folder, trained)


def test_a_list_that_was_written_anew_does_not_help_a_state_that_fits_no_strategy(run, trained):
    from mcanalysis.store.parts import write_parts

    folder = run("between") / "checkpoint"
    state = json.loads((folder / "state.json").read_text())
    for broken in ({**state, "strategy": {}}, {k: v for k, v in state.items() if k != "task_index"}, {**state, "x": 1}):
        (folder / "state.json").write_text(json.dumps(broken))
        write_parts(folder)
        with pytest.raises(RunDirectoryError, match=r"what er cannot go on from \("):
            read_checkpoint(folder, *trained, Processes("cpu"))


def test_the_files_of_every_process_count(trained, tmp_path, caplog):
    """Two processes write `rng_state_0.pth` and `rng_state_1.pth`; an engine may write folders of its own."""
    from mcanalysis.training.checkpoint import Position

    def engine(folder):
        for rank in (0, 1):
            torch.save({"cpu": torch.get_rng_state()}, folder / f"rng_state_{rank}.pth")
        (folder / "global_step3").mkdir()
        torch.save({}, folder / "global_step3" / "shard_1.pt")
        for name in ("latest", "trainer_state.json"):
            (folder / name).write_text("{}")

    folder = tmp_path / "run" / "checkpoint"
    for name in ("rng_state_1.pth", "rng_state_0.pth", "global_step3/shard_1.pt", "latest"):
        write_checkpoint(folder, Position(within=True), *trained, Processes("cpu"), engine)
        (folder / name).unlink()
        assert f"no {name}" in refusal(tmp_path / "run", trained)
    write_checkpoint(folder, Position(within=True), *trained, Processes("cpu"), engine)
    with caplog.at_level(logging.WARNING, logger="mcanalysis"):
        assert read_checkpoint(folder, *trained, Processes("cpu")).within
    assert "written by 2 processes and is read by 1" in caplog.text and len(caplog.records) == 1
    # the same without a list: one random state of several is missing
    (folder / "parts.json").unlink()
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({k: v for k, v in state.items() if k != "format"}))
    (folder / "rng_state_0.pth").unlink()
    assert "no rng_state_0.pth" in refusal(tmp_path / "run", trained)


SMALL = ("--tasks", "FOMC,NumGLUE-cm", "--num-train", 8, "--num-test", 2, "--steps", 2, "--batch-size", 4)
SMALL += ("--lora-rank", 1, "--target-modules", "q_proj", "--strategy", "er")


@pytest.fixture(scope="module")
def stopped_script(tmp_path_factory, stop_after):
    """A run of `train.py` that was stopped in the second task."""
    from mcanalysis.training.config import RunConfig, TrainingConfig

    folder = tmp_path_factory.mktemp("script") / "run"
    config = RunConfig(
        strategy="er", tasks=("FOMC", "NumGLUE-cm"), sizes={"train": 8}, num_test=2, lora_rank=1,
        target_modules=("q_proj",), training=TrainingConfig(num_steps=2, batch_size=4),
    )  # fmt: skip
    with pytest.raises(Stopped):
        train(config, folder, execution=Execution(), progress=stop_after(3))
    return folder


@pytest.mark.parametrize(("name", "damage"), [("optimizer.pt", "missing"), ("state.json", "cut")])
def test_the_script_says_one_line(name, damage, stopped_script, script, tmp_path):
    folder = shutil.copytree(stopped_script, tmp_path / "run")
    DAMAGES[damage](folder / "checkpoint" / name)
    before = files(folder)
    code, out, err = script("train", *SMALL, "--output-dir", folder, "--resume")
    assert code == 2 and out == "" and files(folder) == before
    assert len(err.splitlines()) == 1 and err.startswith("error: Expected a whole checkpoint in") and name in err


WORKER = """
import os, pickle, signal, sys
import torch
torch.set_num_threads(1)
from mcanalysis.errors import UserError
from mcanalysis.progress import silent
from mcanalysis.training.config import Execution
from mcanalysis.training.continual_trainer import train
from mcanalysis.training.stopping import Stopped

class StopAfter:
    left = 6
    def __call__(self, *, total, desc):
        return self if desc.startswith("train ") else silent(total=total, desc=desc)
    def update(self, n=1):
        self.left -= n
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)
    def close(self):
        pass

with open(sys.argv[1], "rb") as stream:
    config, tasks, folder = pickle.load(stream)
try:
    train(config, folder, device="cpu", tasks=tasks, progress=StopAfter())
except Stopped:
    pass
names = sorted(os.listdir(folder + "/checkpoint"))
os.environ["RANK"] != "0" or open(folder + ".names", "w").write(" ".join(names))
torch.distributed.barrier()
if os.environ["RANK"] == "0":
    os.rename(folder + "/checkpoint/rng_state_1.pth", folder + ".rng")
torch.distributed.barrier()
try:
    train(config, folder, device="cpu", tasks=tasks, resume=True)
except UserError as error:
    open(folder + ".refused" + os.environ["RANK"], "w").write(str(error))
torch.distributed.barrier()
if os.environ["RANK"] == "0":
    os.rename(folder + ".rng", folder + "/checkpoint/rng_state_1.pth")
torch.distributed.barrier()
train(config, folder, device="cpu", tasks=tasks, resume=True)
torch.distributed.barrier()
os._exit(0)  # gloo's threads may abort an interpreter that ends with work of theirs in memory
"""


@pytest.mark.slow
def test_a_random_state_of_one_of_two_processes_is_missing(config, tasks, tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "input").write_bytes(pickle.dumps((config, tasks, str(tmp_path / "run"))))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(tmp_path / "worker.py"), str(tmp_path / "input")],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    names = (tmp_path / "run.names").read_text().split()
    assert {"parts.json", "rng_state_0.pth", "rng_state_1.pth"} < set(names)
    for rank in (0, 1):
        assert "no rng_state_1.pth" in (tmp_path / f"run.refused{rank}").read_text()
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "finished"
