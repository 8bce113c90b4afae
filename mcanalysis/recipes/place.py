"""Where a recipe's point lies on the path between two minima."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mcanalysis.errors import UserError
from mcanalysis.recipes.files import read_tree
from mcanalysis.recipes.mergekit import read_mergekit


def place_between(file: str | Path, minima: Sequence[str]) -> tuple[str, float]:
    """The path (`linear-delta`) and t of a mergekit recipe's point, counted from the first of two minima.

    `minima`: adapters or folders of whole models; the recipe may name them in the other order. Raises `UserError` for a
    recipe of other models, and for one whose point lies on none of our paths.
    """
    if "merge_method" not in read_tree(file):
        raise UserError(
            f"Expected a recipe of mergekit, got '{file}' without merge_method; recipe.py --read says what it is."
        )
    recipe = read_mergekit(file)
    named = [Path(name.rpartition("+")[2]).resolve() for name in recipe.models]
    given = [Path(name).resolve() for name in minima]
    if len(given) != 2 or sorted(named) != sorted(given):
        raise UserError(
            f"Expected a recipe of the two --minima, got one of {', '.join(recipe.models)} in '{file}'; give these."
        )
    if recipe.place is None:
        raise UserError(
            f"Expected a recipe whose point lies on a path between its models, got '{file}', whose point does not; "
            "recipe.py --read FILE --output-dir DIR makes an adapter of it, for --minima."
        )
    path, t = recipe.place
    is_symmetric = path == "task_arithmetic-delta"  # t scales the sum of both
    return path, t if named == given or is_symmetric else 1 - t
