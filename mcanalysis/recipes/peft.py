"""Recipes of PEFT's `add_weighted_adapter`, in YAML or JSON under the names of its arguments.

A recipe is written only where the installed PEFT gives the point by it, which it is asked: several of its ways to
combine adapters give something else than they say (`docs/merging.md`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import yaml

from mcanalysis.errors import UnknownNameError, UserError
from mcanalysis.models.adapter_files import load_adapter
from mcanalysis.models.base_names import check_same_base
from mcanalysis.models.weighted_adapter import weighted_adapter
from mcanalysis.params.lora import delta_distance, delta_norm
from mcanalysis.params.low_rank import concatenate
from mcanalysis.params.point import Point
from mcanalysis.paths.path_kinds import path_kind
from mcanalysis.recipes.files import read_tree
from mcanalysis.recipes.mergekit import BOUND

logger = logging.getLogger(__name__)

TYPES = ("linear", "cat", "svd", "ties", "ties_svd", "magnitude_prune", "magnitude_prune_svd")
TYPES += ("dare_linear", "dare_linear_svd", "dare_ties", "dare_ties_svd")
_OFF = 1e-4  # relative: what is worth a line


@dataclass(frozen=True)
class PeftRecipe:
    """Adapters by folder and the arguments of `add_weighted_adapter`; None: PEFT's default."""

    adapters: tuple[str, ...]
    weights: tuple[float, ...]
    combination_type: str = "svd"
    density: float | None = None
    svd_rank: int | None = None
    majority_sign_method: str | None = None

    def __post_init__(self) -> None:
        if self.combination_type not in TYPES:
            raise UnknownNameError("combination_type of PEFT", self.combination_type, TYPES)
        if not self.adapters or len(self.weights) != len(self.adapters) or not all(map(math.isfinite, self.weights)):
            raise UserError(
                f"Expected a finite weight for each adapter, got {len(self.weights)} for {len(self.adapters)}: "
                f"{self.weights}; give as many."
            )
        needs = self.combination_type.removesuffix("_svd") not in ("linear", "cat", "svd")
        if needs and (self.density is None or not 0 < self.density <= 1):
            raise UserError(f"Expected a density in (0, 1] for {self.combination_type}, got {self.density}; add it.")
        if self.combination_type.startswith("dare") and self.density != 1:
            raise UserError(
                f"Expected {self.combination_type} with density 1, got {self.density:g}: PEFT draws other entries each "
                "time, so that there is no one point; --paths dare-delta measures a draw of ours."
            )

    def point(self) -> Point:
        """The point that the installed PEFT makes; raises as `weighted_adapter`.

        Where `linear`, `cat` or `svd` miss Σ wᵢ·ΔWᵢ, which they are said to give, a line says by how much.
        """
        points = _of_one_base(self.adapters)
        found = self._made()
        if self.combination_type in ("linear", "cat", "svd"):
            error = _error(found, concatenate(points, list(self.weights)))
            if error > _OFF:
                logger.warning(
                    "PEFT makes something else of this recipe than the sum of the weighted adapters: off by %.2g of it",
                    error,
                )
        return found

    def _made(self) -> Point:
        given = {n: v for n, v in asdict(self).items() if n not in ("adapters", "weights") and v is not None}
        return weighted_adapter(self.adapters, self.weights, **given)

    def to_yaml(self) -> str:
        """The recipe as a file.

        >>> print(PeftRecipe(("a", "b"), (0.5, 0.5), "cat").to_yaml().splitlines()[-1])
        combination_type: cat
        """
        said = {n: list(v) if isinstance(v, tuple) else v for n, v in asdict(self).items() if v is not None}
        return yaml.safe_dump(said, sort_keys=False, allow_unicode=True)


def read_peft(file: str | Path) -> PeftRecipe:
    """Read a recipe from YAML or JSON; raises `UserError` for what is none, `UnknownNameError` for an unknown key."""
    tree = read_tree(file)
    known = [field.name for field in fields(PeftRecipe)]
    if not {"adapters", "weights"} <= set(tree):
        raise UserError(f"Expected adapters and weights in '{file}', got neither or one; write both as lists.")
    for name in tree:
        if name not in known:
            raise UnknownNameError(f"argument of add_weighted_adapter in '{file}'", str(name), known)
    adapters, weights = tree.pop("adapters"), tree.pop("weights")
    numbers = isinstance(weights, list) and all(
        isinstance(w, (int, float)) and not isinstance(w, bool) for w in weights
    )
    if not (isinstance(adapters, list) and all(isinstance(a, str) for a in adapters) and numbers):
        raise UserError(
            f"Expected lists of folders and of numbers in '{file}', got others; write `weights: [0.5, 0.5]`."
        )
    for name, kind in (("combination_type", str), ("density", (int, float)), ("svd_rank", int)):
        if (value := tree.get(name)) is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise UserError(f"Expected another value for {name} in '{file}', got {value!r}; correct it.")
    given = {name: value for name, value in tree.items() if value is not None}
    return PeftRecipe(tuple(adapters), tuple(map(float, weights)), **given)


def peft_recipe(kind: str, t: float, adapters: Sequence[str]) -> PeftRecipe:
    """Return the recipe by which the installed PEFT makes the point at t of a path between two adapters.

    `linear-delta` and `task_arithmetic-delta` by `cat`; `linear-factor` by `linear` with squared weights, whose roots
    PEFT multiplies into A and B.

    Raises:
        UserError: for other paths, and where PEFT gives another point (by how much is said): rank-stabilised adapters
            and, in the factors, adapters of different ranks or scalings.
    """
    ways = {
        "linear-delta": ("cat", (1 - t, t)),
        "linear-factor": ("linear", ((1 - t) ** 2, t**2)),
        "task_arithmetic-delta": ("cat", (t, t)),
    }
    chosen = path_kind(kind)
    if str(chosen) not in ways:
        raise UnknownNameError(
            "path with a recipe of add_weighted_adapter", kind, list(ways), "Save the point instead."
        )
    points = _of_one_base(adapters)
    expected = chosen.path_class(*points, space=chosen.space)(t)  # type: ignore[call-arg]
    recipe = PeftRecipe(tuple(map(str, adapters)), ways[str(chosen)][1], ways[str(chosen)][0])
    if not (error := _error(recipe._made(), expected)) <= BOUND:
        raise UserError(
            f"Expected a recipe that gives {kind} at t = {t:g}, got one that PEFT makes a point of that is off by "
            f"{error:.2g} of it; save the point as an adapter instead."
        )
    return recipe


def _error(found: Point, expected: Point) -> float:
    """‖ΔW − expected‖ / ‖expected‖."""
    size, apart = delta_norm(expected), delta_distance(found, expected)
    return apart / size if size else apart


def _of_one_base(adapters: Sequence[str]) -> list[Point]:
    """The adapters' points; raises `PointMismatchError` for those of different bases, which no point joins."""
    found = [load_adapter(folder) for folder in adapters]
    check_same_base([adapter.base_name for adapter in found if adapter.base_name])
    return [adapter.point for adapter in found]
