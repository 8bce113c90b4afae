"""Recipe files, YAML or JSON, as what they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mcanalysis.errors import UserError
from mcanalysis.store.plain_yaml import read_plain


def read_tree(file: str | Path) -> dict[str, Any]:
    """The settings by name that a file holds; raises `UserError` for one that cannot be read or holds others."""
    tree, _ = read_plain(file, "a recipe in YAML or JSON", "check it")
    if not isinstance(tree, dict):
        raise UserError(f"Expected settings by name in '{file}', got {type(tree).__name__}; write `name: value`.")
    return {str(name): value for name, value in tree.items()}
