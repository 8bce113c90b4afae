"""Hundreds of tiny products in one thread: in several, the threads wait for each other longer than they compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread for a while, or, as a decorator, for a call; afterwards in as many as before.

    For loops over the factors of an adapter, a few microseconds each. Where other processes want the same cores, every
    one of them otherwise waits until a thread of its own is scheduled again.

    >>> with one_thread():
    ...     torch.get_num_threads()
    1
    """
    number = torch.get_num_threads()
    if number == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(number)
