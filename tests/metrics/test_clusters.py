"""Clusters of minima by their barriers, against average linkage by hand."""

import numpy as np

from mcanalysis.metrics.clusters import clusters


def by_hand(distances, cut):
    """Merge the two groups with the smallest mean distance over their pairs, until the next is above the cut."""
    groups = [[k] for k in range(len(distances))]
    heights = []
    history = [[list(g) for g in groups]]
    while len(groups) > 1:
        pairs = [
            (np.mean(distances[np.ix_(a, b)]), i, j) for i, a in enumerate(groups) for j, b in enumerate(groups[:i])
        ]
        height, i, j = min(pairs)
        heights.append(height)
        groups[j] += groups.pop(i)
        history.append([list(g) for g in groups])
    return history[sum(h <= cut * max(heights) for h in heights)]


def test_clusters_are_those_of_average_linkage_by_hand():
    rng = np.random.default_rng(0)
    for _ in range(20):
        x = np.concatenate([rng.normal(c, 0.4, 3) for c in (0.0, 3.0, 7.0)])[rng.permutation(9)]
        distances = np.abs(x[:, None] - x) ** 1.5  # no triangle inequality
        found = clusters(distances)
        groups = {frozenset(np.flatnonzero(found.numbers == n).tolist()) for n in set(found.numbers.tolist())}
        assert groups == {frozenset(group) for group in by_hand(distances, 0.7)}
        assert found.numbers[0] == 1 and sorted(found.order.tolist()) == list(range(9))
        ordered = found.numbers[found.order]
        assert (np.diff(ordered) != 0).sum() == len(groups) - 1  # each cluster in one piece


def test_all_are_one_where_nothing_is_apart_and_none_where_a_barrier_is_no_number():
    far = np.array([[0, 1, 2.0], [1, 0, 3.0], [2, 3, 0.0]])
    assert clusters(far).numbers.tolist() == [1, 1, 2]
    assert clusters(far, are_apart=False).numbers.tolist() == clusters(0 * far).numbers.tolist() == [1, 1, 1]
    far[0, 1] = far[1, 0] = np.nan
    assert clusters(far).numbers.tolist() == [0, 0, 0]
