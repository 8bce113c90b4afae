"""Which minima of a run are compared, and the rows of the tables that tell of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from mcanalysis.metrics.bootstrap import Sample
from mcanalysis.metrics.intervals import Estimate, mean_interval, weighted
from mcanalysis.params.point import Point
from mcanalysis.params.spaces import space_names
from mcanalysis.params.subspace_overlap import SIDES, subspace_overlap
from mcanalysis.params.weight_distance import module_distances, weight_distance

DIVERGENCES = ("churn", "kl", "symmetric_kl", "js")


class Place(NamedTuple):
    """A minimum by its number and learner; number 0 with the learner `base` is the base model."""

    number: int
    learner: str

    @property
    def name(self) -> str:
        """A short name that is unique in a run."""
        return f"{self.number}/{self.learner}"


class Link(NamedTuple):
    """Two minima that are compared.

    `comparison`: `successive`, `base` (the base and a minimum), `learners` (two learners after one task), or `any`.
    """

    comparison: str
    start: Place
    end: Place


def weight_links(places: Sequence[Place]) -> list[Link]:
    """All pairs of each learner's minima, and the learners after each task.

    >>> [link.comparison for link in weight_links([Place(1, "fast"), Place(2, "fast"), Place(3, "fast")])]
    ['successive', 'any', 'successive']
    """
    links = [
        Link("successive" if b.number == a.number + 1 else "any", a, b)
        for a, b in combinations(places, 2)
        if a.learner == b.learner
    ]
    return links + _learner_links(places)


def task_links(places: Sequence[Place]) -> list[Link]:
    """Successive minima (the base before the first), the base and each minimum, and the learners after each task.

    >>> links = task_links([Place(1, "fast"), Place(2, "fast")])
    >>> [(link.comparison, link.start.name, link.end.name) for link in links][:2]
    [('successive', '0/base', '1/fast'), ('successive', '1/fast', '2/fast')]
    """
    base = Place(0, "base")
    links = [Link("successive", Place(p.number - 1, p.learner) if p.number > 1 else base, p) for p in places]
    links += [Link("base", base, p) for p in places]
    return links + _learner_links(places)


def _learner_links(places: Sequence[Place]) -> list[Link]:
    return [Link("learners", a, b) for a, b in combinations(sorted(places), 2) if a.number == b.number]


def distance_rows(a: Point, b: Point) -> list[dict[str, Any]]:
    """Distances in each space, of all modules together (`all`) and of each.

    Factors of different ranks have no difference, so that `factor` is then left out.
    """
    same_shapes = {n: t.shape for n, t in a.items()} == {n: t.shape for n, t in b.items()}
    rows = []
    for space in space_names():
        if space == "factor" and not same_shapes:
            continue
        for module, found in {"all": weight_distance(a, b, space), **module_distances(a, b, space)}.items():
            row = {"distance": found.distance, "relative": found.relative, "cosine": found.cosine}
            rows.append({"space": space, "module": module, **row, "norm_start": found.norm_a, "norm_end": found.norm_b})
    return rows


def overlap_rows(a: Point, b: Point) -> list[dict[str, Any]]:
    """Principal angles, in degrees, of each module's column and row space; without angles the cells are empty."""
    rows = []
    for side in SIDES:
        for module, found in subspace_overlap(a, b, side).items():
            angles = np.rad2deg(found.angles)
            some = len(angles) > 0
            rows.append(
                {
                    "module": module,
                    "side": side,
                    "rank_start": found.rank_a,
                    "rank_end": found.rank_b,
                    "dimension": found.dimension,
                    "num_angles": len(angles),
                    "overlap": found.overlap,
                    "random_overlap": found.random_overlap,
                    "smallest_angle": float(angles[0]) if some else None,
                    "mean_angle": float(angles.mean()) if some else None,
                    "largest_angle": float(angles[-1]) if some else None,
                    "angles": " ".join(f"{angle:.6g}" for angle in angles),
                }
            )
    return rows


def cka_rows(told: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per layer: CKA of one task, or its mean over several, with a 95 % interval over examples.

    Examples of different tasks are independent, so that squared standard errors add up.
    """
    values = np.array([t["cka"] for t in tasks], dtype=float).mean(axis=0)
    errors = np.sqrt((np.array([t["cka_error"] for t in tasks], dtype=float) ** 2).sum(axis=0)) / len(tasks)
    number = sum(len(t["targets"]) for t in tasks)
    return [
        {**told, "layer": layer, "num_examples": number, "cka": value}
        | {"cka_low": value - 1.96 * error, "cka_high": value + 1.96 * error}
        for layer, (value, error) in enumerate(zip(values, errors, strict=True), start=1)
    ]


def prediction_row(told: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Churn (share of examples) and divergences (nats per target token), with 95 % intervals over examples.

    Of several tasks it is the mean of the tasks' values. `<name>_few_events` says where an interval cannot promise its
    95 % (`mcanalysis.metrics.intervals`).
    """
    targets = [np.array(t["targets"]) for t in tasks]
    row = {**told, "num_examples": sum(map(len, targets)), "num_targets": sum(int(t.sum()) for t in targets)}
    for name in DIVERGENCES:
        samples = [
            Sample(_per_example(t, name), None if name == "churn" else of_task)
            for t, of_task in zip(tasks, targets, strict=True)
        ]
        interval = mean_interval(
            weighted([(1 / len(samples), Estimate.of(s, is_score=name == "churn")) for s in samples]), least=0.0
        ).at(0)
        row |= {name: float(np.mean([s.mean() for s in samples])), **interval.columns(name)}
        row[f"{name}_few_events"] = bool(interval.few_events)
    return row


def _per_example(values: Mapping[str, Any], name: str) -> np.ndarray:
    if name == "symmetric_kl":
        return (np.array(values["kl"], dtype=float) + np.array(values["reverse_kl"], dtype=float)) / 2
    return np.array(values[name], dtype=float)
