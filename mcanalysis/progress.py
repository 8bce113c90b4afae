"""Progress reporting: the package shows nothing by itself; a script hands in `tqdm` (or anything alike)."""

from __future__ import annotations

from typing import Any, Protocol


class Bar(Protocol):
    """What is used of a progress bar; `total` may grow."""

    total: float

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

    def update(self, n: int = 1) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def silent(*, total: int, desc: str) -> Bar:
    """The default: no output.

    >>> silent(total=3, desc="training").update()
    """
    return _SilentBar()
