"""What the machine refuses: one line and exit code 2, earlier results stay, and the same command goes on later.

Full and read-only disks are real ones, small and in memory, where this process may mount them.
"""

import errno
import os
import re
import resource
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from mcanalysis.cli.machine_faults import machine_fault

TINY = ("--tasks", "FOMC,MedMCQA", "--steps", 2, "--num-train", 4, "--num-test", 2, "--batch-size", 2, "--lora-rank", 2)
TRAIN = ("train", "--strategy", "sequential", *TINY, "--save-trajectory", 0, "--output-dir", "run", "--resume")
ELSEWHERE = (*TRAIN[:-2], "other", "--resume")
FULL = (
    "No space left on device",
    "database or disk is full",
    "disk I/O error",
    "File too large",
    "free some disk space",
)
"""Of whatever writes; torch.save names a position in its file, and ours what to do."""
MEASURE = ("connectivity", "--run", "run", "--paths", "linear-factor", "--num-points", 3, "--num-examples", 2)


@contextmanager
def disk(folder, size):
    """A disk of so many kilobytes, in memory."""
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", folder], capture_output=True)
    if made.returncode:
        pytest.skip("no disk can be mounted here")
    try:
        yield folder
    finally:
        os.chdir("/")
        subprocess.run(["umount", "-l", folder], check=True)


def change(folder, options):
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def refused(result, *said):
    code, _, err = result
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and "Traceback" not in err, (code, err)
    assert any(piece in errors[0] for piece in said), errors


@pytest.mark.parametrize(
    "size", [24, pytest.param(150, marks=pytest.mark.slow), pytest.param(300, marks=pytest.mark.slow)]
)
def test_a_full_disk_and_then_room(script, tmp_path, monkeypatch, adapter_bytes, size):
    monkeypatch.chdir(tmp_path)
    assert script(*TRAIN)[0] == 0
    with disk(tmp_path / "small", size) as folder:
        monkeypatch.chdir(folder)
        refused(script(*TRAIN), *FULL)
        change(folder, "size=20m")
        assert script(*TRAIN)[0] == 0
        assert adapter_bytes(folder / "run") == adapter_bytes(tmp_path / "run")
        assert not list(folder.rglob("*.partial"))
        monkeypatch.chdir(tmp_path)


def test_a_disk_that_can_only_be_read(script, tmp_path, monkeypatch):
    """Training and measuring are refused in one line; with `ro` taken away the run is as it was."""
    with disk(tmp_path / "small", 20_000) as folder:
        monkeypatch.chdir(folder)
        assert script(*TRAIN)[0] == 0
        before = {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}
        change(folder, "ro")
        refused(script(*ELSEWHERE), "Read-only file system")
        refused(script(*MEASURE), "Read-only file system")
        refused(script("report", "run", "--output", "page.html"), "Read-only file system")
        change(folder, "rw")
        assert {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()} == before
        assert script(*MEASURE)[0] == 0
        monkeypatch.chdir(tmp_path)


@contextmanager
def limit(what, number):
    before = resource.getrlimit(what)
    resource.setrlimit(what, (number, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)


def test_a_limit_of_file_sizes(script, tmp_path, monkeypatch):
    """As a quota is; needs no rights."""
    monkeypatch.chdir(tmp_path)
    with limit(resource.RLIMIT_FSIZE, 20_000):
        refused(script(*TRAIN), *FULL)
    assert script(*TRAIN)[0] == 0


def test_few_file_handles(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert script(*TRAIN)[0] == 0  # what is imported late is there now
    free = [os.open(os.devnull, os.O_RDONLY) for _ in range(4)]  # enough to begin with
    with limit(resource.RLIMIT_NOFILE, max(free) + 1):
        for descriptor in free:
            os.close(descriptor)
        refused(script(*ELSEWHERE), "Too many open files", "unable to open database file")
    assert script(*ELSEWHERE)[0] == 0


def test_too_little_memory_and_then_enough(script, tmp_path, monkeypatch, adapter_bytes):
    """The system refuses what a batch of hundreds takes beyond what the process has; then the same run goes on."""
    monkeypatch.chdir(tmp_path)
    large = [*TRAIN[:-3], "--output-dir"]
    for flag in ("--num-train", "--batch-size"):
        large[large.index(flag) + 1] = 150
    assert script(*ELSEWHERE)[0] == 0  # what is imported late is there now
    status = Path("/proc/self/status").read_text()
    used = 1024 * int(re.search(r"VmSize:\s+(\d+)", status)[1])
    with limit(resource.RLIMIT_AS, used + 20 * 2**20):
        refused(script(*large, "run"), "Expected enough memory")
    assert not list((tmp_path / "run").rglob("*.partial"))
    assert script(*large, "run", "--resume")[0] == 0
    assert script(*large, "another")[0] == 0
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(tmp_path / "another")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a"), "make room"),
        (PermissionError(errno.EACCES, "Permission denied", "a"), "permissions"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (MemoryError(), "Expected enough memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "Tried to allocate 2 GiB"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
            "smaller --batch-size",
        ),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "make room"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), "make room"),
        (RuntimeError("basic_ios::clear: iostream error"), "make room"),
    ],
)
def test_what_is_said(error, said):
    line = machine_fault(error)
    assert line is not None and said in line and "\n" not in line


def test_what_safetensors_says(tmp_path):
    """Its errors are Rust's, as text."""
    from safetensors.torch import save_file

    with pytest.raises(Exception) as caught:
        save_file({"w": torch.ones(1)}, tmp_path / "no such folder" / "a.safetensors")
    assert "Expected a machine" in (machine_fault(caught.value) or "")


@pytest.mark.parametrize("error", [ValueError("no"), RuntimeError("size mismatch"), KeyError("Errno 28"), TypeError()])
def test_a_fault_of_ours_stays_a_traceback(error):
    assert machine_fault(error) is None
