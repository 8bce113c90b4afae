"""The state of a random generator as JSON types, so that what a run draws goes on after a stop."""

from __future__ import annotations

from random import Random
from typing import Any


def random_state(rng: Random) -> list[Any]:
    """The state, as JSON types.

    >>> from random import Random
    >>> first, second = Random(1), Random(2)
    >>> set_random_state(second, random_state(first))
    >>> first.random() == second.random()
    True
    """
    version, internal, gauss = rng.getstate()
    return [version, list(internal), gauss]


def set_random_state(rng: Random, state: list[Any]) -> None:
    """Put a generator into a state that `random_state` gave."""
    version, internal, gauss = state
    rng.setstate((version, tuple(internal), gauss))
