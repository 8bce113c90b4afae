"""How a run was made, with which versions, and which analyses of it there are."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mcanalysis.runs.finished import FinishedRun


class Analysis(NamedTuple):
    """One analysis of a run: the tables it has written, or the command that would."""

    name: str
    says: str
    tables: list[str]
    command: str


_ANALYSES = (
    ("Paths", "loss and score along paths, and their barriers", "connectivity", ("profiles", "barriers")),
    (
        "Landscape", "loss on a plane through three minima, slices, sharpness", "landscape",
        ("landscape", "trajectory", "sharpness"),
    ),
    (
        "Curvature", "eigenvalues and spectrum of the Hessian; predicted forgetting", "curvature",
        ("curvature", "spectrum", "predicted_forgetting"),
    ),
    (
        "Similarity", "distance of the minima in weights, hidden states and answers", "similarity",
        ("weight_distance", "subspace_overlap", "cka", "prediction_similarity"),
    ),
    ("Attribution", "which layers and modules make a barrier", "attribution", ("attribution", "attribution_barriers")),
)  # fmt: skip


def has_transitions(run: FinishedRun) -> bool:
    """Whether the strategy leaves LoRA minima one after another, between which there are paths."""
    return run.has_paths and run.is_sequential


def analyses(run: FinishedRun) -> list[Analysis]:
    """Every analysis a run may have; none for a strategy without paths."""
    if not has_transitions(run):
        return []
    found = []
    for name, says, script, tables in _ANALYSES:
        there = [t for t in tables if run.has(t)]
        found.append(Analysis(name, says, [f"tables/{t}.csv" for t in there], command(run, script)))
    return found


def command(run: FinishedRun, script: str) -> str:
    """The command that measures something of this run."""
    return f"python analyses/{script}.py --run {shlex.quote(str(run.directory))}"


def settings(run: FinishedRun) -> list[tuple[str, str]]:
    """The resolved configuration, dotted names and values as text; what was left at None is "default"."""
    return list(_flat(run.config))


def versions(run: FinishedRun) -> list[tuple[str, str]]:
    """Versions, commit, hashes, times and how the run was carried out."""
    manifest = run.manifest
    rows = [("trained", f"{manifest.get('created')} to {manifest.get('finished')} (UTC)")]
    rows += [(name, "not installed" if v is None else str(v)) for name, v in manifest.get("versions", {}).items()]
    rows.append(("git commit", str(manifest.get("git_commit") or "installed package")))
    rows += [(f"run on: {name}", str(value)) for name, value in manifest.get("execution", {}).items()]
    hashes = manifest.get("hashes", {})
    rows.append(("content hash, base", str(hashes.get("base"))))
    rows += [(f"content hash, {task}", str(value)) for task, value in hashes.get("data", {}).items()]
    return rows


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        elif value is None or value == {}:
            yield f"{prefix}{name}", "default"
        elif isinstance(value, list):
            yield f"{prefix}{name}", ", ".join(map(str, value))
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
