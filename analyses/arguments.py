"""What every script shares: flags, `--config`, and errors as one line on stderr with exit code 2.

Only the standard library is imported here, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import Any, NoReturn

from console import answer_in_json, is_main_process
from running import num_processes

_GENERAL = "general/"  # before the name of a general task where a flag is of all kinds of task


def _once(parser: Any, action: argparse.Action, values: Any, flag: str | None) -> None:
    """Remember what a flag was given; raises `UserError` where it was given something else before."""
    from mcanalysis.errors import UserError

    def shown(value: Any) -> str:
        if isinstance(value, list):
            return ",".join(map(str, value))
        return "all" if value is None else str(value)

    before = parser.given.setdefault(action.dest, values)
    if before != values:
        raise UserError(f"Expected {flag} once, got {shown(before)} and {shown(values)}; leave one out.")


class _Store(argparse._StoreAction):
    """A value, given once; the pairs of all flags together, over those of the configuration file."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if self.type in (pairs, limits):
            given = parser.given.setdefault(self.dest, {})
            given |= _unique([*given.items(), *values], option_string)
            values = {**(parser.get_default(self.dest) or {}), **given}
        else:
            _once(parser, self, values, option_string)
        setattr(namespace, self.dest, values)


class _OnOff(argparse.BooleanOptionalAction):
    """`--flag` or `--no-flag`, not both."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        _once(parser, self, option_string, self.option_strings[0])
        super().__call__(parser, namespace, values, option_string)


class _Append(argparse._AppendAction):
    """All values of a flag that may be repeated, in place of those of the configuration file."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        given = parser.given.setdefault(self.dest, [])
        given.append(values)
        setattr(namespace, self.dest, list(given))


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default where it says something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        says_nothing = action.default is None or action.default is False or action.default in ({}, [])
        return action.help if says_nothing else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and which reads `--config file.yaml` below the flags."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=_Help, allow_abbrev=False)
        self.given: dict[str, Any] = {}  # what the flags of one command line were given so far
        for name, action in (
            (None, _Store), ("store", _Store), ("append", _Append), (argparse.BooleanOptionalAction, _OnOff),
        ):  # fmt: skip
            self.register("action", name, action)
        self.add_argument("--config", metavar="FILE.yaml", help="settings by flag name; flags override them")
        self.add_argument("--json", action="store_true", help="answer with one JSON document on stdout, not with text")

    def group(self, title: str) -> argparse._ArgumentGroup:
        """The flags under a heading of `--help`."""
        return next((g for g in self._action_groups if g.title == title), None) or self.add_argument_group(title)

    def error(self, message: str) -> NoReturn:
        self.exit(2, "" if not is_main_process() else f"error: {message}; see --help\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.given = {}
        return super().parse_known_args(args, namespace)

    def parse(self) -> argparse.Namespace:
        """Flags over the configuration file over defaults."""
        first, _ = self.parse_known_args()
        if first.config:
            self.set_defaults(**self._read_config(first.config))
        args = self.parse_args()
        self._check_of_use(args)
        answer_in_json(args.json)
        return args

    def _check_of_use(self, args: argparse.Namespace) -> None:
        """Raise `UserError` for what is given by name beside what does not look at it."""
        from mcanalysis.errors import UserError

        beside = next((f"--{name}" for name in ("run", "minima") if getattr(args, name, None)), None)
        for name in ("settings", "scores", "max_new_tokens"):
            if beside is None or not getattr(args, name, None) or (name == "max_new_tokens" and beside == "--minima"):
                continue
            flag = f"--{name.replace('_', '-')}"
            remedy = "name the score with --score" if (name, beside) == ("scores", "--minima") else "leave it out"
            raise UserError(f"Expected {flag} with runs that are to be trained, got it with {beside}; {remedy}.")

    def _read_config(self, file: str) -> dict[str, Any]:
        import yaml

        from mcanalysis.errors import UnknownNameError, UserError

        try:
            with open(file, encoding="utf-8") as stream:  # noqa: PTH123
                text = stream.read()
            tree, values = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise UserError(f"Expected a YAML file at '{file}', got: {reason}; check --config.") from None
        values = {} if values is None else values
        if not isinstance(values, dict):
            raise UserError(
                f"Expected settings by name in '{file}', got a {type(values).__name__}; write `flag: value`."
            )
        actions = {a.dest: a for a in self._actions if a.dest not in ("help", "config")}
        for name in _written_twice(tree):
            raise UserError(f"Expected each setting once in '{file}', got {name} twice; leave one out.")
        settings = {}
        for key, value in values.items():
            name = str(key).replace("-", "_")
            if name not in actions:
                raise UnknownNameError(f"setting in '{file}'", str(key), [n.replace("_", "-") for n in actions])
            try:
                settings[name] = _from_yaml(actions[name], value)
            except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
                if isinstance(error, UserError):
                    raise
                reason = f" ({error})" if isinstance(error, argparse.ArgumentTypeError) else ""
                words: dict[Any, str] = {int: "a whole number", float: "a number", pairs: "a block of `name: value`"}
                raise UserError(
                    f"Expected {words.get(actions[name].type, 'another value')} for {key} in '{file}', got "
                    f"{value!r}{reason}; see --help."
                ) from None
        return settings


def _from_yaml(action: argparse.Action, value: Any) -> Any:
    """What a flag would have made of the value; raises `ValueError` or the like where it would have refused it."""
    kind = action.type
    if value is None:
        return action.default
    if action.nargs == 0:  # a switch
        if not isinstance(value, bool):
            raise ValueError(value)
        return value
    if isinstance(value, list):
        if not value or (kind not in (comma_list, integers) and not isinstance(action, argparse._AppendAction)):
            raise ValueError(value)
        return [int(str(v)) if kind is integers else str(v) for v in value]
    if isinstance(value, dict):
        if kind not in (pairs, limits):
            raise ValueError(value)
        if kind is limits:
            return {str(k): int(str(v)) for k, v in value.items()}
        return {str(k): v if isinstance(v, str) else json.dumps(v) for k, v in value.items()}
    made = kind(str(value)) if callable(kind) else str(value)
    if kind in (pairs, limits):
        return _unique(made, action.dest)  # type: ignore[arg-type]
    if action.choices is not None and made not in action.choices:
        raise argparse.ArgumentTypeError(f"choose from {', '.join(action.choices)}")
    return [made] if isinstance(action, argparse._AppendAction) else made


def _written_twice(tree: Any) -> list[str]:
    """Names that a YAML file or one of its blocks holds more than once; YAML itself takes the last."""
    import yaml

    if not isinstance(tree, yaml.MappingNode):
        return []
    entries = [(str(key.value).replace("-", "_"), value) for key, value in tree.value]
    blocks = [[name for name, _ in entries]]
    for name, value in entries:
        if isinstance(value, yaml.MappingNode):
            blocks.append([f"{name}.{key.value}" for key, _ in value.value])
    return [name for block in blocks for name in block if block.count(name) > 1]


def _unique(given: Iterable[tuple[str, Any]], flag: str | None) -> dict[str, Any]:
    """Pairs as a dictionary; raises `UserError` for a name with two values."""
    from mcanalysis.errors import UserError

    made: dict[str, Any] = {}
    for name, value in given:
        if made.setdefault(name, value) != value:
            raise UserError(f"Expected {name} once in {flag}, got {made[name]} and {value}; leave one out.")
    return made


def comma_list(text: str) -> list[str]:
    """`A,B,C` as a list; an empty one is refused."""
    parts = [part for part in (p.strip() for p in text.split(",")) if part]
    if not parts:
        raise argparse.ArgumentTypeError(f"expected A[,B,C], got '{text}'")
    return parts


def integers(text: str) -> list[int]:
    """`0,1,2` as a list of numbers."""
    return [int(part) for part in comma_list(text)]


def pairs(text: str) -> list[tuple[str, str]]:
    """`A=x,B=y` as (name, value); the parser makes one dictionary of all flags of a kind."""
    entries = [part.partition("=") for part in comma_list(text)]
    if not all(name.strip() and equals for name, equals, _ in entries):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE[,NAME=VALUE], got '{text}'")
    return [(name.strip(), value.strip()) for name, _, value in entries]


def limits(text: str) -> list[tuple[str, int]]:
    """`A=64,B=256` as (name, number); a number alone is that of the task "", which stands for all."""
    try:
        return [(name, int(value)) for name, value in (pairs(text) if "=" in text else [("", text)])]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected N or TASK=N[,TASK=N], got '{text}'") from None


def limit_of_all(args: argparse.Namespace) -> int | None:
    """The one number of `--max-new-tokens`; raises `UserError` for numbers of single tasks."""
    from mcanalysis.errors import UserError

    if set(args.max_new_tokens) - {""}:
        raise UserError("Expected one number for --max-new-tokens with --minima, got TASK=N; give --max-new-tokens N.")
    return args.max_new_tokens.get("")


def count_or_all(text: str) -> int | None:
    """A number, or `all`."""
    return None if text == "all" else int(text)


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
    from mcanalysis.experiments.strategies import General

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


def add_workers_flag(parser: Parser) -> None:
    """How many processes share the cores."""
    parser.group("execution").add_argument(
        "--workers", type=int, default=None, help="runs side by side (default: cores, for a small model on CPU)"
    )


def workers(args: argparse.Namespace) -> int:
    """The number of processes to use."""
    from pathlib import Path

    from mcanalysis.errors import UserError
    from mcanalysis.experiments.jobs import default_workers
    from mcanalysis.models.loading import default_device, model_source

    if num_processes() > 1:  # they are the workers
        if args.workers is not None:
            raise UserError(
                f"Expected --workers without a launch of several processes, got both, {args.workers} and "
                f"{num_processes()}; leave --workers out."
            )
        if ":" in (args.device or ""):
            raise UserError(
                f"Expected --device cuda in a launch of several processes, each of which has its own GPU, got "
                f"{args.device}; leave it out or choose with CUDA_VISIBLE_DEVICES."
            )
        return num_processes()
    if args.workers is not None and args.workers < 1:
        raise UserError(f"Expected --workers of at least 1, got {args.workers}; leave it out for the default.")
    if args.workers is not None:
        return args.workers
    folder = Path(model_source(args.model))
    # A model of the hub is taken to be large.
    size = sum(f.stat().st_size for f in folder.glob("*.safetensors")) if folder.is_dir() else 1 << 40
    return default_workers(args.device or default_device(), size)
