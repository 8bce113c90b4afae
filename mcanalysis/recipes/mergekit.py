"""Recipes of mergekit (YAML), read as points and written from points; mergekit itself is not needed.

A recipe names models: folders of whole models, or `<base>+<adapter>`, which mergekit merges first. Of adapters of one
base the result is an adapter: the base has weight 1 in all that is read here. Formulas are those of mergekit 0.1.5
(`merge_methods/` and `sparsify.py`), whose output was compared with them (`docs/merging.md`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mcanalysis.errors import UnknownNameError, UserError
from mcanalysis.models.adapter_files import load_adapter
from mcanalysis.models.base_names import check_same_base
from mcanalysis.models.weight_files import warn_of_two_sets
from mcanalysis.params.lora import (
    base_point,
    delta_distance,
    delta_norm,
    delta_weights,
    holds_lora_tensors,
    share_modules,
)
from mcanalysis.params.low_rank import concatenate
from mcanalysis.params.merging import dense_factors
from mcanalysis.params.point import Point, combine, norm, working_dtype
from mcanalysis.paths import Slerp
from mcanalysis.paths.path_kinds import path_kind
from mcanalysis.recipes.files import read_tree

METHODS = ("linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties")
BOUND = 1e-6
"""The largest error, relative to the point (for adapters: to ΔW), with which a recipe is said to give it."""
_NORMALIZED = ("linear", "ties")  # by default
_OF_MODELS = ("weight", "density")
_OF_ALL = ("normalize", "lambda", "t", "int8_mask", "rescale", *_OF_MODELS)
_IGNORED = ("dtype", "out_dtype", "chat_template")  # rounding, and what is no weight


@dataclass(frozen=True)
class MergekitRecipe:
    """What a YAML file of mergekit says, as far as it can be read here.

    `models` without a `base_model` that stands among them, each with its weight; of `slerp` both ends, first the base,
    with weights 1−t and t. `density`: the share of each model's entries that is kept. `scale`: mergekit's `lambda`.
    """

    method: str
    models: tuple[str, ...]
    weights: tuple[float, ...]
    base: str | None = None
    density: tuple[float, ...] = ()
    normalize: bool = False
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UnknownNameError("method of mergekit", self.method, METHODS, "Others have no point here.")
        if len(self.models) < 1 + (self.method == "slerp") or not all(map(math.isfinite, (*self.weights, self.scale))):
            raise UserError(f"Expected models with finite weights for {self.method}, got {self.models}; add them.")
        if self.method not in ("linear", "slerp") and self.base is None:
            raise UserError(f"Expected base_model with {self.method}, got none; name it.")
        if any(not 0 < d <= 1 for d in self.density):
            raise UserError(f"Expected densities in (0, 1], got {self.density}; change them.")
        if self.method.startswith("dare") and any(d < 1 for d in self.density):
            raise UserError(
                f"Expected {self.method} with density 1, got {min(self.density):g}: mergekit draws other entries in "
                "each merge, so that there is no one point; --paths dare-delta measures a draw of ours."
            )
        if self.normalize and self.method == "linear" and abs(sum(self.weights)) < 1e-8:
            raise UserError(f"Expected weights whose sum is not 0, got {self.weights}; change one, or `normalize`.")

    @property
    def place(self) -> tuple[str, float] | None:
        """The path of ours from the first model to the second that the point lies on, and its t; None: on none.

        >>> MergekitRecipe("linear", ("a", "b"), (1.0, 3.0), normalize=True).place
        ('linear-delta', 0.75)
        """
        if len(self.models) != 2:
            return None
        first, second = self.weights
        if self.method == "slerp":  # of adapters mergekit turns W₀ + ΔW, which no path of ours does
            return None if any("+" in name for name in self.models) else ("slerp-delta", second)
        if self.method == "linear" and (self.normalize or abs(first + second - 1) < 1e-12):
            return "linear-delta", second / (first + second)
        if self.method in ("task_arithmetic", "dare_linear") and first == second and not self.normalize:
            return "task_arithmetic-delta", self.scale * first
        return None

    def point(self, load: Callable[[str], Point] | None = None) -> Point:
        """The point that the recipe gives: of `<base>+<adapter>` a LoRA point, of whole models their tensors.

        `load` gives the point of a reference; by default an adapter is read by `load_adapter`, a model's folder by
        `load_weights`. Whole models are in memory at once, in float32 at least, as `dtype: float32` has them.

        Raises:
            UserError: for models of several bases, whole models beside adapters, and what only whole weights have: an
                adapter's SLERP, or weights that do not sum to 1.
        """
        adapted = [name for name in self.models if "+" in name]
        if not adapted:
            return self._of_whole([(load or load_weights)(name) for name in self.models], load or load_weights)
        bases = {name.partition("+")[0] for name in self.models} | ({self.base} if self.base else set())
        if len(bases) > 1:
            raise UserError(f"Expected adapters of one base, got {' and '.join(sorted(bases))}; name one base.")
        if self.method == "slerp":
            raise UserError(
                "Expected whole models for slerp, got adapters: it turns W₀ + ΔW, not ΔW; merge them first."
            )
        given = {name: load(name) if load else _adapter(name) for name in adapted}
        points = [given[name] if name in given else base_point(given[adapted[0]]) for name in self.models]
        if self.method == "linear" and not self.normalize and abs(sum(self.weights) - 1) > 1e-9:
            raise UserError(
                f"Expected weights that sum to 1, got {sum(self.weights):g}: others scale the base, too, which no "
                "adapter does; set `normalize: true`."
            )
        if self.method in ("linear", "task_arithmetic", "dare_linear"):
            return concatenate(points, self._coefficients())
        shared = [delta_weights(point) for point in share_modules(points)]
        result: Point = {}
        for module in shared[0]:
            result |= dense_factors(module, self._elected([deltas[module] for deltas in shared]))
        return result

    def _of_whole(self, points: Sequence[Point], load: Callable[[str], Point]) -> Point:
        if self.method == "slerp":
            return Slerp(*points)(self.weights[1])
        if self.method == "linear":
            return combine(points, self._coefficients())
        base = load(str(self.base))
        if self.method in ("task_arithmetic", "dare_linear"):
            weights = self._coefficients()
            return combine([base, *points], [1 - sum(weights), *weights])
        return {name: w + self._elected([p[name].to(w) - w for p in points]) for name, w in base.items()}

    def _coefficients(self) -> list[float]:
        total = sum(self.weights) if self.normalize else 1.0
        return [self.scale * weight / (total if abs(total) >= 1e-8 else 1.0) for weight in self.weights]

    def _elected(self, deltas: Sequence[Tensor]) -> Tensor:
        """TIES of one tensor as mergekit has it: trimmed and weighted, then only entries of the sign of their sum."""
        wide = [d.to(working_dtype(deltas)) for d in deltas]
        kept = torch.stack([_trimmed(d, share) for d, share in zip(wide, self.density, strict=True)])
        weights = kept.new_tensor(self.weights).reshape(-1, *[1] * deltas[0].dim())
        weighted = kept * weights
        agree = weighted.sign() == torch.where(weighted.sum(0) >= 0, 1.0, -1.0)
        total = (weighted * agree).sum(0)
        if self.normalize:
            share = (weights * agree).sum(0)
            total = total / torch.where(share == 0, 1.0, share)
        return self.scale * total

    def to_yaml(self) -> str:
        """The file for `mergekit-yaml`.

        >>> print(MergekitRecipe("linear", ("a", "b"), (0.5, 0.5)).to_yaml().splitlines()[0])
        merge_method: linear
        """
        shared: dict[str, Any] = {} if self.method == "slerp" else {"normalize": self.normalize}
        models: list[dict[str, Any]] = [{"model": name} for name in self.models]
        if self.method == "slerp":
            shared["t"] = self.weights[1]
        else:
            for i, model in enumerate(models):
                model["parameters"] = {"weight": self.weights[i]}
                if self.method not in ("linear", "task_arithmetic"):
                    model["parameters"]["density"] = self.density[i]
        if self.scale != 1:
            shared["lambda"] = self.scale
        tree: dict[str, Any] = {"merge_method": self.method}
        if base := (self.models[0] if self.method == "slerp" else self.base):
            tree["base_model"] = base
        tree |= {"models": models, "parameters": shared, "dtype": "float32"}
        return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _trimmed(delta: Tensor, density: float) -> Tensor:
    """The entries of largest magnitude, of a tensor by itself, rounded down but one at least; the rest 0."""
    if density >= 1:
        return delta
    order = delta.abs().flatten().argsort(descending=True)  # not topk, which keeps others of entries of one magnitude
    kept = order[: max(1, int(density * delta.numel()))]
    mask = torch.zeros(delta.numel(), dtype=delta.dtype, device=delta.device)
    mask[kept] = 1.0
    return delta * mask.reshape(delta.shape)


def _adapter(name: str) -> Point:
    """The point of `<base>+<adapter>`; raises `PointMismatchError` for one that was certainly made for another base."""
    base, _, folder = name.partition("+")
    adapter = load_adapter(folder)
    check_same_base([base, adapter.base_name])
    return adapter.point


def load_weights(folder: str | Path) -> Point:
    """The tensors of a model's folder by name, from its `.safetensors`, in float32 at least; others are left out.

    Raises `UserError` for a folder without any, and for files that cannot be read.
    """
    files, single = sorted(Path(folder).glob("*.safetensors")), Path(folder) / "model.safetensors"
    if single in files and len(files) > 1:
        if (Path(folder) / "model.safetensors.index.json").exists():
            warn_of_two_sets(folder)
        files = [single]
    if (Path(folder) / "adapter_config.json").exists():
        raise UserError(f"Expected a whole model at '{folder}', got an adapter; name its base, `<base>+<adapter>`.")
    if not files:
        raise UserError(f"Expected a folder with .safetensors at '{folder}', got none; download the model there.")
    found: Point = {}
    for file in files:
        try:
            tensors = load_file(file)
        except (OSError, SafetensorError) as error:
            raise UserError(f"Expected safetensors in '{file}', got: {error}; fetch the file anew.") from None
        found |= {name: t.to(working_dtype([t])) for name, t in tensors.items() if t.is_floating_point()}
    return found


def read_mergekit(file: str | Path) -> MergekitRecipe:
    """Read a recipe of mergekit; numbers alone, each the same for all tensors.

    Raises `UserError`, naming it, for what has no one point here: other methods, slices and modules (parts of models),
    values by filter or by layer, tokenizers that change the embeddings, and settings that are unknown.
    """
    known = ("merge_method", "models", "base_model", "parameters", *_IGNORED)
    tree = _mapping(read_tree(file), f"'{file}'", known)
    models = tree.get("models")
    if "merge_method" not in tree or not isinstance(models, list) or not models:
        raise UserError(f"Expected merge_method and a list of models in '{file}', got {', '.join(tree)}; add them.")
    method = str(tree["merge_method"])
    if method not in METHODS:
        raise UnknownNameError("method of mergekit", method, METHODS, "Others have no point here.")
    base = None if tree.get("base_model") is None else str(tree["base_model"])
    shared = _mapping(tree.get("parameters") or {}, "parameters", _OF_ALL)
    names, own = [], []
    for entry in models:
        entry = _mapping(entry, f"a model in '{file}'", ("model", "parameters"))
        if not isinstance(entry.get("model"), str):
            raise UserError(f"Expected the name of each model in '{file}', got {entry.get('model')!r}; write `model:`.")
        names.append(entry["model"])
        own.append(shared | _mapping(entry.get("parameters") or {}, f"parameters of {entry['model']}", _OF_MODELS))
    if method == "slerp":
        others = [name for name in names if name != base]
        if base is None or len(others) != 1:
            raise UserError(f"Expected base_model and one other for slerp in '{file}', got {', '.join(names)}.")
        t = _number(shared.get("t"), "t")
        return MergekitRecipe(method, (base, others[0]), (1 - t, t))
    if method == "linear" and base is not None and base not in names:
        raise UserError(
            f"Expected the base of a linear recipe among its models in '{file}', got '{base}' beside them: mergekit "
            "averages it in, with a weight of its own; name it as a model, or leave base_model out."
        )
    if method != "linear" and base in names:
        place = names.index(str(base))
        del names[place], own[place]
    normalize = shared.get("normalize", method in _NORMALIZED)
    if not isinstance(normalize, bool):
        raise UserError(f"Expected true or false for normalize in '{file}', got {normalize!r}; change it.")
    if shared.get("rescale") and any(p.get("density", 1.0) != 1.0 for p in own):
        raise UserError(
            f"Expected no rescale with a density below 1 in '{file}', got it: trimmed models are not scaled up here; "
            "leave it out of the recipe."
        )
    return MergekitRecipe(
        method, tuple(names), tuple(_number(p.get("weight"), "weight") for p in own),
        None if method == "linear" else base, tuple(_number(p.get("density", 1.0), "density") for p in own),
        normalize, 1.0 if method == "linear" else _number(shared.get("lambda", 1.0), "lambda"),
    )  # fmt: skip


def _mapping(found: Any, where: str, known: Sequence[str]) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise UserError(f"Expected settings by name in {where}, got {type(found).__name__}; write `name: value`.")
    for name in found:
        if name not in known:
            raise UnknownNameError(
                f"setting of mergekit in {where}", str(name), known, "Others have no one point here."
            )
    return found


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(
            f"Expected one number for {name}, got {'nothing' if value is None else repr(value)[:80]}: values by filter "
            "or by layer have no one t; give a number."
        )
    return float(value)


def mergekit_recipe(kind: str, t: float, models: Sequence[str], base: str | None = None) -> MergekitRecipe:
    """Return the recipe by which mergekit makes the point at t of a path between two models.

    It is computed by mergekit's formula and compared with the point before it is given.

    Args:
        kind: a path, such as `linear-delta`; of whole models `linear-delta` and `slerp-delta`.
        t: where.
        models: two folders of adapters with their `base`, or two of whole models.
        base: the base of adapters, as mergekit is to look it up.

    Raises:
        UserError: where mergekit has no method for it, or one that gives another point (by how much is said).
    """
    chosen = path_kind(kind)
    path = chosen.path
    if len(set(map(str, models))) != 2:
        raise UserError(
            f"Expected two different models, got {', '.join(map(str, models))}; name both ends of the path."
        )
    for name in (*models, *([base] if base else [])):
        if set("+@") & set(str(name)):
            raise UserError(
                f"Expected names without + and @, which mergekit reads as its own, got '{name}'; rename it."
            )
    names = tuple(f"{base}+{name}" if base else str(name) for name in models)
    weights = {"linear": (1 - t, t), "slerp": (1 - t, t), "task_arithmetic": (t, t), "ties": (1.0, 1.0)}
    if path not in weights:
        why = "draws entries by chance" if path == "dare" else "has no method for it"
        raise UnknownNameError("path with a recipe of mergekit", path, list(weights), f"For {path} mergekit {why}.")
    is_ties = path == "ties"
    recipe = MergekitRecipe(
        path, names, weights[path], base if path in ("task_arithmetic", "ties") else None,
        (getattr(chosen.path_class, "density", 1.0),) * 2, normalize=is_ties, scale=t if is_ties else 1.0,
    )  # fmt: skip
    if base:
        check_same_base([base, *(name for m in models if (name := load_adapter(m).base_name))])
    points = {n: load_adapter(m).point if base else load_weights(m) for n, m in zip(names, models, strict=True)}
    expected = chosen.path_class(*points.values(), space=chosen.space)(t)  # type: ignore[call-arg]
    error = _error(recipe.point(points.__getitem__), expected)
    if not error <= BOUND:
        raise UserError(
            f"Expected a recipe that gives {kind} at t = {t:g}, got mergekit's {path}, off by {error:.2g} of it; "
            "save the point as an adapter instead, or choose linear-delta."
        )
    return recipe


def _error(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """How far apart two points are, relative to the second: in ΔW, or of whole models in their tensors."""
    if holds_lora_tensors(expected):
        size = delta_norm(expected)
        apart = delta_distance(found, expected)
    else:
        size = norm(expected)
        apart = norm({name: found[name] - tensor for name, tensor in expected.items()})
    return apart / size if size else apart
