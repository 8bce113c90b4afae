"""Tensors by name in one safetensors file, written so that a kill leaves the old file or the new one.

A small JSON object may travel in the file's header, so that numbers and tensors that belong together are replaced
together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from mcanalysis.errors import DataError
from mcanalysis.store.atomic import write_bytes_atomic
from mcanalysis.store.recorded import check_recorded


def write_tensors(file: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any] | None = None) -> None:
    """Write tensors, and a JSON object that `read_tensors` gives back; floats come back bit for bit.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_tensors(Path(folder, "a.safetensors"), {"w": torch.ones(1)}, {"step": 3})
    ...     read_tensors(Path(folder, "a.safetensors"))
    ({'w': tensor([1.])}, {'step': 3})
    """
    write_bytes_atomic(file, tensor_bytes(tensors, header))


def tensor_bytes(tensors: Mapping[str, Tensor], header: Mapping[str, Any] | None = None) -> bytes:
    """What `write_tensors` writes."""
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({} if header is None else header)
    # One entry: several come in any order, and equal files would differ.
    return save(stored, {"checked": json.dumps({"json": text, "sha256": _content_hash(stored, text)})})


def read_tensors(
    file: str | Path, remedy: str = "remove it to have it computed again", what: str = "a safetensors file at"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a file (on the CPU) and its JSON object.

    Raises `DataError` for a file that is damaged, or is not the one that its run wrote.
    """
    check_recorded(file)
    try:
        with safe_open(str(file), framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        metadata = json.loads(metadata["checked"]) if metadata.keys() == {"checked"} else metadata
        text = metadata.get("json", "{}")
        is_old = metadata.keys() <= {"json"}  # version 0.1 wrote no hash
        if not is_old and metadata != {"json": text, "sha256": _content_hash(tensors, text)}:
            raise ValueError("other content than was written")
        return tensors, json.loads(text)
    except (OSError, ValueError, AttributeError, RecursionError, SafetensorError) as error:
        raise DataError(f"Expected {what} {file}, got: {' '.join(str(error).split())}; {remedy}.") from None


def has_hash(file: str | Path) -> bool:
    """Whether a file that can be read has a hash of its content; version 0.1 wrote none."""
    with safe_open(str(file), framework="pt") as opened:
        return bool({"checked", "sha256"} & (opened.metadata() or {}).keys())


def _content_hash(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def point_bytes(points: Sequence[Mapping[str, Tensor]]) -> bytes:
    """A file of one or more points: one by its own names, several with `bend<i>/` before theirs."""
    named = {f"bend{i}/{name}": tensor for i, point in enumerate(points) for name, tensor in point.items()}
    return tensor_bytes(dict(points[0]) if len(points) == 1 else named)


def points_of(content: bytes) -> list[dict[str, Tensor]]:
    """The points in what `point_bytes` gave.

    >>> points_of(point_bytes([{"w": torch.zeros(1)}, {"w": torch.ones(1)}]))
    [{'w': tensor([0.])}, {'w': tensor([1.])}]
    """
    return _as_points(load(content))


def read_points(file: str | Path) -> list[dict[str, Tensor]]:
    """Return the points in a file of what `point_bytes` gave; raises `DataError` for another file."""
    return _as_points(read_tensors(file)[0])


def _as_points(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    if not all(name.startswith("bend") and "/" in name for name in tensors):
        return [tensors]
    points: dict[int, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        number, _, name = full.removeprefix("bend").partition("/")
        points.setdefault(int(number), {})[name] = tensor
    return [points[i] for i in sorted(points)]
