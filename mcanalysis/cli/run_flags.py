"""The flags that say which runs: what is trained, on what and how, or finished ones; and what they describe."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mcanalysis.cli.console import bar
from mcanalysis.cli.flags import Parser, comma_list, count_or_all, integers, limits, pairs
from mcanalysis.cli.running import quiet_libraries
from mcanalysis.cli.workers import add_workers_flags

if TYPE_CHECKING:
    from mcanalysis.runs.run import Run

_GENERAL = "general/"  # before the name of a general task where a flag is of all kinds of task


def add_model_flags(parser: Parser) -> None:
    """Which model, where it runs."""
    model = parser.group("model")
    model.add_argument("--model", default="embedded", help="'embedded', a folder, or a hub id")
    model.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, …")
    execution = parser.group("execution")
    execution.add_argument("--device", default=None, help="cpu, cuda, cuda:1, mps (default: cuda if present)")
    execution.add_argument("--token-budget", type=int, metavar="N", help="most tokens evaluated at once (2048)")
    execution.add_argument(
        "--engine", type=comma_list, default=[], metavar="A,B",
        help="force how points are evaluated: merged or unmerged, shared or whole (prefixes), compiled",
    )  # fmt: skip


def add_run_flags(parser: Parser) -> None:
    """What is trained, on what, and how."""
    for title in ("model", "data", "optimisation", "execution"):  # in this order in --help
        parser.group(title)
    add_model_flags(parser)
    parser.add_argument("--settings", type=pairs, default={}, metavar="NAME=VALUE", help="settings of the strategy")
    model = parser.group("model")
    model.add_argument("--quantization", choices=("4bit", "8bit"), help="of the base; needs an NVIDIA GPU")
    model.add_argument("--lora-rank", type=int, default=8, help="r")
    model.add_argument("--lora-alpha", type=float, default=16.0, help="ΔW = alpha/r · B·A")
    model.add_argument("--lora-dropout", type=float, default=0.0, help="on the adapter's input")
    model.add_argument("--target-modules", type=comma_list, default=None, help="layers to adapt, or all-linear")
    data = parser.group("data")
    data.add_argument("--benchmark", default="embedded", help="embedded, trace or ilora")
    data.add_argument("--data-dir", default=None, metavar="DIR", help="<DIR>/<TASK>/{train,eval,test}.json")
    data.add_argument("--tasks", type=comma_list, default=None, metavar="A,B,C", help="tasks, in this order")
    data.add_argument("--scores", type=pairs, default={}, metavar="TASK=SCORE", help="another score for a task")
    data.add_argument(
        "--max-new-tokens",
        type=limits,
        default={},
        metavar="TASK=N",
        help="most tokens generated for an answer; with --minima N",
    )
    data.add_argument("--num-train", type=int, default=None, help="train examples per task")
    data.add_argument("--num-test", type=count_or_all, default=None, help="test examples per task for the matrix")
    data.add_argument("--max-length", type=int, default=1024, help="tokens; longer prompts lose their middle")
    optimisation = parser.group("optimisation")
    optimisation.add_argument("--steps", type=int, default=None, help="optimiser steps per task (default: 120)")
    optimisation.add_argument("--batch-size", type=int, default=16, help="examples per micro-batch, of all processes")
    optimisation.add_argument("--gradient-accumulation", type=int, default=1, help="micro-batches per step")
    optimisation.add_argument("--learning-rate", type=float, default=3e-3, help="at its peak")
    optimisation.add_argument("--warmup-ratio", type=float, default=0.1, help="share of a task's steps; then it decays")
    optimisation.add_argument("--weight-decay", type=float, default=0.0, help="of AdamW")
    optimisation.add_argument("--max-grad-norm", type=float, default=1.0, help="0 does not clip")
    optimisation.add_argument(
        "--group-by-length",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="less padding, and less of a mixture, in a step",
    )
    execution = parser.group("execution")
    execution.add_argument("--resume", action="store_true", help="go on with unfinished runs")
    execution.add_argument("--save-steps", type=int, default=100, help="the most steps that a kill can lose")
    execution.add_argument("--report-to", type=comma_list, default=None, help="tensorboard, wandb, mlflow")
    execution.add_argument("--gradient-checkpointing", action="store_true", help="less memory, more time")
    execution.add_argument("--torch-compile", action="store_true", help="compile the model")
    execution.add_argument(
        "--save-trajectory",
        type=int,
        default=None,
        metavar="N",
        help="snapshot of every learner each N steps (0: none; default: 10 where an adapter is small, up to 1 MB)",
    )


def add_general_flags(parser: Parser) -> None:
    """Tasks that are measured before and after training, and never trained."""
    data = parser.group("data")
    data.add_argument(
        "--general-data", default=None, metavar="DIR", help="<DIR>/<TASK>/test.json, scored before and after training"
    )
    data.add_argument("--general-tasks", type=comma_list, default=None, metavar="A,B", help="some of them (all)")


def limit_of_all(args: argparse.Namespace) -> int | None:
    """The one number of `--max-new-tokens`; raises `UserError` for numbers of single tasks."""
    from mcanalysis.errors import UserError

    if set(args.max_new_tokens) - {""}:
        raise UserError("Expected one number for --max-new-tokens with --minima, got TASK=N; give --max-new-tokens N.")
    return args.max_new_tokens.get("")


def run_config(args: argparse.Namespace, strategy: str, seed: int, settings: dict[str, Any]) -> Any:
    """The run configuration that the flags describe."""
    from mcanalysis.errors import UserError
    from mcanalysis.training.config import RunConfig, TrainingConfig

    names = (
        "batch_size", "gradient_accumulation", "learning_rate", "warmup_ratio", "max_grad_norm", "weight_decay",
        "max_length", "group_by_length",
    )  # fmt: skip
    training = {name: getattr(args, name) for name in names}
    has_general = hasattr(args, "general_data")
    if "" in args.max_new_tokens:
        raise UserError(
            f"Expected TASK=N for --max-new-tokens, got {args.max_new_tokens['']} for no task; name the task."
        )
    if args.steps is not None:
        training["num_steps"] = args.steps
    return RunConfig(
        strategy=strategy,
        strategy_settings=settings,
        seed=seed,
        model=args.model,
        dtype=args.dtype,
        benchmark=args.benchmark,
        data_dir=args.data_dir,
        tasks=tuple(args.tasks) if args.tasks else None,
        scores=args.scores,
        max_new_tokens={n: v for n, v in args.max_new_tokens.items() if not (has_general and n.startswith(_GENERAL))},
        sizes={} if args.num_train is None else {"train": args.num_train},
        num_test=args.num_test,
        quantization=args.quantization,
        lora_rank=args.lora_rank,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=tuple(args.target_modules) if args.target_modules else None,
        training=TrainingConfig(**training),
    )


def engine(args: argparse.Namespace) -> Any:
    """How the flags want points evaluated."""
    from mcanalysis.errors import UnknownNameError
    from mcanalysis.evaluation.engine_settings import EngineSettings

    known = {
        "merged": {"adapter": "merged"}, "unmerged": {"adapter": "unmerged"}, "shared": {"prefix": "shared"},
        "whole": {"prefix": "whole"}, "compiled": {"compile": True},
    }  # fmt: skip
    forced: dict[str, Any] = {}
    for name in args.engine:
        if name not in known:
            raise UnknownNameError("way of evaluating for --engine", name, list(known))
        forced |= known[name]
    return EngineSettings(token_budget=args.token_budget, **forced)


def execution(args: argparse.Namespace) -> Any:
    """How the flags want a run carried out."""
    from mcanalysis.training.config import Execution

    return Execution(
        device=args.device,
        save_steps=args.save_steps,
        report_to=tuple(args.report_to or ()),
        gradient_checkpointing=args.gradient_checkpointing,
        torch_compile=args.torch_compile,
        save_trajectory=args.save_trajectory,
        engine=engine(args),
    )


def general(args: argparse.Namespace) -> Any:
    """The held-out tasks that the flags name, or None."""
    from mcanalysis.errors import UserError
    from mcanalysis.studies.strategies import General

    if args.general_data is None and args.general_tasks is not None:
        raise UserError("Expected --general-data with --general-tasks, got the latter alone; name the folder.")
    limits = {n.removeprefix(_GENERAL): v for n, v in args.max_new_tokens.items() if n.startswith(_GENERAL)}
    if args.general_data is None:
        if limits:
            raise UserError(
                "Expected --general-data with limits of general tasks, got the latter alone; name the folder."
            )
        return None
    return General(args.general_data, None if args.general_tasks is None else tuple(args.general_tasks), limits)


def typed(settings: dict[str, str]) -> dict[str, Any]:
    """Values of strategy settings as numbers, booleans and None where they read so."""
    import yaml

    def read(text: str) -> Any:
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            return text
        try:
            return float(value) if isinstance(value, str) else value
        except ValueError:
            return value  # text that is no number, not even 1e5, which YAML 1.1 takes for text

    return {name: read(value) for name, value in settings.items()}


def workers(args: argparse.Namespace) -> int:
    """The number of processes to use."""
    from pathlib import Path

    from mcanalysis.errors import UserError
    from mcanalysis.models.loading import default_device, model_source
    from mcanalysis.studies.jobs import default_workers

    if args.scheduler is not None:
        raise UserError("This study does not compute on a cluster yet: give --workers instead of --scheduler.")
    if args.workers is not None and args.workers < 1:
        raise UserError(f"Expected --workers of at least 1, got {args.workers}; leave it out for the default.")
    if args.workers is not None:
        return args.workers
    folder = Path(model_source(args.model))
    # A model of the hub is taken to be large.
    size = sum(f.stat().st_size for f in folder.glob("*.safetensors")) if folder.is_dir() else 1 << 40
    return default_workers(args.device or default_device(), size)


def add_study_flags(parser: Parser, strategies: Sequence[str]) -> None:
    """Flags of the runs; by default those of the main job, of these strategies."""
    add_run_flags(parser)
    parser.add_argument("--run", action="append", metavar="DIR", help="a finished run to analyse; repeatable")
    parser.add_argument("--strategy", type=comma_list, default=list(strategies), metavar="A,B", help="strategies")
    parser.add_argument("--seed", type=integers, default=[0], metavar="0,1,2", help="one run per strategy and seed")
    parser.add_argument("--output-dir", default="runs", help="holds the run directories and comparison/")
    add_workers_flags(parser)


def study_runs(args: argparse.Namespace) -> list[Run]:
    """The finished runs; those that `--run` does not name are trained if they are not there."""
    from mcanalysis.runs.run import load_run
    from mcanalysis.studies.strategies import need_paths, study_configs, train_runs

    if args.run:
        return [load_run(directory, args.device, engine(args)) for directory in args.run]
    need_paths(args.strategy)
    base = run_config(args, args.strategy[0], args.seed[0], {})
    return train_runs(
        study_configs(base, args.strategy, args.seed, typed(args.settings)), args.output_dir,
        resume=args.resume, execution=execution(args), workers=workers(args), progress=bar, initializer=quiet_libraries,
    )  # fmt: skip
