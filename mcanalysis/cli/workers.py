"""Where a study's pieces are computed, as the flags say."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mcanalysis.cli.console import bar
from mcanalysis.cli.run_flags import workers as number
from mcanalysis.cli.running import quiet_libraries


@contextmanager
def workers(args: argparse.Namespace) -> Iterator[Any]:
    """The workers that the flags ask for."""
    from mcanalysis.studies.engine import Here
    from mcanalysis.studies.executors.processes import Processes

    count = number(args)
    if count == 1:
        yield Here(bar)
        return
    with Processes(count, bar, quiet_libraries) as processes:
        yield processes
