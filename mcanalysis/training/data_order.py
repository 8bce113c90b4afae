"""Which examples each optimiser step sees: fixed by the seed alone, whatever happens to the global random state."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

_WINDOW = 20  # steps whose examples are sorted together: enough to save padding, few enough to stay a shuffle


def steps_of_examples(
    lengths: Sequence[int], num_steps: int, step_size: int, seed: str, group_by_length: bool = False
) -> list[list[tuple[int, bool]]]:
    """Per step, `step_size` pairs (index of an example, whether this is its first appearance).

    The examples are passed through again and again, in a new order each time; a pass that does not fill its last step
    shares it with the next one, so every step is full. Within a step the order goes from short to long, so that its
    micro-batches need little padding. With `group_by_length`, the examples of a few steps at a time are sorted by
    length before they are cut into steps, and those steps shuffled, so that a step needs little, too.

    >>> steps = steps_of_examples([5, 1, 4, 2], num_steps=3, step_size=2, seed="a")
    >>> [len(s) for s in steps], sorted(i for s in steps for i, first in s if first)
    ([2, 2, 2], [0, 1, 2, 3])
    """
    rng = Random(f"order/{seed}")
    steps: list[list[tuple[int, bool]]] = []
    left: list[tuple[int, bool]] = []
    first = True
    while len(steps) < num_steps:
        order = [(i, first) for i in range(len(lengths))]
        rng.shuffle(order)
        first = False
        if left:  # kept apart from the sorting, which would put the two appearances of an example into one step
            missing = step_size - len(left)
            left, order = left + order[:missing], order[missing:]
            if len(left) < step_size:
                continue
            steps.append(left)
        full = len(order) // step_size * step_size
        left = order[full:]
        for start in range(0, full, _WINDOW * step_size):
            window = order[start : min(start + _WINDOW * step_size, full)]
            if group_by_length:
                window.sort(key=lambda pair: lengths[pair[0]])
            cut = [window[i : i + step_size] for i in range(0, len(window), step_size)]
            if group_by_length:
                rng.shuffle(cut)
            steps += cut
    return [sorted(step, key=lambda pair: lengths[pair[0]]) for step in steps[:num_steps]]


def forked(
    steps: Sequence[Sequence[tuple[int, bool]]], after: int, num_examples: int, lengths: Sequence[int], seed: str
) -> list[list[tuple[int, bool]]]:
    """The same examples in another order from step `after` on; the steps before it are as they were.

    Every stretch of `num_examples` of what is left, as many as a pass has, is shuffled in itself, so that a fork sees
    what the other saw in that stretch, each first appearance once.

    >>> steps = steps_of_examples([1] * 4, num_steps=4, step_size=2, seed="a")
    >>> fork = forked(steps, 2, 4, [1] * 4, seed="b")
    >>> fork[:2] == steps[:2], sorted(i for step in fork[2:] for i, _ in step)
    (True, [0, 1, 2, 3])
    """
    rng = Random(f"fork/{seed}")
    left = [pair for step in steps[after:] for pair in step]
    for start in range(0, len(left), num_examples):
        stretch = left[start : start + num_examples]
        rng.shuffle(stretch)
        left[start : start + num_examples] = stretch
    pairs = iter(left)
    rest = [[next(pairs) for _ in step] for step in steps[after:]]
    return [*map(list, steps[:after]), *(sorted(step, key=lambda pair: lengths[pair[0]]) for step in rest)]
