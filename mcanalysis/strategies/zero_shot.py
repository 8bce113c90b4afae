"""Zero-shot: the base model as it is, row 0 of every accuracy matrix."""

from __future__ import annotations

from mcanalysis.strategies.strategy import Strategy


class ZeroShot(Strategy):
    """No training: every row of the accuracy matrix is that of the base, and there are no minima.

    >>> ZeroShot.schedule
    'none'
    """

    name = "zero_shot"
    reference = "the base model; a baseline of Ren et al. 2024, arXiv 2402.18865"
    learners = ("base",)
    schedule = "none"
    has_paths = False
