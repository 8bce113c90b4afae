"""A key of the code that the numbers of a run depend on."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from mcanalysis.store.hashing import hash_files

PARTS = ("benchmarks", "evaluation", "metrics", "models", "params", "replay", "strategies", "tasks", "training")


MEASURING = (*PARTS, "connectivity", "landscape", "paths", "runs", "studies", "symmetry")
"""What numbers that are measured of a run depend on, besides."""


@cache
def code_key(parts: tuple[str, ...] = PARTS) -> str:
    """The SHA-256 (64 hex digits) of all source in `parts`: another one may train or score otherwise, and need not.

    Comments count. Strategies and tasks of other packages do not, nor do torch and the others, whose versions a
    manifest has.

    >>> len(code_key())
    64
    """
    package = Path(__file__).parents[1]
    return hash_files(file for part in parts for file in (package / part).rglob("*.py"))
