"""The flags that say where pieces are computed, and the workers that they describe."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mcanalysis.cli.console import bar, warn
from mcanalysis.cli.flags import Parser, whole
from mcanalysis.cli.running import quiet_libraries

if TYPE_CHECKING:
    from mcanalysis.studies.engine import Workers


def add_workers_flags(parser: Parser) -> None:
    """How many processes compute, or which cluster does."""
    execution = parser.group("execution")
    execution.add_argument(
        "--workers",
        type=whole(1, 1024),
        metavar="N",
        help="processes side by side (default: cores, for a small model on CPU)",
    )
    execution.add_argument("--scheduler", metavar="ADDRESS|FILE", help="compute on the workers of a dask scheduler")
    execution.add_argument("--insecure", action="store_true", help="a scheduler on another machine, unencrypted")
    execution.add_argument(
        "--time-limit", type=float, default=14400.0, metavar="SECONDS",
        help="after which a piece that does not train is taken to hang, and its worker killed; 0: never",
    )  # fmt: skip


@contextmanager
def workers(args: argparse.Namespace) -> Iterator[Workers]:
    """Where the flags want pieces computed; what was started for it is gone at the end of the block."""
    from mcanalysis.errors import UserError
    from mcanalysis.studies.engine import Here
    from mcanalysis.studies.executors.processes import Processes

    if not args.time_limit >= 0:
        raise UserError(f"--time-limit is a number of seconds, 0 for none; got {args.time_limit:g}.")
    if args.scheduler is not None:
        if args.workers is not None:
            raise UserError("--workers starts processes here, --scheduler uses those of a cluster: leave one out.")
        from mcanalysis.studies.executors.cluster import Cluster

        with Cluster(
            args.scheduler, bar, quiet_libraries,
            piece_seconds=args.time_limit, insecure=args.insecure, say=warn,
        ) as cluster:  # fmt: skip
            for name in ("distributed", "distributed.client"):  # what matters of it is said by us
                logging.getLogger(name).setLevel(logging.CRITICAL)
            yield cluster
        return
    if args.insecure:
        raise UserError("--insecure is about a --scheduler, and there is none: leave it out.")
    number = number_of_workers(args)
    if number == 1:
        yield Here(bar)
        return
    with Processes(number, bar, quiet_libraries, args.time_limit) as processes:
        yield processes


def number_of_workers(args: argparse.Namespace) -> int:
    """The processes of this machine that the flags ask for: by default one for each core where the model is small."""
    from pathlib import Path

    from mcanalysis.errors import UserError
    from mcanalysis.models.base_source import model_source
    from mcanalysis.models.loading import default_device
    from mcanalysis.studies.executors.processes import default_workers

    if args.workers is None:
        folder = Path(model_source(args.model))
        # A model of the hub is taken to be large.
        size = sum(f.stat().st_size for f in folder.glob("*.safetensors")) if folder.is_dir() else 1 << 40
        return default_workers(args.device or default_device(), size)
    if args.workers > 1 and (":" in (args.device or "") or args.device == "auto"):
        raise UserError(
            f"Each of {args.workers} workers has a GPU of its own, so --device {args.device} means nothing: choose "
            "with CUDA_VISIBLE_DEVICES."
        )
    return args.workers
