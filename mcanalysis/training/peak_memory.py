"""The most memory a stretch of work held, as far as the system tells."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch


def reset_peak_memory() -> None:
    """Forget earlier peaks, where the system can."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_bytes() -> int | None:
    """Bytes of the GPU where there is one, else of this process; None where the system does not say.

    >>> peak_memory_bytes() is None or peak_memory_bytes() > 1_000_000
    True
    """
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)
