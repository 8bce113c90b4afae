"""Sequential fine-tuning: one adapter, task after task, nothing done against forgetting."""

from __future__ import annotations

from mcanalysis.strategies.strategy import Strategy


class Sequential(Strategy):
    """Cross entropy on the current task; a fresh optimiser and schedule per task.

    >>> Sequential.name, Sequential.learners
    ('sequential', ('fast',))
    """

    name = "sequential"
    reference = "the lower bound of every continual-learning comparison, e.g. Lopez-Paz & Ranzato 2017"
