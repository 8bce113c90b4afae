"""Joint training: all tasks at once, the upper bound that continual learning is measured against."""

from __future__ import annotations

from mcanalysis.strategies.strategy import Strategy


class Joint(Strategy):
    """Cross entropy on the train splits of all tasks shuffled together, with the steps of all of them.

    >>> Joint.schedule
    'joint'
    """

    name = "joint"
    reference = "multi-task learning as upper bound, e.g. Lopez-Paz & Ranzato 2017, arXiv 1706.08840"
    schedule = "joint"
