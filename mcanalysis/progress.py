"""Progress reporting: the package shows nothing by itself; a script hands in `tqdm` (or anything alike)."""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol


class Bar(Protocol):
    """What is used of a progress bar; `total` may grow. `is_open`: more will follow, so that no time left is told."""

    total: float
    is_open: bool

    def update(self, n: int = 1) -> Any:
        """Count `n` more steps as done."""

    def close(self) -> None:
        """Finish."""


class Progress(Protocol):
    """Makes a bar; `tqdm.tqdm` is one."""

    def __call__(self, *, total: int, desc: str) -> Bar:
        """Start a bar over `total` steps."""
        ...


class _SilentBar:
    total = 0.0
    is_open = False

    def update(self, n: int = 1) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def silent(*, total: int, desc: str) -> Bar:
    """The default: no output.

    >>> silent(total=3, desc="training").update()
    """
    return _SilentBar()


class Pace:
    """How fast a job goes, hence how long it may still take; times in seconds of any clock.

    Told from the younger half of its time, two minutes at least: the first steps of a job may be unlike the others, and
    what is steady is told better by more of it.

    >>> pace = Pace(now=0.0)
    >>> pace.mark(now=10.0, done=1.0)
    >>> pace.mark(now=30.0, done=4.0)
    >>> pace.left(rest=8.0, now=30.0), pace.left(rest=8.0, now=40.0)
    (60.0, 50.0)
    """

    LEAST = 120.0
    _EVERY = 1.0  # seconds between two marks that are kept

    def __init__(self, now: float) -> None:
        self._began = now
        self._marks = deque([(now, 0.0)])

    def mark(self, now: float, done: float) -> None:
        """So much is done now."""
        marks = self._marks
        if len(marks) > 1 and now - marks[-2][0] < self._EVERY:
            marks.pop()
        marks.append((now, done))
        begin = now - max(self.LEAST, (now - self._began) / 2)
        while len(marks) > 2 and marks[1][0] <= begin:
            marks.popleft()

    def left(self, rest: float, now: float) -> float | None:
        """Seconds from now in which the rest may be done; None while nothing is."""
        (began, before), (last, done) = self._marks[0], self._marks[-1]
        if done <= before:
            return None
        return max(0.0, (last - began) / (done - before) * rest - (now - last))
