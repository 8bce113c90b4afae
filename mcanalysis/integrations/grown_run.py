"""A run directory that grows by each task that somebody else's trainer has learned: what its manifest says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mcanalysis.errors import RunDirectoryError, UserError
from mcanalysis.integrations.ilora import IloraCallback
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.training.config import RunConfig

TRAINER = "of the user's"
"""What the configuration has as `trainer`, so that nobody takes it for a run of ours, or goes on with it as one."""

_BY_TASK = ("scores", "max_new_tokens")


def learned(directory: Path, manifest: Mapping[str, Any] | None, task: str) -> list[str]:
    """The tasks that a run has learned before this one; none without a manifest.

    A manifest names the tasks whose minima are there, and, while the last of them is being scored, or the first one
    trained, says "running". Raises `UserError` for a task that has been learned, and `RunDirectoryError` for another
    one than that which a stopped training has left half-way.
    """
    if manifest is None:
        return []
    tasks = list(manifest["config"].get("tasks") or [])
    is_whole = manifest.get("status") == "finished"
    done = tasks if is_whole else tasks[:-1]
    if task in done:
        raise UserError(
            f"Expected a task that '{directory}' has not learned yet, got {task}, its minimum "
            f"{done.index(task) + 1}-{task}; give the second training another name (and folder of data), or choose "
            "another run directory."
        )
    if not is_whole and tasks[-1:] != [task]:
        stopped = tasks[-1] if tasks else "its own"
        raise RunDirectoryError(
            f"Expected the task {stopped} of '{directory}', whose training was stopped half-way, got {task}; train "
            f"{stopped} again first, or choose another run directory."
        )
    return done


def grown_config(
    model: LoraModel,
    manifest: Mapping[str, Any] | None,
    names: Sequence[str],
    own: Mapping[str, Any],
    *,
    seed: int,
    data_dir: str,
    num_test: int | None,
    max_length: int,
    ilora: IloraCallback | None,
) -> dict[str, Any]:
    """The configuration of a run that has learned these tasks, the last one just now.

    `own`: what is set for the last one, by setting; for the others it is as the manifest has it. Of the training it
    says no more than `max_length`, that of scoring, and the steps of each task.
    """
    before = {} if manifest is None else manifest["config"]
    base: Any = model.base
    adapter: Any = model.peft.peft_config["default"]
    modules = [*model.scaling]
    suffixes = sorted({module.rpartition(".")[2] for module in modules})
    fitting = [name for name, _ in base.named_modules() if name.rpartition(".")[2] in suffixes]
    quantization: Any = next((b for b in ("4bit", "8bit") if getattr(base, f"is_loaded_in_{b}", False)), None)
    config = RunConfig(
        strategy="ilora" if ilora else "sequential",
        seed=seed,
        model=model.name,
        dtype=str(base.get_input_embeddings().weight.dtype).removeprefix("torch."),
        benchmark="trace",
        data_dir=data_dir,
        tasks=tuple(names),
        num_test=num_test,
        quantization=quantization,
        lora_rank=adapter.r,
        lora_alpha=adapter.lora_alpha,
        lora_dropout=adapter.lora_dropout,
        target_modules=tuple(suffixes if sorted(fitting) == sorted(modules) else modules),
        chat_template="none",
    ).resolved()
    for name in _BY_TASK:
        values = {task: value for task, value in (before.get(name) or {}).items() if task != names[-1]}
        values |= {} if own.get(name) is None else {names[-1]: own[name]}
        if values or name in config:  # what is newer than runs of version 0.1 is left out where nothing is set
            config[name] = values
    if ilora:
        config["strategy_settings"] = ilora.recorded()
    return config | {"training": {"max_length": max_length, "num_steps": _steps(before)}, "trainer": TRAINER}


def as_recorded(config: Mapping[str, Any], names: Sequence[str], manifest: Mapping[str, Any] | None) -> dict[str, Any]:
    """A configuration as it was for the tasks before: what is set by task is as the manifest has it."""
    before = {} if manifest is None else manifest["config"]
    found = {**config, "tasks": list(names), "training": {**config["training"], "num_steps": _steps(before)}}
    for name in _BY_TASK:
        found.pop(name, None)
        if name in before or name == "scores":
            found[name] = before.get(name, {})
    return found


def _steps(config: Mapping[str, Any]) -> dict[str, int]:
    steps = config.get("training", {}).get("num_steps")
    return dict(steps) if isinstance(steps, Mapping) else {}
