"""SIGTERM and Ctrl-C: finish the step, save, and leave."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether this process has been asked to stop; `signal` is the number that asked."""

    def __init__(self) -> None:
        self.signal = 0
        self._at_once = False

    def __bool__(self) -> bool:
        return self.signal != 0

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Where there is nothing to save, a signal stops the process at once."""
        self._at_once = True
        try:
            if self:
                raise Stopped(self.signal)
            yield
        finally:
            self._at_once = False

    def _received(self, number: int, frame: FrameType | None) -> None:
        again, self.signal = self.signal == number == signal.SIGINT, number
        if self._at_once or again:  # a second Ctrl-C does not wait for the step
            raise Stopped(number)


class Stopped(BaseException):
    """Raised once what can be kept has been kept; `exit_code` is what a shell gives a process ended by the signal.

    No `Exception`, so that nothing which handles failures takes a stop for one.

    >>> Stopped(15).exit_code
    143
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Turn SIGTERM and SIGINT into a request for the length of the block; outside the main thread they are left."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request._received) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
