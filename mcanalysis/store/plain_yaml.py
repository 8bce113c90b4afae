"""YAML that is read fits into memory: a few lines of names for names for lists would fill it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mcanalysis.errors import UserError

_DEEPEST = 20
_LONGEST = 1_000_000
_MOST_VALUES = 100_000


def read_plain(file: str | Path, wanted: str, remedy: str) -> tuple[Any, Any]:
    """Return what a YAML (or JSON) file of settings holds, and the nodes it is written in.

    Raises `UserError`, "Expected `wanted` at …; `remedy`.", for a file that cannot be read, is no YAML or not plain.

    >>> read_plain("nowhere.yaml", "a YAML file", "check --config")
    Traceback (most recent call last):
    mcanalysis.errors.UserError: Expected a YAML file at 'nowhere.yaml', got: No such file or directory; check --config.
    """
    try:
        text = Path(file).read_text("utf-8-sig")
        check_plain(text)
        return yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"Expected {wanted} at '{file}', got: {reason}; {remedy}.") from None


def check_plain(text: str) -> None:
    """Raise `ValueError` for YAML of settings that is deeper than 20 levels, longer than a million letters, or larger.

    Its size is that with every alias written out. What else is wrong with it, a tag of Python say, its reader says.

    >>> check_plain("a: &x [1, 2]\\nb: *x")
    >>> check_plain("a: &x [1]\\nb: &y [*x, *x, *x]\\nc: " + "[" * 21 + "]" * 21)
    Traceback (most recent call last):
    ValueError: values within more than 20 others in line 3
    """
    if len(text) > _LONGEST:
        raise ValueError(f"{len(text):,} letters, of which settings need no {_LONGEST:,}")
    depth = 0
    for token in yaml.scan(text, yaml.SafeLoader):
        depth += type(token).__name__.endswith("StartToken") - type(token).__name__.endswith("EndToken")
        if depth > _DEEPEST + 1:  # the stream itself is one
            raise ValueError(f"values within more than {_DEEPEST} others in line {token.start_mark.line + 1}")
    if (size := _size(yaml.compose(text, yaml.SafeLoader), {})) > _MOST_VALUES:
        raise ValueError(f"more than {_MOST_VALUES:,} values with its aliases (*) written out, {size:.0e}")


def _size(node: Any, known: dict[int, int]) -> int:
    """The values in a node, each alias counted as what it stands for."""
    if isinstance(value := getattr(node, "value", None), list):
        if id(node) not in known:
            known[id(node)] = _MOST_VALUES + 1  # what holds itself is without end
            parts = (part for item in value for part in (item if isinstance(item, tuple) else (item,)))
            known[id(node)] = 1 + sum(_size(part, known) for part in parts)
        return known[id(node)]
    return 1
