"""What every script shares: flags, `--config`, and errors as one line on stderr with exit code 2.

Only the standard library is imported here, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and which reads `--config file.yaml` below the flags."""

    def __init__(self, description: str | None) -> None:
        super().__init__(
            description=description,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("--config", metavar="FILE.yaml", help="settings by flag name; flags override them")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see --help\n")

    def parse(self) -> argparse.Namespace:
        """Flags over the configuration file over defaults."""
        first, _ = self.parse_known_args()
        if first.config:
            self.set_defaults(**self._read_config(first.config))
        return self.parse_args()

    def _read_config(self, file: str) -> dict[str, Any]:
        import yaml

        from mcanalysis.errors import UnknownNameError, UserError

        try:
            with open(file, encoding="utf-8") as stream:  # noqa: PTH123
                values = yaml.safe_load(stream) or {}
        except (OSError, yaml.YAMLError) as error:
            raise UserError(
                f"Expected a YAML file at '{file}', got: {' '.join(str(error).split())}; check --config."
            ) from None
        if not isinstance(values, dict):
            raise UserError(
                f"Expected settings by name in '{file}', got a {type(values).__name__}; write `flag: value`."
            )
        actions = {a.dest: a for a in self._actions if a.dest not in ("help", "config")}
        settings = {}
        for key, value in values.items():
            name = str(key).replace("-", "_")
            if name not in actions:
                raise UnknownNameError(f"setting in '{file}'", str(key), [n.replace("_", "-") for n in actions])
            kind = actions[name].type
            if isinstance(value, list):
                value = [int(v) if kind is integers else str(v) for v in value]
            elif isinstance(value, dict):
                value = {str(k): str(v) for k, v in value.items()}
            elif callable(kind) and value is not None:
                try:
                    value = kind(str(value))
                except (ValueError, argparse.ArgumentTypeError):
                    raise UserError(
                        f"Expected another value for {key} in '{file}', got {value!r}; see --help."
                    ) from None
            settings[name] = value
        return settings


def comma_list(text: str) -> list[str]:
    """`A,B,C` as a list."""
    return [part for part in (p.strip() for p in text.split(",")) if part]


def integers(text: str) -> list[int]:
    """`0,1,2` as a list of numbers."""
    return [int(part) for part in comma_list(text)]


def pairs(text: str) -> dict[str, str]:
    """`A=x,B=y` as a dictionary."""
    entries = [part.split("=", 1) for part in comma_list(text)]
    if any(len(entry) != 2 for entry in entries):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE[,NAME=VALUE], got '{text}'")
    return {name.strip(): value.strip() for name, value in entries}


def count_or_all(text: str) -> int | None:
    """A number, or `all`."""
    return None if text == "all" else int(text)


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Which model, where it runs."""
    parser.add_argument("--model", default="embedded", help="'embedded', a folder, or a hub id")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1, mps (default: cuda if present)")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, …")


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """What is trained, on what."""
    add_model_flags(parser)
    parser.add_argument("--benchmark", default="embedded", help="embedded, trace or ilora")
    parser.add_argument("--data-dir", default=None, metavar="DIR", help="<DIR>/<TASK>/{train,eval,test}.json")
    parser.add_argument("--tasks", type=comma_list, default=None, metavar="A,B,C", help="tasks, in this order")
    parser.add_argument("--scores", type=pairs, default={}, metavar="TASK=SCORE", help="another score for a task")
    parser.add_argument("--settings", type=pairs, default={}, metavar="NAME=VALUE", help="settings of the strategy")
    parser.add_argument("--steps", type=int, default=None, help="optimiser steps per task (default 120)")
    parser.add_argument("--batch-size", type=int, default=16, help="examples per micro-batch")
    parser.add_argument("--gradient-accumulation", type=int, default=1, help="micro-batches per step")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--max-length", type=int, default=1024, help="tokens; longer prompts lose their middle")
    parser.add_argument("--num-train", type=int, default=None, help="train examples per task")
    parser.add_argument("--num-test", type=count_or_all, default=None, help="test examples per task for the matrix")
    parser.add_argument("--lora-rank", type=int, default=8)
    parser.add_argument("--lora-alpha", type=float, default=16.0)
    parser.add_argument("--target-modules", type=comma_list, default=None, help="layers to adapt, or all-linear")
    parser.add_argument("--resume", action="store_true", help="go on with unfinished runs")


def run_config(args: argparse.Namespace, strategy: str, seed: int, settings: dict[str, Any]) -> Any:
    """The run configuration that the flags describe."""
    from mcanalysis.training.config import RunConfig, TrainingConfig

    training = {
        "batch_size": args.batch_size,
        "gradient_accumulation": args.gradient_accumulation,
        "learning_rate": args.learning_rate,
        "max_length": args.max_length,
    }
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
        sizes={} if args.num_train is None else {"train": args.num_train},
        num_test=args.num_test,
        lora_rank=args.lora_rank,
        lora_alpha=args.lora_alpha,
        target_modules=tuple(args.target_modules) if args.target_modules else None,
        training=TrainingConfig(**training),
    )


def typed(settings: dict[str, str]) -> dict[str, Any]:
    """Values of strategy settings as numbers, booleans and None where they read so."""
    import yaml

    return {name: yaml.safe_load(value) for name, value in settings.items()}


def add_workers_flag(parser: argparse.ArgumentParser) -> None:
    """How many processes share the cores."""
    parser.add_argument(
        "--workers", type=int, default=None, help="processes (default: cores, for a small model on CPU)"
    )


def workers(args: argparse.Namespace) -> int:
    """The number of processes to use."""
    from pathlib import Path

    from mcanalysis.errors import UserError
    from mcanalysis.experiments.jobs import default_workers
    from mcanalysis.models.loading import default_device, model_source

    if args.workers is not None and args.workers < 1:
        raise UserError(f"Expected --workers of at least 1, got {args.workers}; leave it out for the default.")
    if args.workers is not None:
        return args.workers
    folder = Path(model_source(args.model))
    # A model of the hub is taken to be large.
    size = sum(f.stat().st_size for f in folder.glob("*.safetensors")) if folder.is_dir() else 1 << 40
    return default_workers(args.device or default_device(), size)


def quiet_libraries() -> None:
    """Keep transformers' loading bars and advice off the terminal; errors still show."""
    import warnings

    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main; a mistake in the input ends it with one line on stderr and exit code 2."""
    from mcanalysis.errors import UserError

    try:
        main()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; finished tasks and measurements are kept, --resume goes on", file=sys.stderr)
        sys.exit(130)


def bar(*, total: int, desc: str) -> Any:
    """A bar with time left on stderr, rarely redrawn where that is no terminal; of several only the first stays."""
    from tqdm import tqdm

    interval = 0.5 if sys.stderr.isatty() else 20
    return tqdm(total=total, desc=desc, mininterval=interval, dynamic_ncols=True, leave=None)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text with aligned columns, the first row a header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
