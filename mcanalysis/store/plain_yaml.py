"""YAML that is read stands for itself: a few lines of names for names for lists would fill the memory."""

from __future__ import annotations


def check_plain(text: str) -> None:
    """Raise `ValueError` for YAML with aliases; what else is wrong with it, a tag of Python say, its reader says.

    >>> check_plain("steps: 4")
    >>> check_plain("a: &x [1]\\nb: *x")
    Traceback (most recent call last):
    ValueError: an alias (*) in line 2, where each value is to be written out
    """
    import yaml

    for token in yaml.scan(text, yaml.SafeLoader):
        if isinstance(token, yaml.AliasToken):
            line = token.start_mark.line + 1
            raise ValueError(f"an alias (*) in line {line}, where each value is to be written out")
