"""YAML that is read stands for itself: a few lines of names for names for lists would fill the memory."""

from __future__ import annotations

_DEEPEST = 20
_LONGEST = 1_000_000


def check_plain(text: str) -> None:
    """Raise `ValueError` for YAML of settings with aliases, deeper than 20 levels, or of more than a million letters.

    What else is wrong with it, a tag of Python say, its reader says.

    >>> check_plain("steps: 4")
    >>> check_plain("a: &x [1]\\nb: *x")
    Traceback (most recent call last):
    ValueError: an alias (*) in line 2, where each value is to be written out
    """
    import yaml

    if len(text) > _LONGEST:
        raise ValueError(f"{len(text):,} letters, of which settings need no {_LONGEST:,}")
    depth = 0
    for token in yaml.scan(text, yaml.SafeLoader):
        depth += type(token).__name__.endswith("StartToken") - type(token).__name__.endswith("EndToken")
        if depth > _DEEPEST + 1:  # the stream itself is one
            raise ValueError(f"values within more than {_DEEPEST} others in line {token.start_mark.line + 1}")
        if isinstance(token, yaml.AliasToken):
            line = token.start_mark.line + 1
            raise ValueError(f"an alias (*) in line {line}, where each value is to be written out")
