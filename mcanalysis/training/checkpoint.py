"""`<run>/checkpoint`: what a stopped run goes on from, complete or absent.

Safetensors and JSON; within a task also the Trainer's own files, which it reads with `weights_only=True`. All of them
are listed in `parts.json`, and a checkpoint that is not as listed is refused: the Trainer itself starts a fresh
optimiser where it finds none.
"""

from __future__ import annotations

import json
import logging
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from mcanalysis.errors import RunDirectoryError, UserError, is_of_an_archive_writer
from mcanalysis.models.adapted_model import AdaptedModel
from mcanalysis.models.passes import Passes
from mcanalysis.store.atomic import recover_directory, replace_directory_atomic
from mcanalysis.store.manifest import run_identity
from mcanalysis.store.parts import PARTS_NAME, write_parts, wrong_part
from mcanalysis.strategies.strategy import Strategy
from mcanalysis.training.processes import Processes

logger = logging.getLogger(__name__)

_FORMAT = 2  # since it, the parts are listed; version 0.1 wrote no format
_OURS = ("state.json", "trained.safetensors", "strategy.safetensors")
_OF_TRAINER = ("optimizer.pt", "scheduler.pt", "trainer_state.json")
_OF_DEEPSPEED = "latest"  # it has the optimizer in files of its own


@dataclass(frozen=True)
class Position:
    """How far a run has come.

    `stage`: finished stages; `phase`: of the one after them; `within`: whether the engine's state in that phase was
    saved, too. `losses`: of that stage so far; `seconds`: spent so far, by what they were spent on. `passes`: so far,
    of all processes, as `Passes` counts them; None where the run began before they were counted.
    """

    stage: int = 0
    phase: int = 0
    within: bool = False
    losses: list[float] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"train": 0.0, "evaluation": 0.0})
    passes: dict[str, int] | None = field(default_factory=lambda: asdict(Passes()))


def write_checkpoint(
    folder: Path,
    position: Position,
    model: AdaptedModel,
    strategy: Strategy,
    processes: Processes,
    engine: Callable[[Path], None] | None = None,
) -> None:
    """Save where the run is; every process calls this, `engine` writes each process's part of the engine's state."""
    with writing(), ExitStack() as stack:

        def begin() -> Path:
            return stack.enter_context(replace_directory_atomic(folder))

        partial = processes.on_main(begin)
        if engine is not None:
            engine(partial)
        if processes.is_main:
            tensors, values = strategy.state()
            for name, content in (("trained", model.raw()), ("strategy", tensors)):
                save_file({n: t.contiguous().cpu() for n, t in content.items()}, partial / f"{name}.safetensors")
            state = {"format": _FORMAT, **asdict(position), "task_index": strategy.task_index, "strategy": values}
            state["run"] = run_identity(folder.parent)
            (partial / "state.json").write_text(json.dumps(state), encoding="utf-8")
        processes.wait()  # every process has written its part
        if processes.is_main:
            write_parts(partial)
    processes.wait()  # the folder is in its place


def copy_checkpoint(source: Path, folder: Path, processes: Processes) -> None:
    """Let a run begin with the checkpoint of another, whole: it is the run's own from then on.

    Raises `RunDirectoryError` as `read_checkpoint` does.
    """
    _check(source, processes.count)
    with replace_directory_atomic(folder) as fresh:
        shutil.copytree(source, fresh, dirs_exist_ok=True)
        state = {**_read_state(fresh), "run": run_identity(folder.parent)}
        (fresh / "state.json").write_text(json.dumps(state), encoding="utf-8")
        write_parts(fresh)


def read_checkpoint(folder: Path, model: AdaptedModel, strategy: Strategy, processes: Processes) -> Position:
    """Put model and strategy back to where the run was; the very start where there is no checkpoint.

    Raises `RunDirectoryError` for a checkpoint of which a part is missing or is not as it was written; nothing is
    changed then. One of version 0.1, whose parts are not listed, is read with a warning.
    """
    if not processes.on_main(lambda: recover_directory(folder)):
        return Position()
    processes.on_main(lambda: _check(folder, processes.count))
    try:
        state = _read_state(folder)
        model.load_raw(load_file(folder / "trained.safetensors"))
        strategy.task_index = state.pop("task_index")
        strategy.load_state(model, load_file(folder / "strategy.safetensors"), state.pop("strategy"))
        state.pop("format", None)
        state.pop("run", None)
        return Position(**{"passes": None, **state})
    except UserError:
        raise
    except (AttributeError, LookupError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise _refusal(folder, f"what {strategy.name} cannot go on from ({reason})") from error


def _check(folder: Path, num_processes: int) -> None:
    """Raise `RunDirectoryError` unless all parts are there and whole; warn of what cannot be known."""
    if not folder.is_dir():
        raise _refusal(folder, "no folder")
    is_listed = (folder / PARTS_NAME).exists()
    if is_listed or _read_state(folder).get("format") is not None:
        wrong = wrong_part(folder)
    else:
        wrong = _wrong_unlisted_part(folder)
    here, of = run_identity(folder.parent), None if wrong else _read_state(folder).get("run")
    if None not in (here, of) and here != of:
        wrong = "that of another run"
    if wrong:
        raise _refusal(folder, wrong)
    if not is_listed:
        logger.warning("'%s' is of version 0.1, which listed no hashes: its parts are read unchecked", folder)
    states = len(list(folder.glob("rng_state*.pth")))
    if states and states != num_processes:
        logger.warning(
            "'%s' was written by %d processes and is read by %d: random draws, as dropout's, start anew",
            folder, states, num_processes,
        )  # fmt: skip


def _wrong_unlisted_part(folder: Path) -> str | None:
    """What is wrong with a checkpoint of version 0.1, as far as it can be seen; None where nothing is."""
    state = _read_state(folder)
    needed = [*_OURS]
    if state.get("within"):
        engine_wrote = (folder / _OF_DEEPSPEED).exists()
        needed += _OF_TRAINER[2:] if engine_wrote else _OF_TRAINER
        # One process wrote one file, several one each, with a number.
        numbers = [f.stem.removeprefix("rng_state_") for f in folder.glob("rng_state_*.pth")]
        highest = max((int(n) for n in numbers if n.isdigit()), default=-1)
        needed += [f"rng_state_{i}.pth" for i in range(highest + 1)] or ["rng_state.pth"]
    for name in needed:
        if not (folder / name).is_file():
            return f"no {name}"
        if not _is_readable(folder / name):
            return f"{name}, which is damaged"
    return None


def _is_readable(file: Path) -> bool:
    try:
        if file.suffix == ".json":
            return isinstance(json.loads(file.read_text(encoding="utf-8")), dict)
        if file.suffix == ".safetensors":
            with safe_open(str(file), framework="pt"):
                return True
        with zipfile.ZipFile(file) as archive:  # as torch.save writes it
            return archive.testzip() is None
    except (OSError, ValueError, SafetensorError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError):
        return False


def _read_state(folder: Path) -> dict[str, Any]:
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise _refusal(folder, "no state.json") from None
    except (OSError, ValueError, RecursionError):
        raise _refusal(folder, "state.json, which is damaged") from None
    if not isinstance(state, dict):
        raise _refusal(folder, "state.json, which is damaged")
    return state


def _refusal(folder: Path, got: str) -> RunDirectoryError:
    return RunDirectoryError(
        f"Expected a whole checkpoint in '{folder}', got {got}; restore it from a copy, or remove '{folder}' and pass "
        "--resume: training then starts again from the first task, and what was measured is kept."
    )


@contextmanager
def writing() -> Iterator[None]:
    """Say in one line that a disk is full; what was there before is as it was."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        text = str(error)
        full = isinstance(error, OSError) or "os error" in text or "fwrite" in text or is_of_an_archive_writer(text)
        if not full:
            raise
        raise UserError(
            f"Expected to write a checkpoint, got: {' '.join(text.split())[:200]}; free some disk space and pass "
            "--resume. What was saved before is kept."
        ) from error
