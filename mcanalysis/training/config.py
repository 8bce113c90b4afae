"""What a run is: every setting that can change its result, resolved, in one frozen object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from typing import Annotated, Any, Literal

from mcanalysis.errors import UnknownNameError, UserError
from mcanalysis.evaluation.engine_settings import AUTO, EngineSettings
from mcanalysis.models.chat_template import AUTO as AUTO_TEMPLATE
from mcanalysis.models.chat_template import NONE as NO_TEMPLATE
from mcanalysis.settings import OR_ALL, Flag

TRACKERS = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "mlflow": ("mlflow",)}
"""The trackers that `Execution.report_to` may name, each with the packages of which it needs one."""


@dataclass(frozen=True)
class TrainingConfig:
    """The optimisation of one task; each task starts with a fresh optimiser and schedule.

    `num_steps` optimiser steps of `batch_size` × `gradient_accumulation` examples (of all processes together), AdamW,
    linear warm-up over `warmup_ratio` of the steps and linear decay, gradients clipped to `max_grad_norm`. The defaults
    suit the embedded base: without warm-up and clipping a rate of 3e-3 now and then wrecks a task. `group_by_length`
    is off, because steps that are less of a mixture learn less (measured in docs/training.md); micro-batches of one
    step are of like length either way.
    """

    num_steps: Annotated[int, "optimiser steps per task", Flag(name="steps")] = 120
    batch_size: Annotated[int, "examples per micro-batch, of all processes"] = 16
    gradient_accumulation: Annotated[int, "micro-batches per step"] = 1
    learning_rate: Annotated[float, "at its peak"] = 3e-3
    warmup_ratio: Annotated[float, "share of a task's steps; then it decays"] = 0.1
    max_grad_norm: Annotated[float, "0 does not clip"] = 1.0
    weight_decay: Annotated[float, "of AdamW"] = 0.0
    max_length: Annotated[int, "tokens; longer prompts lose their middle"] = 1024
    group_by_length: Annotated[bool, "less padding, and less of a mixture, in a step"] = False

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "gradient_accumulation", "max_length"):
            if getattr(self, name) < 1:
                raise UserError(f"Expected {name} of at least 1, got {getattr(self, name)}; raise it.")
        if not self.learning_rate > 0:
            raise UserError(f"Expected a positive learning_rate, got {self.learning_rate}; try 3e-3.")
        if not 0 <= self.warmup_ratio <= 1:
            raise UserError(f"Expected a warmup_ratio in [0, 1], got {self.warmup_ratio}; leave it out to use 0.1.")
        for name in ("max_grad_norm", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise UserError(f"Expected {name} of at least 0, got {getattr(self, name)}; choose 0 to switch it off.")


@dataclass(frozen=True)
class RunConfig:
    """One strategy × one seed on one benchmark.

    `scores` and `max_new_tokens` replace a task's own score and limit of generated tokens, by its name. `sizes`:
    examples per split, where it is not to be the benchmark's own. `quantization` is that of bitsandbytes.
    `chat_template`: `auto`, `none` or a Jinja text; a run's own configuration never has `auto`, but what it came to.
    """

    strategy: str = "ilora"
    strategy_settings: Annotated[Mapping[str, Any], "settings of the strategy", Flag(name="settings")] = field(
        default_factory=dict
    )
    seed: int = 0
    model: Annotated[str, "'embedded', a folder, or a hub id"] = "embedded"
    dtype: Annotated[str, "auto, float32, bfloat16, …"] = "auto"
    benchmark: Annotated[str, "embedded, trace or ilora"] = "embedded"
    data_dir: Annotated[str | None, "<DIR>/<TASK>/{train,eval,test}.json", Flag(metavar="DIR")] = None
    tasks: Annotated[tuple[str, ...] | None, "tasks, in this order", Flag(metavar="A,B,C")] = None
    scores: Annotated[Mapping[str, str], "another score for a task", Flag(metavar="TASK=SCORE")] = field(
        default_factory=dict
    )
    sizes: Mapping[str, int] = field(default_factory=dict)
    num_test: Annotated[int | None, "test examples per task for the matrix", OR_ALL] = None
    quantization: Annotated[Literal["4bit", "8bit"] | None, "of the base; needs an NVIDIA GPU"] = None
    lora_rank: Annotated[int, "r"] = 8
    lora_alpha: Annotated[float, "ΔW = alpha/r · B·A"] = 16.0
    lora_dropout: Annotated[float, "on the adapter's input"] = 0.0
    target_modules: Annotated[tuple[str, ...] | None, "layers to adapt, or all-linear"] = None
    training: TrainingConfig = field(default_factory=TrainingConfig)
    max_new_tokens: Annotated[
        Mapping[str, int], "most tokens generated for an answer; with --minima N", Flag(metavar="TASK=N")
    ] = field(default_factory=dict)
    chat_template: Annotated[
        str,
        "a Jinja file for prompts; auto: the tokenizer's own where the model was trained to answer in it",
        Flag(metavar="auto|none|FILE"),
    ] = AUTO_TEMPLATE

    def __post_init__(self) -> None:
        if self.lora_rank < 1:
            raise UserError(f"Expected lora_rank of at least 1, got {self.lora_rank}; leave it out to use 8.")
        if not self.lora_alpha > 0:
            raise UserError(f"Expected a positive lora_alpha, got {self.lora_alpha}; leave it out to use 16.")
        if not 0 <= self.lora_dropout < 1:
            raise UserError(f"Expected lora_dropout in [0, 1), got {self.lora_dropout}; leave it out to use 0.")
        if self.num_test is not None and self.num_test < 1:
            raise UserError(f"Expected num_test of at least 1, got {self.num_test}; leave it out to use all.")

    def resolved(self) -> dict[str, Any]:
        """As JSON types, for the manifest; two runs with equal resolved configurations are the same run."""
        from mcanalysis.strategies import make_strategy

        resolved = asdict(self)
        if not self.max_new_tokens:
            del resolved["max_new_tokens"]  # as in runs of version 0.1, which it leaves the same runs
        if self.chat_template in (AUTO_TEMPLATE, NO_TEMPLATE):
            del resolved["chat_template"]  # as well
        resolved["strategy_settings"] = asdict(make_strategy(self.strategy, self.seed, **self.strategy_settings).config)
        return resolved

    @classmethod
    def from_resolved(cls, values: Mapping[str, Any]) -> RunConfig:
        """The configuration a manifest holds."""
        kept = {"chat_template": NO_TEMPLATE, **values}
        kept["training"] = TrainingConfig(**kept["training"])
        for name in ("tasks", "target_modules"):
            kept[name] = None if kept[name] is None else tuple(kept[name])
        return cls(**kept)


@dataclass(frozen=True)
class Execution:
    """How a run is carried out: what may change between stop and resume without changing what is computed.

    `save_steps` lie between two checkpoints. `report_to`: trackers of the Trainer. `gradient_checkpointing` computes
    activations again instead of keeping them. `save_trajectory`: see `training.trajectory`. `engine`: how minima are
    scored.
    """

    device: Annotated[str | None, "cpu, cuda, cuda:1, mps (default: cuda if present)"] = None
    save_steps: Annotated[int, "the most steps that a kill can lose"] = 100
    report_to: Annotated[tuple[str, ...], "tensorboard, wandb, mlflow"] = ()
    gradient_checkpointing: Annotated[bool, "less memory, more time"] = False
    torch_compile: Annotated[bool, "compile the model"] = False
    save_trajectory: Annotated[
        int | None,
        "snapshot of every learner each N steps (0: none; default: 10 where an adapter is small, up to 1 MB)",
    ] = None
    engine: EngineSettings = AUTO

    def __post_init__(self) -> None:
        if self.save_steps < 1:
            raise UserError(f"Expected save_steps of at least 1, got {self.save_steps}; leave it out to use 100.")
        if self.save_trajectory is not None and self.save_trajectory < 0:
            raise UserError(
                f"Expected save_trajectory of at least 0, got {self.save_trajectory}; choose 0 to save none."
            )
        for tracker in self.report_to:
            if tracker not in TRACKERS:
                raise UnknownNameError("tracker", tracker, TRACKERS)
            if not any(find_spec(package) for package in TRACKERS[tracker]):
                package = TRACKERS[tracker][0]
                raise UserError(
                    f"Expected the package {package} to report to {tracker}, got none; run pip install {package}, or "
                    f"leave {tracker} out."
                )
