"""How many examples go through a network, forward and backward: counted where every pass of a training is made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from torch import Tensor
from torch.autograd.graph import register_multi_grad_hook


@dataclass
class Passes:
    """Examples, and the tokens of their rows (padding included, vectors of prompts not), by direction.

    A text that is written token by token is one example.
    """

    forward_examples: int = 0
    backward_examples: int = 0
    forward_tokens: int = 0
    backward_tokens: int = 0

    def add_backward(self, examples: int, tokens: int) -> None:
        """Count examples whose gradient was taken."""
        self.backward_examples += examples
        self.backward_tokens += tokens


_counted: ContextVar[Passes | None] = ContextVar("counted", default=None)


@contextmanager
def counting(passes: Passes) -> Iterator[None]:
    """Add the passes inside to these, and those backward through them whenever they come."""
    token = _counted.set(passes)
    try:
        yield
    finally:
        _counted.reset(token)


def count_pass(examples: int, tokens: int, results: Sequence[Tensor] = ()) -> None:
    """Tell of a pass forward, and count one backward each time that a gradient comes to any of its results.

    >>> import torch
    >>> x, passes = torch.ones(2, requires_grad=True), Passes()
    >>> with counting(passes):
    ...     y = 2 * x
    ...     count_pass(examples=2, tokens=6, results=[y])
    >>> y.sum().backward()
    >>> passes
    Passes(forward_examples=2, backward_examples=2, forward_tokens=6, backward_tokens=6)
    """
    passes = _counted.get()
    if passes is None:
        return
    passes.forward_examples += examples
    passes.forward_tokens += tokens
    if tracked := [result for result in results if result.requires_grad]:
        register_multi_grad_hook(tracked, lambda _: passes.add_backward(examples, tokens), mode="any")
