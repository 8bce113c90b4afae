"""What a run is: every setting that can change its result, resolved, in one frozen object."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from typing import Annotated, Any, Literal

from mcanalysis.errors import UnknownNameError, UserError
from mcanalysis.evaluation.engine_settings import AUTO, EngineSettings
from mcanalysis.models.chat_template import AUTO as AUTO_TEMPLATE
from mcanalysis.models.chat_template import NONE as NO_TEMPLATE
from mcanalysis.settings import BASIC, MOST_EXAMPLES, MOST_STEPS, OR_ALL, SEEDS, Bounds, Flag, check_bounds

NUM_STEPS = 120
"""Optimiser steps of a task where neither steps nor epochs are given."""

RATES, RATE = {"embedded": 3e-3}, 2e-4
"""Learning rates by base, and that of any other, where none is given.

2e-4 is that of the LoRA paper's GPT-2 (Hu et al. 2021; microsoft/LoRA, examples/NLG), of QLoRA up to 13 B (Dettmers et
al. 2023; artidoro/qlora, whose README has 1e-4 for larger ones) and of TRL's guide to PEFT; LLMCL and TRACE have 1e-4.
3e-3 was chosen for the embedded base of 1.2 M parameters.
"""

MOST_TRAINED = 20_000_000
"""Examples that a task's steps may take, repetitions counted: their order is drawn before the first one."""

SCHEDULES = ("linear", "cosine", "constant")

TRACKERS = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "mlflow": ("mlflow",)}
"""The trackers that `Execution.report_to` may name, each with the packages of which it needs one."""


@dataclass(frozen=True)
class TrainingConfig:
    """The optimisation of one task; each task starts with a fresh optimiser and schedule.

    `num_steps` optimiser steps of `batch_size` × `gradient_accumulation` examples (of all processes together), AdamW,
    gradients clipped to `max_grad_norm`. Steps may be given by task, or as `epochs` of ⌈examples / examples of a step⌉
    steps each, as transformers' Trainer counts them. The rate rises over `warmup_ratio` of a task's steps and goes on
    by `schedule` (`training.schedule` has the formula).

    `learning_rate`: None is that of the base, 3e-3 for the embedded one and 2e-4 for any other (`RATES`). Without
    warm-up and clipping a rate of 3e-3 now and then wrecks a task of the embedded base. `group_by_length` is off,
    because steps that are less of a mixture learn less (measured in docs/training.md); micro-batches of one step are
    of like length either way.

    `from_zero`: the linear schedule of version 0.1, whose warm-up has rate 0 at each task's first step. A run that was
    begun with it, which its manifest tells by having no `schedule`, goes on with it.

    `fork`: (task, after, seed): that task's examples come in another order, of that seed, from its step `after` on, and
    all else is the same (`studies.basin`).
    """

    num_steps: Annotated[
        int | Mapping[str, int] | None,
        "optimiser steps per task (default: 120)",
        Flag(name="steps"),
        Bounds(1, MOST_STEPS),
    ] = None
    batch_size: Annotated[int, "examples per micro-batch, of all processes", Bounds(1, 65_536)] = 16
    gradient_accumulation: Annotated[int, "micro-batches per step", Bounds(1, 65_536)] = 1
    learning_rate: Annotated[
        float | None, "at its peak (default: 3e-3 for the embedded base, 2e-4 for others)", Bounds(high=100.0)
    ] = None
    warmup_ratio: Annotated[float, "share of a task's steps in which the rate rises", Bounds(0.0, 1.0)] = 0.1
    max_grad_norm: Annotated[float, "0 does not clip", Bounds(0.0)] = 1.0
    weight_decay: Annotated[float, "of AdamW", Bounds(0.0)] = 0.0
    max_length: Annotated[int, "tokens; longer prompts lose their middle", Bounds(1, 1 << 30)] = 1024
    group_by_length: Annotated[bool, "less padding, and less of a mixture, in a step"] = False
    schedule: Annotated[Literal["linear", "cosine", "constant"], "of the rate after its warm-up"] = "linear"
    epochs: Annotated[
        int | Mapping[str, int] | None, "passes over a task's train examples, not --steps", Bounds(1, MOST_STEPS)
    ] = None
    from_zero: bool = False
    fork: tuple[str, int, int] | None = None

    def __post_init__(self) -> None:
        if self.fork is not None:
            object.__setattr__(self, "fork", tuple(self.fork))  # a list where it comes from a manifest
            if self.fork[1] < 0 or self.group_by_length:
                raise UserError(
                    f"Expected a fork after at least 0 steps of a task whose order is free, got {self.fork[1]} steps"
                    f"{' and group_by_length' if self.group_by_length else ''}; change it."
                )
        if self.num_steps is None and self.epochs is None:
            object.__setattr__(self, "num_steps", NUM_STEPS)
        if self.num_steps is not None and self.epochs is not None:
            raise UserError("Expected steps or epochs, got both; leave out --steps or --epochs.")
        check_bounds(self)
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise UserError(f"Expected a positive learning_rate, got {self.learning_rate}; leave it out.")
        if self.schedule not in SCHEDULES:
            raise UnknownNameError("schedule", self.schedule, SCHEDULES)
        if self.from_zero and self.schedule != "linear":
            raise UserError(f"Expected a linear schedule with from_zero, got {self.schedule}; leave from_zero out.")

    def steps_of(self, task: str, num_examples: int) -> int:
        """Optimiser steps of a task with so many train examples; raises `UserError` for one that none are given for.

        >>> TrainingConfig(epochs={"FOMC": 3}, batch_size=16).steps_of("FOMC", 100)
        21
        """
        flag, number = ("--epochs", self.epochs) if self.num_steps is None else ("--steps", self.num_steps)
        if isinstance(number, Mapping):
            if task not in number:
                raise UserError(f"Expected {flag} for every task, got none for {task}; add {task}=N.")
            number = number[task]
        assert number is not None  # one of the two is given
        in_a_step = self.batch_size * self.gradient_accumulation
        steps = number * math.ceil(num_examples / in_a_step) if self.num_steps is None else number
        if steps * in_a_step > MOST_TRAINED:
            raise UserError(
                f"Expected at most {MOST_TRAINED:,} examples of {task} to be trained on, each time counted, got "
                f"{steps:,} steps of {in_a_step:,}; lower {flag}, --batch-size or --gradient-accumulation."
            )
        return steps

    def num_warmup_steps(self, num_steps: int) -> int:
        """How many of a task's steps are warm-up."""
        return math.floor(self.warmup_ratio * num_steps + 1e-9)  # 0.29 · 100 is 29

    def check_tasks(self, tasks: Sequence[str], others: Sequence[str] = ()) -> None:
        """Raise `UserError` where steps by task are not of `tasks`; `others`, that are not trained, may have some too.

        So one file of settings does for some tasks of its benchmark.
        """
        for flag, given in (("--steps", self.num_steps), ("--epochs", self.epochs)):
            for name in given if isinstance(given, Mapping) else ():
                if name not in (*tasks, *others):
                    raise UnknownNameError(f"task for {flag}", name, tasks)
        for task in tasks:
            self.steps_of(task, 1)

    def rate_for(self, model: str) -> float:
        """The peak learning rate on a base.

        >>> TrainingConfig().rate_for("embedded"), TrainingConfig().rate_for("Qwen/Qwen2.5-0.5B")
        (0.003, 0.0002)
        """
        return RATES.get(model, RATE) if self.learning_rate is None else self.learning_rate

    def resolved(self, model: str) -> dict[str, Any]:
        """As JSON types, for the manifest; without what runs of version 0.1 had no choice of, where it is as theirs."""
        resolved = {**asdict(self), "learning_rate": self.rate_for(model)}
        if self.epochs is None:
            del resolved["epochs"]
        resolved |= {} if (fork := resolved.pop("fork")) is None else {"fork": list(fork)}
        if resolved.pop("from_zero"):
            del resolved["schedule"]
        return resolved


def steps_in_words(training: Mapping[str, Any]) -> str:
    """How long each task is trained, by the `training` of a manifest.

    >>> steps_in_words({"num_steps": 120}), steps_in_words({"num_steps": None, "epochs": {"A": 5, "B": 3}})
    ('120 steps each', 'epochs A 5, B 3')
    """
    unit = "steps" if training.get("epochs") is None else "epochs"
    number = training["num_steps" if unit == "steps" else unit]
    if isinstance(number, Mapping):
        return f"{unit} {', '.join(f'{task} {n}' for task, n in number.items())}"
    return f"{number} {unit} each"


@dataclass(frozen=True)
class RunConfig:
    """One strategy × one seed on one benchmark.

    `scores` and `max_new_tokens` replace a task's own score and limit of generated tokens, by its name. `sizes`:
    examples per split, where it is not to be the benchmark's own. `quantization` is that of bitsandbytes.
    `chat_template`: `auto`, `none` or a Jinja text; a run's own configuration never has `auto`, but what it came to.
    `scored_split`: whose examples the accuracy matrix is of; "eval" for runs that settings are chosen by.
    """

    strategy: str = "ilora"
    strategy_settings: Annotated[Mapping[str, Any], "settings of the strategy", Flag(name="settings")] = field(
        default_factory=dict
    )
    seed: Annotated[int, Flag(name="seed"), SEEDS] = 0
    model: Annotated[str, "'embedded', 'smollm2', a folder, a GGUF file, or a hub id", BASIC] = "embedded"
    dtype: Annotated[str, "auto, float32, bfloat16, …"] = "auto"
    benchmark: Annotated[str, "embedded, study, trace, ilora, standard, long or superni", BASIC] = "embedded"
    data_dir: Annotated[
        str | None, "<DIR>/<TASK>/{train,eval,test}.json, or hub:OWNER/NAME of such", Flag(metavar="DIR", basic=True)
    ] = None
    tasks: Annotated[tuple[str, ...] | None, "tasks, in this order", Flag(metavar="A,B,C", basic=True)] = None
    scores: Annotated[Mapping[str, str], "another score for a task", Flag(metavar="TASK=SCORE")] = field(
        default_factory=dict
    )
    sizes: Annotated[Mapping[str, int], Flag(name="num-train"), Bounds(high=MOST_EXAMPLES)] = field(
        default_factory=dict
    )
    num_test: Annotated[int | None, "test examples per task for the matrix", OR_ALL, Bounds(1)] = None
    quantization: Annotated[Literal["4bit", "8bit"] | None, "of the base; needs an NVIDIA GPU"] = None
    lora_rank: Annotated[int, "r", Bounds(1, 16_384)] = 8
    lora_alpha: Annotated[float, "ΔW = alpha/r · B·A", Bounds(high=1e6)] = 16.0
    lora_dropout: Annotated[float, "on the adapter's input"] = 0.0
    target_modules: Annotated[tuple[str, ...] | None, "layers to adapt, or all-linear"] = None
    training: TrainingConfig = field(default_factory=TrainingConfig)
    max_new_tokens: Annotated[
        Mapping[str, int],
        "most tokens generated for an answer; with --minima N",
        Flag(metavar="TASK=N"),
        Bounds(high=1_000_000),
    ] = field(default_factory=dict)
    order: Annotated[str | None, "order of the tasks: a published one or shuffledN", Flag(metavar="NAME")] = None
    revision: Annotated[str | None, "branch, tag or commit of a model of the hub"] = None
    chat_template: Annotated[
        str,
        "a Jinja file for prompts; auto: the tokenizer's own where the model was trained to answer in it",
        Flag(metavar="auto|none|FILE"),
    ] = AUTO_TEMPLATE
    scored_split: Literal["test", "eval"] = "test"

    def __post_init__(self) -> None:
        check_bounds(self)
        for name in {"name", "seed"} & set(self.strategy_settings):
            raise UserError(
                f"Expected settings of {self.strategy}, got {name}, which is a run's; give it by its own flag."
            )
        if not self.lora_alpha > 0:
            raise UserError(f"Expected a positive lora_alpha, got {self.lora_alpha}; leave it out to use 16.")
        if not 0 <= self.lora_dropout < 1:
            raise UserError(f"Expected lora_dropout in [0, 1), got {self.lora_dropout}; leave it out to use 0.")

    def resolved(self) -> dict[str, Any]:
        """As JSON types, for the manifest; two runs with equal resolved configurations are the same run."""
        from mcanalysis.strategies import make_strategy

        resolved = asdict(self)
        if not self.max_new_tokens:
            del resolved["max_new_tokens"]  # as in runs of version 0.1, which it leaves the same runs
        if self.revision is None:
            del resolved["revision"]
        if self.order is None:
            del resolved["order"]  # likewise
        if self.chat_template in (AUTO_TEMPLATE, NO_TEMPLATE):
            del resolved["chat_template"]  # as well
        if self.scored_split == "test":
            del resolved["scored_split"]  # as well
        strategy = make_strategy(self.strategy, self.seed, **self.strategy_settings)
        resolved["strategy_settings"] = strategy.config.recorded()
        resolved["training"] = self.training.resolved(self.model)
        return resolved

    def settled(self, recorded: Mapping[str, Any] | None = None) -> RunConfig:
        """This configuration with a value where the choice is left to the base.

        `recorded`: the configuration of a run that is there, to be gone on with or served. One of before there was a
        choice of schedules, which its `training` tells by having none, keeps what it was begun with: a linear schedule
        `from_zero`, and a rate of 3e-3 where none is given.
        """
        training = self.training
        before = None if recorded is None else recorded.get("training")
        if isinstance(before, Mapping) and "schedule" not in before and training.schedule == "linear":
            training = replace(training, learning_rate=training.rate_for("embedded"), from_zero=True)
        return replace(self, training=replace(training, learning_rate=training.rate_for(self.model)))

    @classmethod
    def from_resolved(cls, values: Mapping[str, Any]) -> RunConfig:
        """The configuration a manifest holds."""
        kept = {"chat_template": NO_TEMPLATE, **values}
        kept["training"] = TrainingConfig(**kept["training"], from_zero="schedule" not in kept["training"])
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
    save_steps: Annotated[int, "the most steps that a kill can lose", Bounds(1)] = 100
    report_to: Annotated[tuple[str, ...], "tensorboard, wandb, mlflow"] = ()
    gradient_checkpointing: Annotated[bool, "less memory, more time"] = False
    torch_compile: Annotated[bool, "compile the model"] = False
    save_trajectory: Annotated[
        int | None,
        "snapshot of every learner each N steps (0: none; default: 10 where an adapter is small, up to 1 MB)",
        Bounds(0),
    ] = None
    engine: EngineSettings = AUTO

    def __post_init__(self) -> None:
        check_bounds(self)
        for tracker in self.report_to:
            if tracker not in TRACKERS:
                raise UnknownNameError("tracker", tracker, TRACKERS)
            if not any(find_spec(package) for package in TRACKERS[tracker]):
                package = TRACKERS[tracker][0]
                raise UserError(
                    f"Expected the package {package} to report to {tracker}, got none; run pip install {package}, or "
                    f"leave {tracker} out."
                )
