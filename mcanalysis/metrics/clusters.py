"""Clusters of minima: which lie in one region, by how high the barriers between them are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.cluster.hierarchy import fcluster, leaves_list, linkage
from scipy.spatial.distance import squareform

CUT = 0.7
"""Of the highest merger: where SciPy's `dendrogram` parts colours unless told otherwise."""


class Clusters(NamedTuple):
    """`numbers` (k,): the cluster of each, from 1, in order of first members; `order` (k,): so that like lie together.

    Where a distance is NaN, `numbers` are 0: there are no clusters.
    """

    numbers: NDArray[np.int64]
    order: NDArray[np.int64]


def clusters(distances: ArrayLike, *, are_apart: bool = True) -> Clusters:
    """Return the clusters of average linkage, cut at 0.7 of the highest merger (SciPy's `linkage` and `fcluster`).

    The distance of two clusters is the mean over their pairs, which asks nothing of a distance but symmetry: barriers
    need not keep the triangle inequality.

    Args:
        distances: shape (k, k), symmetric, 0 on the diagonal, non-negative.
        are_apart: whether any distance is told from 0; if not, all are one cluster. So are all at distance 0.

    >>> clusters([[0, 0.1, 3], [0.1, 0, 2], [3, 2, 0]]).numbers.tolist()
    [1, 1, 2]
    """
    matrix = np.asarray(distances, dtype=np.float64)
    if not np.isfinite(matrix).all():
        return Clusters(np.zeros(len(matrix), dtype=np.int64), np.arange(len(matrix)))
    tree = linkage(squareform(matrix, checks=False), "average", optimal_ordering=True)
    top = float(tree[:, 2].max())
    found = fcluster(tree, CUT * top, "distance") if are_apart and top > 0 else np.ones(len(matrix), dtype=int)
    renamed = {old: new for new, old in enumerate(dict.fromkeys(found.tolist()), start=1)}
    return Clusters(np.array([renamed[number] for number in found.tolist()]), leaves_list(tree).astype(np.int64))
