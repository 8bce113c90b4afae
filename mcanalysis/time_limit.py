"""Asking somebody who may not answer."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


def answer_within(seconds: float, ask: Callable[[], T]) -> T:
    """Return what a function returns, or raise what it raises, if that is within so many seconds.

    Timeouts of clients are for one step of a connection each, and looking up a name has none. Raises `TimeoutError`
    after that time; the function goes on in a thread of its own, which does not keep the process alive.

    >>> answer_within(5.0, lambda: "here")
    'here'
    """
    answers: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            answers.append(ask())
        except Exception as error:
            errors.append(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"no answer in {seconds:g} s")
    return answers[0]
