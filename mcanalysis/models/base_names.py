"""Whether two names of bases, spelled differently or written on other machines, mean the same weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from mcanalysis.errors import PointMismatchError
from mcanalysis.models.base_identity import base_files, cached_folder
from mcanalysis.models.base_source import model_source
from mcanalysis.store.hashing import hash_file_once

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack")
_IN_CACHE = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/[^/]+$")
_ID = re.compile(r"[\w.-]+/[\w.-]+")
# What mirrors and quantised copies put around the name of a model.
_AROUND = re.compile(r"^meta-(?=llama)|(-unsloth)?-bnb-[48]bit$|-(hf|gptq|awq|[48]bit)$")


def same_base(first: str, second: str) -> bool | None:
    """Return whether two names mean the same weights; None where that cannot be told here.

    True for one place on this machine however it is spelled, for one id of the hub in any case, and for files of equal
    content. False for weight files that are both here, differ, and are not two ways of saving one model; and for two
    ids of differently named models. The names of mirrors (`unsloth/…`) and quantised copies (`…-bnb-4bit`) are compared
    with what they are copies of: equal ones are None, not True.

    >>> same_base("meta-llama/Llama-2-7b-hf", "meta-llama/llama-2-7b-hf/")
    True
    >>> same_base("meta-llama/Llama-2-7b-hf", "unsloth/llama-2-7b-bnb-4bit") is None
    True
    >>> same_base("meta-llama/Llama-2-7b-hf", "mistralai/Mistral-7B-v0.1")
    False
    """
    one, two = (_tidy(name) for name in (first, second))
    if one == two or (_is_id(one) and _is_id(two) and one.lower() == two.lower()):
        return True
    here = [folder for name in (one, two) if (folder := cached_folder(name)) is not None]
    likely = _model_name(one) == _model_name(two)
    if len(here) == 2:
        if here[0].resolve() == here[1].resolve():
            return True
        weights = [[f for f in base_files(folder) if f.suffix in _WEIGHTS] for folder in here]
        sizes = [sorted((f.name, f.stat().st_size) for f in files) for files in weights]
        if sizes[0] and sizes[0] == sizes[1]:
            contents = [sorted((f.name, hash_file_once(f)) for f in files) for files in weights]
            return contents[0] == contents[1]
        return None if likely or not (sizes[0] and sizes[1]) else False
    return None if likely or not (_is_id(one) and _is_id(two)) else False


def check_same_base(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of adapters' bases of which it cannot be told whether they are the same weights.

    Raises `PointMismatchError` for two that certainly are not.
    """
    unknown = []
    for first, second in combinations(dict.fromkeys(name for name in names if name), 2):
        same = same_base(first, second)
        if same is False:
            raise PointMismatchError(
                f"Expected adapters of one base model, got {first} and {second}; a path between different bases has "
                "no meaning. If both are the same weights, write the same base_model_name_or_path into both "
                "adapter_config.json."
            )
        if same is None:
            unknown.append((first, second))
    return unknown


def _tidy(name: str) -> str:
    """A name without spaces around it and slashes at its end; a path into the hub's cache as the id it is of."""
    name = model_source(name.strip().replace("\\", "/"))
    name = re.sub(r"(?<=.)/+$", "", name)
    cached = _IN_CACHE.search(name)
    if cached and not Path(name).exists():
        return f"{cached[1]}/{cached[2]}"
    return name


def _is_id(name: str) -> bool:
    return bool(_ID.fullmatch(name)) and not name.startswith(".") and not Path(name).exists()


def _model_name(name: str) -> str:
    """What a model is called, without whose copy it is.

    >>> _model_name("unsloth/Meta-Llama-3.1-8B-unsloth-bnb-4bit")
    'llama-3.1-8b'
    """
    cached = _IN_CACHE.search(name)
    last = (cached[2] if cached else name.rpartition("/")[2]).lower()
    while (shorter := _AROUND.sub("", last)) != last:
        last = shorter
    return last
