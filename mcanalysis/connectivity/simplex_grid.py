"""Several minima at once: is there one region between them that is good for all tasks?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from mcanalysis.connectivity.losses import refuse_draws
from mcanalysis.connectivity.objective_result import examples_of, has_examples, number_of, score_of
from mcanalysis.connectivity.profile import PerExample
from mcanalysis.errors import UserError
from mcanalysis.paths import Simplex


def simplex_weights(simplex: Simplex, num_points: int) -> list[tuple[float, ...]]:
    """The finest regular barycentric grid of at most `num_points` points (corners at least), and the centroid.

    >>> import torch
    >>> triangle = Simplex(*({"w": torch.tensor([x])} for x in (0.0, 1.0, 2.0)))
    >>> len(simplex_weights(triangle, 21)), len(simplex_weights(triangle, 2))
    (22, 4)
    """
    num = 2
    while len(simplex.grid(num + 1)) <= num_points:
        num += 1
    corners = len(simplex.anchors)
    weights = [tuple(row) for row in simplex.grid(num).tolist()]
    centroid = (1.0 / corners,) * corners
    there = any(np.allclose(row, centroid, rtol=0, atol=1e-12) for row in weights)
    return weights if there else [*weights, centroid]


def simplex_profile(
    simplex: Simplex,
    objectives: Mapping[str, Callable[[Mapping[str, Tensor]], float | PerExample]],
    weights: Sequence[Sequence[float]],
) -> pd.DataFrame:
    """Measure objectives at barycentric coordinates, one point in memory at a time.

    Args:
        simplex: of k minima, in any space; plain points as well.
        objectives: by name, functions of a point as in `profile`.
        weights: shape (n, k), rows summing to one, as `simplex_weights` gives them.

    Returns:
        One row per point and objective: `w1` … `wk`, `task`, `loss`, and `score` where the objective has one.

    Raises:
        UserError: for no objective, one without a name or that draws minibatches, no weights, or weights that do not
            fit.

    >>> import torch
    >>> edge = Simplex({"w": torch.tensor([0.0])}, {"w": torch.tensor([2.0])})
    >>> simplex_profile(edge, {"square": lambda p: float(p["w"] ** 2)}, [(1.0, 0.0), (0.5, 0.5)]).loss.tolist()
    [0.0, 1.0]
    """
    if not isinstance(objectives, Mapping):
        raise UserError(
            f'Expected objectives by name, got {type(objectives).__name__}; pass a dict such as {{"task": objective}}.'
        )
    for objective in objectives.values():
        refuse_draws(objective)
    if not objectives or not len(weights):
        raise UserError("Expected at least one objective and one point of the simplex, got none; pass both.")
    rows = []
    for row in weights:
        point = simplex([float(w) for w in row])
        for name, objective in objectives.items():
            rows.append({**coordinates(row), "task": name, **_numbers(objective(point))})
    return pd.DataFrame(rows)


def coordinates(weights: Sequence[float]) -> dict[str, float]:
    """The columns of a point's barycentric coordinates.

    >>> coordinates([0.5, 0.5])
    {'w1': 0.5, 'w2': 0.5}
    """
    return {f"w{i}": float(w) for i, w in enumerate(weights, start=1)}


def best_of_simplex(table: pd.DataFrame) -> dict[str, Any]:
    """Where the mean score over all tasks is highest, chosen on the eval split and judged on the test split.

    Args:
        table: rows of `simplex.csv` of one run and space: `w1` … `wk`, `split`, `task`, `score`.

    Returns:
        The coordinates of that point, `mean_score` there, `best_corner` (that of the corner best on eval), `gain`
        (the difference, which can be negative), `worst_score` and `worst_task` there; all on the test split, NaN where
        a score is.
    """
    names = [c for c in table.columns if c.startswith("w") and c[1:].isdigit()]
    on_eval, on_test = (
        table[table["split"] == split].set_index([*names, "task"])["score"].unstack("task")
        for split in ("eval", "test")
    )
    places = np.array([list(index) for index in on_eval.index])  # one row of coordinates per point
    means = np.nan_to_num(on_eval.mean(axis=1, skipna=False).to_numpy(), nan=-np.inf)
    is_corner = places.max(axis=1) == 1.0
    best, corner = int(np.argmax(means)), int(np.argmax(np.where(is_corner, means, -np.inf)))
    scores = on_test.reindex(on_eval.index).iloc[best]
    mean, of_corner = (float(on_test.reindex(on_eval.index).iloc[i].mean(skipna=False)) for i in (best, corner))
    return {
        **dict(zip(names, map(float, places[best]), strict=True)),
        "mean_score": mean,
        "best_corner": of_corner,
        "gain": mean - of_corner,
        "worst_score": float(scores.min(skipna=False)),
        "worst_task": "" if scores.isna().any() else str(scores.idxmin()),
    }


def _numbers(result: Any) -> dict[str, float]:
    if has_examples(result):
        result = examples_of(result)  # which also checks the shapes
    loss, score = number_of(result), score_of(result)
    return {"loss": loss} if score is None else {"loss": loss, "score": score}
