"""What a field of a settings class says of its flag; name, default and type are those of the field itself.

    seed: Annotated[int, "of the shuffle"] = 0                                      # --seed N
    num_steps: Annotated[int, "optimiser steps per task", Flag(name="steps")] = 120   # --steps N
    num_examples: Annotated[int | None, "test examples, or 'all'", OR_ALL] = 50     # --num-examples N
    batch_size: Annotated[int, "examples per micro-batch", Bounds(1, 65_536)] = 16    # refused where it is out of them

A field that is not `Annotated` with a help text has no flag. `cli.flags.Parser.add_settings` makes the flags;
`check_bounds`, called when an object is made, holds the bounds whether a value came from a flag, a file or Python. Only
the standard library is imported here, so that a script need not load more to answer `--help`; keep it so where settings
classes are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from mcanalysis.errors import UserError, shortened


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


@dataclass(frozen=True)
class Bounds:
    """The least and the largest number that makes sense for a field, both included; of each entry where there are many.

    Whole bounds are for whole numbers. The upper one is where no use is known and the machine would be kept busy with
    lists alone, hours or days before anything is computed; it is generous on purpose. NaN is out of all bounds.
    """

    low: float = -math.inf
    high: float = math.inf

    def fault(self, name: str, value: Any, flag: str = "") -> str | None:
        """What is wrong with a value, as an error says it; None where nothing is.

        >>> Bounds(1, 100).fault("num_steps", 101, "--steps")
        'Expected num_steps of at most 100, got 101; lower --steps.'
        >>> Bounds(0.0, 1.0).fault("warmup_ratio", float("nan"), "--warmup-ratio")
        'Expected warmup_ratio in [0, 1], got nan; change --warmup-ratio.'
        >>> Bounds(0, 1).fault("seed", 2**70), Bounds(0, 1).fault("seed", None)
        ('Expected seed of at most 1, got 1180591620717411303424; lower it.', None)
        """
        many = value.items() if isinstance(value, Mapping) else [("", v) for v in _listed(value)]
        for key, number in many:
            got = f"{shortened(number)}{f' for {key}' if key else ''}"
            if isinstance(self.low, int) and not isinstance(number, int):
                return f"Expected {name} as a whole number, got {got}; change {flag or 'it'}."
            if self.low <= number <= self.high:
                continue
            if isinstance(self.low, float) and math.isfinite(self.high - self.low):
                return f"Expected {name} in [{self.low:g}, {self.high:g}], got {got}; change {flag or 'it'}."
            if number > self.high:
                return f"Expected {name} of at most {_plain(self.high)}, got {got}; lower {flag or 'it'}."
            if math.isfinite(self.low):
                return f"Expected {name} of at least {_plain(self.low)}, got {got}; raise {flag or 'it'}."
            return f"Expected a number for {name}, got {got}; change {flag or 'it'}."
        return None


SEEDS = Bounds(-(2**63), 2**64 - 1)
"""What PyTorch takes as a seed."""

MOST_STEPS = 10_000_000
MOST_EXAMPLES = 10_000_000
MOST_POINTS = 100_000
"""Optimiser steps, examples and points of a path that anything here is made for."""


def check_bounds(settings: object) -> None:
    """Raise `UserError` for the first field of a settings object that is out of its `Bounds`, naming field and flag."""
    for name, (bounds, flag) in _bounds_of(type(settings)).items():
        if fault := bounds.fault(name, getattr(settings, name), flag):
            raise UserError(fault)


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, tuple | list) else [value]


def _plain(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"


@lru_cache(maxsize=64)
def _bounds_of(of: type) -> dict[str, tuple[Bounds, str]]:
    """By field: its bounds, and its flag, "" for none."""
    found = {}
    for name, hint in get_type_hints(of, include_extras=True).items():
        if get_origin(hint) is not Annotated:
            continue
        _, *said = get_args(hint)
        flag = next((f.name for f in said if isinstance(f, Flag) and f.name), None)
        if flag is None and isinstance(said[0], str):
            flag = name.replace("_", "-")
        bounds = next((b for b in said if isinstance(b, Bounds)), None)
        if bounds is not None:
            found[name] = bounds, f"--{flag}" if flag else ""
    return found
