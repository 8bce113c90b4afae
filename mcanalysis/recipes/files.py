"""Recipe files, YAML or JSON, as what they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mcanalysis.errors import UserError


def read_tree(file: str | Path) -> dict[str, Any]:
    """The settings by name that a file holds; raises `UserError` for one that cannot be read or holds others."""
    try:
        tree = yaml.safe_load(Path(file).read_text("utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"Expected a recipe in YAML or JSON at '{file}', got: {reason}; check it.") from None
    if not isinstance(tree, dict):
        raise UserError(f"Expected settings by name in '{file}', got {type(tree).__name__}; write `name: value`.")
    return {str(name): value for name, value in tree.items()}
