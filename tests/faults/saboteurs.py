"""Faults that we plant ourselves, each of which a test or a crash has to catch: what never fails proves nothing.

A saboteur replaces a function wherever the package holds it. One that is caught by tests is planted in a pytest of its
own, by this module as its plugin; one that is caught by a crash is planted in both starts of a command.
"""

from __future__ import annotations

import importlib
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Saboteur:
    """`place` (`module:name` or `module:Class.name`) becomes `instead(original)`; `by` catches it.

    `by`: the tests, as arguments of pytest, or a command and a fault as `crashes.case` takes them.
    """

    place: str
    instead: Callable[[Any], Any]
    by: tuple[str, ...] = ()
    command: str = ""
    fault: str = ""


def _always(value: Any) -> Callable[[Any], Any]:
    return lambda original: lambda *args, **how: value


def _in_place(original: Any) -> Any:
    def write(path: Any, content: bytes) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content)

    return write


def _folders_unsynced(original: Any) -> Any:
    return lambda descriptor: None if stat.S_ISDIR(os.fstat(descriptor).st_mode) else original(descriptor)


def _unread(original: Any) -> Any:
    return lambda self, *args, **how: None


def _key_without_point(original: Any) -> Any:
    return lambda point_key, objective: original("", objective)


def _another_order(original: Any) -> Any:
    import time

    return lambda lengths, steps, size, seed, *more: original(lengths, steps, size, str(time.monotonic_ns()), *more)


_ATOMIC, _STORE = "mcanalysis.store.atomic", "mcanalysis.store.measurements"
_STRANGERS = "tests/strangers"
SABOTEURS = {
    "contents are not forced to disk": Saboteur("os:fsync", _always(None), command="er"),
    "files are written in place": Saboteur(f"{_ATOMIC}:write_bytes_atomic", _in_place, command="er"),
    "a folder is not forced to disk": Saboteur("os:fsync", _folders_unsynced, command="er"),
    "partial files stay": Saboteur(f"{_ATOMIC}:clear_partial_files", _always(None), command="er", fault="kill@56"),
    "a replacement is not finished": Saboteur(
        f"{_ATOMIC}:recover_directory",
        lambda original: lambda path: Path(path).exists(),
        ("tests/store/test_atomic.py",),
    ),
    "NaN is written as JSON": Saboteur(
        f"{_ATOMIC}:plain_json", lambda original: lambda value: value, ("tests/store/test_atomic.py",)
    ),
    "a value is not stored": Saboteur(
        f"{_STORE}:MeasurementStore.put_many", _unread, ("tests/store/test_measurements.py",)
    ),
    "what is stored is computed again": Saboteur(
        f"{_STORE}:MeasurementStore.missing",
        lambda original: lambda self, keys: list(keys),
        ("tests/evaluation/test_measuring.py",),
    ),
    "all points have one key": Saboteur(
        "mcanalysis.studies.points:measurement_key", _key_without_point, command="profiles"
    ),
    "a key without settings": Saboteur(
        "mcanalysis.evaluation.objective:hash_json",
        _always("0"),
        ("tests/evaluation/test_measuring.py",),
    ),
    "locks do not lock": Saboteur("mcanalysis.store.lock:_lock_file", _always(True), ("tests/store/test_lock.py",)),
    "a dead process keeps its lock": Saboteur(
        "mcanalysis.store.lock:_is_alive", _always(True), command="profiles", fault="kill@9,no-flock"
    ),
    "parts of a checkpoint are not compared": Saboteur(
        "mcanalysis.store.parts:wrong_part",
        _always(None),
        (f"{_STRANGERS}/test_checkpoints.py", "-k", "missing_or_changed"),
    ),
    "what a strategy keeps is not read back": Saboteur(
        "mcanalysis.strategies.er:Er.load_state", _unread, command="er", fault="kill@120"
    ),
    "examples come in another order each time": Saboteur(
        "mcanalysis.training.data_order:steps_of_examples", _another_order, command="er"
    ),
    "another base is served": Saboteur(
        "mcanalysis.models.base_identity:check_identity", _always(None), (f"{_STRANGERS}/test_base_identity.py",)
    ),
    "a flipped bit of a curve is read": Saboteur(
        "mcanalysis.store.point_files:_content_hash",
        _always("0"),
        (f"{_STRANGERS}/test_damaged_files.py", "-k", "curve"),
    ),
    "a full disk is a traceback": Saboteur(
        "mcanalysis.cli.machine_faults:machine_fault", _always(None), command="er", fault="full@3"
    ),
    "limits are not held": Saboteur(
        "mcanalysis.settings:check_bounds", _always(None), ("tests/faults/test_absurd_values.py", "-k", "lora-rank")
    ),
    "names are not looked at": Saboteur(
        "mcanalysis.tasks.names:check_name",
        _always(None),
        ("tests/faults/test_absurd_values.py", "-k", "name_that_cannot"),
    ),
    "settings take any number": Saboteur(
        "mcanalysis.strategies.strategy:_fitting",
        lambda original: lambda name, strategy, value, hint: value,
        ("tests/faults/test_absurd_values.py", "-k", "memory_size"),
    ),
    "a diverged training is saved": Saboteur(
        "mcanalysis.training.task_trainer:TaskTrainer._check_finite",
        _unread,
        ("tests/faults/test_numbers.py", "-k", "explode"),
    ),
}


def plant(name: str) -> None:
    """Replace what the saboteur replaces, in every module that holds it."""
    saboteur = SABOTEURS[name]
    module, _, path = saboteur.place.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, last = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    original = vars(owner)[last] if outer and last in vars(owner) else getattr(owner, last)
    other = saboteur.instead(original)
    setattr(owner, last, other)
    if outer or getattr(original, "__module__", "") != module:  # of another module: here alone
        return
    for held in [m for n, m in sys.modules.items() if n.startswith(("mcanalysis", "tests"))]:
        for attribute, value in list(vars(held).items()):
            if value is original:
                setattr(held, attribute, other)


def pytest_collection_finish(session: Any) -> None:
    """Plant what the environment names; everything that tests import by then is there."""
    if name := os.environ.get("MCANALYSIS_SABOTEUR"):
        plant(name)


def is_caught(name: str) -> bool:
    """Whether what is to catch a saboteur does: a failing test, or a finding of a crash."""
    saboteur = SABOTEURS[name]
    if saboteur.by:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:xdist",
            "-p",
            "saboteurs",
            "-q",
            "-x",
            "--tb=no",
            *saboteur.by,
        ]
        path = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": path, "MCANALYSIS_SABOTEUR": name}
        ran = subprocess.run([*command, "-m", "not slow"], cwd=HERE.parents[1], env=environment, capture_output=True)
        return ran.returncode == 1
    import crashes

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        finished = crashes.prepare(folder)
        command = crashes.COMMANDS[saboteur.command]
        whole = crashes.undisturbed(command, folder, finished)
        fault, _, flags = saboteur.fault.partition(",")
        found = crashes.case(
            command, whole, finished, folder / "case", fault, flags=flags, before=lambda: plant(name), expected=(-9, 2)
        )
        return bool(found.found)
