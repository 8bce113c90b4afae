"""BENCHMARKS.json, beside BENCHMARKS.md: what every turn of each workload measured, so that others can plot it.

    {"points": {"title": …, "measured": <machine, versions and moment>, "aims": [{"what", "limit", "value", …}, …],
                "tables": as in BENCHMARKS.md, "turns": [{<way>: [<result of each turn>, …], …}, …]}, …}

A result is what the workload's file says: seconds, bytes, or numbers by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from workload import Section, Workload

from mcanalysis.store.atomic import write_text_atomic
from mcanalysis.store.small_files import read_json

_DIGITS = 6


def write_raw_numbers(
    file: Path, workload: Workload, section: Section, measured: str, turns: Sequence[Mapping[str, Sequence[Any]]]
) -> None:
    """Put a workload's numbers in the place of its older ones."""
    known = read_json(file, "remove it") if file.exists() else {}
    known[workload.name] = {
        "title": workload.title,
        "measured": measured,
        "aims": [{**plain(aim), "verdict": aim.verdict} for aim in section.aims],
        "tables": plain(section.tables),
        "turns": plain(turns),
    }
    entries = [f"{json.dumps(name)}: {json.dumps(entry, ensure_ascii=False)}" for name, entry in sorted(known.items())]
    write_text_atomic(file, "{\n" + ",\n".join(entries) + "\n}\n")  # a line per workload


def plain(value: Any) -> Any:
    """As JSON types, numbers to six digits; what is no number, text or container of them is None.

    >>> plain({"way": (np.float32(1 / 3), np.arange(2))}), plain(float("nan"))
    ({'way': [0.333333, [0, 1]]}, None)
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (np.ndarray, np.generic, torch.Tensor)):
        return plain(value.tolist())
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if np.isfinite(value) else None
    if isinstance(value, int):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(v) for key, v in value.items()}
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else None
