"""What a run is: every setting that can change its result, resolved, in one frozen object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from typing import Any, Literal

from mcanalysis.errors import UnknownNameError, UserError
from mcanalysis.evaluation.engine_settings import AUTO, EngineSettings

TRACKERS = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "mlflow": ("mlflow",)}
"""The trackers that `Execution.report_to` may name, each with the packages of which it needs one."""


@dataclass(frozen=True)
class TrainingConfig:
    """The optimisation of one task; each task starts with a fresh optimiser and schedule.

    `num_steps` optimiser steps of `batch_size` × `gradient_accumulation` examples (of all processes together), AdamW,
    linear warm-up over `warmup_ratio` of the steps and linear decay, gradients clipped to `max_grad_norm`. The defaults
    suit the embedded base: without warm-up and clipping a rate of 3e-3 now and then wrecks a task. `max_length` in
    tokens. `group_by_length` puts examples of like length into the same step, which saves padding; off, because steps
    that are less of a mixture learn less (measured in docs/training.md). Micro-batches of one step are of like length
    either way.
    """

    num_steps: int = 120
    batch_size: int = 16
    gradient_accumulation: int = 1
    learning_rate: float = 3e-3
    warmup_ratio: float = 0.1
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    max_length: int = 1024
    group_by_length: bool = False

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
    examples per split (None: the benchmark's own). `num_test`: test examples per task for the accuracy matrix.
    `quantization`: load the base in 4 or 8 bits (bitsandbytes; needs an NVIDIA GPU).
    """

    strategy: str = "ilora"
    strategy_settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    model: str = "embedded"
    dtype: str = "auto"
    benchmark: str = "embedded"
    data_dir: str | None = None
    tasks: tuple[str, ...] | None = None
    scores: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    num_test: int | None = None
    quantization: Literal["4bit", "8bit"] | None = None
    lora_rank: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    target_modules: tuple[str, ...] | None = None
    training: TrainingConfig = field(default_factory=TrainingConfig)
    max_new_tokens: Mapping[str, int] = field(default_factory=dict)

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
        resolved["strategy_settings"] = asdict(make_strategy(self.strategy, self.seed, **self.strategy_settings).config)
        return resolved

    @classmethod
    def from_resolved(cls, values: Mapping[str, Any]) -> RunConfig:
        """The configuration a manifest holds."""
        kept = dict(values)
        kept["training"] = TrainingConfig(**kept["training"])
        for name in ("tasks", "target_modules"):
            kept[name] = None if kept[name] is None else tuple(kept[name])
        return cls(**kept)


@dataclass(frozen=True)
class Execution:
    """How a run is carried out: what may change between stop and resume without changing what is computed.

    `save_steps`: steps between two checkpoints, hence the most that a kill can lose. `report_to`: trackers of the
    Trainer ("tensorboard", "wandb", "mlflow"). `gradient_checkpointing` computes activations again instead of keeping
    them: less memory, more time. `save_trajectory`: optimiser steps between two snapshots of every learner (see
    `training.trajectory`); 0 saves none, None is every 10th step where the adapter is small. `engine`: how minima are
    scored.
    """

    device: str | None = None
    save_steps: int = 100
    report_to: tuple[str, ...] = ()
    gradient_checkpointing: bool = False
    torch_compile: bool = False
    save_trajectory: int | None = None
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
