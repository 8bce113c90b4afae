"""Where a study's pieces are computed, as the flags say."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mcanalysis.cli.console import bar


@contextmanager
def workers(args: argparse.Namespace) -> Iterator[Any]:
    """The workers that the flags ask for."""
    from mcanalysis.studies.engine import Here

    yield Here(bar)
