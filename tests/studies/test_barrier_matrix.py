"""Which barriers between many minima are told from 0, and what clusters rest on."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from mcanalysis.studies.connectivity.barrier_matrix import barrier_matrix

NAMES = [f"m{k}" for k in range(1, 9)]


def clusters(barriers, names, low=None, few=()):
    """The clusters of barriers by pair of numbers (from 1), others 0; `low` by pair, else just below 0."""
    rows = []
    for i, j in combinations(range(1, len(names) + 1), 2):
        value = barriers.get((i, j), 0.0)
        end = -0.01 if low is not None else np.nan
        rows.append({"space": "delta", "path": "linear", "task": "a", "quantity": "loss", "start": names[i - 1],
                     "end": names[j - 1], "chord_barrier": value, "few_events": (i, j) in few,
                     "chord_barrier_low": (low or {}).get((i, j), end)})  # fmt: skip
    return barrier_matrix(pd.DataFrame(rows), names).cluster.tolist()


def test_one_interval_of_many_that_excludes_zero_makes_no_clusters():
    assert clusters({(1, 2): 0.005}, NAMES, {(1, 2): 0.0002}) == [1] * 8
    assert clusters({(1, 2): 0.005}, NAMES, {(1, 2): 0.004}) != [1] * 8


def test_clusters_rest_on_what_is_told_from_zero():
    """3.0 is the highest barrier and may be none: the split is not there."""
    barriers = {(1, 2): 1.0, (1, 3): 1.0, (2, 3): 3.0}
    assert clusters(barriers, NAMES[:3], {(1, 2): 0.9, (1, 3): 0.9, (2, 3): 0.0}) == [1, 2, 2]
    assert clusters(barriers, NAMES[:3], {(1, 2): 0.9, (1, 3): 0.9, (2, 3): 2.9}, few=[(2, 3)]) == [1, 2, 2]
    assert clusters(barriers, NAMES[:3], {(1, 2): 0.0, (1, 3): 0.0, (2, 3): 0.0}) == [1, 1, 1]


@pytest.mark.parametrize(("height", "expected"), [(1e-8, [1, 1, 1]), (0.1, [1, 2, 1])])
def test_without_intervals_rounding_is_no_barrier(height, expected):
    assert clusters({(1, 2): height, (2, 3): height}, NAMES[:3]) == expected


def test_what_is_no_number_leaves_no_clusters():
    assert clusters({(1, 2): np.nan}, NAMES[:3], {(1, 2): np.nan}) == [0, 0, 0]
