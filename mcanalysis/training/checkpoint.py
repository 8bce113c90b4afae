"""`<run>/checkpoint`: what a stopped run goes on from, complete or absent.

Safetensors and JSON; within a task also the Trainer's own files, which it reads with `weights_only=True`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mcanalysis.errors import UserError
from mcanalysis.models.adapted_model import AdaptedModel
from mcanalysis.store.atomic import recover_directory, replace_directory_atomic
from mcanalysis.strategies.strategy import Strategy
from mcanalysis.training.processes import Processes


@dataclass(frozen=True)
class Position:
    """How far a run has come.

    `stage`: finished stages; `phase`: of the one after them; `within`: whether the engine's state in that phase was
    saved, too. `losses`: of that stage so far; `seconds`: spent so far, by what they were spent on.
    """

    stage: int = 0
    phase: int = 0
    within: bool = False
    losses: list[float] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"train": 0.0, "evaluation": 0.0})


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
            state = {**asdict(position), "task_index": strategy.task_index, "strategy": values}
            (partial / "state.json").write_text(json.dumps(state), encoding="utf-8")
        processes.wait()  # every process has written its part
    processes.wait()  # the folder is in its place


def read_checkpoint(folder: Path, model: AdaptedModel, strategy: Strategy, processes: Processes) -> Position:
    """Put model and strategy back to where the run was; the very start where there is no checkpoint."""
    if not processes.on_main(lambda: recover_directory(folder)):
        return Position()
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    model.load_raw(load_file(folder / "trained.safetensors"))
    strategy.task_index = state.pop("task_index")
    strategy.load_state(model, load_file(folder / "strategy.safetensors"), state.pop("strategy"))
    return Position(**state)


@contextmanager
def writing() -> Iterator[None]:
    """Say in one line that a disk is full; what was there before is as it was."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        text = str(error)
        full = isinstance(error, OSError) or "os error" in text or "PytorchStreamWriter" in text or "fwrite" in text
        if not full:
            raise
        raise UserError(
            f"Expected to write a checkpoint, got: {' '.join(text.split())[:200]}; free some room and pass --resume. "
            "What was saved before is kept."
        ) from error
