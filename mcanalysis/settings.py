"""What a field of a settings class says of its flag; name, default and type are those of the field itself.

    seed: Annotated[int, "of the shuffle"] = 0                                      # --seed N
    num_steps: Annotated[int, "optimiser steps per task", Flag(name="steps")] = 120   # --steps N
    num_examples: Annotated[int | None, "test examples, or 'all'", OR_ALL] = 50     # --num-examples N

A field that is not `Annotated` has no flag. `cli.flags.Parser.add_settings` makes the flags. Only the standard library
is imported here, so that a script need not load more to answer `--help`; keep it so where settings classes are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Flag:
    """What of a flag does not follow from the field.

    `name`: another than the field's, without the dashes before it; also the key in YAML files. `metavar`: what stands
    for the value in `--help`. `read`: makes the value of its text, and raises `ValueError` for one that it is not of.
    `bare`: what the flag means without a value. `basic`: a newcomer looks for it, so that `--help` shows it; the others
    are shown by `--help-all`.
    """

    name: str | None = None
    metavar: str | None = None
    read: Callable[[str], Any] | None = None
    bare: Any = None
    basic: bool = False


def count_or_all(text: str) -> int | None:
    """A number, or `all`, which is None.

    >>> count_or_all("50"), count_or_all("all")
    (50, None)
    """
    return None if text == "all" else int(text)


OR_ALL = Flag(metavar="N", read=count_or_all)
"""A number, or `all` for None."""
BASIC = Flag(basic=True)
"""Shown by `--help`."""
