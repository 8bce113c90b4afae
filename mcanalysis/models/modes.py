"""Evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Switch dropout and its like off; afterwards every part of the network has its own mode back.

    >>> network = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(1).eval())
    >>> with evaluating(network):
    ...     [part.training for part in network.modules()]
    [False, False, False]
    >>> [part.training for part in network.modules()]
    [True, True, False]
    """
    modes, whole = [(part, part.training) for part in network.modules()], network.training
    network.eval()
    try:
        yield
    finally:
        network.train(whole)  # layers that do more than note it, such as one that takes its adapter out, hear of it
        for part, training in modes:
            part.training = training
